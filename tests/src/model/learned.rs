//! Which of the routes that sites announce count, and whom a site may speak for because of them (G22 to G24, D10).

use super::{Announced, Model, State, within};
use ipnet::IpNet;
use std::net::IpAddr;

/// No route leads there, and no packet comes from there (RFC 6890).
const MARTIANS: [&str; 10] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/127",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

fn martians() -> Vec<IpNet> {
    MARTIANS.iter().filter_map(|m| m.parse().ok()).collect()
}

impl Model {
    /// The site behind a VNet's gateway, if the gateway's agent is there to speak with it.
    #[must_use]
    pub fn site(&self, hub: &str) -> Option<&Announced> {
        let gateway = self.gateways.iter().any(|g| g.vnet == hub) && self.gateway_agent(hub).is_some();
        self.announced.iter().find(|a| a.vnet == hub).filter(|_| gateway)
    }

    /// What the gateway of a VNet believes of its site's announcements: paths begin with the site's ASN (RFC 4271), of a
    /// family with more than 4,000 prefixes it believes nothing (G23), and no martians; nothing equal to or inside its own
    /// side (G22), more than that is fine.
    #[must_use]
    pub fn heard(&self, hub: &str) -> Vec<IpNet> {
        let Some(site) = self.site(hub).filter(|s| !s.foreign_as) else {
            return Vec::new();
        };
        let inside = |prefix: &IpNet, of: &[IpNet]| of.iter().any(|o| o.contains(prefix));
        let (own, martians) = (self.own_side(hub), martians());
        let mut heard = site.prefixes.clone();
        heard.retain(|p| {
            let too_many = site.flood && p.addr().is_ipv4();
            !(too_many || inside(p, &own) || inside(p, &martians))
        });
        heard
    }

    /// A gateway's own VNet, and what it knows of those that use it (P21, P27).
    #[must_use]
    pub fn own_side(&self, hub: &str) -> Vec<IpNet> {
        let mut own = self.vnet(hub).map(|v| v.space.clone()).unwrap_or_default();
        for client in self.clients(hub) {
            let half = self.half(hub, &client.name);
            own.extend(half.map(|h| h.remote_space.clone()).unwrap_or_default());
        }
        own
    }

    /// Whether a machine of a VNet takes a source from its gateway because of what a site announced there: never one of
    /// its own VNet or of a peered one, whatever contains these (D10).
    #[must_use]
    pub fn heard_speaks_for(&self, hub: &str, receiver: &str, source: IpAddr) -> bool {
        let Some(home) = self.vnet(receiver) else { return false };
        let peered = home.peerings.iter().filter(|p| p.state == State::Connected);
        let mut assigned = home.space.clone();
        assigned.extend(peered.flat_map(|p| p.remote_space.clone()));
        assigned.extend(martians());
        within(&self.heard(hub), source) && !within(&assigned, source)
    }

    /// Whether a gateway takes a source from its site. None: the specification leaves it open.
    #[must_use]
    pub fn site_speaks_for(&self, hub: &str, source: IpAddr) -> Option<bool> {
        let mut assigned = self.own_side(hub);
        assigned.extend(martians());
        if !within(&self.heard(hub), source) || within(&assigned, source) {
            return Some(false);
        }
        for far in self.connected_to(hub) {
            if within(&self.behind(hub, far), source) {
                // Without a key, or anybody at the other end, there is no link that the addresses are assigned to.
                let link = self.keyed(hub, far) && self.gateway_agent(far).is_some();
                return link.then_some(false);
            }
        }
        Some(true)
    }

    /// The longest of these prefixes that has the address.
    #[must_use]
    pub fn longest(prefixes: &[IpNet], address: IpAddr) -> Option<u8> {
        let found = prefixes.iter().filter(|p| p.contains(&address));
        found.map(IpNet::prefix_len).max()
    }
}
