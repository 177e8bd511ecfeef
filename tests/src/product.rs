//! Performs the operations of [`crate::operation`] on the controller's real [`Topology`], as opposed to the reference
//! model in [`crate::model`].

use crate::arm;
use crate::operation::{Operation, gateway_agent};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use tombolo_proto::config::{AccessOff, HOST_ROUTES_TAG};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_topology::change::{Change, Rejection};
use tombolo_topology::path::ArmPath;
use tombolo_topology::resource::{Agent, Binding, JoinToken, Reach, Settings};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// The ASN of every site: a private one (RFC 6996) that is not a gateway's default.
pub const SITE_ASN: u32 = 65_021;

/// 100.96.0.0: the first address of the 4,001 unused prefixes that a site announces to exceed the limit of G23. No VNet
/// of the universe overlaps them.
const FILLER: [u8; 4] = [100, 96, 0, 0];

/// The product's topology, and the state that the topology does not have but operations need: announcements of sites,
/// regions of VNets, and the agents' ports.
#[derive(Debug, Clone)]
pub struct Product {
    /// The topology after all accepted operations.
    pub topology: Topology,
    /// The routes that the site joined to each VNet's gateway announces, by the VNet's name. The VNet need not exist.
    pub announced: BTreeMap<String, Vec<Route>>,
    /// The back ends of load balancers that are down, each with its probe.
    pub unhealthy: BTreeSet<(ResourceId, IpAddr)>,
    regions: BTreeMap<String, &'static str>,
    ports: BTreeMap<String, u16>,
    fresh: u128,
}

impl Product {
    /// A topology that contains only the resource group `g`. All resources that operations create later belong to this
    /// group.
    ///
    /// # Panics
    /// If the product refuses the group.
    #[must_use]
    pub fn new() -> Self {
        let mut new = Self {
            topology: Topology::default(),
            announced: BTreeMap::new(),
            unhealthy: BTreeSet::new(),
            regions: BTreeMap::new(),
            ports: BTreeMap::new(),
            fresh: 0,
        };
        new.change(&put(&arm::group("g"), json!({"location": "region1"})))
            .unwrap_or_else(|e| unreachable!("resource group: {e}"));
        new
    }

    /// Applies one change to the topology. GUIDs come from a counter, so a run is repeatable.
    ///
    /// # Errors
    /// The product refuses the change; the topology is then unchanged, but the counter may have grown.
    pub fn change(&mut self, change: &Change) -> Result<(), Rejection> {
        let number = &mut self.fresh;
        let mut fresh = || {
            *number += 1;
            Uuid::from_u128(0x4000_8000_0000_0000_0000 + *number)
        };
        self.topology = self.topology.apply(change, &mut fresh)?.topology;
        Ok(())
    }

    /// Performs an operation completely or not at all. An operation may need several changes.
    ///
    /// # Errors
    /// The product refuses one of the changes; this [`Product`] is then unchanged.
    ///
    /// # Panics
    /// If a name in the operation cannot be part of an ARM id, or is no valid id of an agent.
    pub fn perform(&mut self, operation: &Operation) -> Result<(), Rejection> {
        let mut after = self.clone();
        for change in after.changes(operation) {
            after.change(&change)?;
        }
        match operation {
            Operation::PutVnet { vnet, region, .. } => drop(after.regions.insert(vnet.clone(), region)),
            Operation::Announce {
                vnet,
                prefixes,
                foreign_as,
                flood,
            } => {
                let routes = announcement(prefixes, *foreign_as, *flood);
                after.announced.insert(vnet.clone(), routes);
            }
            Operation::SetHealth { balancer, down } => {
                let probe = ResourceId::new(arm::network(&format!("loadBalancers/{balancer}/probes/probe")));
                after.unhealthy.retain(|(of, _)| *of != probe);
                after
                    .unhealthy
                    .extend(down.iter().map(|address| (probe.clone(), *address)));
            }
            _ => {}
        }
        *self = after;
        Ok(())
    }

    fn region(&self, vnet: &str) -> &'static str {
        self.regions.get(vnet).copied().unwrap_or("region1")
    }

    /// The endpoint of the agent, the same at each call. No other agent has it.
    fn endpoint(&mut self, agent: &str) -> SocketAddr {
        let next = u16::try_from(self.ports.len() + 1).unwrap_or(u16::MAX);
        let port = *self.ports.entry(agent.to_string()).or_insert(next);
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn changes(&mut self, operation: &Operation) -> Vec<Change> {
        match operation {
            Operation::PutVnet {
                vnet,
                region,
                space,
                flow_timeout,
            } => {
                let mut body = arm::vnet_body(region, space);
                if let Some(minutes) = flow_timeout {
                    body["properties"]["flowTimeoutInMinutes"] = json!(minutes);
                }
                vec![put(&arm::network(&format!("virtualNetworks/{vnet}")), body)]
            }
            Operation::DeleteVnet { vnet } => vec![delete(&format!("virtualNetworks/{vnet}"))],
            Operation::PutSubnet {
                vnet,
                subnet,
                prefixes,
                table,
                security,
            } => {
                let mut body = arm::subnet_body(prefixes, table.as_deref());
                if let Some(group) = security {
                    arm::attach(&mut body, group);
                }
                vec![put(
                    &arm::network(&format!("virtualNetworks/{vnet}/subnets/{subnet}")),
                    body,
                )]
            }
            Operation::PutPeering {
                vnet,
                remote,
                flags,
                sync,
            } => vec![Change::Put {
                path: path(&arm::network(&format!(
                    "virtualNetworks/{vnet}/virtualNetworkPeerings/{remote}"
                ))),
                body: arm::peering_body(remote, *flags),
                if_match: None,
                sync_remote_address_space: *sync,
            }],
            Operation::DeletePeering { vnet, remote } => {
                vec![delete(&format!(
                    "virtualNetworks/{vnet}/virtualNetworkPeerings/{remote}"
                ))]
            }
            Operation::PutNic {
                nic,
                vnet,
                subnet,
                addresses,
                forwarding,
                security,
                application_groups,
                host_routes,
                pool,
                nat_rule,
            } => {
                let mut body = arm::nic_body(self.region(vnet), vnet, subnet, addresses, *forwarding);
                if let Some(group) = security {
                    arm::attach(&mut body, group);
                }
                if !application_groups.is_empty() {
                    arm::join_application_groups(&mut body, application_groups);
                }
                arm::join_balancers(&mut body, pool.as_deref(), nat_rule.as_deref());
                if !host_routes.is_empty() {
                    let prefixes: Vec<_> = host_routes.iter().map(ToString::to_string).collect();
                    body["tags"] = json!({HOST_ROUTES_TAG: prefixes.join(",")});
                }
                vec![put(&arm::network(&format!("networkInterfaces/{nic}")), body)]
            }
            Operation::PutSecurityGroup { group, rules } => vec![put(
                &arm::network(&format!("networkSecurityGroups/{group}")),
                arm::security_group_body(rules),
            )],
            Operation::DeleteSecurityGroup { group } => vec![delete(&format!("networkSecurityGroups/{group}"))],
            Operation::PutApplicationGroup { group } => vec![put(
                &arm::network(&format!("applicationSecurityGroups/{group}")),
                json!({"location": "region1"}),
            )],
            Operation::SetAccessOff { block } => vec![Change::SetSettings(Settings {
                vnet_access_off: if *block { AccessOff::Block } else { AccessOff::TagOnly },
                ..(*self.topology.settings).clone()
            })],
            Operation::SetReevaluate { on } => vec![Change::SetSettings(Settings {
                reevaluate: *on,
                ..(*self.topology.settings).clone()
            })],
            Operation::PutTable {
                table,
                no_gateway_routes,
                routes,
            } => vec![put(
                &arm::network(&format!("routeTables/{table}")),
                arm::table_body(*no_gateway_routes, routes),
            )],
            Operation::PutGateway { vnet, address } => {
                let region = self.region(vnet);
                let address_body = json!({"location": region, "properties": {"publicIPAllocationMethod": "Static"}});
                vec![
                    put(&arm::network(&format!("publicIPAddresses/{vnet}-pip")), address_body),
                    put(
                        &arm::network(&format!("virtualNetworkGateways/{vnet}-gw")),
                        arm::gateway_body(region, vnet, *address),
                    ),
                ]
            }
            Operation::DeleteGateway { vnet } => vec![delete(&format!("virtualNetworkGateways/{vnet}-gw"))],
            Operation::PutConnection { from, to, key } => vec![put(
                &arm::network(&format!("connections/{from}-to-{to}")),
                arm::connection_body(self.region(from), from, to, key.as_deref()),
            )],
            Operation::DeleteConnection { from, to } => vec![delete(&format!("connections/{from}-to-{to}"))],
            Operation::JoinVm { vm, nics, vnet, served } => join(
                vm,
                self.endpoint(vm),
                Binding::Vm {
                    vm: ResourceId::new(arm::vm(vm)),
                    nics: nics
                        .iter()
                        .map(|n| ResourceId::new(arm::network(&format!("networkInterfaces/{n}"))))
                        .collect(),
                    served: served
                        .iter()
                        .map(|s| ResourceId::new(arm::network(&format!("virtualNetworks/{vnet}/subnets/{s}"))))
                        .collect(),
                },
            ),
            Operation::JoinGateway { vnet } => join(
                &gateway_agent(vnet),
                self.endpoint(&gateway_agent(vnet)),
                Binding::Gateway {
                    gateway: ResourceId::new(arm::network(&format!("virtualNetworkGateways/{vnet}-gw"))),
                    ip_configuration: "default".into(),
                },
            ),
            Operation::PutBalancer { balancer, body } => vec![put(
                &arm::network(&format!("loadBalancers/{balancer}")),
                arm::balancer_body(self.region(&body.vnet), balancer, body),
            )],
            Operation::DeleteBalancer { balancer } => vec![delete(&format!("loadBalancers/{balancer}"))],
            Operation::SetHealth { .. } | Operation::Announce { .. } => Vec::new(),
            Operation::Revoke { agent } => vec![Change::RevokeAgent(agent_id(agent))],
            Operation::DeleteAgent { agent } => vec![Change::DeleteAgent(agent_id(agent))],
        }
    }
}

/// The routes of a site's announcement, sorted.
fn announcement(prefixes: &[IpNet], foreign_as: bool, flood: bool) -> Vec<Route> {
    let filler =
        (0..if flood { 4001_u32 } else { 0 }).map(|n| IpNet::from(IpAddr::V4((u32::from_be_bytes(FILLER) + n).into())));
    let route = |prefix| Route {
        prefix,
        via: None,
        as_path: if foreign_as {
            vec![SITE_ASN + 1, SITE_ASN]
        } else {
            vec![SITE_ASN]
        },
        weight: 0,
        origin: RouteOrigin::Site,
    };
    let mut routes: Vec<Route> = prefixes.iter().copied().chain(filler).map(route).collect();
    routes.sort();
    routes
}

impl Default for Product {
    fn default() -> Self {
        Self::new()
    }
}

/// A name as an agent's id.
///
/// # Panics
/// If the name is not a valid name of an agent.
#[must_use]
pub fn agent_id(name: &str) -> AgentId {
    AgentId::new(name).unwrap_or_else(|e| unreachable!("{e}"))
}

/// The public key of an agent in tests: the first 32 bytes of its name, padded with 0x5a. Names that agree in them have
/// equal keys.
#[must_use]
pub fn key_of(agent: &str) -> PublicKey {
    let mut key = [0x5a; 32];
    for (slot, byte) in key.iter_mut().zip(agent.bytes()) {
        *slot = byte;
    }
    PublicKey(key)
}

fn path(id: &str) -> ArmPath {
    ArmPath::parse(id).unwrap_or_else(|e| unreachable!("{id}: {e}"))
}

/// A PUT of a body, without `If-Match` and `syncRemoteAddressSpace`. The body is not checked.
///
/// # Panics
/// If `id` is not an ARM id.
#[must_use]
pub fn put(id: &str, body: Value) -> Change {
    Change::Put {
        path: path(id),
        body,
        if_match: None,
        sync_remote_address_space: false,
    }
}

fn delete(network_path: &str) -> Change {
    Change::Delete {
        path: path(&arm::network(network_path)),
        if_match: None,
    }
}

/// The two changes with which an agent joins: the creation of a token for it, and the join with this token.
fn join(agent: &str, endpoint: SocketAddr, binding: Binding) -> Vec<Change> {
    let id = agent_id(agent);
    vec![
        Change::PutToken(JoinToken {
            id: format!("token-{agent}"),
            hash: "00".into(),
            agent: id.clone(),
            binding: binding.clone(),
            expires: u64::MAX / 2,
        }),
        Change::Join {
            token: format!("token-{agent}"),
            agent: Agent {
                id,
                binding,
                public_key: key_of(agent),
                certificate_key: agent.into(),
                reach: Reach::at(vec![endpoint]),
                revoked: false,
            },
        },
    ]
}
