//! Finds the route of a packet that leaves a subnet.

use super::{Model, State, within};
use crate::operation::UserHop;
use ipnet::IpNet;
use std::net::IpAddr;

/// The next hop of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hop {
    /// The owner of the destination in the same VNet.
    Local,
    /// The owner of the destination in this peered VNet.
    Peering(String),
    /// The VPN gateway that the VNet uses: its own gateway, or that of a peered VNet.
    Gateway,
    /// The owner of this address.
    Appliance(IpAddr),
    /// `Internet` or `None`: the packet is dropped.
    Nowhere,
}

/// Where a route comes from. If two routes have the same prefix, the route whose source is later in this list is
/// preferred (R7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    System,
    Gateway,
    User,
}

/// Reserved blocks. Each has a route with the next hop `None`, unless the block is itself an address prefix of the VNet
/// (R1, R2).
const RESERVED: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];

impl Model {
    /// The next hop of a packet to `destination` that leaves a subnet of a VNet, by R7. None: the VNet or the subnet
    /// does not exist. Otherwise there is always a route, because each VNet has default routes (R1).
    #[must_use]
    pub fn route(&self, vnet: &str, subnet: &str, destination: IpAddr) -> Option<Hop> {
        let home = self.vnet(vnet)?;
        let subnet = home.subnets.iter().find(|s| s.name == subnet)?;
        let table = self.tables.iter().find(|t| Some(&t.name) == subnet.table.as_ref());
        let user = table.map(|t| t.routes.clone()).unwrap_or_default();

        let mut routes: Vec<(IpNet, Source, Hop)> = Vec::new();
        // R1: a route for each range of the VNet; R3, R4: a route for each synced prefix of each connected peering.
        for range in &home.space {
            routes.push((*range, Source::System, Hop::Local));
        }
        for half in home.peerings.iter().filter(|p| p.state == State::Connected) {
            for prefix in &half.remote_space {
                routes.push((*prefix, Source::System, Hop::Peering(half.remote.clone())));
            }
        }
        let system_covers = routes.iter().any(|(p, _, _)| p.contains(&destination));
        // R7 step 1, R15, R5: the gateway's routes, unless a VNet or peering route covers the destination.
        if !system_covers
            && !table.is_some_and(|t| t.no_gateway_routes)
            && let Some(hub) = self.gateway_for(vnet)
        {
            for far in self.connected_to(&hub) {
                for prefix in self.reachable_via(&hub, far) {
                    routes.push((prefix, Source::Gateway, Hop::Gateway));
                }
            }
            for prefix in self.accepted_from_site(&hub) {
                routes.push((prefix, Source::Gateway, Hop::Gateway));
            }
        }
        // R1, R2: default routes, and routes with the next hop `None` for reserved blocks that are no address prefix of
        // the VNet. R9: a user-defined default route removes these `None` routes.
        let default: [IpNet; 2] = [everything(true), everything(false)];
        routes.extend(default.map(|p| (p, Source::System, Hop::Nowhere)));
        if !user.iter().any(|(p, _)| *p == everything(true)) {
            for block in RESERVED {
                let block: IpNet = block.parse().unwrap_or(default[0]);
                if !home.space.contains(&block) {
                    routes.push((block, Source::System, Hop::Nowhere));
                }
            }
        }
        for (prefix, hop) in user {
            let hop = match hop {
                UserHop::Appliance(address) => Hop::Appliance(address),
                UserHop::Gateway => Hop::Gateway,
                UserHop::Local => Hop::Local,
                UserHop::Internet | UserHop::None => Hop::Nowhere,
            };
            routes.push((prefix, Source::User, hop));
        }

        // R7 steps 2 and 3: the longest prefix, then the preferred source.
        routes.retain(|(p, _, _)| p.contains(&destination));
        routes
            .into_iter()
            .max_by_key(|(p, source, _)| (p.prefix_len(), *source))
            .map(|(_, _, hop)| hop)
    }

    /// Whether the destination is in more than one of these networks: the VNets that use the gateway of `hub`, and the
    /// networks that its connections lead to. G16 forbids such an overlap, so the specification does not say to which
    /// of these networks the gateway sends.
    #[must_use]
    pub fn ambiguous(&self, hub: &str, destination: IpAddr) -> bool {
        let reachable = self
            .connected_to(hub)
            .into_iter()
            .map(|far| self.reachable_via(hub, far));
        let connections = reachable.filter(|p| within(p, destination)).count();
        let clients = self.clients(hub).into_iter();
        let inside = clients.filter(|c| within(&c.space, destination)).count();
        connections + inside > 1
    }
}

fn everything(v4: bool) -> IpNet {
    if v4 {
        IpNet::V4(ipnet::Ipv4Net::default())
    } else {
        IpNet::V6(ipnet::Ipv6Net::default())
    }
}
