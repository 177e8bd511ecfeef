//! The expectations of a topology file: which hosts reach each other, over which hops, which prefixes customer edges
//! learn, and what changes after an event.

use super::site::LinkName;
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::net::IpAddr;

/// A hop of a trace: the address that answers, or `None` for a silent hop. In a file a silent hop is written as `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop(pub Option<IpAddr>);

impl Serialize for Hop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(address) => serializer.collect_str(&address),
            None => serializer.serialize_str("*"),
        }
    }
}

impl<'de> Deserialize<'de> for Hop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "*" {
            return Ok(Self(None));
        }
        let address = text.parse().map(|address| Self(Some(address)));
        address.map_err(|_| de::Error::custom(format_args!("'{text}' is neither an address nor '*'")))
    }
}

/// The expectation for packets from one host to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Row {
    /// Name of the source host.
    pub from: String,
    /// Name of the destination host.
    pub to: String,
    /// Whether all pings are answered. If false, all pings are lost without ICMP errors (T8).
    pub reachable: bool,
    /// Hops of a trace, the destination last. Empty for an unreachable pair.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<Hop>,
    /// Further permitted lists of hops: a flow that is spread over equal paths may take any of these paths (T9).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Vec<Hop>>,
    /// Why this result is expected, for people who read the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// Returns every permitted list of hops: [`Self::hops`], then the alternatives. For an unreachable pair this is one
    /// empty list, unless the row has alternatives.
    pub fn lists(&self) -> impl Iterator<Item = &Vec<Hop>> {
        std::iter::once(&self.hops).chain(&self.alternatives)
    }

    /// Whether both rows have the same source and destination. Names are compared exactly.
    #[must_use]
    pub fn same_pair(&self, other: &Self) -> bool {
        self.from == other.from && self.to == other.to
    }
}

/// The prefixes that a customer edge must learn by BGP from one neighbour. If the edge learns fewer or others, the
/// check fails (E16). So the check also detects routes that no ping uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Learned {
    /// Name of the site.
    pub site: String,
    /// Name of the customer edge.
    pub router: String,
    /// Line to the neighbour, for example `er1 primary`, if the neighbour is a provider edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<LinkName>,
    /// Connection of the tunnel to the neighbour, if the neighbour is a VPN gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// All prefixes that the customer edge learns from the neighbour, in any order.
    pub prefixes: Vec<Ipv4Net>,
}

impl Learned {
    /// Whether both expectations concern the same neighbour of the same customer edge. Names are compared exactly.
    #[must_use]
    pub fn same_neighbour(&self, other: &Self) -> bool {
        let key = |l: &Self| (l.site.clone(), l.router.clone(), l.line.clone(), l.tunnel.clone());
        key(self) == key(other)
    }
}

/// Actions on the lab, and the expectations that are different after the actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// Actions in the order in which they are carried out, at least one.
    pub actions: Vec<Action>,
    /// Rows that replace the steady state's rows for the same pairs, and rows for further pairs.
    #[serde(default)]
    pub expected: Vec<Row>,
    /// Expectations that replace the steady state's for the same neighbours. Other neighbours are an error of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Learned>,
}

/// An action on one target. The target is either an interface of a customer edge, named by `site`, `router`, and `line`
/// or `tunnel`, or a host, named by `host`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Action {
    /// Name of the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Name of the customer edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<String>,
    /// Line of the customer edge, as `er1 primary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<LinkName>,
    /// Connection of a tunnel of the customer edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Name of a host with an address on the underlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What is done to the target: `down` or `up` for an interface, `cut` for a host.
    pub action: Verb,
}

/// What an action does to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// Sets the interface down. The device at the other end of a line then has no carrier. The other end of a tunnel
    /// does not notice at once.
    Down,
    /// Sets the interface up again, or for the first time.
    Up,
    /// Disconnects the host from the underlay: packets in both directions are lost without ICMP errors.
    Cut,
}

/// The target of an action, with all properties that an action on this kind of target needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// The customer edge's interface for a line, which the action sets up or down.
    Line {
        /// Name of the site.
        site: &'a str,
        /// Name of the customer edge.
        router: &'a str,
        /// Link of the circuit that the line belongs to.
        line: &'a LinkName,
        /// Whether the interface is set up; false: it is set down.
        up: bool,
    },
    /// The customer edge's interface for a tunnel, which the action sets up or down.
    Tunnel {
        /// Name of the site.
        site: &'a str,
        /// Name of the customer edge.
        router: &'a str,
        /// Name of the connection.
        connection: &'a str,
        /// Whether the interface is set up; false: it is set down.
        up: bool,
    },
    /// A host on the underlay, which is disconnected.
    Host(&'a str),
}

impl Action {
    /// Returns the target of the action. Whether it exists in a topology is not checked.
    ///
    /// # Errors
    /// A property is missing, or must not be set together with the verb or with another property. The text says which
    /// properties to set.
    pub fn target(&self) -> Result<Target<'_>, String> {
        let up = self.action == Verb::Up;
        match self {
            Self {
                site: None,
                router: None,
                line: None,
                tunnel: None,
                host: Some(host),
                action: Verb::Cut,
            } => Ok(Target::Host(host)),
            Self { host: Some(_), .. } => Err("'host' needs 'action: cut' and no other property".into()),
            Self { action: Verb::Cut, .. } => {
                Err("'action: cut' needs a 'host'; lines and tunnels have 'action: down' or 'action: up'".into())
            }
            Self {
                site: Some(site),
                router: Some(router),
                line: Some(line),
                tunnel: None,
                ..
            } => Ok(Target::Line { site, router, line, up }),
            Self {
                site: Some(site),
                router: Some(router),
                line: None,
                tunnel: Some(connection),
                ..
            } => Ok(Target::Tunnel {
                site,
                router,
                connection,
                up,
            }),
            _ => Err("set 'site', 'router' and either 'line' or 'tunnel', or set 'host'".into()),
        }
    }
}

impl super::Topology {
    /// Returns the rows that are expected after an event. First come the rows of the steady state in their order; if
    /// the event has a row for the same pair, that row is returned instead. Then come the event's rows for other pairs.
    /// `event` need not be an event of this topology.
    #[must_use]
    pub fn rows_after(&self, event: &Event) -> Vec<Row> {
        let own = |row: &Row| event.expected.iter().find(|own| own.same_pair(row));
        let steady = self.expected.iter();
        let mut rows: Vec<_> = steady.map(|row| own(row).unwrap_or(row).clone()).collect();
        let new = event
            .expected
            .iter()
            .filter(|own| !rows.iter().any(|r| r.same_pair(own)));
        let new: Vec<_> = new.cloned().collect();
        rows.extend(new);
        rows
    }

    /// Returns the prefixes that customer edges are expected to learn after an event: the expectations of the steady
    /// state in their order. If the event has an expectation for the same neighbour, that one is returned instead. The
    /// event's expectations for other neighbours are left out.
    #[must_use]
    pub fn learned_after(&self, event: &Event) -> Vec<Learned> {
        let own = |steady: &Learned| event.learned.iter().find(|own| own.same_neighbour(steady));
        self.learned.iter().map(|l| own(l).unwrap_or(l).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(text: &str) -> Action {
        serde_norway::from_str(text).unwrap()
    }

    #[test]
    fn an_action_names_one_thing() {
        let cut = action("{site: a, router: ce1, line: er1 primary, action: down}");
        assert!(matches!(cut.target(), Ok(Target::Line { up: false, .. })));
        assert!(matches!(
            action("{site: a, router: b, tunnel: c, action: up}").target(),
            Ok(Target::Tunnel { up: true, .. })
        ));
        assert_eq!(action("{host: x, action: cut}").target(), Ok(Target::Host("x")));
        for wrong in [
            "{site: a, router: b, action: down}",
            "{site: a, router: b, line: e primary, tunnel: c, action: down}",
            "{site: a, router: b, line: e primary, action: cut}",
            "{host: x, action: down}",
            "{host: x, site: a, action: cut}",
        ] {
            assert!(action(wrong).target().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_hop_is_an_address_or_silent() {
        let hops: Vec<Hop> = serde_norway::from_str("['10.1.0.4', '*']").unwrap();
        assert_eq!(hops, [Hop(Some("10.1.0.4".parse().unwrap())), Hop(None)]);
        assert_eq!(serde_json::to_string(&hops).unwrap(), r#"["10.1.0.4","*"]"#);
        assert!(serde_norway::from_str::<Hop>("nobody").is_err());
    }
}
