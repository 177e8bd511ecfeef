//! Decides which routes that sites announce are accepted, and from which source addresses these routes permit packets
//! (G22 to G24, D10).

use super::{Announced, Model, State, within};
use ipnet::IpNet;
use std::net::IpAddr;

/// Martians: prefixes that may be neither destination nor source outside of a host or link (RFC 6890). Private prefixes are
/// absent, because sites use them.
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
    /// The announcement of the site that is joined to a VNet's gateway. None: the VNet has no gateway, no agent has
    /// joined for the gateway, or the site has announced nothing.
    #[must_use]
    pub fn site(&self, hub: &str) -> Option<&Announced> {
        let gateway = self.gateways.iter().any(|g| g.vnet == hub) && self.gateway_agent(hub).is_some();
        self.announced.iter().find(|a| a.vnet == hub).filter(|_| gateway)
    }

    /// The announced prefixes that a VNet's gateway accepts from its site; empty if there is no site. With
    /// [`Announced::foreign_as`] all prefixes are refused, because AS paths must begin with the site's ASN (RFC 4271).
    /// With [`Announced::flood`] all IPv4 prefixes are refused, because a family with more than 4,000 prefixes is
    /// refused as a whole (G23); `prefixes` themselves are not counted. Prefixes inside a martian block are refused,
    /// and so are prefixes that equal a local prefix of the gateway or lie in one (G22). Prefixes that contain a
    /// martian block or a local prefix are accepted.
    #[must_use]
    pub fn accepted_from_site(&self, hub: &str) -> Vec<IpNet> {
        let Some(site) = self.site(hub).filter(|s| !s.foreign_as) else {
            return Vec::new();
        };
        let inside = |prefix: &IpNet, of: &[IpNet]| of.iter().any(|o| o.contains(prefix));
        let (own, martians) = (self.local_prefixes(hub), martians());
        let mut accepted = site.prefixes.clone();
        accepted.retain(|p| {
            let too_many = site.flood && p.addr().is_ipv4();
            !(too_many || inside(p, &own) || inside(p, &martians))
        });
        accepted
    }

    /// The local prefixes of a VNet's gateway: the VNet's ranges, and the synced ranges of the VNets that use the
    /// gateway (P21, P27). Whether the VNet has a gateway is not checked. Empty if the VNet does not exist.
    #[must_use]
    pub fn local_prefixes(&self, hub: &str) -> Vec<IpNet> {
        let mut own = self.vnet(hub).map(|v| v.space.clone()).unwrap_or_default();
        for client in self.clients(hub) {
            let half = self.half(hub, &client.name);
            own.extend(half.map(|h| h.remote_space.clone()).unwrap_or_default());
        }
        own
    }

    /// Whether the announcements of the site permit the gateway of `hub` to send packets with this source to a machine
    /// of VNet `receiver`. They permit a source in an accepted prefix, except sources in VNet `receiver`, in a VNet
    /// that is peered with it, or in a martian block (D10). False if VNet `receiver` does not exist.
    #[must_use]
    pub fn gateway_may_send(&self, hub: &str, receiver: &str, source: IpAddr) -> bool {
        let Some(home) = self.vnet(receiver) else { return false };
        let peered = home.peerings.iter().filter(|p| p.state == State::Connected);
        let mut assigned = home.space.clone();
        assigned.extend(peered.flat_map(|p| p.remote_space.clone()));
        assigned.extend(martians());
        within(&self.accepted_from_site(hub), source) && !within(&assigned, source)
    }

    /// Whether the gateway of `hub` accepts packets with this source from its site. It accepts a source in an accepted
    /// prefix, except sources in a local prefix, in a martian block, or in a network that one of the gateway's
    /// connections leads to. None: the specification does not decide, because one of the gateway's connections leads to
    /// the source, but the tunnel of this connection cannot exist.
    #[must_use]
    pub fn site_may_send(&self, hub: &str, source: IpAddr) -> Option<bool> {
        let mut assigned = self.local_prefixes(hub);
        assigned.extend(martians());
        if !within(&self.accepted_from_site(hub), source) || within(&assigned, source) {
            return Some(false);
        }
        for far in self.connected_to(hub) {
            if within(&self.reachable_via(hub, far), source) {
                // Without a key, or without an agent at the far end, the connection has no link. Then no link is
                // permitted to send from this source, and the specification does not say whether the site is.
                let link = self.keyed(hub, far) && self.gateway_agent(far).is_some();
                return link.then_some(false);
            }
        }
        Some(true)
    }

    /// The length in bits of the longest of these prefixes that contains the address. None: no prefix contains it.
    #[must_use]
    pub fn longest(prefixes: &[IpNet], address: IpAddr) -> Option<u8> {
        let found = prefixes.iter().filter(|p| p.contains(&address));
        found.map(IpNet::prefix_len).max()
    }
}
