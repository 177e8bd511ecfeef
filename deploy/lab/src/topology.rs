//! The topology file: resources, hosts, sites, the underlay between them, and expectations. It contains all addresses
//! of a lab.

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

/// Name of the underlay's router. The lab creates this host itself.
pub const INTERNET: &str = "internet";
/// Name of the controller's host, from which the operator works. The lab creates this host itself.
pub const CONTROLLER: &str = "controller";

/// The built-in topologies, by name.
const BUILT_IN: &[(&str, &str)] = &[
    ("hub-spoke", include_str!("../topologies/hub-spoke.yaml")),
    ("interop", include_str!("../topologies/interop.yaml")),
    ("two-hubs", include_str!("../topologies/two-hubs.yaml")),
    ("failover", include_str!("../topologies/failover.yaml")),
];

/// A topology file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// Name of the lab, and part of the names of its namespaces: 1 to 24 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// Settings of the controller that differ from their defaults, as `tombolo settings set` accepts them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, serde_json::Value>,
    /// The network between the hosts.
    pub underlay: Underlay,
    /// Machines with a link to the underlay.
    pub hosts: BTreeMap<String, Host>,
    /// On-premises networks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<String, Site>,
    /// Manifest that is applied before the agents join, as `tombolo apply -f` accepts it.
    pub resources: Document,
    /// Expected reachability in the steady state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Row>,
    /// Expected routes of customer edges in the steady state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Learned>,
    /// Events by name, in the order in which `tombolo lab check` triggers them.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub events: Named<Event>,
}

/// The network between the hosts, which represents the internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Underlay {
    /// MTU of every link, bytes, 1280 to 9000.
    #[serde(default = "ethernet")]
    pub mtu: u16,
    /// Segments, at least one. The underlay routes between them.
    pub segments: BTreeMap<String, Segment>,
    /// Listening address of the controller.
    pub controller: Controller,
    /// Delays between segments. All other pairs of segments have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delays: Vec<Delay>,
}

/// Delay and loss between two segments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// The two segments.
    pub between: [String; 2],
    /// Delay of a packet in either direction, milliseconds, at most 1000.
    pub one_way_ms: f64,
    /// Fraction of packets that are lost, 0 to 1.
    #[serde(default)]
    pub loss: f64,
}

// Equality is reflexive, because the check refuses NaN for both numbers.
impl Eq for Delay {}

fn ethernet() -> u16 {
    1500
}

/// One broadcast domain of the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Segment {
    /// Prefix of the segment. Its first address is the underlay's router, the hosts' default gateway.
    pub prefix: IpNet,
}

/// Listening address of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Controller {
    /// Address in one of the segments.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
}

/// A machine. Without `vm`, `gateway` and `edge` it is a plain host of the underlay, without an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// Underlay address, in one of the segments.
    pub address: IpAddr,
    /// UDP port of the agent; the agent's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Set for a virtual machine of a VNet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// Set for an instance of a VPN or ExpressRoute gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Set for the provider edge of one link of a circuit. Its line leads to a customer edge of a site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Edge>,
}

/// A virtual machine (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vm {
    /// Names of its network interfaces in `resources`, the primary one first.
    pub nics: Vec<String>,
    /// Subnets (`vnet/subnet`) whose other machines are reached through this host (D8).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serves: Vec<String>,
    /// Enables forwarding in the host's kernel, which an appliance needs in addition to `enableIPForwarding` (R12).
    #[serde(default)]
    pub kernel_forwarding: bool,
}

/// One link of a circuit (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edge {
    /// Name of the circuit in `resources`.
    pub circuit: String,
    /// Primary or secondary link.
    pub link: CircuitLink,
}

/// One instance of a gateway (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Name of the gateway in `resources`.
    pub name: String,
    /// Name of the instance's `ipConfiguration`; the only one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_configuration: Option<String>,
}

impl Topology {
    /// Reads a topology: a file if the text contains `/` or `.`, otherwise a built-in one.
    ///
    /// # Errors
    /// The topology does not exist, has an unknown field or wrong value (with line and column), or fails
    /// [`Self::check`].
    pub fn load(name_or_path: &str) -> Result<Self> {
        if !name_or_path.contains(['/', '.']) {
            let found = BUILT_IN.iter().find(|(name, _)| *name == name_or_path);
            let Some((name, text)) = found else {
                let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).collect();
                bail!(
                    "there is no built-in topology '{name_or_path}' (there is: {}); write the path of a file, as ./{name_or_path}.yaml",
                    names.join(", ")
                );
            };
            return Self::parse(text).with_context(|| format!("built-in topology {name}"));
        }
        let text = std::fs::read_to_string(Path::new(name_or_path)).with_context(|| name_or_path.to_owned())?;
        Self::parse(&text).with_context(|| name_or_path.to_owned())
    }

    /// Parses and checks the text of a topology file.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str) -> Result<Self> {
        let topology: Self = serde_norway::from_str(text)?;
        topology.check()?;
        Ok(topology)
    }

    /// Returns the topology as the text of a file.
    ///
    /// # Errors
    /// A value cannot be written as YAML, which none of the types can cause.
    pub fn to_text(&self) -> Result<String> {
        Ok(serde_norway::to_string(self)?)
    }

    /// Returns name and prefix of the segment that contains an underlay address.
    #[must_use]
    pub fn segment_of(&self, address: IpAddr) -> Option<(&str, IpNet)> {
        let mut segments = self.underlay.segments.iter();
        let found = segments.find(|(_, s)| s.prefix.contains(&address));
        found.map(|(name, s)| (name.as_str(), s.prefix))
    }

    /// Returns the name of the `ipConfiguration` of a gateway's host; none if the host names none and the gateway has
    /// several.
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

    /// Returns the hosts that run an agent, sorted by name.
    pub fn agents(&self) -> impl Iterator<Item = (&str, &Host)> {
        let runs_one = |h: &Host| h.vm.is_some() || h.gateway.is_some() || h.edge.is_some();
        let agents = self.hosts.iter().filter(move |(_, h)| runs_one(h));
        agents.map(|(name, host)| (name.as_str(), host))
    }
}

/// Returns the first usable address of a prefix.
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
