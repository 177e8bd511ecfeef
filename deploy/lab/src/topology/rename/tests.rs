use super::*;
use ipnet::IpNet;
use std::net::IpAddr;

/// Collects every text of a tree in order, including those keys that are names.
fn texts(value: &Value, path: &mut Vec<String>, all: &mut Vec<String>) {
    match value {
        Value::Mapping(map) => {
            for (key, value) in map {
                let key = key.as_str().unwrap();
                if is_named(path) {
                    all.push(key.to_owned());
                }
                path.push(key.to_owned());
                texts(value, path, all);
                path.pop();
            }
        }
        Value::Sequence(items) => items.iter().for_each(|v| texts(v, path, all)),
        Value::String(text) => all.push(text.clone()),
        Value::Number(number) => all.push(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Tagged(_) => {}
    }
}

fn net(text: &str) -> Option<IpNet> {
    let alone = text.parse::<IpAddr>().map(IpNet::from);
    alone.or_else(|_| text.parse()).ok()
}

/// Returns the old and the new text for every text of the topology, in the order of the file.
fn both(topology: &Topology, seed: u64) -> Vec<(String, String)> {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    texts(&serde_norway::to_value(topology).unwrap(), &mut Vec::new(), &mut old);
    texts(&tree(topology, seed).unwrap(), &mut Vec::new(), &mut new);
    assert_eq!(old.len(), new.len());
    old.into_iter().zip(new).collect()
}

const BUILT_IN: &[&str] = &["hub-spoke", "interop"];

#[test]
fn a_renamed_topology_is_valid_and_the_same_for_the_same_seed() {
    for name in BUILT_IN {
        let topology = Topology::load(name).unwrap();
        for seed in 0..25 {
            let renamed = rename(&topology, seed).unwrap();
            assert_eq!(renamed, rename(&topology, seed).unwrap());
            assert_ne!(renamed, rename(&topology, seed + 1).unwrap());
            assert_eq!(Topology::parse(&renamed.to_text().unwrap()).unwrap(), renamed);
        }
    }
}

#[test]
fn equal_texts_remain_equal_and_different_ones_different() {
    for name in BUILT_IN {
        let topology = Topology::load(name).unwrap();
        for seed in 0..5 {
            let mut there = BTreeMap::new();
            let mut back = BTreeMap::new();
            for (old, new) in both(&topology, seed) {
                assert_eq!(there.entry(old.clone()).or_insert_with(|| new.clone()), &new, "{old}");
                assert_eq!(back.entry(new.clone()).or_insert_with(|| old.clone()), &old, "{new}");
            }
        }
    }
}

#[test]
fn networks_keep_their_nesting_and_addresses_their_position() {
    for name in BUILT_IN {
        let topology = Topology::load(name).unwrap();
        for seed in 0..5 {
            let pairs = both(&topology, seed);
            let nets: BTreeSet<_> = pairs.iter().filter_map(|(a, b)| Some((net(a)?, net(b)?))).collect();
            for (old, new) in &nets {
                assert_eq!(old.prefix_len(), new.prefix_len());
                for (other_old, other_new) in &nets {
                    assert_eq!(
                        old.contains(other_old),
                        new.contains(other_new),
                        "{old} {other_old}, {new} {other_new}"
                    );
                    // The inner text must be as far from the first address of the outer network as before. Host bits
                    // count too, because the inner text may be an interface's address such as 10.2.30.3/25, which must
                    // keep its position in the network.
                    if let (IpNet::V4(a), IpNet::V4(b), IpNet::V4(c), IpNet::V4(d)) = (old, other_old, new, other_new)
                        && a.contains(b)
                    {
                        let place =
                            |inner: std::net::Ipv4Addr, outer: std::net::Ipv4Addr| u32::from(inner) - u32::from(outer);
                        assert_eq!(place(b.addr(), a.network()), place(d.addr(), c.network()));
                    }
                }
            }
        }
    }
}

#[test]
fn no_name_and_no_address_stays() {
    for name in BUILT_IN {
        let topology = Topology::load(name).unwrap();
        let mut found = Contents::default();
        found.collect_from(&serde_norway::to_value(&topology).unwrap(), &mut Vec::new());
        let addresses = found
            .texts
            .iter()
            .filter(|t| net(t).is_some_and(|n| n.prefix_len() > 0));
        let old: BTreeSet<_> = found.names.iter().chain(addresses).collect();
        for (_, new) in both(&topology, 7) {
            assert!(!old.contains(&new), "{new}");
        }
        let sites: Vec<_> = topology.sites.values().map(|s| s.asn).collect();
        let renamed = rename(&topology, 7).unwrap();
        assert!(renamed.sites.values().all(|s| !sites.contains(&s.asn)));
    }
}

#[test]
fn n1_security_rules_get_other_names_and_addresses_and_keep_their_words() {
    let mut topology = Topology::load("hub-spoke").unwrap();
    let text = "
applicationSecurityGroups: {servers: {}}
networkSecurityGroups:
  guard:
    rules:
      allow-https:
        description: guard
        priority: 100
        direction: Inbound
        access: Allow
        protocol: Tcp
        sourceAddressPrefix: VirtualNetwork
        destinationApplicationSecurityGroups: [servers]
        destinationPortRanges: [443, 8000-8080]
      allow-range:
        priority: 101
        direction: Outbound
        access: Deny
        sourceAddressPrefixes: [10.1.0.4-10.1.0.9]
        destinationPortRange: '*'
";
    let more: tombolo_client::manifest::Document = serde_norway::from_str(text).unwrap();
    topology.resources.application_security_groups = more.application_security_groups;
    topology.resources.network_security_groups = more.network_security_groups;
    let renamed = rename(&topology, 7).unwrap().resources;
    let (servers, _) = renamed.application_security_groups.iter().next().unwrap();
    let (guard, group) = renamed.network_security_groups.iter().next().unwrap();
    assert!(servers != "servers" && guard != "guard");
    let rules: Vec<_> = group.rules.iter().collect();
    let (name, https) = rules[0];
    assert_ne!(name, "allow-https");
    let (_, old) = topology.resources.network_security_groups.iter().next().unwrap();
    let expected = tombolo_client::manifest::SecurityRule {
        destination_application_security_groups: vec![servers.to_owned()],
        ..old.rules.find("allow-https").unwrap().clone()
    };
    assert_eq!(https, &expected);
    let range = &rules[1].1.source_address_prefixes[0].0;
    let (first, last) = address_range(range).unwrap();
    let last_byte = |text: &str| text.rsplit('.').next().unwrap().to_owned();
    assert_eq!((last_byte(first), last_byte(last)), ("4".into(), "9".into()), "{range}");
    assert_ne!(range, "10.1.0.4-10.1.0.9");
}

#[test]
fn l3_load_balancers_get_other_names_and_addresses_and_keep_their_words() {
    let mut topology = Topology::load("hub-spoke").unwrap();
    let text = "
web:
  frontEnds: {Tcp: {subnet: hub/workload, privateIPAddress: 10.1.0.36}}
  pools: {servers: {}, outside: {virtualNetwork: hub, addresses: {one: 10.1.0.9}}}
  probes: {check: {protocol: Http, port: 80, requestPath: check}}
  rules: {http: {protocol: Tcp, frontEnd: Tcp, frontEndPort: 80, pool: servers, probe: check, loadDistribution: SourceIP}}
  inboundNatRules: {ssh: {protocol: Tcp, frontEndPort: 22}}
";
    topology.resources.load_balancers = serde_norway::from_str(text).unwrap();
    let nic = "vm: {subnet: hub/workload, loadBalancerPools: [web/servers], inboundNatRules: [web/ssh]}";
    topology.resources.network_interfaces = serde_norway::from_str(nic).unwrap();
    topology.hosts.clear();
    topology.expected.clear();
    let tree = tree(&topology, 7).unwrap();
    let resources: tombolo_client::manifest::Document = serde_norway::from_value(tree["resources"].clone()).unwrap();
    let (name, balancer) = resources.load_balancers.iter().next().unwrap();
    let (servers, _) = balancer.pools.iter().next().unwrap();
    let (ssh, _) = balancer.inbound_nat_rules.iter().next().unwrap();
    let (check, probe) = balancer.probes.iter().next().unwrap();
    let (front, front_end) = balancer.front_ends.iter().next().unwrap();
    assert!(![name, servers, ssh, check, front].iter().any(|n| text.contains(n)));
    let (_, nic) = resources.network_interfaces.iter().next().unwrap();
    assert_eq!(nic.load_balancer_pools, [format!("{name}/{servers}")]);
    assert_eq!(nic.inbound_nat_rules, [format!("{name}/{ssh}")]);
    let (_, rule) = balancer.rules.iter().next().unwrap();
    assert_eq!(
        (rule.front_end.as_deref(), rule.pool.as_deref(), rule.probe.as_deref()),
        (Some(front), Some(servers), Some(check))
    );
    assert_eq!(rule.protocol, tombolo_client::manifest::BalancedProtocol::Tcp);
    assert_eq!(probe.request_path.as_deref(), Some("check"));
    assert_ne!(front_end.private_ip_address, "10.1.0.36".parse().ok());
    let (_, outside) = balancer.pools.iter().nth(1).unwrap();
    let (one, address) = outside.addresses.iter().next().unwrap();
    assert!(one != "one" && address.to_string() != "10.1.0.9");
}

#[test]
fn a_network_that_cannot_move_keeps_its_own() {
    let texts = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.2.0/24",
        "10.1.2.4",
        "192.168.7.8",
        "8.8.8.8",
        "9.9.0.0/16",
        "9.9.3.0/24",
        "9.9.3.7/24",
        "100.64.0.0/10",
        "100.70.1.0/24",
        "100.70.1.9",
    ]
    .map(str::to_owned);
    let addresses = Addresses::new(&texts, &mut Random(3));
    let map = |text: &str| addresses.map(text).unwrap();
    assert_eq!(map("0.0.0.0/0"), "0.0.0.0/0");
    assert_eq!(map("10.0.0.0/8"), "10.0.0.0/8");
    assert_eq!(map("8.8.8.8"), "8.8.8.8");
    let moved: IpNet = map("10.1.2.0/24").parse().unwrap();
    assert_ne!(moved, "10.1.2.0/24".parse().unwrap());
    assert_eq!(map("10.1.2.4"), moved.hosts().nth(3).unwrap().to_string());
    assert_ne!(map("192.168.7.8"), "192.168.7.8");
    // A network of no kind keeps its prefix, and so do all networks inside of it.
    for text in ["9.9.0.0/16", "9.9.3.0/24", "9.9.3.7/24"] {
        assert_eq!(map(text), text);
    }
    // The addresses for carrier-grade NAT (RFC 6598) are a kind of network of their own, so their new prefixes are in
    // 100.64.0.0/10 too.
    let block: IpNet = "100.64.0.0/10".parse().unwrap();
    let moved: IpNet = map("100.70.1.0/24").parse().unwrap();
    assert!(block.contains(&moved) && moved != "100.70.1.0/24".parse().unwrap());
    assert_eq!(map("100.70.1.9"), moved.hosts().nth(8).unwrap().to_string());
    assert_eq!(addresses.map("hub"), None);
}
