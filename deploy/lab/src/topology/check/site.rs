//! Checks the sites of a topology, and whether they agree with the topology's resources and hosts.

use super::{Bindings, is_valid_name};
use crate::topology::site::{CustomerEdge, LAN_ROUTER, Line, LinkName, Site, Tunnel, other_end};
use crate::topology::{CONTROLLER, Edge, INTERNET, Topology};
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::net::overlap;

impl Topology {
    /// Adds the problems of all sites to `problems`. `bindings` receives the lines and tunnels.
    pub(super) fn check_sites(&self, bindings: &mut Bindings, problems: &mut Vec<String>) {
        let mut hosts = BTreeSet::new();
        for machine in self.machines() {
            let at = format!("sites.{}: '{}'", machine.site_name, machine.name);
            if !is_valid_name(&machine.host, 32) || machine.host == INTERNET || machine.host == CONTROLLER {
                problems.push(format!(
                    "{at} makes a host '{}': a host's name is 1 to 32 of a-z, 0-9 and '-'",
                    machine.host
                ));
            }
            if self.hosts.contains_key(&machine.host) || !hosts.insert(machine.host.clone()) {
                problems.push(format!("{at} makes a host '{}' that exists already", machine.host));
            }
        }
        for (name, site) in &self.sites {
            let at = format!("sites.{name}");
            check_lan(&at, site, problems);
            for (edge_name, edge) in site.customer_edges.iter() {
                let at = format!("{at}.customerEdges.{edge_name}");
                check_links(&at, edge, problems);
                for (number, line) in edge.lines.iter().enumerate() {
                    self.check_line(&format!("{at}.lines[{number}]"), site, line, bindings, problems);
                }
                for (number, tunnel) in edge.tunnels.iter().enumerate() {
                    let at = format!("{at}.tunnels[{number}]");
                    self.check_tunnel(&at, site, edge, tunnel, bindings, problems);
                }
            }
        }
        self.check_disjoint(problems);
        self.check_probes(problems);
    }

    /// Checks that each site probe is a test host, and that the probe's address is in a segment.
    fn check_probes(&self, problems: &mut Vec<String>) {
        for (name, site) in &self.sites {
            for (host, address) in site.lan.probes.iter() {
                let at = format!("sites.{name}.lan.probes.{host}");
                if site.lan.hosts.find(host).is_none() {
                    problems.push(format!("{at}: '{host}' is none of the site's test hosts"));
                }
                if self.segment_of(*address).is_none() {
                    problems.push(format!("{at}: {address} is in no segment of the underlay"));
                }
                if site.attachments().is_empty() {
                    problems.push(format!("{at}: the site has neither a line nor a tunnel"));
                }
            }
        }
    }

    /// Checks that a provider edge's circuit exists, and that no other host is the edge of the same line of the
    /// circuit.
    pub(super) fn check_edge(&self, at: &str, edge: &Edge, bindings: &mut Bindings, problems: &mut Vec<String>) {
        let name = LinkName {
            circuit: edge.circuit.clone(),
            link: edge.link,
        };
        if self.circuit(&edge.circuit).is_none() {
            problems.push(format!(
                "{at}.circuit: resources has no circuit '{}' with a private peering",
                edge.circuit
            ));
        }
        if !bindings.insert(("edge", name.to_string().to_ascii_lowercase(), String::new())) {
            problems.push(format!("{at}: another host is the edge of {name} already"));
        }
    }

    fn check_line(&self, at: &str, site: &Site, line: &Line, bindings: &mut Bindings, problems: &mut Vec<String>) {
        let name = LinkName {
            circuit: line.circuit.clone(),
            link: line.link,
        };
        if self.edge_host(&line.circuit, line.link).is_none() {
            problems.push(format!("{at}: no host is the edge of {name}"));
        }
        if !bindings.insert(("line", name.to_string().to_ascii_lowercase(), String::new())) {
            problems.push(format!("{at}: {name} has a line already"));
        }
        match self.circuit(&line.circuit) {
            None => problems.push(format!(
                "{at}: resources has no circuit '{}' with a private peering",
                line.circuit
            )),
            Some(circuit) if circuit.peer_asn != site.asn => problems.push(format!(
                "{at}: circuit '{}' has the peer ASN {}, and the site has {}",
                line.circuit, circuit.peer_asn, site.asn
            )),
            Some(_) if self.line_addresses(&line.circuit, line.link).is_none() => {
                problems.push(format!("{at}: the prefix of {name} has fewer than two host addresses"));
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
        bindings: &mut Bindings,
        problems: &mut Vec<String>,
    ) {
        let Some(address) = edge.address else {
            problems.push(format!(
                "{at}: a customer edge with tunnels needs an 'address' on the underlay"
            ));
            return;
        };
        let connection = &tunnel.connection;
        if !bindings.insert(("tunnel", connection.to_ascii_lowercase(), String::new())) {
            problems.push(format!("{at}.connection: '{connection}' has a device already"));
        }
        let Some(device) = self.device(connection) else {
            problems.push(format!(
                "{at}.connection: resources has no connection '{connection}' to a local network gateway"
            ));
            return;
        };
        let gateway = &device.name;
        if device.has_key {
            problems.push(format!(
                "{at}: remove the WireGuard key of '{gateway}', because the lab generates the device's key"
            ));
        }
        if device.address.is_some_and(|a| a != address) {
            problems.push(format!(
                "{at}: '{gateway}' has another gatewayIpAddress than the customer edge's address {address}"
            ));
        }
        if device.port.is_some_and(|p| p != tunnel.listen_port) {
            let port = tunnel.listen_port;
            problems.push(format!(
                "{at}.listenPort: '{gateway}' has another wireGuardPort than {port}"
            ));
        }
        if device.asn.is_some_and(|a| a != site.asn) {
            problems.push(format!(
                "{at}: '{gateway}' has another ASN than the site's {}",
                site.asn
            ));
        }
        if device.bgp_address.is_some_and(|a| a != tunnel.address) {
            let inside = tunnel.address;
            problems.push(format!(
                "{at}.address: '{gateway}' has another bgpPeeringAddress than {inside}"
            ));
        }
    }

    /// Checks that the networks of a site overlap neither each other, nor those of other sites, nor VNets or segments
    /// (G16).
    fn check_disjoint(&self, problems: &mut Vec<String>) {
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
            // Only overlaps with a site are reported here. VNets that are not connected may overlap each other, and
            // `check_segments` reports overlaps of a VNet and a segment.
            let site = whose.starts_with("sites.");
            for (other, second) in &all[..i] {
                if (site || other.starts_with("sites.")) && overlap(prefix, second) {
                    problems.push(format!("{whose}: {prefix} overlaps {second} of {other}"));
                }
            }
        }
    }
}

fn check_lan(at: &str, site: &Site, problems: &mut Vec<String>) {
    if site.prefixes.is_empty() {
        problems.push(format!("{at}.prefixes: at least one is needed"));
    }
    for prefix in site.prefixes.iter().filter(|p| **p != p.trunc()) {
        problems.push(format!("{at}.prefixes: {prefix} has host bits set"));
    }
    if !(3..=65535).contains(&site.bgp.hold_time) {
        problems.push(format!(
            "{at}.bgp.holdTime: {} is not within 3 to 65535",
            site.bgp.hold_time
        ));
    }
    for (what, neighbours) in [("circuit", &site.bgp.circuit), ("vpn", &site.bgp.vpn)] {
        for prefix in site.export(neighbours) {
            // A customer edge has static routes only to the site's prefixes, so hosts in another prefix would not be
            // reachable.
            if !site.prefixes.contains(prefix) {
                problems.push(format!(
                    "{at}.bgp.{what}.export: {prefix} is not one of the site's prefixes"
                ));
            }
        }
    }
    let lan = site.lan.router;
    let mut seen = BTreeSet::from([lan.addr()]);
    if !lan.hosts().any(|a| a == lan.addr()) {
        problems.push(format!("{at}.lan.router: {lan} is no host address of its prefix"));
    }
    for (name, address) in site.lan.hosts.iter() {
        if name == LAN_ROUTER || site.customer_edges.find(name).is_some() {
            problems.push(format!("{at}.lan.hosts: '{name}' is the name of a router"));
        }
        if !lan.contains(address) || !lan.hosts().any(|a| a == *address) {
            problems.push(format!(
                "{at}.lan.hosts.{name}: {address} is no host address of the LAN {}",
                lan.trunc()
            ));
        }
        if !seen.insert(*address) {
            problems.push(format!("{at}.lan.hosts.{name}: another machine has {address} already"));
        }
    }
    if site.customer_edges.find(LAN_ROUTER).is_some() {
        problems.push(format!(
            "{at}.customerEdges: '{LAN_ROUTER}' is the name of the LAN router"
        ));
    }
}

fn check_links(at: &str, edge: &CustomerEdge, problems: &mut Vec<String>) {
    if let Some(lan) = edge.lan
        && other_end(lan).is_none()
    {
        problems.push(format!("{at}.lan: {lan} is no host address of a /30 or /31"));
    }
}

#[cfg(test)]
mod tests;
