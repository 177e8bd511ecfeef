//! The on-premises part of a topology file: sites with customer edges, a LAN router and test hosts. All of these are
//! plain Linux machines with stock programs and without agents. Sites have only IPv4.

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use tombolo_client::manifest::Named;
use tombolo_proto::config::CircuitLink;

/// Name of every site's LAN router. No customer edge and no test host may have this name.
pub const LAN_ROUTER: &str = "router";

/// An on-premises site: a LAN, and the customer edges between the LAN and the providers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Site {
    /// ASN of the customer edges. The private peerings of the circuits and the local network gateways must name the
    /// same ASN.
    pub asn: u32,
    /// Prefixes that the site advertises, at least one. The prefixes of lines and of the links between customer edges
    /// and the LAN router do not belong here.
    pub prefixes: Vec<Ipv4Net>,
    /// LAN with its router and test hosts.
    pub lan: Lan,
    /// Customer edges by name, in the order of preference. Unless `lan.ecmp` is set, all traffic of the LAN goes
    /// through the first edge that works.
    pub customer_edges: Named<CustomerEdge>,
    /// BGP policy of all customer edges.
    #[serde(default)]
    pub bgp: BgpPolicy,
}

/// The LAN of a site, with one router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lan {
    /// Address of the router on the LAN, with the LAN's prefix length.
    pub router: Ipv4Net,
    /// Test hosts by name, with their addresses on the LAN.
    #[serde(default)]
    pub hosts: Named<Ipv4Addr>,
    /// Test hosts with a site probe (M10), by name, with their addresses on the underlay. Over the underlay they reach only
    /// the controller.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub probes: Named<IpAddr>,
    /// Routes that the customer edges advertise to the router.
    #[serde(default)]
    pub routes: LanRoutes,
    /// Whether the router spreads flows over all customer edges that advertise a route. If false, the router uses only
    /// the first of these edges.
    #[serde(default)]
    pub ecmp: bool,
}

/// The routes that customer edges advertise to the LAN router by OSPF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LanRoutes {
    /// A default route, at all times. A customer edge drops packets for which it has no route.
    #[default]
    Default,
    /// The routes that the customer edge has learned. If the edge's line fails, the edge withdraws the routes that it
    /// has learned over the line, and another customer edge takes over.
    Learned,
}

/// A router between the LAN and the providers. It has a link to the underlay only with `address`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CustomerEdge {
    /// Address on the link to the LAN router, with the link's prefix length, which is 30 or 31. The LAN router has the
    /// other address. Without it the edge has no link to the LAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan: Option<Ipv4Net>,
    /// Underlay address, which is the endpoint of the tunnels. Edges with tunnels need it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Lines to provider edges. No other customer edge may have a line to the same provider edge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<Line>,
    /// Tunnels to VPN gateways, at most one for each connection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<Tunnel>,
}

/// A line of a circuit, primary or secondary, to its provider edge. The circuit's private peering defines the line's
/// prefix. The customer edge has the prefix's first host address, and the provider edge the second (E1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Line {
    /// Name of the circuit in `resources`.
    pub circuit: String,
    /// Whether this is the circuit's primary or secondary line.
    pub link: CircuitLink,
    /// Whether the customer edge's interface is up. If false, it is down until an event sets it up.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
}

/// A WireGuard tunnel to a VPN gateway (D16).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tunnel {
    /// Name of the connection in `resources`. The connection's local network gateway in `resources` describes this
    /// device, but not its public key. The lab generates the key and adds it to the local network gateway.
    pub connection: String,
    /// Address of the device inside the tunnel. The device's BGP session and ICMP errors have this address as their
    /// source.
    pub address: Ipv4Addr,
    /// UDP port on which the device listens.
    #[serde(default = "wireguard_port")]
    pub listen_port: u16,
}

/// The BGP policy of a site's customer edges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BgpPolicy {
    /// Policy for provider edges of circuits.
    pub circuit: NeighbourPolicy,
    /// Policy for the VPN gateways of the tunnels.
    pub vpn: NeighbourPolicy,
    /// Whether a customer edge spreads flows over equal BGP routes.
    pub ecmp: bool,
    /// BGP hold time that the customer edges propose, seconds, 3 to 65535.
    pub hold_time: u16,
}

impl Default for BgpPolicy {
    fn default() -> Self {
        Self {
            circuit: NeighbourPolicy::default(),
            vpn: NeighbourPolicy::default(),
            ecmp: false,
            // Over tunnels there is no BFD, and a tunnel's device keeps its carrier. So only the hold time detects a
            // dead neighbour there.
            hold_time: 9,
        }
    }
}

/// The BGP policy for one kind of neighbour: provider edges or VPN gateways.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NeighbourPolicy {
    /// Local preference of the routes that a customer edge learns from these neighbours; the largest wins (E10).
    pub local_preference: u32,
    /// The prefixes of the site that are advertised to these neighbours; if absent, all prefixes of the site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<Vec<Ipv4Net>>,
}

impl Default for NeighbourPolicy {
    fn default() -> Self {
        Self {
            local_preference: 100,
            export: None,
        }
    }
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn wireguard_port() -> u16 {
    51820
}

/// One link of a circuit, written as `er1 primary`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkName {
    /// Name of the circuit, as in `resources`.
    pub circuit: String,
    /// Link of the circuit, primary or secondary.
    pub link: CircuitLink,
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.circuit, link_word(self.link))
    }
}

/// Returns the word for a link in files and messages: `primary` or `secondary`.
#[must_use]
pub fn link_word(link: CircuitLink) -> &'static str {
    match link {
        CircuitLink::Primary => "primary",
        CircuitLink::Secondary => "secondary",
    }
}

impl FromStr for LinkName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let link = match text.split_once(' ') {
            Some((_, "primary")) => CircuitLink::Primary,
            Some((_, "secondary")) => CircuitLink::Secondary,
            _ => {
                return Err(format!(
                    "'{text}' must be written as CIRCUIT primary or CIRCUIT secondary"
                ));
            }
        };
        let circuit = text.split(' ').next().unwrap_or_default().to_owned();
        Ok(Self { circuit, link })
    }
}

impl Serialize for LinkName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LinkName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Returns the other host address of the /30 or /31 in which `own` is. Returns `None` if `own` has another prefix
/// length, or is the network or broadcast address of a /30.
#[must_use]
pub fn other_end(own: Ipv4Net) -> Option<Ipv4Addr> {
    if !matches!(own.prefix_len(), 30 | 31) {
        return None;
    }
    let hosts: Vec<_> = own.trunc().hosts().collect();
    let other = match hosts[..] {
        [a, b] if a == own.addr() => b,
        [a, b] if b == own.addr() => a,
        _ => return None,
    };
    Some(other)
}

impl Line {
    /// Whether the line belongs to this link. Upper and lower case letters in a circuit's name are not distinguished,
    /// as in Azure.
    #[must_use]
    pub fn is(&self, name: &LinkName) -> bool {
        self.circuit.eq_ignore_ascii_case(&name.circuit) && self.link == name.link
    }
}

/// What attaches a site to gateways, by name in `resources`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// A circuit to which customer edges have lines.
    Circuit(String),
    /// The connection of a tunnel, whose far end is a local network gateway.
    Connection(String),
}

impl Site {
    /// Returns what attaches the site, without duplicates, in the order that its BGP policy prefers: the circuits first,
    /// unless the tunnels have the larger local preference.
    #[must_use]
    pub fn attachments(&self) -> Vec<Attachment> {
        let edges = || self.customer_edges.iter().map(|(_, edge)| edge);
        let circuits = edges()
            .flat_map(|e| &e.lines)
            .map(|l| Attachment::Circuit(l.circuit.clone()));
        let tunnels = edges()
            .flat_map(|e| &e.tunnels)
            .map(|t| Attachment::Connection(t.connection.clone()));
        let (circuits, tunnels): (Vec<_>, Vec<_>) = (circuits.collect(), tunnels.collect());
        let all = if self.bgp.vpn.local_preference > self.bgp.circuit.local_preference {
            tunnels.into_iter().chain(circuits)
        } else {
            circuits.into_iter().chain(tunnels)
        };
        let mut unique = Vec::new();
        for attachment in all {
            if !unique.contains(&attachment) {
                unique.push(attachment);
            }
        }
        unique
    }

    /// Returns the prefixes that the site advertises to neighbours with this policy: its `export`, otherwise all
    /// prefixes.
    #[must_use]
    pub fn export<'a>(&'a self, neighbours: &'a NeighbourPolicy) -> &'a [Ipv4Net] {
        neighbours.export.as_deref().unwrap_or(&self.prefixes)
    }
}

/// What a machine of a site is there for.
#[derive(Debug, Clone, Copy)]
pub enum MachineRole<'a> {
    /// Routes between the LAN and the customer edges.
    LanRouter,
    /// Routes between the LAN router and the providers.
    CustomerEdge(&'a CustomerEdge),
    /// Is a test host with this address on the LAN.
    Host(Ipv4Addr),
}

/// A machine of a site. In the lab it is the host `SITE-NAME`.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// Name of the machine's host in the lab.
    pub host: String,
    /// Name of the machine in its site; [`LAN_ROUTER`] for the LAN router.
    pub name: &'a str,
    /// Name of the machine's site.
    pub site_name: &'a str,
    /// Site that the machine belongs to.
    pub site: &'a Site,
    /// What the machine is there for.
    pub role: MachineRole<'a>,
}

/// Returns the name that the host of a site's machine has in the lab: `SITE-NAME`. Neither name is checked.
#[must_use]
pub fn host_name(site: &str, name: &str) -> String {
    format!("{site}-{name}")
}

impl super::Topology {
    /// Returns the machines of all sites, sorted by the site's name. For each site the LAN router comes first, then the
    /// customer edges in the file's order, and then the test hosts in the file's order.
    pub fn machines(&self) -> impl Iterator<Item = Machine<'_>> {
        self.sites.iter().flat_map(|(site_name, site)| {
            let machine = move |name, role| Machine {
                host: host_name(site_name, name),
                name,
                site_name,
                site,
                role,
            };
            let router = std::iter::once(machine(LAN_ROUTER, MachineRole::LanRouter));
            let edges = site.customer_edges.iter();
            let edges = edges.map(move |(name, edge)| machine(name, MachineRole::CustomerEdge(edge)));
            let hosts = site.lan.hosts.iter();
            let hosts = hosts.map(move |(name, address)| machine(name, MachineRole::Host(*address)));
            router.chain(edges).chain(hosts)
        })
    }

    /// Returns the test hosts with a site probe in the order of [`Self::machines`], each with its address on the LAN and on
    /// the underlay.
    pub fn probes(&self) -> impl Iterator<Item = (Machine<'_>, Ipv4Addr, IpAddr)> {
        self.machines().filter_map(|machine| {
            let MachineRole::Host(address) = machine.role else {
                return None;
            };
            let underlay = *machine.site.lan.probes.find(machine.name)?;
            Some((machine, address, underlay))
        })
    }

    /// Returns the name of the host that is the provider edge of this line of a circuit; `None` if no host is. Upper
    /// and lower case letters in the circuit's name are not distinguished.
    #[must_use]
    pub fn edge_host(&self, circuit: &str, link: CircuitLink) -> Option<&str> {
        let mut hosts = self.hosts.iter();
        let found = hosts.find(|(_, h)| {
            let edge = h.edge.as_ref();
            edge.is_some_and(|e| e.circuit.eq_ignore_ascii_case(circuit) && e.link == link)
        });
        found.map(|(name, _)| name.as_str())
    }

    /// Returns the tunnels of all customer edges in the order of [`Self::machines`]. Each tunnel comes with the host of
    /// its customer edge, and with its position among the tunnels of that host, counted from 0.
    pub fn tunnels(&self) -> impl Iterator<Item = (String, usize, &Tunnel)> {
        self.machines().flat_map(|machine| {
            let tunnels = match machine.role {
                MachineRole::CustomerEdge(edge) => edge.tunnels.as_slice(),
                MachineRole::LanRouter | MachineRole::Host(_) => &[],
            };
            let numbered = tunnels.iter().enumerate();
            numbered.map(move |(number, tunnel)| (machine.host.clone(), number, tunnel))
        })
    }

    /// Returns the customer edge `router` of a site; `None` if the site or the customer edge does not exist. The name
    /// of the site must be written as in the topology. In the name of the customer edge, upper and lower case letters
    /// are not distinguished.
    #[must_use]
    pub fn customer_edge(&self, site: &str, router: &str) -> Option<&CustomerEdge> {
        self.sites.get(site)?.customer_edges.find(router)
    }

    /// Whether a customer edge's interface for a line is up in the steady state. False if the customer edge or the line
    /// does not exist. Names are compared as in [`Self::customer_edge`] and [`Line::is`].
    #[must_use]
    pub fn line_enabled(&self, site: &str, router: &str, line: &LinkName) -> bool {
        let edge = self.customer_edge(site, router);
        let mut lines = edge.into_iter().flat_map(|e| &e.lines);
        lines.any(|l| l.is(line) && l.enabled)
    }

    /// Whether any customer edge has this line of a circuit. Upper and lower case letters in the circuit's name are not
    /// distinguished.
    #[must_use]
    pub fn has_line(&self, circuit: &str, link: CircuitLink) -> bool {
        let edges = self.sites.values().flat_map(|s| s.customer_edges.iter());
        let mut lines = edges.flat_map(|(_, e)| &e.lines);
        lines.any(|l| l.circuit.eq_ignore_ascii_case(circuit) && l.link == link)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_a_link() {
        let other = |own: &str| other_end(own.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(other("192.168.30.0/31").as_deref(), Some("192.168.30.1"));
        assert_eq!(other("192.168.30.1/31").as_deref(), Some("192.168.30.0"));
        assert_eq!(other("192.168.30.17/30").as_deref(), Some("192.168.30.18"));
        assert_eq!(other("192.168.30.16/30"), None);
        assert_eq!(other("192.168.30.1/29"), None);
    }

    #[test]
    fn a_link_is_named_by_circuit_and_word() {
        let name: LinkName = "er1 secondary".parse().unwrap();
        assert_eq!((name.circuit.as_str(), name.link), ("er1", CircuitLink::Secondary));
        assert_eq!(name.to_string(), "er1 secondary");
        assert!("er1".parse::<LinkName>().is_err());
        assert!("er1 third".parse::<LinkName>().is_err());
    }
}
