//! Reads the contents of tables back, so that they can be displayed and compared with the configuration.

use super::{AgentRole, Hop, LinkIndex, Tables};
use tombolo_proto::config::SpaceKind;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::installed::{
    InstalledHop, InstalledLink, InstalledRoute, InstalledSubnet, InstalledTables, InstalledTransit,
};

impl Tables {
    /// The contents of the tables. They are read from the structures that lookups use, not from the configuration.
    /// Prefixes of a list are in the order of addresses, IPv4 before IPv6; links are ordered by peer.
    #[must_use]
    pub fn installed(&self) -> InstalledTables {
        let subnets = self.subnets.iter().map(|subnet| InstalledSubnet {
            id: subnet.id.clone(),
            routes: subnet
                .routes
                .iter()
                .map(|(prefix, route)| InstalledRoute {
                    prefix,
                    hop: self.hop(route.hop),
                })
                .collect(),
        });
        let transit = match &self.role {
            AgentRole::Vm(_) | AgentRole::CircuitGateway { .. } | AgentRole::Edge { .. } => Vec::new(),
            AgentRole::Gateway { transit, .. } => transit
                .iter()
                .filter_map(|(prefix, found)| {
                    let found = found.as_ref()?;
                    Some(InstalledTransit {
                        prefix,
                        connection: found.connection.clone(),
                        link: self.name(found.link),
                    })
                })
                .collect(),
        };
        let links = self.links.iter().map(|link| InstalledLink {
            peer: link.peer.clone(),
            sources: link.sources.listed(true),
            except: link.sources.listed(false),
            foreign: link.foreign,
        });
        InstalledTables {
            subnets: subnets.collect(),
            transit,
            denied: self.denied.iter().map(|(prefix, ())| prefix).collect(),
            links: links.collect(),
        }
    }

    fn hop(&self, hop: Hop) -> InstalledHop {
        match hop {
            Hop::Space(space) => match self.spaces[space].kind {
                SpaceKind::Local {} => InstalledHop::Local {},
                SpaceKind::Peered { .. } | SpaceKind::GatewayClient {} => InstalledHop::Peering {
                    vnet: Some(self.vnet(space)),
                },
            },
            Hop::PeeringNotDelivered => InstalledHop::Peering { vnet: None },
            Hop::Gateway(group) => InstalledHop::Gateway {
                link: self.name(group.map(|g| g.links()[0])),
                also: group.map_or_else(Vec::new, |g| {
                    g.links()[1..].iter().map(|l| self.peer(*l).clone()).collect()
                }),
            },
            Hop::Appliance(space, address) => InstalledHop::Appliance {
                address,
                vnet: space.map(|s| self.vnet(s)),
            },
            Hop::Internet => InstalledHop::Internet {},
            Hop::None => InstalledHop::None {},
        }
    }

    fn vnet(&self, space: usize) -> ResourceId {
        self.spaces[space].vnet.clone()
    }

    fn name(&self, link: Option<LinkIndex>) -> Option<AgentId> {
        link.map(|l| self.peer(l).clone())
    }
}
