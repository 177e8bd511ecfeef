use crate::topology::Topology;
use serde_norway::Value;

/// Changes to the built-in topology `interop`: the property, its new value in YAML (empty: the property is removed),
/// and all problems that the check reports.
const CHANGES: &[(&str, &str, &[&str])] = &[
    ("sites.loc1.asn", "65099", &["TODO"]),
    ("sites.loc1.prefixes", "[10.10.30.0/24]", &["TODO"]),
    ("sites.loc1.prefixes", "[]", &["TODO"]),
    ("sites.loc1.prefixes", "[203.0.113.0/28]", &["TODO"]),
    ("sites.loc1.lan.router", "10.2.30.0/25", &["TODO"]),
    ("sites.loc1.lan.hosts", "{vm: 10.2.30.3}", &["TODO"]),
    ("sites.loc1.lan.hosts", "{vm: 10.9.0.4}", &["TODO"]),
    ("sites.loc1.lan.hosts", "{router: 10.2.30.10}", &["TODO"]),
    ("sites.loc1.bgp", "{holdTime: 1}", &["TODO"]),
    ("sites.loc1.bgp", "{vpn: {export: [10.0.0.0/8]}}", &["TODO"]),
    ("sites.loc1.customerEdges.ce1.lan", "192.168.30.0/29", &["TODO"]),
    ("sites.loc1.customerEdges.ce1.address", "", &["TODO"]),
    ("sites.loc1.customerEdges.ce1.address", "203.0.113.52", &["TODO"]),
    ("sites.loc1.customerEdges.ce1.address", "192.0.2.1", &["TODO"]),
    (
        "sites.loc1.customerEdges.ce1.lines",
        "[{circuit: er9, link: primary}]",
        &["TODO"],
    ),
    (
        "sites.loc2.customerEdges.ce1.lines",
        "[{circuit: er2, link: secondary}]",
        &["TODO"],
    ),
    (
        "sites.loc1.customerEdges.ce1.tunnels",
        "[{connection: hub-er1, address: 10.2.30.125}]",
        &["TODO"],
    ),
    (
        "sites.loc1.customerEdges.ce1.tunnels",
        "[{connection: hub-loc1, address: 10.2.30.126, listenPort: 1}]",
        &["TODO"],
    ),
    ("hosts.er1-primary.edge", "{circuit: er1, link: secondary}", &["TODO"]),
    ("hosts.er1-primary.edge", "", &["TODO"]),
    ("hosts.er1-primary.vm", "{nics: [hub-vm-nic]}", &["TODO"]),
    ("hosts.loc1-vm", "{address: 203.0.113.60}", &["TODO"]),
    (
        "underlay.delays",
        "[{between: [region1, region9], oneWayMs: 1}]",
        &["TODO"],
    ),
    (
        "underlay.delays",
        "[{between: [region1, region1], oneWayMs: 1}]",
        &["TODO"],
    ),
    (
        "underlay.delays",
        "[{between: [region1, region2], oneWayMs: 1e9}]",
        &["TODO"],
    ),
    (
        "underlay.delays",
        "[{between: [region1, region2], oneWayMs: 1, loss: 2}]",
        &["TODO"],
    ),
    ("expected", "[{from: hub-vm, to: nobody, reachable: false}]", &["TODO"]),
    ("expected", "[{from: hub-vm, to: hub-vpn, reachable: false}]", &["TODO"]),
    ("expected", "[{from: hub-vm, to: spoke-vm, reachable: true}]", &["TODO"]),
    (
        "expected",
        "[{from: hub-vm, to: spoke-vm, reachable: true, hops: [10.9.9.9]}]",
        &["TODO"],
    ),
    (
        "expected",
        "[{from: hub-vm, to: spoke-vm, reachable: false, hops: [10.11.30.4]}]",
        &["TODO"],
    ),
    ("events.cut.actions", "[]", &["TODO"]),
    (
        "events.cut.actions",
        "[{site: loc1, router: ce2, line: er1 primary, action: down}]",
        &["TODO"],
    ),
    ("events.cut.actions", "[{host: nobody, action: cut}]", &["TODO"]),
    ("events.restore", "{actions: [{host: hub-vm, action: cut}]}", &["TODO"]),
];

/// Returns the text of `interop` with one property changed or removed.
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

#[test]
fn print_all() {
    let mut all = Vec::new();
    for (property, value, _) in CHANGES {
        let refused = Topology::parse(&changed(property, value))
            .expect_err(property)
            .to_string();
        all.push((*property, *value, refused));
    }
    std::fs::write("/tmp/wtc/actual.json", serde_json::to_string(&all).unwrap()).unwrap();
}
