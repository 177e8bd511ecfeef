//! The underlay by itself, in real namespaces: plain hosts that ping each other. Needs root.

use std::path::Path;
use std::time::Duration;
use tombolo_lab::{Lab, Options, Topology};

fn topology(name: &str) -> Topology {
    let text = "
name: NAME
underlay:
  mtu: 1400
  segments:
    east: {prefix: 198.51.100.0/25}
    west: {prefix: 198.51.100.128/25}
    six: {prefix: '2001:db8::/64'}
  controller: {address: 198.51.100.10, port: 8443}
hosts:
  a: {address: 198.51.100.11}
  b: {address: 198.51.100.12}
  c: {address: 198.51.100.139}
  d: {address: '2001:db8::11'}
resources: {}
";
    Topology::parse(&text.replace("NAME", name)).unwrap()
}

async fn answers(lab: &Lab, from: &str, to: &str) -> bool {
    let argv = ["ping", "-n", "-c", "1", "-W", "0.5", to];
    lab.exec(from, &argv, Duration::from_secs(5)).await.unwrap().code == 0
}

fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run as root"
    );
}

#[tokio::test]
async fn hosts_reach_each_other_until_a_link_is_cut() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        state_dir: Some(dir.path().join("lab")),
        ..Options::default()
    };
    let lab = Lab::underlay_only(&topology("tlu1"), options).await.unwrap();

    assert!(answers(&lab, "a", "198.51.100.12").await, "one segment");
    assert!(answers(&lab, "a", "198.51.100.139").await, "routed between segments");
    assert!(answers(&lab, "d", "2001:db8::1").await, "IPv6");
    let big = [
        "ping",
        "-n",
        "-c",
        "1",
        "-W",
        "0.5",
        "-M",
        "do",
        "-s",
        "1373",
        "198.51.100.12",
    ];
    let done = lab.exec("a", &big, Duration::from_secs(5)).await.unwrap();
    assert_ne!(done.code, 0, "1401 bytes do not fit: {}", done.stdout);

    lab.cut("b").unwrap();
    assert!(!answers(&lab, "a", "198.51.100.12").await, "b is cut off");
    assert!(answers(&lab, "a", "198.51.100.139").await, "nobody else is");
    lab.restore("b").unwrap();
    assert!(answers(&lab, "a", "198.51.100.12").await, "b is back");

    lab.cut_pair("a", "c").unwrap();
    assert!(!answers(&lab, "a", "198.51.100.139").await);
    assert!(answers(&lab, "b", "198.51.100.139").await, "only the pair is cut");
    lab.restore_pair("a", "c").unwrap();
    assert!(answers(&lab, "a", "198.51.100.139").await);

    lab.readdress("b", "198.51.100.150".parse().unwrap()).unwrap();
    assert!(
        answers(&lab, "a", "198.51.100.150").await,
        "b moved to the other segment"
    );
    assert!(!answers(&lab, "a", "198.51.100.12").await, "and left its old address");
    assert!(lab.cut("nobody").is_err());

    lab.down().unwrap();
    assert!(!dir.path().join("lab").exists());
    assert!(left("tb-tlu1-").is_empty(), "{:?}", left("tb-tlu1-"));
}

#[tokio::test]
async fn what_a_crash_left_is_found_and_removed() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let options = |replace| Options {
        state_dir: Some(dir.path().join("lab")),
        detached: true,
        replace,
        ..Options::default()
    };
    let lab = Lab::underlay_only(&topology("tlu2"), options(false)).await.unwrap();
    // Detached, so this is what a program leaves that was killed: namespaces, and a process in one.
    let mut orphan = std::process::Command::new("ip")
        .args(["netns", "exec", "tb-tlu2-a", "sleep", "600"])
        .spawn()
        .unwrap();
    drop(lab);
    assert_eq!(left("tb-tlu2-").len(), 6);

    let refused = Lab::underlay_only(&topology("tlu2"), options(false)).await;
    assert!(refused.err().unwrap().to_string().contains("up already"));

    let lab = Lab::underlay_only(&topology("tlu2"), options(true)).await.unwrap();
    assert!(
        orphan.try_wait().unwrap().is_some(),
        "the process in the old lab was ended"
    );
    drop(lab);
    Lab::attach(&dir.path().join("lab")).unwrap().down().unwrap();
    assert!(left("tb-tlu2-").is_empty(), "{:?}", left("tb-tlu2-"));
    assert!(Lab::attach(&dir.path().join("lab")).is_err());
}

fn left(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(Path::new("/run/netns")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(prefix)).collect()
}
