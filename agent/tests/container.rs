//! Tests agents in the conditions of a container: `/proc/sys` is read-only, and standard error is no terminal.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Wire, config, eventually, try_sh};
use std::process::{Command, Output};
use tombolo_proto::config::{AgentConfig, Role};

/// Runs the agent with a read-only `/proc/sys`, and waits until it ends by itself.
fn run(host: &Host, ns: &str, environment: &[(&str, &str)]) -> Output {
    Command::new("ip")
        .args(["netns", "exec", ns])
        .args(common::READ_ONLY_SWITCHES)
        .args([env!("CARGO_BIN_EXE_tombolo-agent"), "run", "--state-dir"])
        .arg(host.path())
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn health(host: &Host) -> (bool, String) {
    let program = env!("CARGO_BIN_EXE_tombolo-agent");
    try_sh(&format!("{program} health --state-dir {}", host.path().display()))
}

/// The configuration of an appliance, which is a VM whose kernel forwards packets.
fn appliance(hosts: [&Host; 2]) -> AgentConfig {
    let mut config = config(0, hosts);
    if let Role::Vm { nics, .. } = &mut config.role {
        nics[0].ip_forwarding = true;
    }
    config
}

#[test]
fn switches_that_cannot_be_set_are_named_with_what_sets_them() {
    let wire = Wire::with_hosts("switches", 1);
    let mut host = Host::new(&wire.ns[0], "appliance");
    let other = Host::new(&wire.ns[0], "other");
    host.remember(appliance([&host, &other]));
    let device = host.config.interface.clone();

    // The agent does not start if sysctls that every agent needs have wrong values, which it cannot change here.
    let done = run(&host, &wire.ns[0], &[]);
    assert!(!done.status.success());
    let text = String::from_utf8(done.stderr).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "ERROR", "{text}");
    let message = last["message"].as_str().unwrap();
    for part in [
        format!("net.ipv6.conf.{device}.addr_gen_mode is 0, needed: 1 (Read-only file system"),
        format!("net.ipv6.conf.{device}.accept_ra is 1, needed: 0"),
        "--sysctl net.ipv6.conf.default.accept_ra=0 --sysctl net.ipv6.conf.default.addr_gen_mode=1".to_owned(),
    ] {
        assert!(message.contains(&part), "{part}: {message}");
    }
    let done = run(&host, &wire.ns[0], &[("TOMBOLO_LOG_FORMAT", "text")]);
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(text.contains("ERROR") && !text.contains('{'), "{text}");

    // If only the sysctls that an appliance needs have wrong values, the agent runs, but rejects the configuration and
    // names these sysctls.
    let set = |switches: &str| drop(wire.run(0, &format!("sysctl -qw {switches}")));
    set("net.ipv6.conf.default.accept_ra=0 net.ipv6.conf.default.addr_gen_mode=1");
    set("net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    set("net.ipv4.conf.all.send_redirects=1 net.ipv4.conf.default.send_redirects=1");
    host.read_only_switches = true;
    host.start();
    let (ok, text) = health(&host);
    assert!(!ok, "{text}");
    for option in [
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.default.send_redirects=0",
        "net.ipv6.conf.all.forwarding=1",
    ] {
        assert!(text.contains(&format!("--sysctl {option}")), "{option}: {text}");
    }
    assert!(text.contains("was rejected"), "{text}");
    assert!(
        !wire.run(0, "ip -o addr").contains("10.1.0.4"),
        "no part of a rejected configuration is applied"
    );
    assert!(host.stop(nix::sys::signal::Signal::SIGTERM), "{}", host.log());

    // If all sysctls have the right values before the start, the agent need not write them, and the configuration is
    // applied.
    set("net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    set("net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.default.send_redirects=0");
    host.start();
    eventually("healthy", || health(&host).0);
    let (_, text) = health(&host);
    assert!(
        text.contains("revision 7 is in force") && text.contains("is not reached"),
        "{text}"
    );
    assert_eq!(
        wire.run(0, &format!("cat /proc/sys/net/ipv4/conf/{device}/forwarding"))
            .trim(),
        "1"
    );
    assert!(host.stop(nix::sys::signal::Signal::SIGTERM), "{}", host.log());
    assert!(!health(&host).0, "no agent runs");
}
