//! Delays between segments, in real namespaces. Needs root, and the program `tombolo` beside the tests (`cargo build
//! --workspace --bins`).
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::time::Duration;
use tombolo_lab::probe::PingResult;
use tombolo_lab::{Lab, Options, Topology};

const TOPOLOGY: &str = "
name: tld1
underlay:
  segments:
    near: {prefix: 198.51.100.0/26}
    far: {prefix: 198.51.100.64/26}
    lossy: {prefix: 198.51.100.128/26}
    six: {prefix: '2001:db8::/64'}
    far-six: {prefix: '2001:db8:1::/64'}
  controller: {address: 198.51.100.10, port: 8443}
  delays:
    - {between: [near, far], oneWayMs: 40}
    - {between: [lossy, near], oneWayMs: 0, loss: 0.5}
    - {between: [six, far-six], oneWayMs: 20}
hosts:
  a: {address: 198.51.100.11}
  b: {address: 198.51.100.12}
  c: {address: 198.51.100.71}
  d: {address: 198.51.100.131}
  e: {address: '2001:db8::11'}
  f: {address: '2001:db8:1::11'}
resources: {}
";

async fn ping(lab: &Lab, from: &str, to: &str, count: &str) -> PingResult {
    let argv = ["ping", "-n", "-c", count, "-i", "0.02", "-s", "1400", "-W", "2", to];
    let done = lab.exec(from, &argv, Duration::from_secs(30)).await.unwrap();
    PingResult::read(&done.stdout).unwrap()
}

#[tokio::test]
async fn segments_have_the_configured_delay_and_loss() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run as root"
    );
    let options = Options {
        replace: true,
        ..Options::default()
    };
    let lab = Lab::underlay_only(&Topology::parse(TOPOLOGY).unwrap(), options)
        .await
        .unwrap();
    // Without netem the lines lose all packets until the program that delays the packets has started.
    let start = std::time::Instant::now();
    while ping(&lab, "e", "2001:db8:1::11", "1").await.none() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the line does not carry anything"
        );
    }

    let same = ping(&lab, "a", "198.51.100.12", "10").await;
    assert!(same.all() && same.median_ms().unwrap() < 20.0, "{same}");
    let far = ping(&lab, "a", "198.51.100.71", "20").await;
    // The lab delays packets by 40 ms in each direction. On a busy machine the round trip may take up to 40 ms more.
    assert!(far.all() && (80.0..120.0).contains(&far.median_ms().unwrap()), "{far}");
    let back = ping(&lab, "c", "198.51.100.11", "20").await;
    assert!(
        back.all() && (80.0..120.0).contains(&back.median_ms().unwrap()),
        "{back}"
    );
    let six = ping(&lab, "e", "2001:db8:1::11", "20").await;
    assert!(six.all() && (40.0..80.0).contains(&six.median_ms().unwrap()), "{six}");
    // Half of the packets are lost in each direction, so a quarter of the replies arrives: about 25, within wide
    // bounds.
    let lossy = ping(&lab, "a", "198.51.100.131", "100").await;
    assert!((5..60).contains(&lossy.received), "{lossy}");
    let unrelated = ping(&lab, "c", "198.51.100.131", "10").await;
    assert!(unrelated.all() && unrelated.median_ms().unwrap() < 20.0, "{unrelated}");

    lab.down().unwrap();
}
