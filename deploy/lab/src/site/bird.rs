//! Writes the configuration of BIRD 2 for a site's routers, and parses the output of `birdc`.

use super::{LAN, edge_device, line_device, tunnel_device};
use crate::topology::Topology;
use crate::topology::site::{
    CustomerEdge, LanRoutes, Machine, MachineRole, NeighbourPolicy, Site, link_word, other_end,
};
use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// ASN of all provider edges. Azure's edges have this ASN too (E1).
const EDGE_ASN: u32 = 12076;
/// First part of the names of BIRD's static protocols with the routes into tunnels. By this part the export filter of
/// OSPF selects these routes.
const TUNNEL_ROUTES: &str = "through_";
/// Path of BIRD's configuration below a router's own `/run`.
pub const CONFIG: &str = "bird/bird.conf";

/// The BGP speaker of a VPN gateway, as a customer edge sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// ASN of the gateway's BGP speaker.
    pub asn: u32,
    /// Address of the speaker in `GatewaySubnet`.
    pub address: Ipv4Addr,
}

/// The remote end of a tunnel: what a customer edge must know of the VPN gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteEnd {
    /// Destinations of the static routes into the tunnel. If the connection uses BGP, this is only the BGP speaker;
    /// otherwise it is all remote prefixes.
    pub routes: Vec<Ipv4Net>,
    /// BGP speaker of the gateway; `None` if the connection does not use BGP.
    pub gateway: Option<Gateway>,
}

/// Returns the text of BIRD's configuration for a site's machine. `remotes` has the remote end of each tunnel, with the
/// name of the tunnel's connection, written as in the topology, as the key. Returns `None` for machines without BIRD:
/// test hosts, and customer edges without any link.
///
/// # Errors
/// A tunnel of the machine has no remote end in `remotes`, the circuit of a line has no private peering, or an address
/// on a link to the LAN router is no host address of a /30 or /31.
pub fn config(
    topology: &Topology,
    machine: &Machine<'_>,
    remotes: &BTreeMap<String, RemoteEnd>,
) -> Result<Option<String>> {
    match machine.role {
        MachineRole::Host(_) => Ok(None),
        MachineRole::LanRouter => Ok(Some(lan_router(machine.site))),
        MachineRole::CustomerEdge(edge) => {
            let Some(router_id) = router_id(topology, edge) else {
                return Ok(None);
            };
            let mut text = common_config(router_id, machine.site.bgp.ecmp);
            text += &lan_protocols(machine, edge)?;
            text += &lines(topology, machine.site, edge)?;
            text += &tunnels(machine.site, edge, remotes)?;
            Ok(Some(text))
        }
    }
}

/// Returns the router id of a customer edge, which is one of the edge's addresses; `None` for an edge without links.
fn router_id(topology: &Topology, edge: &CustomerEdge) -> Option<Ipv4Addr> {
    let line = || {
        let line = edge.lines.first()?;
        Some(topology.line_addresses(&line.circuit, line.link)?.customer.addr())
    };
    let tunnel = || Some(edge.tunnels.first()?.address);
    edge.lan.map(|lan| lan.addr()).or_else(line).or_else(tunnel)
}

/// Returns the part of the configuration that all routers have. `ecmp`: whether several equal BGP or OSPF routes to a
/// prefix become one route in the kernel with several next hops.
fn common_config(router_id: Ipv4Addr, ecmp: bool) -> String {
    let merge = if ecmp { "on" } else { "off" };
    format!(
        "log stderr all;
router id {router_id};
protocol device {{ scan time 2; }}
protocol kernel {{
  scan time 10;
  merge paths {merge};
  ipv4 {{ import none; export where source ~ [ RTS_STATIC, RTS_BGP, RTS_OSPF_EXT2 ]; }};
}}
"
    )
}

/// Returns the configuration of a LAN router. The LAN router need not advertise anything, because the customer edges
/// have static routes to the LAN. With ECMP, OSPF merges the external routes of several customer edges into one route
/// with several next hops.
fn lan_router(site: &Site) -> String {
    let ecmp = if site.lan.ecmp { "yes" } else { "no" };
    let mut links = String::new();
    for (number, (_, edge)) in site.customer_edges.iter().enumerate() {
        if edge.lan.is_some() {
            links += &ospf_link(&edge_device(number));
        }
    }
    common_config(site.lan.router.addr(), site.lan.ecmp)
        + &format!(
            "protocol ospf v2 lan {{
  ecmp {ecmp};
  merge external {ecmp};
  ipv4 {{ import all; export none; }};
  area 0 {{
{links}  }};
}}
"
        )
}

/// Returns an OSPF interface with one hello per second. A neighbour counts as dead after four missing hellos.
fn ospf_link(device: &str) -> String {
    format!("    interface \"{device}\" {{ type ptp; hello 1; dead count 4; check link; }};\n")
}

/// Returns a customer edge's protocols for the LAN: static routes to the site's prefixes, and OSPF to the LAN router.
/// Without ECMP, the metric of the edge's routes grows with the edge's position in the site, so that the LAN router
/// prefers the first edge.
fn lan_protocols(machine: &Machine<'_>, edge: &CustomerEdge) -> Result<String> {
    let Some(own) = edge.lan else { return Ok(String::new()) };
    let router = other_end(own).with_context(|| format!("{own} is no link"))?;
    let site = machine.site;
    let mut text = String::from("protocol static announced {\n  check link;\n  ipv4;\n");
    for prefix in &site.prefixes {
        // Errors are ignored here and at all further writes of this file, because writing to a `String` cannot fail.
        let _ = writeln!(text, "  route {prefix} via {router};");
    }
    text += "}\n";
    let number = site.customer_edges.iter().position(|(name, _)| name == machine.name);
    let rank = if site.lan.ecmp { 0 } else { number.unwrap_or_default() };
    let metric = 100 * (rank + 1);
    let export = match site.lan.routes {
        LanRoutes::Default => {
            text += "protocol static way_out {\n  ipv4;\n  route 0.0.0.0/0 blackhole;\n}\n";
            "proto = \"way_out\"".to_owned()
        }
        LanRoutes::Learned => format!("source = RTS_BGP || proto ~ \"{TUNNEL_ROUTES}*\""),
    };
    let link = ospf_link(LAN);
    let _ = write!(
        text,
        "protocol ospf v2 lan {{
  ipv4 {{
    import none;
    export filter {{ if {export} then {{ ospf_metric2 = {metric}; accept; }} reject; }};
  }};
  area 0 {{
{link}  }};
}}
"
    );
    Ok(text)
}

/// Returns the configuration of one BGP session for each line, with the line's addresses from the circuit's private
/// peering.
fn lines(topology: &Topology, site: &Site, edge: &CustomerEdge) -> Result<String> {
    let mut text = String::new();
    if !edge.lines.is_empty() {
        // BFD detects a line that drops all packets but keeps its carrier.
        text += "protocol bfd {\n  accept direct;\n  interface \"*\" { interval 300 ms; multiplier 3; };\n}\n";
    }
    for (number, line) in edge.lines.iter().enumerate() {
        let addresses = topology.line_addresses(&line.circuit, line.link);
        let addresses = addresses.with_context(|| format!("circuit '{}' has no lines", line.circuit))?;
        text += &session(
            site,
            &Session {
                name: line_device(number),
                description: format!("{} {}", line.circuit, link_word(line.link)),
                own: addresses.customer.addr(),
                other: addresses.edge.addr(),
                asn: EDGE_ASN,
                reach: "check link;\n  bfd on;",
                key: topology.circuit_key(&line.circuit),
                policy: &site.bgp.circuit,
            },
        );
    }
    Ok(text)
}

/// Returns, for each tunnel, the configuration of the static routes into the tunnel, and of a multihop BGP session if
/// the connection uses BGP. The session needs the route to the gateway's speaker.
fn tunnels(site: &Site, edge: &CustomerEdge, remotes: &BTreeMap<String, RemoteEnd>) -> Result<String> {
    let mut text = String::new();
    for (number, tunnel) in edge.tunnels.iter().enumerate() {
        let connection = &tunnel.connection;
        let remote = remotes.get(connection);
        let remote = remote.with_context(|| format!("the remote end of connection '{connection}' is not known"))?;
        let device = tunnel_device(number);
        let _ = writeln!(text, "protocol static {TUNNEL_ROUTES}{device} {{\n  ipv4;");
        for net in &remote.routes {
            let _ = writeln!(text, "  route {net} via \"{device}\";");
        }
        text += "}\n";
        let Some(gateway) = remote.gateway else { continue };
        text += &session(
            site,
            &Session {
                name: device,
                description: connection.clone(),
                own: tunnel.address,
                other: gateway.address,
                asn: gateway.asn,
                reach: "multihop;",
                key: None,
                policy: &site.bgp.vpn,
            },
        );
    }
    Ok(text)
}

/// The parameters of a BGP session in BIRD's configuration.
struct Session<'a> {
    /// Name of the protocol, which is the name of the session's device.
    name: String,
    description: String,
    own: Ipv4Addr,
    other: Ipv4Addr,
    asn: u32,
    /// Options of the protocol that depend on whether the neighbour is direct or multihop.
    reach: &'a str,
    /// Key that signs the session's TCP segments (RFC 2385); `None` for an unsigned session.
    key: Option<&'a str>,
    policy: &'a NeighbourPolicy,
}

/// Returns the protocol of a BGP session. The retry times are shorter than BIRD's defaults, so that sessions are
/// established again within seconds after an event is undone.
fn session(site: &Site, s: &Session<'_>) -> String {
    let Session {
        name,
        description,
        own,
        other,
        asn,
        reach,
        key,
        policy,
    } = s;
    let password = key.map(|key| format!("\n  password \"{key}\";")).unwrap_or_default();
    let preference = policy.local_preference;
    let exported = export_filter(site.export(policy));
    let (own_asn, hold) = (site.asn, site.bgp.hold_time);
    format!(
        "protocol bgp {name} {{
  description \"{description}\";
  local {own} as {own_asn};
  neighbor {other} as {asn};
  {reach}{password}
  hold time {hold};
  connect delay time 1;
  connect retry time 2;
  error wait time 1, 4;
  ipv4 {{
    import filter {{ bgp_local_pref = {preference}; accept; }};
    export {exported};
    next hop self;
  }};
}}
"
    )
}

/// Returns the export filter of a BGP session: it advertises those prefixes of the site that are in `prefixes`. It
/// advertises no learned routes and no prefixes of links.
fn export_filter(prefixes: &[Ipv4Net]) -> String {
    if prefixes.is_empty() {
        return "none".into();
    }
    let all: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    format!("where proto = \"announced\" && net ~ [ {} ]", all.join(", "))
}

/// A protocol of BIRD that has neighbours, and its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Name of the protocol; for a BGP session the name of its device.
    pub name: String,
    /// Type of the protocol, `BGP` or `OSPF`.
    pub kind: String,
    /// Text that BIRD shows as the state: `Established`, `Running`, or another state with its reason.
    pub state: String,
}

impl Protocol {
    /// Whether a BGP session is established, or OSPF has a full neighbour.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state.as_str(), "Established" | "Running")
    }
}

/// Parses the output of `birdc show protocols`. Returns the protocols of the types BGP and OSPF, in the order of the
/// output. Lines of another format are skipped, so the result is empty for an error message of `birdc`.
#[must_use]
pub fn protocols(text: &str) -> Vec<Protocol> {
    let mut all = Vec::new();
    for line in text.lines() {
        // The columns are Name, Proto, Table, State, Since and Info.
        let words: Vec<_> = line.split_whitespace().collect();
        if let [name, kind @ ("BGP" | "OSPF"), _, _, _, ref info @ ..] = words[..] {
            all.push(Protocol {
                name: name.to_owned(),
                kind: kind.to_owned(),
                state: info.join(" "),
            });
        }
    }
    all
}

/// Parses the output of `birdc show route`. Lines that do not begin with an IPv4 prefix are skipped. Returns each
/// prefix once, even if BIRD has several routes to it. If BIRD lists several routes to a prefix, only the line of the
/// first route contains the prefix; the other lines are skipped.
#[must_use]
pub fn prefixes(text: &str) -> BTreeSet<Ipv4Net> {
    let first = |line: &str| line.split_whitespace().next()?.parse().ok();
    text.lines().filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(topology: &Topology, host: &str) -> String {
        let gateway = Gateway {
            asn: 65515,
            address: "10.10.30.254".parse().unwrap(),
        };
        let remotes = RemoteEnd {
            routes: vec!["10.10.30.254/32".parse().unwrap()],
            gateway: Some(gateway),
        };
        let remotes = BTreeMap::from([("hub-loc1".to_owned(), remotes)]);
        let machine = topology.machines().find(|m| m.host == host).unwrap();
        config(topology, &machine, &remotes).unwrap().unwrap_or_default()
    }

    /// Returns the lines of the protocol whose first line begins with `head`, without their indentation.
    fn protocol<'a>(config: &'a str, head: &str) -> Vec<&'a str> {
        let lines = config.lines().skip_while(|l| !l.starts_with(head));
        lines.take_while(|l| *l != "}").map(str::trim).collect()
    }

    #[test]
    fn a_customer_edge_speaks_with_its_circuit_and_its_gateway() {
        let topology = Topology::load("interop").unwrap();
        let ce1 = config_of(&topology, "loc1-ce1");
        let line = protocol(&ce1, "protocol bgp line0");
        for part in [
            "local 192.168.30.17 as 65021;",
            "neighbor 192.168.30.18 as 12076;",
            "import filter { bgp_local_pref = 200; accept; };",
            "export where proto = \"announced\" && net ~ [ 10.2.30.0/25 ];",
        ] {
            assert!(line.contains(&part), "{part}: {line:#?}");
        }
        let tunnel = protocol(&ce1, "protocol bgp wg0");
        for part in [
            "local 10.2.30.125 as 65021;",
            "neighbor 10.10.30.254 as 65515;",
            "multihop;",
            "import filter { bgp_local_pref = 100; accept; };",
        ] {
            assert!(tunnel.contains(&part), "{part}: {tunnel:#?}");
        }
        assert!(ce1.contains("route 10.10.30.254/32 via \"wg0\";"), "{ce1}");
        assert!(ce1.contains("route 10.2.30.0/25 via 192.168.30.1;"), "{ce1}");
        assert!(!ce1.contains("password"), "{ce1}");
        // This edge has no link to the LAN, so it advertises nothing and has no OSPF neighbour.
        let ce2 = config_of(&topology, "loc1-ce2");
        assert!(ce2.contains("protocol bgp line0") && !ce2.contains("ospf v2"), "{ce2}");
    }

    #[test]
    fn a_lan_has_one_way_out_or_several() {
        let mut topology = Topology::load("interop").unwrap();
        let metric = |config: &str| config.contains("ospf_metric2 = 100;");
        let [first, second] = ["loc2-ce1", "loc2-ce2"].map(|h| config_of(&topology, h));
        assert!(metric(&first) && metric(&second), "equal");
        assert!(first.contains("proto = \"way_out\""));
        let router = config_of(&topology, "loc2-router");
        assert!(
            router.contains("merge external yes;") && router.contains("\"ce1\""),
            "{router}"
        );
        assert_eq!(config_of(&topology, "loc2-vm"), "");

        let lan = &mut topology.sites.get_mut("loc2").unwrap().lan;
        (lan.ecmp, lan.routes) = (false, LanRoutes::Learned);
        let [first, second] = ["loc2-ce1", "loc2-ce2"].map(|h| config_of(&topology, h));
        assert!(
            metric(&first) && second.contains("ospf_metric2 = 200;"),
            "the first is better"
        );
        assert!(
            first.contains("if source = RTS_BGP") && !first.contains("0.0.0.0/0"),
            "{first}"
        );
        assert!(config_of(&topology, "loc2-router").contains("ecmp no;"));
    }

    #[test]
    fn sessions_are_read() {
        let text = "BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     08:08:17.123
kernel1    Kernel     master4    up     08:08:17.123
lan        OSPF       master4    up     08:08:17.123  Running
line0      BGP        ---        up     08:08:19.400  Established
line1      BGP        ---        start  08:08:17.123  Idle          Waiting for link
";
        let all = protocols(text);
        let short: Vec<_> = all.iter().map(|p| (p.name.as_str(), p.is_up())).collect();
        assert_eq!(short, [("lan", true), ("line0", true), ("line1", false)]);
        assert_eq!(all[2].state, "Idle Waiting for link");
    }
}
