//! Tests the scripts for `nft`. `agent/tests/clear_text.rs` loads such scripts in namespaces.

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn filter() -> Filter {
    Filter {
        fwmark: 0x746d,
        own: ["10.1.0.4".parse().unwrap(), "fd00:1::4".parse().unwrap()].into(),
        served: BTreeSet::new(),
        forwarded: Vec::new(),
        local: BTreeMap::new(),
        line: false,
    }
}

/// The rules of a script in their order, without the lines that enclose them.
fn rules(script: &str) -> Vec<&str> {
    let lines = script.lines().map(str::trim);
    lines.filter(|l| l.ends_with("accept") || l.ends_with("drop")).collect()
}

#[test]
fn own_addresses_leave_by_tun_devices_alone() {
    let script = filter().script("tombolo-7", None);
    assert!(
        script.starts_with("table inet tombolo-7\ndelete table inet tombolo-7\ntable inet tombolo-7 {"),
        "{script}"
    );
    assert_eq!(
        rules(&script),
        [
            "meta mark 0x746d accept",
            "meta oifgroup 29805 accept",
            "oifname \"lo\" accept",
            "ip saddr { 10.1.0.4/32 } counter drop",
            "ip6 saddr { fd00:1::4/128 } counter drop",
        ]
    );
}

#[test]
fn only_forwarded_packets_of_served_machines_are_dropped() {
    let mut filter = filter();
    filter.served.insert(net("10.1.5.0/24"));
    filter.local.insert(net("10.1.5.0/24"), ["eth1".into()].into());
    filter.forwarded = vec![net("10.0.0.0/8"), net("fc00::/7")];
    let script = filter.script("t", None);
    assert_eq!(
        rules(&script)[3..],
        [
            "ip daddr 10.1.5.0/24 oifname { \"eth1\" } accept",
            "ip saddr { 10.1.0.4/32 } counter drop",
            "ip6 saddr { fd00:1::4/128 } counter drop",
            "meta iif != 0 ip saddr { 10.1.5.0/24 } counter drop",
            "meta iifgroup 29805 ip saddr { 10.0.0.0/8 } counter drop",
            "meta iifgroup 29805 ip6 saddr { fc00::/7 } counter drop",
        ]
    );
}

/// A served subnet that no interface leads to gets no exception.
#[test]
fn a_local_network_without_an_interface_opens_nothing() {
    let mut filter = filter();
    filter.local.insert(net("10.1.5.0/24"), BTreeSet::new());
    assert!(!filter.script("t", None).contains("10.1.5.0"));
}

/// Nearly every character can be in an interface's name. A name that `nft` could interpret gets no exception.
#[test]
fn odd_names_of_interfaces_open_nothing() {
    let mut filter = filter();
    let odd = ["a\" accept; #", "*", "eth*"].map(str::to_owned);
    filter.local.insert(net("10.1.5.0/24"), odd.into());
    assert_eq!(rules(&filter.script("t", None)).len(), 5);
}

#[test]
fn an_edge_may_send_down_its_line() {
    let mut filter = filter();
    filter.line = true;
    assert!(rules(&filter.script("t", Some("eth1"))).contains(&"oifname \"eth1\" accept"));
}

#[tokio::test]
async fn a_missing_program_is_named_with_the_cure() {
    let error = run("nft-that-nobody-has", "").await.unwrap_err();
    assert!(matches!(error, FilterError::Missing(_)));
    assert!(error.to_string().contains("install the package nftables"), "{error}");
}
