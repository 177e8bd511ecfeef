//! What is wrong with the sites of a topology.

use super::{Bound, good_name};
use crate::topology::site::{CustomerEdge, LAN_ROUTER, Line, LinkName, Site, Tunnel, other_end};
use crate::topology::{CONTROLLER, Edge, INTERNET, Topology};
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::net::overlap;

impl Topology {
    pub(super) fn check_sites(&self, bound: &mut Bound, wrong: &mut Vec<String>) {
        let mut hosts = BTreeSet::new();
        for machine in self.machines() {
            let at = format!("sites.{}: '{}'", machine.site_name, machine.name);
            if !good_name(&machine.host, 32) || machine.host == INTERNET || machine.host == CONTROLLER {
                wrong.push(format!(
                    "{at} makes a host '{}': a host's name is 1 to 32 of a-z, 0-9 and '-'",
                    machine.host
                ));
            }
            if self.hosts.contains_key(&machine.host) || !hosts.insert(machine.host.clone()) {
                wrong.push(format!("{at} makes a host '{}' that exists already", machine.host));
            }
        }
        for (name, site) in &self.sites {
            let at = format!("sites.{name}");
            check_lan(&at, site, wrong);
            for (edge_name, edge) in site.customer_edges.iter() {
                let at = format!("{at}.customerEdges.{edge_name}");
                check_links(&at, edge, wrong);
                for (number, line) in edge.lines.iter().enumerate() {
                    self.check_line(&format!("{at}.lines[{number}]"), site, line, bound, wrong);
                }
                for (number, tunnel) in edge.tunnels.iter().enumerate() {
                    let at = format!("{at}.tunnels[{number}]");
                    self.check_tunnel(&at, site, edge, tunnel, bound, wrong);
                }
            }
        }
        self.check_disjoint(wrong);
    }

    /// An edge's circuit exists, and the edge is this host's alone.
    pub(super) fn check_edge(&self, at: &str, edge: &Edge, bound: &mut Bound, wrong: &mut Vec<String>) {
        let name = LinkName {
            circuit: edge.circuit.clone(),
            link: edge.link,
        };
        if self.circuit(&edge.circuit).is_none() {
            wrong.push(format!(
                "{at}.circuit: resources has no circuit '{}' with a private peering",
                edge.circuit
            ));
        }
        if !bound.insert(("edge", name.to_string().to_ascii_lowercase(), String::new())) {
            wrong.push(format!("{at}: {name} stands on another host already"));
        }
    }

    fn check_line(&self, at: &str, site: &Site, line: &Line, bound: &mut Bound, wrong: &mut Vec<String>) {
        let name = LinkName {
            circuit: line.circuit.clone(),
            link: line.link,
        };
        if self.edge_host(&line.circuit, line.link).is_none() {
            wrong.push(format!("{at}: no host is the edge of {name}"));
        }
        if !bound.insert(("line", name.to_string().to_ascii_lowercase(), String::new())) {
            wrong.push(format!("{at}: {name} has a line already"));
        }
        match self.circuit(&line.circuit) {
            None => wrong.push(format!(
                "{at}: resources has no circuit '{}' with a private peering",
                line.circuit
            )),
            Some(circuit) if circuit.peer_asn != site.asn => wrong.push(format!(
                "{at}: circuit '{}' expects the ASN {}, and the site's is {}",
                line.circuit, circuit.peer_asn, site.asn
            )),
            Some(_) if self.line_addresses(&line.circuit, line.link).is_none() => {
                wrong.push(format!("{at}: the prefix of {name} has no two addresses"));
            }
            Some(_) => {}
        }
    }

    fn check_tunnel(
        &self,
        at: &str,
        site: &Site,
        edge: &CustomerEdge,
        tunnel: &Tunnel,
        bound: &mut Bound,
        wrong: &mut Vec<String>,
    ) {
        let Some(address) = edge.address else {
            wrong.push(format!(
                "{at}: a customer edge with tunnels needs an 'address' on the underlay"
            ));
            return;
        };
        let connection = &tunnel.connection;
        if !bound.insert(("tunnel", connection.to_ascii_lowercase(), String::new())) {
            wrong.push(format!("{at}.connection: '{connection}' has a device already"));
        }
        let Some(device) = self.device(connection) else {
            wrong.push(format!(
                "{at}.connection: resources has no connection '{connection}' to a local network gateway"
            ));
            return;
        };
        let gateway = &device.name;
        if device.has_key {
            wrong.push(format!(
                "{at}: '{gateway}' has a WireGuard key, and the lab makes the device's"
            ));
        }
        if device.address.is_some_and(|a| a != address) {
            wrong.push(format!("{at}: '{gateway}' is not at {address}, where its device is"));
        }
        if device.port.is_some_and(|p| p != tunnel.listen_port) {
            let port = tunnel.listen_port;
            wrong.push(format!(
                "{at}.listenPort: '{gateway}' does not listen on {port}, where its device does"
            ));
        }
        if device.asn.is_some_and(|a| a != site.asn) {
            wrong.push(format!("{at}: '{gateway}' does not have the site's ASN {}", site.asn));
        }
        if device.bgp_address.is_some_and(|a| a != tunnel.address) {
            let inside = tunnel.address;
            wrong.push(format!(
                "{at}.address: '{gateway}' does not speak BGP from {inside}, as its device does"
            ));
        }
    }

    /// No two networks have an address in common (G16): VNets, sites, their links, and the underlay.
    fn check_disjoint(&self, wrong: &mut Vec<String>) {
        let mut networks: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for (name, vnet) in self.resources.virtual_networks.iter() {
            networks.insert(
                format!("resources.virtualNetworks.{name}"),
                vnet.address_space.iter().map(|p| p.0).collect(),
            );
        }
        for (name, segment) in &self.underlay.segments {
            networks.insert(format!("underlay.segments.{name}"), vec![segment.prefix]);
        }
        for (name, site) in &self.sites {
            let mut all: Vec<Ipv4Net> = site.prefixes.clone();
            if !site.prefixes.iter().any(|p| p.contains(&site.lan.router)) {
                all.push(site.lan.router.trunc());
            }
            for (_, edge) in site.customer_edges.iter() {
                all.extend(edge.lan.map(|lan| lan.trunc()));
                let lines = edge
                    .lines
                    .iter()
                    .filter_map(|l| self.line_addresses(&l.circuit, l.link));
                all.extend(lines.map(|l| l.customer.trunc()));
            }
            networks.insert(format!("sites.{name}"), all.into_iter().map(IpNet::V4).collect());
        }
        let all: Vec<_> = networks
            .iter()
            .flat_map(|(whose, prefixes)| prefixes.iter().map(move |p| (whose, *p)))
            .collect();
        for (i, (whose, prefix)) in all.iter().enumerate() {
            // VNets may overlap as long as they are not joined, and what is wrong with VNets and segments is found elsewhere.
            let site = whose.starts_with("sites.");
            for (other, second) in &all[..i] {
                if (site || other.starts_with("sites.")) && overlap(prefix, second) {
                    wrong.push(format!("{whose}: {prefix} overlaps {second} of {other}"));
                }
            }
        }
    }
}

fn check_lan(at: &str, site: &Site, wrong: &mut Vec<String>) {
    if site.prefixes.is_empty() {
        wrong.push(format!("{at}.prefixes: at least one is needed"));
    }
    for prefix in site.prefixes.iter().filter(|p| **p != p.trunc()) {
        wrong.push(format!("{at}.prefixes: {prefix} has host bits set"));
    }
    if !(3..=65535).contains(&site.bgp.hold_time) {
        wrong.push(format!(
            "{at}.bgp.holdTime: {} is not within 3 to 65535",
            site.bgp.hold_time
        ));
    }
    for (what, neighbours) in [("circuit", &site.bgp.circuit), ("vpn", &site.bgp.vpn)] {
        for prefix in site.export(neighbours) {
            // A prefix that lies in none of the site's own has no way there either.
            if !site.prefixes.contains(prefix) {
                wrong.push(format!(
                    "{at}.bgp.{what}.export: {prefix} is none of the site's prefixes"
                ));
            }
        }
    }
    let lan = site.lan.router;
    let mut seen = BTreeSet::from([lan.addr()]);
    if !lan.hosts().any(|a| a == lan.addr()) {
        wrong.push(format!(
            "{at}.lan.router: {lan} is no address of a host with its length"
        ));
    }
    for (name, address) in site.lan.hosts.iter() {
        if name == LAN_ROUTER || site.customer_edges.find(name).is_some() {
            wrong.push(format!("{at}.lan.hosts: '{name}' is a router's name"));
        }
        if !lan.contains(address) || !lan.hosts().any(|a| a == *address) {
            wrong.push(format!(
                "{at}.lan.hosts.{name}: {address} is no address of the LAN {}",
                lan.trunc()
            ));
        }
        if !seen.insert(*address) {
            wrong.push(format!("{at}.lan.hosts.{name}: {address} is taken"));
        }
    }
    if site.customer_edges.find(LAN_ROUTER).is_some() {
        wrong.push(format!("{at}.customerEdges: '{LAN_ROUTER}' is the LAN router's name"));
    }
}

fn check_links(at: &str, edge: &CustomerEdge, wrong: &mut Vec<String>) {
    if let Some(lan) = edge.lan
        && other_end(lan).is_none()
    {
        wrong.push(format!("{at}.lan: {lan} is no address on a /30 or /31"));
    }
}

#[cfg(test)]
mod tests {
    use crate::topology::Topology;

    #[test]
    fn what_does_not_fit_together_is_found_before_anything_is_made() {
        let good = Topology::load("interop").unwrap().to_text().unwrap();
        let good = serde_norway::from_str::<serde_norway::Value>(&good).unwrap();
        // Each: where, what to put there (nothing: take it away), what is said.
        let cases: &[(&[&str], &str, &str)] = &[
            (&["sites", "loc1", "asn"], "65099", "expects the ASN 65021"),
            (
                &["sites", "loc1", "prefixes"],
                "[10.10.30.0/24]",
                "overlaps 10.10.30.0/24",
            ),
            (&["sites", "loc1", "prefixes"], "[]", "at least one is needed"),
            (
                &["sites", "loc1", "prefixes"],
                "[203.0.113.0/28]",
                "203.0.113.0/26 overlaps",
            ),
            (
                &["sites", "loc1", "lan", "router"],
                "10.2.30.0/25",
                "no address of a host",
            ),
            (
                &["sites", "loc1", "lan", "hosts"],
                "{vm: 10.2.30.3}",
                "10.2.30.3 is taken",
            ),
            (
                &["sites", "loc1", "lan", "hosts"],
                "{vm: 10.9.0.4}",
                "no address of the LAN",
            ),
            (
                &["sites", "loc1", "lan", "hosts"],
                "{router: 10.2.30.10}",
                "a router's name",
            ),
            (&["sites", "loc1", "bgp"], "{holdTime: 1}", "not within 3 to 65535"),
            (
                &["sites", "loc1", "bgp"],
                "{vpn: {export: [10.0.0.0/8]}}",
                "none of the site's prefixes",
            ),
            (
                &["sites", "loc1", "customerEdges", "ce1", "lan"],
                "192.168.30.0/29",
                "a /30 or /31",
            ),
            (
                &["sites", "loc1", "customerEdges", "ce1", "address"],
                "",
                "needs an 'address'",
            ),
            (
                &["sites", "loc1", "customerEdges", "ce1", "address"],
                "203.0.113.52",
                "is not at 203.0.113.52",
            ),
            (
                &["sites", "loc1", "customerEdges", "ce1", "address"],
                "192.0.2.1",
                "in no segment",
            ),
            (
                &["sites", "loc1", "customerEdges", "ce1", "lines"],
                "[{circuit: er9, link: primary}]",
                "no circuit 'er9'",
            ),
            (
                &["sites", "loc2", "customerEdges", "ce1", "lines"],
                "[{circuit: er2, link: secondary}]",
                "er2 secondary has a line already",
            ),
            (
                &["sites", "loc1", "customerEdges", "ce1", "tunnels"],
                "[{connection: hub-er1, address: 10.2.30.125}]",
                "to a local network gateway",
            ),
            (
                &["sites", "loc1", "customerEdges", "ce1", "tunnels"],
                "[{connection: hub-loc1, address: 10.2.30.126, listenPort: 1}]",
                "does not speak BGP from 10.2.30.126",
            ),
            (
                &["hosts", "er1-primary", "edge"],
                "{circuit: er1, link: secondary}",
                "stands on another host",
            ),
            (
                &["hosts", "er1-primary", "edge"],
                "",
                "no host is the edge of er1 primary",
            ),
            (
                &["hosts", "er1-primary", "vm"],
                "{nics: [hub-vm-nic]}",
                "one of 'vm', 'gateway' and 'edge'",
            ),
            (&["hosts", "loc1-vm"], "{address: 203.0.113.60}", "exists already"),
            (
                &["underlay", "delays"],
                "[{between: [region1, region9], oneWayMs: 1}]",
                "no segment 'region9'",
            ),
            (
                &["underlay", "delays"],
                "[{between: [region1, region1], oneWayMs: 1}]",
                "each pair once",
            ),
            (
                &["underlay", "delays"],
                "[{between: [region1, region2], oneWayMs: 1e9}]",
                "oneWayMs",
            ),
            (
                &["underlay", "delays"],
                "[{between: [region1, region2], oneWayMs: 1, loss: 2}]",
                "loss",
            ),
            (
                &["expected"],
                "[{from: hub-vm, to: nobody, reachable: false}]",
                "named 'nobody'",
            ),
            (
                &["expected"],
                "[{from: hub-vm, to: hub-vpn, reachable: false}]",
                "named 'hub-vpn'",
            ),
            (
                &["expected"],
                "[{from: hub-vm, to: spoke-vm, reachable: true}]",
                "the last hop is the destination's",
            ),
            (
                &["expected"],
                "[{from: hub-vm, to: spoke-vm, reachable: true, hops: [10.9.9.9]}]",
                "not the address of 'spoke-vm'",
            ),
            (
                &["expected"],
                "[{from: hub-vm, to: spoke-vm, reachable: false, hops: [10.11.30.4]}]",
                "has no hops",
            ),
            (&["events", "cut", "actions"], "[]", "at least one is needed"),
            (
                &["events", "cut", "actions"],
                "[{site: loc1, router: ce2, line: er1 primary, action: down}]",
                "has no line 'er1 primary'",
            ),
            (
                &["events", "cut", "actions"],
                "[{host: nobody, action: cut}]",
                "no host on the underlay",
            ),
            (
                &["events", "restore"],
                "{actions: [{host: hub-vm, action: cut}]}",
                "not 'restore'",
            ),
        ];
        for (place, new, said) in cases {
            let mut changed = good.clone();
            let (last, before) = place.split_last().unwrap();
            let inner = before
                .iter()
                .fold(&mut changed, |value, key| value.get_mut(*key).unwrap());
            let inner = inner.as_mapping_mut().unwrap();
            if new.is_empty() {
                inner.remove(*last);
            } else {
                inner.insert((*last).into(), serde_norway::from_str(new).unwrap());
            }
            let error = Topology::parse(&serde_norway::to_string(&changed).unwrap());
            let error = error.expect_err(said).to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
    }

    #[test]
    fn unknown_fields_are_refused_everywhere() {
        let good = include_str!("../../../topologies/interop.yaml");
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
}
