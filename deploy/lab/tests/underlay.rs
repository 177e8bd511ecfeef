//! The underlay without a controller and agents, in real namespaces: plain hosts ping each other. Needs root.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::path::Path;
use std::time::Duration;
use tombolo_lab::probe::PingResult;
use tombolo_lab::state::dir_of;
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
    // One reply to three echo requests suffices, because a busy machine may send the other replies too late.
    let argv = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1.5", to];
    lab.exec(from, &argv, Duration::from_secs(10)).await.unwrap().code == 0
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
    let lab = Lab::underlay_only(&topology("tlu1"), replacing()).await.unwrap();

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
    // T8: a disconnected host receives no ICMP errors. The host's own kernel would make such errors after three seconds
    // if the host's neighbour entry for the router could expire. So this ping lasts four seconds.
    let far = ["ping", "-n", "-c", "40", "-i", "0.1", "-W", "1", "203.0.113.9"];
    let far = lab.exec("b", &far, Duration::from_secs(20)).await.unwrap();
    let pinged = PingResult::read(&far.stdout).unwrap();
    assert!(pinged.none() && pinged.refusals == 0, "{pinged}: {}", far.stdout);
    lab.restore("b").unwrap();
    assert!(answers(&lab, "a", "198.51.100.12").await, "b is back");

    lab.cut_pair("a", "c").unwrap();
    assert!(!answers(&lab, "a", "198.51.100.139").await);
    assert!(answers(&lab, "b", "198.51.100.139").await, "only the pair is cut");
    lab.cut_pair("a", "b").unwrap();
    lab.restore_pair("a", "c").unwrap();
    assert!(answers(&lab, "a", "198.51.100.139").await);
    assert!(!answers(&lab, "a", "198.51.100.12").await, "the other cut stays");
    assert_eq!(cuts(&lab, "a").await, 1);
    assert_eq!(cuts(&lab, "b").await, 1, "both halves of it");
    lab.restore_pair("a", "c").unwrap();
    lab.restore_pair("b", "a").unwrap();
    assert!(answers(&lab, "a", "198.51.100.12").await);

    lab.readdress("b", "198.51.100.150".parse().unwrap()).unwrap();
    assert!(
        answers(&lab, "a", "198.51.100.150").await,
        "b moved to the other segment"
    );
    assert!(!answers(&lab, "a", "198.51.100.12").await, "its old address is gone");
    assert!(lab.cut("nobody").is_err());

    lab.down().unwrap();
    assert!(!dir_of(None, "tlu1").exists());
    assert!(left("tb-tlu1-").is_empty(), "{:?}", left("tb-tlu1-"));
}

#[tokio::test]
async fn the_remains_of_a_crash_are_found_and_removed() {
    require_root();
    let dir = dir_of(None, "tlu2");
    let detached = Options {
        detached: true,
        ..replacing()
    };
    let lab = Lab::underlay_only(&topology("tlu2"), detached.clone()).await.unwrap();
    // The detached lab is left as a killed program would leave it: with namespaces, a process in one of them, and
    // files.
    let mut orphan = std::process::Command::new("ip")
        .args(["netns", "exec", "tb-tlu2-a", "sleep", "600"])
        .spawn()
        .unwrap();
    let store = lab.controller_dir().unwrap().join("state.db");
    std::fs::create_dir_all(store.parent().unwrap()).unwrap();
    std::fs::write(&store, "agents that are no more").unwrap();
    let running = Lab::underlay_only(&topology("tlu2"), Options::default()).await;
    assert!(format!("{:#}", running.err().unwrap()).contains("another program works on the lab"));
    drop(lab);
    assert_eq!(left("tb-tlu2-").len(), 6);

    let refused = Lab::underlay_only(&topology("tlu2"), Options::default()).await;
    assert!(refused.err().unwrap().to_string().contains("up already"));

    let lab = Lab::underlay_only(&topology("tlu2"), detached).await.unwrap();
    assert!(
        orphan.try_wait().unwrap().is_some(),
        "the process in the old lab was ended"
    );
    assert!(!store.exists(), "a new controller would find the old one's store");
    drop(lab);
    Lab::attach(&dir).unwrap().down().unwrap();
    assert!(left("tb-tlu2-").is_empty(), "{:?}", left("tb-tlu2-"));
    assert!(Lab::attach(&dir).is_err());
}

#[tokio::test]
async fn a_namespace_that_the_lab_did_not_make_is_kept() {
    require_root();
    let ip = |verb: &str| {
        let argv = ["netns", verb, "tb-tlu3-b"];
        std::process::Command::new("ip").args(argv).status().unwrap().success()
    };
    // An earlier run of this test may have been killed before it removed the namespace, so the namespace is removed
    // here.
    if left("tb-tlu3-").contains(&"tb-tlu3-b".to_owned()) {
        assert!(ip("del"));
    }
    assert!(ip("add"));
    let refused = Lab::underlay_only(&topology("tlu3"), replacing()).await;
    let said = format!("{:#}", refused.err().unwrap());
    assert!(said.contains("tb-tlu3-b exists already"), "{said}");
    assert_eq!(
        left("tb-tlu3-"),
        ["tb-tlu3-b"],
        "what the lab made is gone, and only that"
    );
    assert!(!dir_of(None, "tlu3").exists());
    assert!(ip("del"));
}

/// Returns options with `replace` and with the default state folder, so that a test takes down the lab that an aborted
/// run of the same test has left.
fn replacing() -> Options {
    Options {
        replace: true,
        ..Options::default()
    }
}

/// Returns the number of other hosts from which a host is cut off by [`Lab::cut_pair`].
async fn cuts(lab: &Lab, host: &str) -> usize {
    let done = lab.exec(host, &["nft", "list", "tables"], Duration::from_secs(5)).await;
    let done = done.unwrap();
    assert_eq!(done.code, 0, "{}", done.stderr);
    done.stdout.lines().count()
}

/// Returns the names of the network namespaces that begin with `prefix`.
fn left(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(Path::new("/run/netns")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(prefix)).collect()
}
