//! Checks of a topology that its types cannot make. They run before the lab creates anything.

mod expected;
mod site;

use super::{CONTROLLER, Gateway, INTERNET, Topology, Vm, first_address};
use crate::underlay;
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use tombolo_client::manifest::GATEWAY_IP_CONFIGURATION;
use tombolo_proto::net::overlap;

/// The network interfaces, gateway instances, edges, lines and connections that an earlier part of the file has used.
/// Each is a kind, a name, and a second part of the name or an empty text. A second use is a problem.
type Bindings = BTreeSet<(&'static str, String, String)>;

impl Topology {
    /// Checks what the types of the topology do not ensure: ranges, names, references between its parts, and overlaps.
    /// Of the resources, only those properties are checked that the lab itself uses; the controller checks all others.
    /// Reads no files, and does not ask the controller.
    ///
    /// # Errors
    /// The topology has problems; the message lists all of them, one on each line.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        if !is_valid_name(&self.name, 24) {
            problems.push(format!("name: '{}' must be 1 to 24 of a-z, 0-9 and '-'", self.name));
        }
        if !(1280..=9000).contains(&self.underlay.mtu) {
            problems.push(format!(
                "underlay.mtu: {} is not within 1280 to 9000",
                self.underlay.mtu
            ));
        }
        self.check_segments(&mut problems);
        self.check_delays(&mut problems);
        self.check_addresses(&mut problems);
        let mut bindings = Bindings::new();
        self.check_roles(&mut bindings, &mut problems);
        self.check_sites(&mut bindings, &mut problems);
        self.check_expected(&mut problems);
        if problems.is_empty() {
            return Ok(());
        }
        let mut text = String::from("the topology cannot be used:");
        for problem in problems {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {problem}");
        }
        bail!(text)
    }

    fn check_segments(&self, problems: &mut Vec<String>) {
        let segments: Vec<_> = self.underlay.segments.iter().collect();
        if segments.is_empty() {
            problems.push("underlay.segments: at least one is needed".into());
        }
        for (i, (name, segment)) in segments.iter().enumerate() {
            if !is_valid_name(name, 15) {
                problems.push(format!(
                    "underlay.segments.{name}: the name must be 1 to 15 of a-z, 0-9 and '-'"
                ));
            }
            // The segment's bridge has the segment's name. The bridge is in the same namespace as the loopback device,
            // the hosts' ports and the delay lines, so it must not have the name of one of these.
            let port = name.strip_prefix("port").is_some_and(|n| n.parse::<u32>().is_ok());
            let delay = name.starts_with("delay");
            if *name == "lo" || port || delay {
                problems.push(format!(
                    "underlay.segments.{name}: a device of the underlay has this name; choose another one"
                ));
            }
            if segment.prefix != segment.prefix.trunc() {
                problems.push(format!(
                    "underlay.segments.{name}.prefix: {} has host bits set",
                    segment.prefix
                ));
            }
            for (other, second) in &segments[..i] {
                if overlap(&segment.prefix, &second.prefix) {
                    problems.push(format!("underlay.segments: {name} and {other} overlap"));
                }
            }
        }
        // A VNet and a segment must not overlap: to an address in both, one route would lead into the TUN device and
        // another one into the underlay.
        for (vnet, network) in self.resources.virtual_networks.iter() {
            for (name, segment) in &self.underlay.segments {
                if network.address_space.iter().any(|p| overlap(&p.0, &segment.prefix)) {
                    problems.push(format!(
                        "underlay.segments.{name}.prefix: {} overlaps the address space of {vnet}",
                        segment.prefix
                    ));
                }
            }
        }
    }

    fn check_delays(&self, problems: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for (number, delay) in self.underlay.delays.iter().enumerate() {
            let at = format!("underlay.delays[{number}]");
            let mut pair = delay.between.clone();
            pair.sort();
            for name in &pair {
                if !self.underlay.segments.contains_key(name) {
                    problems.push(format!("{at}.between: there is no segment '{name}'"));
                }
            }
            if pair[0] == pair[1] || !seen.insert(pair) {
                problems.push(format!("{at}.between: name two different segments, and each pair once"));
            }
            if !(0.0..=1000.0).contains(&delay.one_way_ms) {
                problems.push(format!("{at}.oneWayMs: {} is not within 0 to 1000", delay.one_way_ms));
            }
            if !(0.0..=1.0).contains(&delay.loss) {
                problems.push(format!("{at}.loss: {} is not within 0 to 1", delay.loss));
            }
        }
    }

    fn check_addresses(&self, problems: &mut Vec<String>) {
        if self.underlay.controller.port == 0 {
            problems.push("underlay.controller.port: 0 is not within 1 to 65535".into());
        }
        let mut seen = BTreeMap::new();
        for (name, address) in underlay::addresses(self) {
            let whose = if name == CONTROLLER {
                "underlay.controller".to_owned()
            } else if self.hosts.contains_key(&name) {
                format!("hosts.{name}")
            } else {
                format!("sites, {name}")
            };
            match self.segment_of(address) {
                None => problems.push(format!("{whose}.address: {address} is in no segment of the underlay")),
                Some((name, prefix)) if first_address(prefix) == Some(address) => {
                    problems.push(format!(
                        "{whose}.address: {address} is the router's address in segment {name}"
                    ));
                }
                Some(_) => {}
            }
            if let Some(other) = seen.insert(address, whose.clone()) {
                problems.push(format!("{whose}.address: {address} belongs to {other} already"));
            }
        }
    }

    fn check_roles(&self, bindings: &mut Bindings, problems: &mut Vec<String>) {
        for (name, host) in &self.hosts {
            if !is_valid_name(name, 32) || name == INTERNET || name == CONTROLLER {
                problems.push(format!(
                    "hosts.{name}: a host's name is 1 to 32 of a-z, 0-9 and '-', and neither '{INTERNET}' nor '{CONTROLLER}'"
                ));
            }
            let roles = [host.vm.is_some(), host.gateway.is_some(), host.edge.is_some()];
            if roles.iter().filter(|r| **r).count() > 1 {
                problems.push(format!("hosts.{name}: one of 'vm', 'gateway' and 'edge', not several"));
            }
            if let Some(vm) = &host.vm {
                self.check_vm(&format!("hosts.{name}.vm"), vm, bindings, problems);
            }
            if let Some(gateway) = &host.gateway {
                self.check_gateway(&format!("hosts.{name}.gateway"), gateway, bindings, problems);
            }
            if let Some(edge) = &host.edge {
                self.check_edge(&format!("hosts.{name}.edge"), edge, bindings, problems);
            }
        }
    }

    fn check_vm(&self, at: &str, vm: &Vm, bindings: &mut Bindings, problems: &mut Vec<String>) {
        if vm.nics.is_empty() {
            problems.push(format!("{at}.nics: at least one is needed"));
        }
        for nic in &vm.nics {
            if self.resources.network_interfaces.find(nic).is_none() {
                problems.push(format!("{at}.nics: resources has no network interface '{nic}'"));
            }
            if !bindings.insert(("nic", nic.to_ascii_lowercase(), String::new())) {
                problems.push(format!("{at}.nics: '{nic}' belongs to another host already"));
            }
        }
        // A full id is not checked, because it may refer to a resource group that the file does not contain.
        for subnet in vm.serves.iter().filter(|s| !s.starts_with('/')) {
            let known = subnet.split_once('/').is_some_and(|(vnet, subnet)| {
                let vnet = self.resources.virtual_networks.find(vnet);
                vnet.is_some_and(|v| v.subnets.find(subnet).is_some())
            });
            if !known {
                problems.push(format!("{at}.serves: resources has no subnet '{subnet}' (VNET/SUBNET)"));
            }
        }
    }

    fn check_gateway(&self, at: &str, gateway: &Gateway, bindings: &mut Bindings, problems: &mut Vec<String>) {
        let Some(known) = self.resources.virtual_network_gateways.find(&gateway.name) else {
            problems.push(format!("{at}.name: resources has no gateway '{}'", gateway.name));
            return;
        };
        let all: Vec<_> = known.ip_configurations.iter().map(|(name, _)| name).collect();
        let all = if all.is_empty() {
            vec![GATEWAY_IP_CONFIGURATION]
        } else {
            all
        };
        match self.instance_of(gateway) {
            Some(instance) if all.iter().any(|name| name.eq_ignore_ascii_case(&instance)) => {
                let key = (gateway.name.to_ascii_lowercase(), instance.to_ascii_lowercase());
                if !bindings.insert(("gateway", key.0, key.1)) {
                    problems.push(format!("{at}: another host is the same instance already"));
                }
            }
            Some(instance) => problems.push(format!(
                "{at}.ipConfiguration: gateway '{}' has no '{instance}', it has {}",
                gateway.name,
                all.join(", ")
            )),
            None => problems.push(format!(
                "{at}.ipConfiguration: gateway '{}' has several, name one: {}",
                gateway.name,
                all.join(", ")
            )),
        }
    }
}

/// Whether a name has 1 to `longest` characters of `a-z`, `0-9` and `-`, and no `-` at either end.
fn is_valid_name(name: &str, longest: usize) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=longest).contains(&name.len()) && name.chars().all(inside) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::super::tests::GOOD;
    use super::*;

    #[test]
    fn all_problems_come_at_once() {
        let bad = GOOD
            .replace("name: t", "name: T_")
            .replace("nics: [nic]", "nics: [missing]")
            .replace("198.51.100.12", "198.51.100.11")
            .replace("198.51.100.2,", "198.51.100.1,");
        let error = Topology::parse(&bad).unwrap_err().to_string();
        for part in ["'T_'", "'missing'", "belongs to", "the router's address"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let error = Topology::parse(&GOOD.replace("10.1.0.0/16", "198.51.0.0/16")).unwrap_err();
        assert!(
            error.to_string().contains("overlaps the address space of hub"),
            "{error}"
        );
    }

    #[test]
    fn what_would_fail_half_way_is_found_before() {
        let with = |from: &str, to: &str| GOOD.replace(from, to);
        let gateway = "
  virtualNetworkGateways:
    gw: {virtualNetwork: hub, ipConfigurations: {a: {}, b: {}}}";
        let two = with(
            "address: 198.51.100.12}",
            "address: 198.51.100.12, gateway: {name: gw}}",
        ) + gateway;
        for (text, problems) in [
            (
                with("nics: [nic]", "nics: [nic], serves: [hub/nothing]"),
                "no subnet 'hub/nothing'",
            ),
            (with("nics: [nic]", "nics: [nic], serves: [hub]"), "no subnet 'hub'"),
            (with("port: 8443", "port: 0"), "controller.port"),
            (with("internet: {", "lo: {"), "segments.lo"),
            (with("internet: {", "port12: {"), "segments.port12"),
            (two.clone(), "has several, name one: a, b"),
            (
                two.replace("{name: gw}", "{name: gw, ipConfiguration: c}"),
                "has no 'c', it has a, b",
            ),
        ] {
            let error = Topology::parse(&text).expect_err(problems).to_string();
            assert!(error.contains(problems), "{problems}: {error}");
        }
        for good in [
            with("nics: [nic]", "nics: [nic], serves: [hub/s]"),
            two.replace("{name: gw}", "{name: gw, ipConfiguration: B}"),
            two.replace(", b: {}", ""),
        ] {
            Topology::parse(&good).unwrap();
        }
    }
}
