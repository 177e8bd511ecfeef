//! The on-premises half of a topology file: sites with their customer edges, LAN router and test hosts. Plain Linux
//! routers with stock programs; nothing of the product runs there. Inside a site there is IPv4 alone.

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use tombolo_client::manifest::Named;
use tombolo_proto::config::CircuitLink;

/// The name of every site's LAN router; no customer edge and no host can have it.
pub const LAN_ROUTER: &str = "router";

/// A site: its LAN, and the customer edges between that and the providers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Site {
    /// The ASN of its customer edges.
    pub asn: u32,
    /// What it announces. The prefixes of lines and links to the LAN router are not among them.
    pub prefixes: Vec<Ipv4Net>,
    /// The LAN.
    pub lan: Lan,
    /// By name; with `lan.ecmp` off, the first of those that work has all of the LAN's traffic.
    pub customer_edges: Named<CustomerEdge>,
    /// What customer edges say and prefer.
    #[serde(default)]
    pub bgp: Policy,
}

/// A LAN with one router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lan {
    /// The router's address on the LAN, with the length of the LAN's prefix.
    pub router: Ipv4Net,
    /// Test hosts, by name.
    #[serde(default)]
    pub hosts: Named<Ipv4Addr>,
    /// What the router hears from the customer edges.
    #[serde(default)]
    pub routes: LanRoutes,
    /// The router spreads flows over all customer edges that have the same to say.
    #[serde(default)]
    pub ecmp: bool,
}

/// What customer edges tell the LAN router, by OSPF.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LanRoutes {
    /// A default route, always: what a customer edge has no way for dies there.
    #[default]
    Default,
    /// What they have learned: when a line dies, the other customer edge takes over.
    Learned,
}

/// A router between the LAN and the providers. Without `address` it has no way to the underlay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CustomerEdge {
    /// Its address on the link to the LAN router, a /30 or /31; the router has the other one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan: Option<Ipv4Net>,
    /// Its address on the underlay: what tunnels are reached at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Private lines, at most one to each edge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<Line>,
    /// Tunnels to VPN gateways.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<Tunnel>,
}

/// A private line to the edge of one link of a circuit. Its addresses are the circuit's matter: the first of the
/// link's peering prefix is the customer's, the second the edge's (E1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Line {
    /// The circuit in `resources`.
    pub circuit: String,
    /// Which of its links.
    pub link: CircuitLink,
    /// Off: the customer's interface is shut until an event turns it on.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
}

/// A WireGuard tunnel to a VPN gateway (D16).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tunnel {
    /// The connection in `resources`; its local network gateway describes this device, but for the key, which the lab
    /// makes and fills in.
    pub connection: String,
    /// The own address inside, the source of BGP and of what the device answers.
    pub address: Ipv4Addr,
    /// UDP.
    #[serde(default = "wireguard_port")]
    pub listen_port: u16,
}

/// What a site's customer edges say and prefer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    /// Towards circuits.
    pub circuit: Neighbours,
    /// Towards VPN gateways.
    pub vpn: Neighbours,
    /// A customer edge spreads flows over equal routes.
    pub ecmp: bool,
    /// Hold time to ask for, seconds, 3 to 65535.
    pub hold_time: u16,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            circuit: Neighbours::default(),
            vpn: Neighbours::default(),
            ecmp: false,
            // Lines and tunnels have no other way to notice that a speaker at the other end is gone.
            hold_time: 9,
        }
    }
}

/// Policy for one kind of neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Neighbours {
    /// Of what they tell; the greater one wins (E10).
    pub local_preference: u32,
    /// What they are told; all of the site's prefixes unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<Vec<Ipv4Net>>,
}

impl Default for Neighbours {
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
    /// The circuit.
    pub circuit: String,
    /// Which of its links.
    pub link: CircuitLink,
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.circuit, link_word(self.link))
    }
}

/// `primary` or `secondary`.
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

/// The other address of a /30 or /31; none if `own` is neither, or is not a host's.
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
    /// Whether it is the line of this link.
    #[must_use]
    pub fn is(&self, name: &LinkName) -> bool {
        self.circuit.eq_ignore_ascii_case(&name.circuit) && self.link == name.link
    }
}

impl Site {
    /// What neighbours of a kind are told.
    #[must_use]
    pub fn export<'a>(&'a self, neighbours: &'a Neighbours) -> &'a [Ipv4Net] {
        neighbours.export.as_deref().unwrap_or(&self.prefixes)
    }
}

/// What a machine of a site is.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Between the LAN and the customer edges.
    LanRouter,
    /// Between the LAN router and the providers.
    CustomerEdge(&'a CustomerEdge),
    /// A test host, with its address.
    Host(Ipv4Addr),
}

/// A machine of a site: a host of the lab named `SITE-NAME`.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// The name of its host.
    pub host: String,
    /// Its name in its site.
    pub name: &'a str,
    /// The name of its site.
    pub site_name: &'a str,
    /// Its site.
    pub site: &'a Site,
    /// What it is.
    pub part: Part<'a>,
}

/// The host that a machine of a site is.
#[must_use]
pub fn host_name(site: &str, name: &str) -> String {
    format!("{site}-{name}")
}

impl super::Topology {
    /// The machines of all sites, the LAN router of each first, then its customer edges and hosts in order of writing.
    pub fn machines(&self) -> impl Iterator<Item = Machine<'_>> {
        self.sites.iter().flat_map(|(site_name, site)| {
            let machine = move |name, part| Machine {
                host: host_name(site_name, name),
                name,
                site_name,
                site,
                part,
            };
            let router = std::iter::once(machine(LAN_ROUTER, Part::LanRouter));
            let edges = site.customer_edges.iter();
            let edges = edges.map(move |(name, edge)| machine(name, Part::CustomerEdge(edge)));
            let hosts = site.lan.hosts.iter();
            let hosts = hosts.map(move |(name, address)| machine(name, Part::Host(*address)));
            router.chain(edges).chain(hosts)
        })
    }

    /// The host that stands for an edge of a circuit.
    #[must_use]
    pub fn edge_host(&self, circuit: &str, link: CircuitLink) -> Option<&str> {
        let mut hosts = self.hosts.iter();
        let found = hosts.find(|(_, h)| {
            let edge = h.edge.as_ref();
            edge.is_some_and(|e| e.circuit.eq_ignore_ascii_case(circuit) && e.link == link)
        });
        found.map(|(name, _)| name.as_str())
    }

    /// The tunnels of all customer edges: the host, the tunnel's number there, the tunnel.
    pub fn tunnels(&self) -> impl Iterator<Item = (String, usize, &Tunnel)> {
        self.machines().flat_map(|machine| {
            let tunnels = match machine.part {
                Part::CustomerEdge(edge) => edge.tunnels.as_slice(),
                Part::LanRouter | Part::Host(_) => &[],
            };
            let numbered = tunnels.iter().enumerate();
            numbered.map(move |(number, tunnel)| (machine.host.clone(), number, tunnel))
        })
    }

    /// A customer edge of a site.
    #[must_use]
    pub fn customer_edge(&self, site: &str, router: &str) -> Option<&CustomerEdge> {
        self.sites.get(site)?.customer_edges.find(router)
    }

    /// Whether a customer edge's interface to a line is on when nothing has happened.
    #[must_use]
    pub fn line_enabled(&self, site: &str, router: &str, line: &LinkName) -> bool {
        let edge = self.customer_edge(site, router);
        let mut lines = edge.into_iter().flat_map(|e| &e.lines);
        lines.any(|l| l.is(line) && l.enabled)
    }

    /// Whether a line of some customer edge ends at this edge.
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
