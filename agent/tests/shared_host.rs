//! An agent on a host with other agents and other programs. Tests what the agent must not change, what it cleans up,
//! and which faults do not stop it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Wire, config, eventually};
use nix::sys::signal::Signal;
use tombolo_agent::apply::plan::KernelIds;
use tombolo_agent::state::file;

fn pair(wire: &Wire) -> [Host; 2] {
    let hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    for i in 0..2 {
        hosts[i].remember(config(i, [&hosts[0], &hosts[1]]));
    }
    hosts
}

fn table(host: &Host) -> u32 {
    KernelIds::of(&host.config.interface, host.config.table, host.config.fwmark).table
}

/// Runs a command of the agent's program in the first namespace, for five seconds at most. Returns whether it
/// succeeded, and its output.
fn agent(wire: &Wire, command: &str, host: &Host) -> (bool, String) {
    let program = env!("CARGO_BIN_EXE_tombolo-agent");
    wire.exec(
        0,
        &format!("timeout 5 {program} {command} --state-dir {}", host.path().display()),
    )
}

/// All policy-routing rules, and the routes of one routing table, in the first namespace.
fn kernel(wire: &Wire, table: u32) -> String {
    // The command fails if the table is empty.
    let routes = |family: &str| wire.exec(0, &format!("ip {family} route show table {table}")).1;
    let rules = |family: &str| wire.run(0, &format!("ip {family} rule"));
    [rules("-4"), rules("-6"), routes("-4"), routes("-6")].concat()
}

/// An agent refuses to start if another agent uses the device or the routing table that it is configured to use. It
/// then changes nothing on the host.
#[test]
fn a_second_agent_with_the_same_numbers_is_refused() {
    let wire = Wire::new("second");
    let mut hosts = pair(&wire);
    hosts.iter_mut().for_each(Host::start);
    eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    let before = kernel(&wire, table(&hosts[0]));
    assert!(before.contains("10.1.0.0/16") && before.contains("fwmark"), "{before}");

    let mut second = Host::new(&wire.ns[0], "vm-c");
    second.config.listen_port = 51821;
    let same_device = hosts[0].config.interface.clone();
    let same_table = (second.config.interface.clone(), Some(table(&hosts[0])));
    for ((interface, table_number), why) in [
        ((same_device, Some(7777)), "exists"),
        (same_table, "another agent of this host has the routing table"),
    ] {
        (second.config.interface, second.config.table) = (interface, table_number);
        second.config.save(&second.state).unwrap();
        for command in ["run", "clean", "leave"] {
            let (ok, text) = agent(&wire, command, &second);
            assert!(!ok && text.contains(why), "{command}: {text}");
        }
        assert_eq!(kernel(&wire, table(&hosts[0])), before);
    }
    let (ok, text) = wire.exec(0, "ping -i 0.01 -c 20 -q 10.1.0.5");
    assert!(ok && text.contains("20 received"), "{text}");

    // If the second agent has another device and routing table than the first, both run on the host, and the second
    // agent removes only its own state.
    second.config.table = None;
    second.config.save(&second.state).unwrap();
    second.start();
    assert!(second.stop(Signal::SIGTERM), "{}", second.log());
    assert_eq!(kernel(&wire, table(&hosts[0])), before);
}

/// An agent crashes, and the operator sets another routing table before the next start. That start also removes the
/// rules and routes under the old table number. Routes that other programs have put into the old table stay.
#[test]
fn what_was_left_under_other_numbers_is_removed() {
    let wire = Wire::new("numbers");
    let mut hosts = pair(&wire);
    hosts[0].start();
    let old = table(&hosts[0]);
    hosts[0].stop(Signal::SIGKILL);
    assert!(kernel(&wire, old).contains("10.1.0.0/16") || kernel(&wire, old).contains("fwmark"));
    let foreign = |n: u32| format!("ip route add 203.0.113.0/24 dev wire0 proto static table {n}");
    assert!(wire.exec(0, &foreign(old)).0);
    hosts[0].config.table = Some(7777);
    hosts[0].config.save(&hosts[0].state).unwrap();
    hosts[0].start();
    let left = kernel(&wire, old);
    assert!(!left.contains(&old.to_string()), "{left}");
    assert!(
        left.contains("203.0.113.0/24") && !left.contains("10.1.0.0/16"),
        "{left}"
    );
    assert!(kernel(&wire, 7777).contains("10.1.0.0/16"));

    // In this part the operator changes only the firewall mark; the routing table stays the same.
    hosts[0].stop(Signal::SIGKILL);
    hosts[0].config.fwmark = 0x1234;
    hosts[0].config.save(&hosts[0].state).unwrap();
    hosts[0].start();
    let now = kernel(&wire, 7777);
    assert!(
        now.contains("10.1.0.0/16") && now.contains("0x1234") && !now.contains("0x746d"),
        "{now}"
    );

    // SIGHUP ends the agent in an orderly way. The state that confines packets stays until `clean`.
    assert!(wire.exec(0, &foreign(7777)).0);
    assert!(hosts[0].stop(Signal::SIGHUP), "{}", hosts[0].log());
    let left = kernel(&wire, 7777);
    assert!(left.contains("fwmark") && left.contains("203.0.113.0/24"), "{left}");
    let (ok, text) = agent(&wire, "clean", &hosts[0]);
    assert!(ok, "{text}");
    let left = kernel(&wire, 7777);
    assert!(!left.contains("fwmark") && left.contains("203.0.113.0/24"), "{left}");
}

/// D21: an agent whose certificate is damaged still forwards packets by its last good configuration.
#[test]
fn a_damaged_certificate_does_not_stop_forwarding() {
    let wire = Wire::new("damaged");
    let mut hosts = pair(&wire);
    hosts[0].state.write(file::CERTIFICATE, b"not a certificate").unwrap();
    hosts.iter_mut().for_each(Host::start);
    eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    assert!(hosts[0].log().contains("ERROR"), "{}", hosts[0].log());
    assert!(hosts[0].stop(Signal::SIGTERM), "{}", hosts[0].log());
    // If there is no last good configuration either, the agent fails to start.
    hosts[0].state.remove(file::LAST_GOOD).unwrap();
    let (ok, text) = agent(&wire, "run", &hosts[0]);
    assert!(!ok && text.contains("agent.pem"), "{text}");
    assert!(!hosts[0].path().join("admin.sock").exists());
}

/// A missing key is an error. The agent does not create a new key, because other agents have pinned the old one: with a
/// new key it could establish no link.
#[test]
fn a_missing_key_is_not_made_anew() {
    let wire = Wire::new("nokey");
    let hosts = pair(&wire);
    hosts[0].state.remove(file::LINK_KEY).unwrap();
    let (ok, text) = agent(&wire, "run", &hosts[0]);
    assert!(!ok && text.contains("join again"), "{text}");
    assert!(!hosts[0].path().join(file::LINK_KEY).exists());
}

/// On the agent's local socket, `/tables` shows the installed tables of the engine and of the kernel. `/config` shows
/// the configuration in force.
#[test]
fn tables_show_what_is_installed() {
    let wire = Wire::new("tables");
    let mut hosts = pair(&wire);
    hosts[0].start();
    let ask = |path: &str| -> serde_json::Value {
        serde_json::from_str(&tombolo_agent::admin::ask(&hosts[0].state, path).unwrap()).unwrap()
    };
    let tables = ask("/tables");
    assert_eq!(
        (&tables["revision"], &tables["digest"]),
        (&7.into(), &ask("/status")["status"]["digest"])
    );
    let route = |i: usize| &tables["tables"]["subnets"][0]["routes"][i];
    assert_eq!(route(0)["prefix"], "10.1.0.0/16");
    assert_eq!(route(1)["hop"]["type"], "local");
    let link = &tables["tables"]["links"][0];
    assert_eq!(
        (&link["peer"], &link["sources"][0]),
        (&"vm-b".into(), &"10.1.0.5/32".into())
    );
    assert_eq!(tables["kernel"]["table"], table(&hosts[0]));
    assert_eq!(tables["kernel"]["routes"]["10.1.0.0/16"], "device");
    assert_eq!(ask("/config")["agent"], "vm-a");
}
