//! What a topology file says will be seen: which pairs reach each other, over which hops, and what changes when
//! something is cut.

use super::site::LinkName;
use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::net::IpAddr;

/// What a trace shows at one TTL: an address, or none where nobody answers (`*`).
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

/// What one host sees of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Row {
    /// The host that asks.
    pub from: String,
    /// The host that is asked.
    pub to: String,
    /// Pings are answered. Otherwise all are lost, and nobody says why (T8).
    pub reachable: bool,
    /// What a trace shows, the destination last. Only for a pair that reaches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<Hop>,
    /// Other lists that are as good, because equal paths share the flows (T9).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<Vec<Hop>>,
    /// Why, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// Every list of hops that is right.
    pub fn lists(&self) -> impl Iterator<Item = &Vec<Hop>> {
        std::iter::once(&self.hops).chain(&self.alternatives)
    }

    /// Whether it is about the same pair.
    #[must_use]
    pub fn same_pair(&self, other: &Self) -> bool {
        self.from == other.from && self.to == other.to
    }
}

/// What a customer edge has learned by BGP from one neighbour: these prefixes, and nothing else (E16). A way that should not be
/// there is seen here, although no ping takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Learned {
    /// A site.
    pub site: String,
    /// A customer edge of it.
    pub router: String,
    /// The neighbour is the edge at the other end of this line, as `er1 primary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<LinkName>,
    /// The neighbour is the VPN gateway at the other end of this tunnel, by its connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// All of them.
    pub prefixes: Vec<Ipv4Net>,
}

impl Learned {
    /// Whether it is about the same neighbour.
    #[must_use]
    pub fn same_neighbour(&self, other: &Self) -> bool {
        let key = |l: &Self| (l.site.clone(), l.router.clone(), l.line.clone(), l.tunnel.clone());
        key(self) == key(other)
    }
}

/// Something that happens to the lab, and what is seen then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// What happens, in this order.
    pub actions: Vec<Action>,
    /// The pairs that it is about; every other row of the steady state holds on.
    #[serde(default)]
    pub expected: Vec<Row>,
    /// The neighbours from which other prefixes are learned then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Learned>,
}

/// What is done to one thing: an interface of a customer edge (`site`, `router` and `line` or `tunnel`), or a `host`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Action {
    /// A site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// A customer edge of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<String>,
    /// A line of that, as `er1 primary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<LinkName>,
    /// A tunnel of it, by its connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// A host with an address on the underlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What is done.
    pub action: Verb,
}

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// The interface is shut; the other end of a line loses its carrier.
    Down,
    /// The interface is turned on.
    Up,
    /// The host is cut off the underlay, silently.
    Cut,
}

/// What an action is done to, all that it needs being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A line of a customer edge.
    Line {
        /// The site.
        site: &'a str,
        /// The customer edge.
        router: &'a str,
        /// The line.
        line: &'a LinkName,
        /// It is turned on.
        up: bool,
    },
    /// A tunnel of a customer edge.
    Tunnel {
        /// The site.
        site: &'a str,
        /// The customer edge.
        router: &'a str,
        /// The connection.
        connection: &'a str,
        /// It is turned on.
        up: bool,
    },
    /// A host on the underlay.
    Host(&'a str),
}

impl Action {
    /// What it is done to.
    ///
    /// # Errors
    /// What is missing or too much.
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
            Self { host: Some(_), .. } => Err("a 'host' is cut ('action: cut'), and nothing else is named".into()),
            Self { action: Verb::Cut, .. } => Err("'action: cut' is for a 'host': interfaces go down and up".into()),
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
            _ => Err("it needs 'site', 'router' and either 'line' or 'tunnel', or a 'host'".into()),
        }
    }
}

impl super::Topology {
    /// The rows that hold after an event: the event's own, and those of the steady state that it does not touch, in
    /// the order of the steady state.
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

    /// What is learned after an event, in the same manner.
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
