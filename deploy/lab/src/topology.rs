//! The topology file: resources, hosts, sites and the underlay between them, and what is expected to be seen. The only
//! place where a lab's addresses stand.

mod check;
pub mod expected;
pub mod rename;
pub mod site;
mod wan;

pub use expected::{Event, Learned, Row};
pub use site::Site;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use tombolo_client::manifest::{Document, GATEWAY_IP_CONFIGURATION, Named};
use tombolo_proto::config::CircuitLink;

/// Names that hosts cannot have: the lab makes these itself.
pub const INTERNET: &str = "internet";
/// The host of the controller; the operator works from there.
pub const CONTROLLER: &str = "controller";

/// The topologies that are part of the program, by name.
const BUILT_IN: &[(&str, &str)] = &[
    ("hub-spoke", include_str!("../topologies/hub-spoke.yaml")),
    ("interop", include_str!("../topologies/interop.yaml")),
    ("two-hubs", include_str!("../topologies/two-hubs.yaml")),
    ("failover", include_str!("../topologies/failover.yaml")),
];

/// A lab as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// Names the lab and its hosts: 1 to 24 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// Switches of the controller that differ from their defaults, as `tombolo settings set` takes them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, serde_json::Value>,
    /// What the hosts are joined by.
    pub underlay: Underlay,
    /// The machines.
    pub hosts: BTreeMap<String, Host>,
    /// On-premises networks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<String, Site>,
    /// What is applied to the controller before the agents join: a manifest, as `tombolo apply -f` takes it.
    pub resources: Document,
    /// What is seen when all is well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Row>,
    /// What customer edges have learned when all is well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Learned>,
    /// What can happen, by name, in the order in which `tombolo lab check` makes it happen.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub events: Named<Event>,
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
    /// Segments that are far from each other; between all others there is no delay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delays: Vec<Delay>,
}

/// What is between two segments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// The two segments.
    pub between: [String; 2],
    /// How long a packet is under way from one to the other, milliseconds, at most 1000.
    pub one_way_ms: f64,
    /// How many packets are lost, 0 to 1.
    #[serde(default)]
    pub loss: f64,
}

// Neither number can be "not a number": the check refuses it.
impl Eq for Delay {}

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

/// A machine. With none of `vm`, `gateway` and `edge` it is a plain host of the underlay.
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
    /// It is an instance of a VPN or ExpressRoute gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// It is the provider edge of one link of a circuit. A customer edge of a site has the line to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Edge>,
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

/// One link of a circuit (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edge {
    /// The circuit in `resources`.
    pub circuit: String,
    /// Which of its links.
    pub link: CircuitLink,
}

/// One instance of a gateway (D7).
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

    /// The name of the `ipConfiguration` that a gateway's host stands for; none if it has to say which.
    #[must_use]
    pub fn instance_of(&self, gateway: &Gateway) -> Option<String> {
        let known = self.resources.virtual_network_gateways.find(&gateway.name);
        let mut all = known.into_iter().flat_map(|g| g.ip_configurations.iter());
        match (&gateway.ip_configuration, all.next(), all.next()) {
            (Some(given), _, _) => Some(given.clone()),
            (None, Some((only, _)), None) => Some(only.to_owned()),
            (None, None, _) => Some(GATEWAY_IP_CONFIGURATION.to_owned()),
            (None, Some(_), Some(_)) => None,
        }
    }

    /// The hosts that run an agent, in order of their names.
    pub fn agents(&self) -> impl Iterator<Item = (&str, &Host)> {
        let runs_one = |h: &Host| h.vm.is_some() || h.gateway.is_some() || h.edge.is_some();
        let agents = self.hosts.iter().filter(move |(_, h)| runs_one(h));
        agents.map(|(name, host)| (name.as_str(), host))
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const GOOD: &str = "
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
}
