use crate::topology::Topology;
use serde_norway::Value;

/// Changes to the built-in topology `interop`: the property, its new value in YAML (empty: the property is removed),
/// and all problems that the check must report for the changed topology.
const CHANGES: &[(&str, &str, &[&str])] = &[
    (
        "sites.loc1.asn",
        "65099",
        &[
            "sites.loc1.customerEdges.ce1.lines[0]: circuit 'er1' has the peer ASN 65021, and the site has 65099",
            "sites.loc1.customerEdges.ce1.tunnels[0]: 'loc1' has another ASN than the site's 65099",
            "sites.loc1.customerEdges.ce2.lines[0]: circuit 'er1' has the peer ASN 65021, and the site has 65099",
        ],
    ),
    (
        "sites.loc1.prefixes",
        "[10.10.30.0/24]",
        &["sites.loc1: 10.10.30.0/24 overlaps 10.10.30.0/24 of resources.virtualNetworks.hub"],
    ),
    (
        "sites.loc1.prefixes",
        "[]",
        &["sites.loc1.prefixes: at least one is needed"],
    ),
    (
        "sites.loc1.prefixes",
        "[203.0.113.0/28]",
        &["underlay.segments.region1: 203.0.113.0/26 overlaps 203.0.113.0/28 of sites.loc1"],
    ),
    (
        "sites.loc1.lan.router",
        "10.2.30.0/25",
        &["sites.loc1.lan.router: 10.2.30.0/25 is no host address of its prefix"],
    ),
    (
        "sites.loc1.lan.hosts",
        "{vm: 10.2.30.10, other: 10.2.30.3}",
        &["sites.loc1.lan.hosts.other: another machine has 10.2.30.3 already"],
    ),
    (
        "sites.loc1.lan.hosts",
        "{vm: 10.2.30.10, other: 10.9.0.4}",
        &["sites.loc1.lan.hosts.other: 10.9.0.4 is no host address of the LAN 10.2.30.0/25"],
    ),
    (
        "sites.loc1.lan.hosts",
        "{vm: 10.2.30.10, router: 10.2.30.11}",
        &[
            "sites.loc1: 'router' makes a host 'loc1-router' that exists already",
            "sites.loc1.lan.hosts: 'router' is the name of a router",
        ],
    ),
    (
        "sites.loc1.bgp",
        "{holdTime: 1}",
        &["sites.loc1.bgp.holdTime: 1 is not within 3 to 65535"],
    ),
    (
        "sites.loc1.bgp",
        "{vpn: {export: [10.0.0.0/8]}}",
        &["sites.loc1.bgp.vpn.export: 10.0.0.0/8 is not one of the site's prefixes"],
    ),
    (
        "sites.loc1.customerEdges.ce1.lan",
        "192.168.30.0/29",
        &["sites.loc1.customerEdges.ce1.lan: 192.168.30.0/29 is no host address of a /30 or /31"],
    ),
    (
        "sites.loc1.customerEdges.ce1.address",
        "",
        &["sites.loc1.customerEdges.ce1.tunnels[0]: a customer edge with tunnels needs an 'address' on the underlay"],
    ),
    (
        "sites.loc1.customerEdges.ce1.address",
        "203.0.113.99",
        &[
            "sites.loc1.customerEdges.ce1.tunnels[0]: 'loc1' has another gatewayIpAddress than the customer edge's address 203.0.113.99",
        ],
    ),
    (
        "sites.loc1.customerEdges.ce1.address",
        "192.0.2.1",
        &[
            "sites, loc1-ce1.address: 192.0.2.1 is in no segment of the underlay",
            "sites.loc1.customerEdges.ce1.tunnels[0]: 'loc1' has another gatewayIpAddress than the customer edge's address 192.0.2.1",
        ],
    ),
    (
        "sites.loc1.customerEdges.ce1.lines",
        "[{circuit: er9, link: primary}]",
        &[
            "sites.loc1.customerEdges.ce1.lines[0]: no host is the edge of er9 primary",
            "sites.loc1.customerEdges.ce1.lines[0]: resources has no circuit 'er9' with a private peering",
            "learned[0]: set 'site', 'router' and either 'line' or 'tunnel' to existing ones",
            "events.cut.actions[0]: 'ce1' has no line 'er1 primary'",
            "events.cut.learned[0]: set 'site', 'router' and either 'line' or 'tunnel' to existing ones",
        ],
    ),
    (
        "sites.loc2.customerEdges.ce1.lines",
        "[{circuit: er2, link: secondary}]",
        &[
            "sites.loc2.customerEdges.ce2.lines[0]: er2 secondary has a line already",
            "sites.loc2: 192.168.31.20/30 overlaps 192.168.31.20/30 of sites.loc2",
            "learned[3]: set 'site', 'router' and either 'line' or 'tunnel' to existing ones",
        ],
    ),
    (
        "sites.loc1.customerEdges.ce1.tunnels",
        "[{connection: hub-er1, address: 10.2.30.125}]",
        &[
            "sites.loc1.customerEdges.ce1.tunnels[0].connection: resources has no connection 'hub-er1' to a local network gateway",
            "learned[1]: set 'site', 'router' and either 'line' or 'tunnel' to existing ones",
        ],
    ),
    (
        "sites.loc1.customerEdges.ce1.tunnels",
        "[{connection: hub-loc1, address: 10.2.30.126, listenPort: 1}]",
        &["sites.loc1.customerEdges.ce1.tunnels[0].address: 'loc1' has another bgpPeeringAddress than 10.2.30.126"],
    ),
    (
        "hosts.er1-primary.edge",
        "{circuit: er1, link: secondary}",
        &[
            "hosts.er1-secondary.edge: another host is the edge of er1 secondary already",
            "sites.loc1.customerEdges.ce1.lines[0]: no host is the edge of er1 primary",
        ],
    ),
    (
        "hosts.er1-primary.edge",
        "",
        &["sites.loc1.customerEdges.ce1.lines[0]: no host is the edge of er1 primary"],
    ),
    (
        "hosts.er1-primary.vm",
        "{nics: [hub-vm-nic]}",
        &[
            "hosts.er1-primary: one of 'vm', 'gateway' and 'edge', not several",
            "hosts.hub-vm.vm.nics: 'hub-vm-nic' belongs to another host already",
        ],
    ),
    (
        "hosts.loc1-vm",
        "{address: 203.0.113.60}",
        &["sites.loc1: 'vm' makes a host 'loc1-vm' that exists already"],
    ),
    (
        "underlay.delays",
        "[{between: [region1, region9], oneWayMs: 1}]",
        &["underlay.delays[0].between: there is no segment 'region9'"],
    ),
    (
        "underlay.delays",
        "[{between: [region1, region1], oneWayMs: 1}]",
        &["underlay.delays[0].between: name two different segments, and each pair once"],
    ),
    (
        "underlay.delays",
        "[{between: [region1, region2], oneWayMs: 1e9}]",
        &["underlay.delays[0].oneWayMs: 1000000000 is not within 0 to 1000"],
    ),
    (
        "underlay.delays",
        "[{between: [region1, region2], oneWayMs: 1, loss: 2}]",
        &["underlay.delays[0].loss: 2 is not within 0 to 1"],
    ),
    (
        "expected",
        "[{from: hub-vm, to: nobody, reachable: false}]",
        &["expected[0] (hub-vm → nobody): there is no VM, router or host of a site named 'nobody'"],
    ),
    (
        "expected",
        "[{from: hub-vm, to: hub-vpn, reachable: false}]",
        &["expected[0] (hub-vm → hub-vpn): there is no VM, router or host of a site named 'hub-vpn'"],
    ),
    (
        "expected",
        "[{from: hub-vm, to: spoke-vm, reachable: true}]",
        &["expected[0] (hub-vm → spoke-vm): the last hop must be the destination's address"],
    ),
    (
        "expected",
        "[{from: hub-vm, to: spoke-vm, reachable: true, hops: [10.9.9.9]}]",
        &["expected[0] (hub-vm → spoke-vm): the last hop is not the address of 'spoke-vm'"],
    ),
    (
        "expected",
        "[{from: hub-vm, to: spoke-vm, reachable: false, hops: [10.11.30.4]}]",
        &["expected[0] (hub-vm → spoke-vm): a pair that is not reachable has no hops"],
    ),
    (
        "events.cut.actions",
        "[]",
        &["events.cut.actions: at least one is needed"],
    ),
    (
        "events.cut.actions",
        "[{site: loc1, router: ce2, line: er1 primary, action: down}]",
        &["events.cut.actions[0]: 'ce2' has no line 'er1 primary'"],
    ),
    (
        "events.cut.actions",
        "[{host: nobody, action: cut}]",
        &["events.cut.actions[0]: 'nobody' is no host on the underlay"],
    ),
    (
        "events.restore",
        "{actions: [{host: hub-vm, action: cut}]}",
        &["events.restore: an event's name is 1 to 32 of a-z, 0-9 and '-', and not 'restore'"],
    ),
];

/// Returns the text of `interop` with one property changed, or removed if `value` is empty.
fn changed(property: &str, value: &str) -> String {
    let text = Topology::load("interop").unwrap().to_text().unwrap();
    let mut tree: Value = serde_norway::from_str(&text).unwrap();
    let mut keys: Vec<_> = property.split('.').collect();
    let last = keys.pop().unwrap();
    let parent = keys.iter().fold(&mut tree, |tree, key| tree.get_mut(*key).unwrap());
    let parent = parent.as_mapping_mut().unwrap();
    if value.is_empty() {
        parent.remove(last).unwrap();
    } else {
        parent.insert(last.into(), serde_norway::from_str(value).unwrap());
    }
    serde_norway::to_string(&tree).unwrap()
}

#[test]
fn contradictions_are_found_before_anything_is_created() {
    for (property, value, problems) in CHANGES {
        let refused = Topology::parse(&changed(property, value))
            .expect_err(property)
            .to_string();
        let mut lines = refused.lines();
        assert_eq!(
            lines.next(),
            Some("the topology cannot be used:"),
            "{property}: {value}"
        );
        let found: Vec<_> = lines.map(str::trim).collect();
        assert_eq!(found, *problems, "{property}: {value}");
    }
}

#[test]
fn unknown_fields_are_refused_everywhere() {
    let good = include_str!("../../../../topologies/interop.yaml");
    for (from, to) in [
        ("    asn: 65021", "    asn: 65021\n    vrf: x"),
        ("hosts: {vm: 10.2.30.10}", "hosts: {vm: 10.2.30.10}, mtu: 9000"),
        (
            "lines: [{circuit: er1, link: primary}]",
            "lines: [{circuit: er1, link: primary, vlan: 30}]",
        ),
        ("vpn: {localPreference: 100}", "vpn: {localPreference: 100, med: 1}"),
        ("oneWayMs: 33", "oneWayMs: 33, jitter: 1"),
        (
            "edge: {circuit: er1, link: primary}",
            "edge: {circuit: er1, link: primary, port: 1}",
        ),
        ("action: down}", "action: down, when: now}"),
        (
            "reachable: true, hops: [10.11.30.4]",
            "reachable: true, hops: [10.11.30.4], rtt: 1",
        ),
    ] {
        let changed = good.replacen(from, to, 1);
        assert_ne!(changed, good, "{from}");
        let error = Topology::parse(&changed).expect_err(to).to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
}
