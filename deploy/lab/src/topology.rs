//! The topology file: resources, hosts, sites, the underlay between the hosts, and expectations. It contains all
//! addresses of a lab, except those that the controller allocates.

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

/// Name of the host that is the underlay's router. The lab creates this host itself.
pub const INTERNET: &str = "internet";
/// Name of the controller's host. The lab also runs the operator's commands on it. The lab creates this host itself.
pub const CONTROLLER: &str = "controller";

/// Names and texts of the built-in topologies.
const BUILT_IN: &[(&str, &str)] = &[
    ("hub-spoke", include_str!("../topologies/hub-spoke.yaml")),
    ("policy", include_str!("../topologies/policy.yaml")),
    ("global", include_str!("../topologies/global.yaml")),
    ("interop", include_str!("../topologies/interop.yaml")),
    ("two-hubs", include_str!("../topologies/two-hubs.yaml")),
    ("failover", include_str!("../topologies/failover.yaml")),
];

/// The content of a topology file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Topology {
    /// Name of the lab, which is part of the names of its namespaces: 1 to 24 of `a-z`, `0-9` and `-`, with no `-` at
    /// either end.
    pub name: String,
    /// Settings of the controller by name, with values as `tombolo settings set` accepts them. All others keep their
    /// defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, serde_json::Value>,
    /// Network between the hosts, with its addresses and delays.
    pub underlay: Underlay,
    /// Machines with a link to the underlay, by name.
    pub hosts: BTreeMap<String, Host>,
    /// On-premises networks by name, each with its routers and test hosts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sites: BTreeMap<String, Site>,
    /// Manifest that is applied before the agents join, as `tombolo apply -f` accepts it.
    pub resources: Document,
    /// Expected reachability and paths in the steady state, before any event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Row>,
    /// Prefixes that customer edges are expected to learn by BGP in the steady state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Learned>,
    /// Events by name, in the order in which `tombolo lab check` triggers them.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub events: Named<Event>,
}

/// The network between the hosts. It represents the internet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Underlay {
    /// MTU of every link, bytes, 1280 to 9000.
    #[serde(default = "ethernet")]
    pub mtu: u16,
    /// Segments by name, at least one. The underlay routes between them.
    pub segments: BTreeMap<String, Segment>,
    /// Address and port at which the controller listens.
    pub controller: Controller,
    /// Delays between segments. Pairs of segments that are not listed have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delays: Vec<Delay>,
}

/// Delay and loss of packets between two segments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// Names of two different segments. A pair may be listed only once.
    pub between: [String; 2],
    /// Delay of each packet, in milliseconds, 0 to 1000; the same in both directions.
    pub one_way_ms: f64,
    /// Fraction of the packets that are lost, 0 to 1; the same in both directions.
    #[serde(default)]
    pub loss: f64,
}

// `Eq` needs a value to equal itself, which NaN does not. The check of the topology refuses NaN for both numbers.
impl Eq for Delay {}

fn ethernet() -> u16 {
    1500
}

/// One broadcast domain of the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Segment {
    /// Prefix of the segment, without host bits. The first usable address of the prefix is that of the underlay's
    /// router, which is the default gateway of the segment's hosts.
    pub prefix: IpNet,
}

/// Address and port at which the controller listens on the underlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Controller {
    /// Underlay address of the controller's host, in one of the segments.
    pub address: IpAddr,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

/// A machine with a link to the underlay. At most one of `vm`, `gateway` and `edge` may be set. A machine with none of
/// them is a plain host without an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// Underlay address, in one of the segments.
    pub address: IpAddr,
    /// UDP port on which the agent listens. If absent, the agent chooses its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Set if the host is a virtual machine of a VNet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// Set if the host is an instance of a VPN or ExpressRoute gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// Set if the host is the provider edge on which one line of a circuit, primary or secondary, ends. The edge has
    /// one line, to a customer edge of a site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Edge>,
}

/// The part of a host that is a virtual machine (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vm {
    /// Names of the machine's network interfaces in `resources`, the primary one first; at least one.
    pub nics: Vec<String>,
    /// Served subnets, each as `vnet/subnet`: their other machines have no agents and are reached through this host
    /// (D8).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub serves: Vec<String>,
    /// Whether the lab enables forwarding in the host's kernel. A host that is an appliance needs this in addition to
    /// the property `enableIPForwarding` of its network interface (R12).
    #[serde(default)]
    pub kernel_forwarding: bool,
}

/// The properties of a host that is the provider edge of one line of a circuit, primary or secondary (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Edge {
    /// Name of the circuit in `resources`.
    pub circuit: String,
    /// Link of the circuit, primary or secondary. Each has an edge of its own.
    pub link: CircuitLink,
}

/// The properties of a host that is one instance of a gateway (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Name of the gateway in `resources`.
    pub name: String,
    /// Name of the instance's `ipConfiguration`. It may be absent if the gateway has only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_configuration: Option<String>,
}

impl Topology {
    /// Reads and checks a topology: a file if the text contains `/` or `.`, otherwise the built-in topology of this
    /// name. Names of built-in topologies are case-sensitive.
    ///
    /// # Errors
    /// The file cannot be read, or no built-in topology has this name; the topology has an unknown field or a wrong
    /// value (the message has line and column), or fails [`Self::check`].
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
    /// The text is no YAML, has an unknown field or a wrong value (the message has line and column), or fails
    /// [`Self::check`].
    pub fn parse(text: &str) -> Result<Self> {
        let topology: Self = serde_norway::from_str(text)?;
        topology.check()?;
        Ok(topology)
    }

    /// Returns the topology as the text of a file, which [`Self::parse`] accepts if this topology passes
    /// [`Self::check`].
    ///
    /// # Errors
    /// A value cannot be written as YAML. No value of these types causes this.
    pub fn to_text(&self) -> Result<String> {
        Ok(serde_norway::to_string(self)?)
    }

    /// Returns the name and prefix of the segment that contains an underlay address; `None` if no segment contains it.
    /// In a topology that passes [`Self::check`], at most one segment contains it.
    #[must_use]
    pub fn segment_of(&self, address: IpAddr) -> Option<(&str, IpNet)> {
        let mut segments = self.underlay.segments.iter();
        let found = segments.find(|(_, s)| s.prefix.contains(&address));
        found.map(|(name, s)| (name.as_str(), s.prefix))
    }

    /// Returns the name of the `ipConfiguration` that a host of a gateway is bound to: the configuration that the host
    /// names, otherwise the gateway's only configuration. If the manifest does not have the gateway, or lists no
    /// configuration for it, returns the name that a manifest uses by default. Returns `None` if the host names no
    /// configuration and the gateway has several. A name that the host gives is not checked.
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

    /// Returns the hosts that run an agent, sorted by name: those with `vm`, `gateway` or `edge`.
    pub fn agents(&self) -> impl Iterator<Item = (&str, &Host)> {
        let runs_one = |h: &Host| h.vm.is_some() || h.gateway.is_some() || h.edge.is_some();
        let agents = self.hosts.iter().filter(move |(_, h)| runs_one(h));
        agents.map(|(name, host)| (name.as_str(), host))
    }
}

/// Returns the first usable address of a prefix; host bits of `prefix` do not matter. For IPv4 it is the one after the
/// network's address, in a /31 or /32 the network's address itself. For IPv6 it is the one after the network's address.
/// `None` for an IPv6 prefix of length 128.
#[must_use]
pub fn first_address(prefix: IpNet) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(_) => prefix.hosts().next(),
        // In IPv6 the first address of the prefix is the subnet-router anycast address, so the second one is returned.
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
