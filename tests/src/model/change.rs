//! Decides which operations are refused, and applies accepted ones.

use super::security::DEFAULT_TIMEOUT;
use super::{
    Agent, Announced, Connection, Gateway, Model, Nic, Peering, Ruling, SecurityGroup, State, Subnet, Table, Vnet,
    overlap,
};
use crate::operation::{Addresses, Flags, GATEWAY_SUBNET, Operation, Rule, gateway_agent};
use ipnet::IpNet;

impl Model {
    /// The specification's verdict on the operation in this state. Changes nothing.
    #[must_use]
    pub fn validate(&self, operation: &Operation) -> Ruling {
        match operation {
            Operation::PutVnet { vnet, space, .. } => self.validate_space(vnet, space),
            Operation::DeleteVnet { vnet } => {
                let gateway = self.gateways.iter().any(|g| g.vnet == *vnet);
                let balanced = self.balancers.iter().any(|(_, b)| b.vnet == *vnet); // L1
                refuse_if(gateway || balanced || self.nics.iter().any(|n| n.vnet == *vnet))
            }
            Operation::PutSubnet {
                vnet,
                subnet,
                table,
                security,
                ..
            } => {
                let unknown = |t: &String| !self.tables.iter().any(|x| x.name == *t);
                let broken = self.vnet(vnet).is_none() || table.as_ref().is_some_and(unknown);
                if !broken && subnet == GATEWAY_SUBNET && self.has_security_group(security.as_ref()) {
                    return Ruling::Refuse(vec!["XGatewaySubnetCannotHaveSecurityGroup"]); // N13
                }
                refuse_if(broken || self.misses_security_group(security.as_ref()))
            }
            Operation::PutPeering {
                vnet, remote, flags, ..
            } => self.validate_peering(vnet, remote, *flags),
            Operation::DeletePeering { vnet, .. } => {
                if self.vnet(vnet).is_none() {
                    Ruling::Either
                } else {
                    Ruling::Accept
                }
            }
            Operation::PutNic {
                nic,
                vnet,
                subnet,
                security,
                application_groups,
                pool,
                nat_rule,
                ..
            } => refuse_if(
                [pool, nat_rule].into_iter().flatten().any(|b| !self.has_balancer(b))
                    || self.nics.iter().any(|n| {
                        // An inbound NAT rule has one target (L2).
                        nat_rule.is_some() && n.name != *nic && n.nat_rule == *nat_rule
                    })
                    || !self.has_subnet(vnet, subnet)
                    || self.misses_security_group(security.as_ref())
                    || self.misses_application_group(application_groups),
            ),
            Operation::PutSecurityGroup { rules, .. } => self.validate_rules(rules),
            Operation::DeleteSecurityGroup { group } => {
                let mut subnets = self.vnets.iter().flat_map(|v| &v.subnets);
                let used = subnets.any(|s| s.security.as_ref() == Some(group))
                    || self.nics.iter().any(|n| n.security.as_ref() == Some(group));
                match used {
                    true => Ruling::Refuse(vec!["InUseNetworkSecurityGroupCannotBeDeleted"]),
                    false => Ruling::Accept,
                }
            }
            Operation::PutApplicationGroup { .. }
            | Operation::SetAccessOff { .. }
            | Operation::SetReevaluate { .. } => Ruling::Accept,
            Operation::PutTable { .. } => Ruling::Accept,
            Operation::PutGateway { vnet, .. } => {
                let uses_remote = |state: fn(State) -> bool| {
                    let halves = self.vnet(vnet).map(|v| v.peerings.clone()).unwrap_or_default();
                    halves.iter().any(|p| p.flags.use_remote && state(p.state))
                };
                if !self.has_subnet(vnet, GATEWAY_SUBNET) || uses_remote(|s| s == State::Connected) {
                    Ruling::Refuse(vec![])
                } else if uses_remote(|_| true) {
                    Ruling::Either
                } else {
                    Ruling::Accept
                }
            }
            Operation::DeleteGateway { vnet } => {
                if self.connections.iter().any(|c| c.from == *vnet || c.to == *vnet) {
                    Ruling::Refuse(vec!["VirtualNetworkGatewayCannotBeDeleted"])
                } else if self.agents.iter().any(|a| a.gateway && a.vnet == *vnet) {
                    Ruling::Either
                } else {
                    Ruling::Accept
                }
            }
            Operation::PutConnection { from, to, .. } => {
                let exists = |v: &str| self.gateways.iter().any(|g| g.vnet == v);
                if !exists(from) || !exists(to) || from == to {
                    return Ruling::Refuse(vec![]);
                }
                if self.joined_overlap(&[from, to]) {
                    Ruling::Refuse(vec!["XVpnNetworksOverlap"])
                } else {
                    Ruling::Accept
                }
            }
            Operation::DeleteConnection { .. } => Ruling::Accept,
            Operation::JoinVm { vm, nics, vnet, served } => {
                let nic = |n: &String| self.nics.iter().any(|x| x.name == *n && x.vnet == *vnet);
                if !nics.iter().all(nic) || !served.iter().all(|s| self.has_subnet(vnet, s)) {
                    Ruling::Refuse(vec![])
                } else if self.agents.iter().any(|a| a.name == *vm) {
                    Ruling::Either
                } else {
                    Ruling::Accept
                }
            }
            Operation::JoinGateway { vnet } => {
                if !self.gateways.iter().any(|g| g.vnet == *vnet) {
                    Ruling::Refuse(vec![])
                } else if self.agents.iter().any(|a| a.name == gateway_agent(vnet)) {
                    Ruling::Either
                } else {
                    Ruling::Accept
                }
            }
            Operation::PutBalancer { body, .. } => refuse_if(!self.has_subnet(&body.vnet, &body.subnet)),
            Operation::DeleteBalancer { balancer } => {
                let refers = |n: &Nic| [&n.pool, &n.nat_rule].into_iter().flatten().any(|b| b == balancer);
                match self.nics.iter().any(refers) {
                    true => Ruling::Refuse(vec!["XLoadBalancerInUse"]),
                    false => Ruling::Accept,
                }
            }
            Operation::SetHealth { .. } => Ruling::Accept,
            Operation::Announce { .. } => Ruling::Accept,
            Operation::Revoke { agent } => match self.agents.iter().find(|a| a.name == *agent) {
                Some(found) if !found.revoked => Ruling::Accept,
                Some(_) => Ruling::Either,
                None => Ruling::Refuse(vec![]),
            },
            Operation::DeleteAgent { agent } => {
                if self.agents.iter().any(|a| a.name == *agent) {
                    Ruling::Accept
                } else {
                    Ruling::Either
                }
            }
        }
    }

    fn has_balancer(&self, name: &str) -> bool {
        self.balancers.iter().any(|(n, _)| n == name)
    }

    fn has_security_group(&self, named: Option<&String>) -> bool {
        named.is_some_and(|name| self.security_groups.iter().any(|g| g.name == *name))
    }

    fn misses_security_group(&self, named: Option<&String>) -> bool {
        named.is_some() && !self.has_security_group(named)
    }

    fn misses_application_group(&self, named: &[String]) -> bool {
        named.iter().any(|name| !self.application_groups.contains(name))
    }

    /// The checks of a group's rules (N1): the application security groups that they name exist, and no two rules of a
    /// direction have the same priority.
    fn validate_rules(&self, rules: &[Rule]) -> Ruling {
        for rule in rules {
            for side in [&rule.source, &rule.destination] {
                if let Addresses::Groups(groups) = side
                    && self.misses_application_group(groups)
                {
                    return Ruling::Refuse(vec![]);
                }
            }
        }
        let place = |rule: &Rule| (rule.inbound, rule.priority);
        let same = |(index, rule): (usize, &Rule)| rules[..index].iter().any(|other| place(other) == place(rule));
        match rules.iter().enumerate().any(same) {
            true => Ruling::Refuse(vec!["SecurityRuleConflict"]),
            false => Ruling::Accept,
        }
    }

    fn has_subnet(&self, vnet: &str, subnet: &str) -> bool {
        self.vnet(vnet)
            .is_some_and(|v| v.subnets.iter().any(|s| s.name == subnet))
    }

    /// A change of a VNet's ranges (P27) must pass the checks of P10 and P11 against all peers, and the check of G16.
    fn validate_space(&self, vnet: &str, space: &[IpNet]) -> Ruling {
        let Some(own) = self.vnet(vnet) else {
            return Ruling::Accept;
        };
        if own.space == space {
            return Ruling::Accept;
        }
        let mut codes = Vec::new();
        let mut open = false;
        // G16: networks that VPN joins are disjoint.
        let mut joined = self.joined(&[vnet]);
        joined.retain(|v| v != vnet);
        let ranges = |v: &String| self.vnet(v).map(|v| v.space.clone()).unwrap_or_default();
        if joined.iter().any(|v| overlap(space, &ranges(v))) {
            codes.push("XVpnNetworksOverlap");
        }
        for half in &own.peerings {
            let live = half.state == State::Connected;
            let Some(remote) = self.vnet(&half.remote) else {
                open = true;
                continue;
            };
            if overlap(space, &remote.space) || overlap(space, &half.remote_space) {
                note(live, "VnetAddressSpacesOverlap", &mut codes, &mut open);
            }
            for (third, ranges, connected) in self.peers_of(&half.remote) {
                if third != vnet && overlap(space, &ranges) {
                    let code = "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet";
                    note(live && connected, code, &mut codes, &mut open);
                }
            }
        }
        // P13: another VNet may have a peering half with this VNet while this VNet has none with the other VNet. The
        // specification does not say whether such a half counts.
        open |= self.vnets.iter().any(|v| {
            let half = v.peerings.iter().find(|p| p.remote == vnet);
            half.is_some() && self.half(vnet, &v.name).is_none() && overlap(space, &v.space)
        });
        ruling(codes, open)
    }

    /// The checks of a new or changed half of a peering (P7 to P13, P20).
    fn validate_peering(&self, vnet: &str, remote: &str, flags: Flags) -> Ruling {
        let (Some(own), Some(other)) = (self.vnet(vnet), self.vnet(remote)) else {
            return Ruling::Refuse(vec![]);
        };
        if vnet == remote {
            return Ruling::Refuse(vec!["VnetAddressSpacesOverlap"]); // P12
        }
        let existing = self.half(vnet, remote);
        let back = self.half(remote, vnet);
        let mut codes = Vec::new();
        let mut open = false;
        if overlap(&own.space, &other.space) {
            codes.push("VnetAddressSpacesOverlap"); // P10
        }
        // P11: all peers of one VNet must be pairwise disjoint. This is checked for the peers of both VNets.
        for (middle, newcomer) in [(remote, own), (vnet, other)] {
            for (third, ranges, connected) in self.peers_of(middle) {
                if third != newcomer.name && overlap(&newcomer.space, &ranges) {
                    let code = "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet";
                    // P11 is certain for the peers of the remote VNet. For the peers of `vnet` itself the check is only
                    // derived from P11, so the product may accept such a change.
                    note(connected && middle == remote, code, &mut codes, &mut open);
                }
            }
        }
        if existing.is_none() && back.is_some_and(|b| b.state == State::Disconnected) {
            codes.push("RemotePeeringIsDisconnected"); // P13, P14: the remaining half must be updated first
        }
        if flags.use_remote {
            if self.gateways.iter().any(|g| g.vnet == vnet) {
                codes.push("XVnetHasOwnGateway");
            }
            if !self.gateways.iter().any(|g| g.vnet == remote) {
                codes.push("RemoteVnetHasNoGateways");
            }
            if back.is_some_and(|b| !b.flags.transit) {
                codes.push("XRemotePeeringTransitNotAllowed");
            }
            if own.peerings.iter().any(|p| p.remote != remote && p.flags.use_remote) {
                codes.push("XAnotherPeeringUsesRemoteGateways");
            }
            // An overlap of the two VNets themselves has the code of P10 above. This check of G16 is for overlaps with
            // further networks.
            if !overlap(&own.space, &other.space) && self.joined_overlap(&[vnet, remote]) {
                codes.push("XVpnNetworksOverlap");
            }
        }
        // P20 refuses a new half of a peering without `allowGatewayTransit` if the other half has `useRemoteGateways`,
        // but P21 lets an update remove `allowGatewayTransit`. The model does not distinguish new halves from updates
        // here, so the product may refuse or accept either of them.
        open |= !flags.transit && back.is_some_and(|b| b.flags.use_remote);
        ruling(codes, open)
    }

    /// G16: the given VNets, and all VNets that VPN connections join with one of them over any number of hops. A
    /// peering with `useRemoteGateways` joins its two VNets too, because a gateway also advertises the VNets that use
    /// it (P21b).
    fn joined(&self, start: &[&str]) -> Vec<String> {
        let mut joined: Vec<String> = start.iter().map(ToString::to_string).collect();
        let mut next = 0;
        while next < joined.len() {
            let here = joined[next].clone();
            let mut near: Vec<String> = Vec::new();
            for connection in &self.connections {
                if connection.from == here {
                    near.push(connection.to.clone());
                }
                if connection.to == here {
                    near.push(connection.from.clone());
                }
            }
            for vnet in &self.vnets {
                for half in vnet.peerings.iter().filter(|p| p.flags.use_remote) {
                    if half.state == State::Disconnected {
                        continue;
                    }
                    if vnet.name == here {
                        near.push(half.remote.clone());
                    }
                    if half.remote == here {
                        near.push(vnet.name.clone());
                    }
                }
            }
            for vnet in near {
                if !joined.contains(&vnet) {
                    joined.push(vnet);
                }
            }
            next += 1;
        }
        joined
    }

    fn joined_overlap(&self, start: &[&str]) -> bool {
        let spaces = self
            .joined(start)
            .into_iter()
            .filter_map(|v| self.vnet(&v))
            .map(|v| &v.space);
        let spaces: Vec<_> = spaces.collect();
        let mut pairs = spaces
            .iter()
            .enumerate()
            .flat_map(|(i, a)| spaces[i + 1..].iter().map(move |b| (a, b)));
        pairs.any(|(a, b)| overlap(a, b))
    }

    /// The peers of a VNet. For each peer: its name, its present and its synced ranges in one list, and whether the
    /// VNet's half with the peer is `Connected`.
    fn peers_of(&self, vnet: &str) -> Vec<(String, Vec<IpNet>, bool)> {
        let halves = self.vnet(vnet).map(|v| v.peerings.clone()).unwrap_or_default();
        let describe = |half: Peering| {
            let mut ranges = half.remote_space;
            ranges.extend(self.vnet(&half.remote).map(|v| v.space.clone()).unwrap_or_default());
            (half.remote, ranges, half.state == State::Connected)
        };
        halves.into_iter().map(describe).collect()
    }

    /// Applies the effects of an operation, without a check: call it only for an operation that was accepted. The
    /// deletion of something that does not exist has no effect.
    pub fn apply(&mut self, operation: &Operation) {
        match operation.clone() {
            Operation::PutVnet {
                vnet,
                region,
                space,
                flow_timeout,
            } => match self.vnet_mut(&vnet) {
                Some(existing) => {
                    existing.space = space;
                    existing.flow_timeout = flow_timeout.unwrap_or(DEFAULT_TIMEOUT);
                }
                None => self.vnets.push(Vnet {
                    name: vnet,
                    region,
                    space,
                    subnets: vec![],
                    peerings: vec![],
                    flow_timeout: flow_timeout.unwrap_or(DEFAULT_TIMEOUT),
                }),
            },
            Operation::DeleteVnet { vnet } => {
                self.vnets.retain(|v| v.name != vnet);
                for other in &mut self.vnets {
                    for half in other.peerings.iter_mut().filter(|p| p.remote == vnet) {
                        if half.state == State::Connected {
                            half.state = State::Disconnected; // P13: the VNet of the other half is deleted
                        }
                    }
                }
            }
            Operation::PutSubnet {
                vnet,
                subnet,
                prefixes,
                table,
                security,
            } => {
                if let Some(home) = self.vnet_mut(&vnet) {
                    home.subnets.retain(|s| s.name != subnet);
                    home.subnets.push(Subnet {
                        name: subnet,
                        prefixes,
                        table,
                        security,
                    });
                }
            }
            Operation::PutPeering {
                vnet,
                remote,
                flags,
                sync,
            } => self.apply_peering(&vnet, &remote, flags, sync),
            Operation::DeletePeering { vnet, remote } => {
                let Some(home) = self.vnet_mut(&vnet) else { return };
                let before = home.peerings.len();
                home.peerings.retain(|p| p.remote != remote);
                if before == home.peerings.len() {
                    return;
                }
                if let Some(other) = self.half_mut(&remote, &vnet)
                    && other.state == State::Connected
                {
                    other.state = State::Disconnected; // P13: the other half is deleted
                }
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
                self.nics.retain(|n| n.name != nic);
                self.nics.push(Nic {
                    name: nic,
                    vnet,
                    subnet,
                    addresses,
                    forwarding,
                    security,
                    application_groups,
                    host_routes,
                    pool,
                    nat_rule,
                });
            }
            Operation::PutSecurityGroup { group, rules } => {
                self.security_groups.retain(|g| g.name != group);
                self.security_groups.push(SecurityGroup { name: group, rules });
            }
            Operation::DeleteSecurityGroup { group } => self.security_groups.retain(|g| g.name != group),
            Operation::PutApplicationGroup { group } => {
                self.application_groups.retain(|g| *g != group);
                self.application_groups.push(group);
            }
            Operation::SetAccessOff { block } => self.access_off_blocks = block,
            Operation::SetReevaluate { on } => self.reevaluates = on,
            Operation::PutTable {
                table,
                no_gateway_routes,
                routes,
            } => {
                self.tables.retain(|t| t.name != table);
                self.tables.push(Table {
                    name: table,
                    no_gateway_routes,
                    routes,
                });
            }
            Operation::PutGateway { vnet, address } => {
                self.gateways.retain(|g| g.vnet != vnet);
                self.gateways.push(Gateway { vnet, address });
            }
            Operation::DeleteGateway { vnet } => self.gateways.retain(|g| g.vnet != vnet),
            Operation::PutConnection { from, to, key } => {
                let same = |c: &&mut Connection| c.from == from && c.to == to;
                match self.connections.iter_mut().find(same) {
                    // The key is write-only: a PUT without a key keeps the old one.
                    Some(existing) => existing.key = key.or(existing.key.take()),
                    None => self.connections.push(Connection { from, to, key }),
                }
            }
            Operation::DeleteConnection { from, to } => {
                self.connections.retain(|c| !(c.from == from && c.to == to));
            }
            Operation::JoinVm { vm, nics, vnet, served } => self.join(Agent {
                name: vm,
                vnet,
                nics,
                served,
                gateway: false,
                revoked: false,
            }),
            Operation::JoinGateway { vnet } => self.join(Agent {
                name: gateway_agent(&vnet),
                vnet,
                nics: vec![],
                served: vec![],
                gateway: true,
                revoked: false,
            }),
            Operation::Announce {
                vnet,
                prefixes,
                foreign_as,
                flood,
            } => {
                self.announced.retain(|a| a.vnet != vnet);
                self.announced.push(Announced {
                    vnet,
                    prefixes,
                    foreign_as,
                    flood,
                });
            }
            Operation::PutBalancer { balancer, body } => {
                self.balancers.retain(|(n, _)| *n != balancer);
                self.balancers.push((balancer, body));
            }
            Operation::DeleteBalancer { balancer } => self.balancers.retain(|(n, _)| *n != balancer),
            Operation::SetHealth { balancer, down } => {
                self.down.retain(|(of, _)| *of != balancer);
                self.down
                    .extend(down.into_iter().map(|address| (balancer.clone(), address)));
            }
            Operation::Revoke { agent } => {
                for found in self.agents.iter_mut().filter(|a| a.name == agent) {
                    found.revoked = true;
                }
            }
            Operation::DeleteAgent { agent } => self.agents.retain(|a| a.name != agent),
        }
    }

    fn join(&mut self, agent: Agent) {
        self.agents.retain(|a| a.name != agent.name);
        self.agents.push(agent);
    }

    fn apply_peering(&mut self, vnet: &str, remote: &str, flags: Flags, sync: bool) {
        let ranges = |model: &Self, name: &str| model.vnet(name).map(|v| v.space.clone()).unwrap_or_default();
        let (own_space, remote_space) = (ranges(self, vnet), ranges(self, remote));
        let back = self.half(remote, vnet).map(|b| b.state);
        if let Some(half) = self.half_mut(vnet, remote) {
            half.flags = flags;
            if half.state == State::Disconnected && back.is_none() {
                half.state = State::Initiated; // P13, P14: an update begins the recovery
                half.remote_space = remote_space;
            } else if sync {
                half.remote_space = remote_space; // P27: only `syncRemoteAddressSpace` takes over new ranges
            }
            return;
        }
        let state = if back.is_some() {
            State::Connected
        } else {
            State::Initiated
        };
        if let Some(home) = self.vnet_mut(vnet) {
            home.peerings.push(Peering {
                remote: remote.to_string(),
                flags,
                state,
                remote_space,
            });
        }
        if let Some(other) = self.half_mut(remote, vnet) {
            other.state = State::Connected; // P13: both halves are Connected, and both have the present ranges
            other.remote_space = own_space;
        }
    }
}

fn refuse_if(broken: bool) -> Ruling {
    if broken { Ruling::Refuse(vec![]) } else { Ruling::Accept }
}

fn note(certain: bool, code: &'static str, codes: &mut Vec<&'static str>, open: &mut bool) {
    if certain {
        codes.push(code);
    } else {
        *open = true;
    }
}

fn ruling(codes: Vec<&'static str>, open: bool) -> Ruling {
    match (codes.is_empty(), open) {
        (false, _) => Ruling::Refuse(codes),
        (true, true) => Ruling::Either,
        (true, false) => Ruling::Accept,
    }
}
