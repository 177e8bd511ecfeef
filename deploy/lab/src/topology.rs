//! The topology file: resources, hosts and the underlay between them. The only place where a lab's addresses stand.

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use tombolo_client::manifest::Document;

/// Names that hosts cannot have: the lab makes these itself.
pub const INTERNET: &str = "internet";
/// The host of the controller; the operator works from there.
pub const CONTROLLER: &str = "controller";

/// The topologies that are part of the program, by name.
const BUILT_IN: &[(&str, &str)] = &[("hub-spoke", include_str!("../topologies/hub-spoke.yaml"))];

/// A lab as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// Names the lab and its hosts: 1 to 24 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// What the hosts are joined by.
    pub underlay: Underlay,
    /// The machines.
    pub hosts: BTreeMap<String, Host>,
    /// What is applied to the controller before the agents join: a manifest, as `tombolo apply -f` takes it.
    pub resources: Document,
}

/// What the hosts are joined by: it stands for the internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Underlay {
    /// Outer MTU of every link, bytes, 1280 to 9000.
    #[serde(default = "ethernet")]
    pub mtu: u16,
    /// The segments; the underlay routes between them. At least one.
    pub segments: BTreeMap<String, Segment>,
    /// Where the controller listens.
    pub controller: Controller,
}

fn ethernet() -> u16 {
    1500
}

/// One broadcast domain of the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Segment {
    /// Its prefix; the first address is the underlay's own, the hosts' default gateway.
    pub prefix: IpNet,
}

/// Where the controller listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Controller {
    /// An address of one of the segments.
    pub address: IpAddr,
    /// TCP.
    pub port: u16,
}

/// A machine. With neither `vm` nor `gateway` it is a plain host of the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// Its address on the underlay, out of one of the segments.
    pub address: IpAddr,
    /// UDP port of the agent; the agent's default if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// It is a virtual machine of a VNet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// It is an instance of a VPN gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
}

/// A virtual machine (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vm {
    /// Names of its network interfaces in `resources`, the primary one first.
    pub nics: Vec<String>,
    /// Subnets (`vnet/subnet`) whose other machines sit behind this host (D8).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serves: Vec<String>,
    /// The kernel forwards: what an appliance needs beside `enableIPForwarding` (R12).
    #[serde(default)]
    pub kernel_forwarding: bool,
}

/// One instance of a VPN gateway (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Its name in `resources`.
    pub name: String,
    /// The `ipConfiguration`; the only one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_configuration: Option<String>,
}

impl Topology {
    /// Reads a topology by the name of a built-in one or by its path (anything with a `/` or a `.`).
    ///
    /// # Errors
    /// No such topology; what is wrong in the file, with line and column; everything that [`Self::check`] finds.
    pub fn load(name_or_path: &str) -> Result<Self> {
        if !name_or_path.contains(['/', '.']) {
            let found = BUILT_IN.iter().find(|(name, _)| *name == name_or_path);
            let Some((name, text)) = found else {
                let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                bail!(
                    "there is no built-in topology '{name_or_path}' (there is: {}); a file is given with its path, as ./{name_or_path}.yaml",
                    names.join(", ")
                );
            };
            return Self::parse(text).with_context(|| format!("built-in topology {name}"));
        }
        let text = std::fs::read_to_string(Path::new(name_or_path)).with_context(|| name_or_path.to_owned())?;
        Self::parse(&text).with_context(|| name_or_path.to_owned())
    }

    /// Reads the text of a topology file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str) -> Result<Self> {
        let topology: Self = serde_norway::from_str(text)?;
        topology.check()?;
        Ok(topology)
    }

    /// The file's text again, complete.
    ///
    /// # Errors
    /// Never in practice: all parts can be written.
    pub fn to_text(&self) -> Result<String> {
        Ok(serde_norway::to_string(self)?)
    }

    /// The segment that an underlay address belongs to.
    #[must_use]
    pub fn segment_of(&self, address: IpAddr) -> Option<(&str, IpNet)> {
        let mut segments = self.underlay.segments.iter();
        let found = segments.find(|(_, s)| s.prefix.contains(&address));
        found.map(|(name, s)| (name.as_str(), s.prefix))
    }

    /// The hosts that run an agent, in order of their names.
    pub fn agents(&self) -> impl Iterator<Item = (&str, &Host)> {
        let agents = self.hosts.iter().filter(|(_, h)| h.vm.is_some() || h.gateway.is_some());
        agents.map(|(name, host)| (name.as_str(), host))
    }

    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// All problems at once, one a line.
    pub fn check(&self) -> Result<()> {
        let mut wrong = Vec::new();
        if !good_name(&self.name, 24) {
            wrong.push(format!("name: '{}' must be 1 to 24 of a-z, 0-9 and '-'", self.name));
        }
        if !(1280..=9000).contains(&self.underlay.mtu) {
            wrong.push(format!(
                "underlay.mtu: {} is not within 1280 to 9000",
                self.underlay.mtu
            ));
        }
        self.check_segments(&mut wrong);
        self.check_addresses(&mut wrong);
        self.check_roles(&mut wrong);
        if wrong.is_empty() {
            return Ok(());
        }
        let mut text = String::from("the topology cannot be used:");
        for problem in wrong {
            let _ = write!(text, "\n  {problem}");
        }
        bail!(text)
    }

    fn check_segments(&self, wrong: &mut Vec<String>) {
        let segments: Vec<_> = self.underlay.segments.iter().collect();
        if segments.is_empty() {
            wrong.push("underlay.segments: at least one is needed".into());
        }
        for (i, (name, segment)) in segments.iter().enumerate() {
            if !good_name(name, 15) {
                wrong.push(format!(
                    "underlay.segments.{name}: the name must be 1 to 15 of a-z, 0-9 and '-'"
                ));
            }
            if segment.prefix != segment.prefix.trunc() {
                wrong.push(format!(
                    "underlay.segments.{name}.prefix: {} has host bits set",
                    segment.prefix
                ));
            }
            for (other, second) in &segments[..i] {
                if overlap(segment.prefix, second.prefix) {
                    wrong.push(format!("underlay.segments: {name} and {other} overlap"));
                }
            }
        }
        // The TUN device's routes and the underlay must never claim the same destination.
        for (vnet, network) in self.resources.virtual_networks.iter() {
            for (name, segment) in &self.underlay.segments {
                if network.address_space.iter().any(|p| overlap(p.0, segment.prefix)) {
                    wrong.push(format!(
                        "underlay.segments.{name}.prefix: {} overlaps the address space of {vnet}",
                        segment.prefix
                    ));
                }
            }
        }
    }

    fn check_addresses(&self, wrong: &mut Vec<String>) {
        let controller = ("underlay.controller".to_owned(), self.underlay.controller.address);
        let hosts = self.hosts.iter().map(|(name, h)| (format!("hosts.{name}"), h.address));
        let mut seen = BTreeMap::new();
        for (whose, address) in std::iter::once(controller).chain(hosts) {
            match self.segment_of(address) {
                None => wrong.push(format!("{whose}.address: {address} is in no segment of the underlay")),
                Some((name, prefix)) if first_address(prefix) == Some(address) => {
                    wrong.push(format!(
                        "{whose}.address: {address} is the underlay's own in segment {name}"
                    ));
                }
                Some(_) => {}
            }
            if let Some(other) = seen.insert(address, whose.clone()) {
                wrong.push(format!("{whose}.address: {address} belongs to {other} already"));
            }
        }
    }

    fn check_roles(&self, wrong: &mut Vec<String>) {
        let mut bound = BTreeSet::new();
        for (name, host) in &self.hosts {
            if !good_name(name, 32) || name == INTERNET || name == CONTROLLER {
                wrong.push(format!(
                    "hosts.{name}: a host's name is 1 to 32 of a-z, 0-9 and '-', and neither '{INTERNET}' nor '{CONTROLLER}'"
                ));
            }
            if host.vm.is_some() && host.gateway.is_some() {
                wrong.push(format!("hosts.{name}: either 'vm' or 'gateway', not both"));
            }
            if let Some(vm) = &host.vm {
                if vm.nics.is_empty() {
                    wrong.push(format!("hosts.{name}.vm.nics: at least one is needed"));
                }
                for nic in &vm.nics {
                    if self.resources.network_interfaces.find(nic).is_none() {
                        wrong.push(format!(
                            "hosts.{name}.vm.nics: resources has no network interface '{nic}'"
                        ));
                    }
                    if !bound.insert(("nic", nic.clone(), String::new())) {
                        wrong.push(format!("hosts.{name}.vm.nics: '{nic}' belongs to another host already"));
                    }
                }
            }
            if let Some(gateway) = &host.gateway {
                if self.resources.virtual_network_gateways.find(&gateway.name).is_none() {
                    wrong.push(format!(
                        "hosts.{name}.gateway.name: resources has no gateway '{}'",
                        gateway.name
                    ));
                }
                let instance = gateway.ip_configuration.clone().unwrap_or_default();
                if !bound.insert(("gateway", gateway.name.clone(), instance)) {
                    wrong.push(format!(
                        "hosts.{name}.gateway: the same instance stands on another host already"
                    ));
                }
            }
        }
    }
}

/// The first usable address of a prefix.
#[must_use]
pub fn first_address(prefix: IpNet) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(_) => prefix.hosts().next(),
        // ::0 is the subnet-router anycast address.
        IpNet::V6(_) => prefix.hosts().nth(1),
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn good_name(name: &str, longest: usize) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=longest).contains(&name.len()) && name.chars().all(inside) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
name: t
underlay:
  segments: {internet: {prefix: 198.51.100.0/24}}
  controller: {address: 198.51.100.2, port: 8443}
hosts:
  vm: {address: 198.51.100.11, vm: {nics: [nic]}}
  plain: {address: 198.51.100.12}
resources:
  virtualNetworks: {hub: {addressSpace: [10.1.0.0/16], subnets: {s: {addressPrefix: 10.1.0.0/24}}}}
  networkInterfaces: {nic: {subnet: hub/s, privateIPAddress: 10.1.0.4}}
";

    #[test]
    fn the_built_in_topologies_are_valid() {
        for (name, _) in BUILT_IN {
            assert_eq!(Topology::load(name).unwrap().name, *name);
        }
        assert!(Topology::load("nothing").unwrap_err().to_string().contains("hub-spoke"));
    }

    #[test]
    fn a_topology_survives_being_written() {
        let topology = Topology::parse(GOOD).unwrap();
        assert_eq!(topology.agents().count(), 1);
        assert_eq!(Topology::parse(&topology.to_text().unwrap()).unwrap(), topology);
    }

    #[test]
    fn unknown_fields_are_refused_with_their_place() {
        let error = Topology::parse(&GOOD.replace("nics:", "nicz:"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("nicz") && error.contains("line"), "{error}");
    }

    #[test]
    fn all_problems_come_at_once() {
        let bad = GOOD
            .replace("name: t", "name: T_")
            .replace("nics: [nic]", "nics: [missing]")
            .replace("198.51.100.12", "198.51.100.11")
            .replace("198.51.100.2,", "198.51.100.1,");
        let error = Topology::parse(&bad).unwrap_err().to_string();
        for part in ["'T_'", "'missing'", "belongs to", "underlay's own"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let error = Topology::parse(&GOOD.replace("10.1.0.0/16", "198.51.0.0/16")).unwrap_err();
        assert!(
            error.to_string().contains("overlaps the address space of hub"),
            "{error}"
        );
    }
}
