//! The generator of random operations and packets.

use super::balancers::BalancerPlan;
use super::{Addresses, Flags, GATEWAY_SUBNET, Operation, Protocol, Rule, UserHop, gateway_agent};
use crate::model::security::HOST_ADDRESS;
use ipnet::IpNet;
use rand::Rng;
use rand::seq::IndexedRandom;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The VNets, NICs, VMs, route tables and security groups that the operations of one seed may create.
#[derive(Debug, Clone)]
pub struct Universe {
    /// The plans of the VNets. The set-up makes the first one a hub with a gateway, and the third one a branch with a gateway.
    pub vnets: Vec<VnetPlan>,
    /// The names of the route tables.
    pub tables: Vec<String>,
    /// The names of the network security groups. Some universes have none, and no application security groups either.
    pub security_groups: Vec<String>,
    /// The names of the application security groups.
    pub application_groups: Vec<String>,
}

/// The region of the first VNet, and of all route tables and security groups. Only VNets of this region use them (P1).
const HOME: &str = "region1";

/// The properties that a VNet has if an operation creates it.
#[derive(Debug, Clone)]
pub struct VnetPlan {
    /// The name of the VNet.
    pub name: String,
    /// The region of the VNet and of its NICs.
    pub region: &'static str,
    /// The ranges with which the VNet is created.
    pub space: Vec<IpNet>,
    /// A range that a later operation may add.
    pub extra: IpNet,
    /// The names and prefixes of the subnets; `GatewaySubnet` is the last one.
    pub subnets: Vec<(String, Vec<IpNet>)>,
    /// The NICs, each with its name, subnet and addresses.
    pub nics: Vec<(String, String, Vec<IpAddr>)>,
    /// The VMs, each with its name, its NICs and the subnets that it serves.
    pub vms: Vec<(String, Vec<String>, Vec<String>)>,
    /// The address of the gateway's instance, if the VNet gets a gateway.
    pub gateway: IpAddr,
    /// The load balancer of the VNet, if it may get one.
    pub balancer: Option<BalancerPlan>,
}

/// Draws the idle timeout of a VNet's flows. Most VNets have the default.
fn flow_timeout(rng: &mut impl Rng) -> Option<u8> {
    rng.random_bool(0.4).then(|| rng.random_range(4..=30))
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|e| unreachable!("{text}: {e}"))
}

impl VnetPlan {
    /// Draws a plan. `slot` is the second octet of the VNet's ranges: plans with the same slot overlap.
    fn draw(name: String, slot: u8, rng: &mut impl Rng) -> Self {
        let dual = rng.random_bool(0.5);
        let mut space = vec![net(&format!("10.{slot}.0.0/16"))];
        let mut subnets = Vec::new();
        for (index, subnet) in ["a", "b"].into_iter().enumerate() {
            let mut prefixes = vec![net(&format!("10.{slot}.{index}.0/24"))];
            if dual {
                prefixes.push(net(&format!("fd00:{slot:x}:0:{index}::/64")));
            }
            subnets.push((subnet.to_string(), prefixes));
        }
        if dual {
            space.push(net(&format!("fd00:{slot:x}::/48")));
        }
        subnets.push((GATEWAY_SUBNET.to_string(), vec![net(&format!("10.{slot}.255.0/27"))]));
        let mut nics = Vec::new();
        let mut vms = Vec::new();
        // Some VNets have no NIC, because only such a VNet can be deleted while it is peered (P13). The first VNet always
        // has one, so that packets have a sender.
        for number in 0..rng.random_range(u8::from(slot == 1)..=3) {
            let mut own = Vec::new();
            for half in 0..if rng.random_bool(0.3) { 2 } else { 1_u8 } {
                let subnet = rng.random_range(0..2_usize);
                let host = 10 + 10 * number + half;
                let mut addresses = vec![IpAddr::V4(Ipv4Addr::new(10, slot, subnet.to_le_bytes()[0], host))];
                if dual {
                    let second = u16::try_from(subnet).unwrap_or(0);
                    addresses.push(IpAddr::V6(Ipv6Addr::new(
                        0xfd00,
                        slot.into(),
                        0,
                        second,
                        0,
                        0,
                        0,
                        host.into(),
                    )));
                }
                let nic = format!("{name}-n{number}{half}");
                nics.push((nic.clone(), subnets[subnet].0.clone(), addresses));
                own.push(nic);
            }
            // Only the first VM may serve the second subnet, because a subnet has at most one serving agent (D8).
            let served = if number == 0 && rng.random_bool(0.2) {
                vec!["b".to_string()]
            } else {
                vec![]
            };
            vms.push((format!("{name}-vm{number}"), own, served));
        }
        let balancer = (!vms.is_empty() && rng.random_bool(0.4)).then(|| BalancerPlan::draw(&name, (slot, dual), rng));
        Self {
            balancer,
            gateway: IpAddr::V4(Ipv4Addr::new(10, slot, 255, 4)),
            extra: net(&format!("172.16.{slot}.0/24")),
            region: if rng.random_bool(0.3) { "region2" } else { "region1" },
            name,
            space,
            subnets,
            nics,
            vms,
        }
    }
}

impl Universe {
    /// Draws a universe of 3 to 6 VNets with disjoint ranges, and sometimes one more with the ranges of the first (P10,
    /// P11). The same state of `rng` gives the same universe.
    #[must_use]
    pub fn draw(rng: &mut impl Rng) -> Self {
        let count = rng.random_range(3..=6_u8);
        let mut vnets: Vec<_> = (1..=count)
            .map(|slot| VnetPlan::draw(format!("v{slot}"), slot, rng))
            .collect();
        if rng.random_bool(0.25) {
            vnets.push(VnetPlan::draw("clone".into(), 1, rng));
        }
        vnets[0].region = HOME;
        let has_groups = rng.random_bool(0.6);
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<String>>();
        let groups = |list: &[&str]| if has_groups { names(list) } else { Vec::new() };
        Self {
            vnets,
            tables: names(&["t1", "t2", "t3"]),
            security_groups: groups(&["g1", "g2", "g3", "g4"]),
            application_groups: groups(&["web", "db"]),
        }
    }

    /// Draws the operations that set up a run, in an order in which most are accepted. The operations create every VNet
    /// with its NICs and agents, and then mostly a hub with spokes: the first VNet has a gateway and peers with most
    /// other VNets, and the third VNet is a branch, which a connection joins to the hub. Each part is sometimes left
    /// out. Nothing is carried out.
    ///
    /// # Panics
    /// If there are fewer than three VNets. [`Self::draw`] never returns so few.
    #[must_use]
    pub fn setup(&self, rng: &mut impl Rng) -> Vec<Operation> {
        let mut out = Vec::new();
        for group in &self.application_groups {
            out.push(Operation::PutApplicationGroup { group: group.clone() });
        }
        for group in &self.security_groups {
            let rules = self.rules(rng);
            let group = group.clone();
            out.push(Operation::PutSecurityGroup { group, rules });
        }
        if !self.security_groups.is_empty() && rng.random_bool(0.4) {
            out.push(Operation::SetAccessOff { block: true });
        }
        if !self.security_groups.is_empty() && rng.random_bool(0.3) {
            out.push(Operation::SetReevaluate { on: true });
        }
        for plan in &self.vnets {
            out.extend(plan.setup(self, rng));
        }
        for _ in 0..3 {
            out.push(self.table(rng));
        }
        for plan in &self.vnets {
            let (subnet, prefixes) = plan.subnets[rng.random_range(0..2_usize)].clone();
            let table = self.tables.choose(rng).filter(|_| rng.random_bool(0.4));
            if let Some(table) = table.filter(|_| plan.region == HOME) {
                out.push(Operation::PutSubnet {
                    vnet: plan.name.clone(),
                    subnet,
                    prefixes,
                    table: Some(table.clone()),
                    security: self.attached(plan, rng),
                });
            }
        }
        let hub = &self.vnets[0].name;
        let branch = &self.vnets[2].name;
        for plan in [&self.vnets[0], &self.vnets[2]] {
            if rng.random_bool(0.8) {
                out.push(Operation::PutGateway {
                    vnet: plan.name.clone(),
                    address: plan.gateway,
                });
                if rng.random_bool(0.9) {
                    out.push(Operation::JoinGateway {
                        vnet: plan.name.clone(),
                    });
                }
            }
        }
        for plan in [&self.vnets[0], &self.vnets[2]] {
            if rng.random_bool(0.5) {
                out.push(self.announcement(plan.name.clone(), rng));
            }
        }
        for (from, to) in [(hub, branch), (branch, hub)] {
            if rng.random_bool(0.9) {
                out.push(Operation::PutConnection {
                    from: from.clone(),
                    to: to.clone(),
                    key: Some(if rng.random_bool(0.9) { "same" } else { "other" }.into()),
                });
            }
        }
        for plan in &self.vnets[1..] {
            if plan.name == *branch && rng.random_bool(0.6) {
                continue;
            }
            let transit = rng.random_bool(0.6);
            let mut halves = [(hub, &plan.name, transit, false), (&plan.name, hub, false, transit)];
            if rng.random_bool(0.3) {
                halves.reverse();
            }
            for (vnet, remote, transit, use_remote) in halves {
                if rng.random_bool(0.9) {
                    out.push(Operation::PutPeering {
                        vnet: vnet.clone(),
                        remote: remote.clone(),
                        flags: Flags {
                            access: rng.random_bool(0.9),
                            forwarded: rng.random_bool(0.5),
                            transit,
                            use_remote,
                        },
                        sync: false,
                    });
                }
            }
        }
        out
    }

    /// Draws one operation, which may be one that must be refused. Nothing is carried out.
    ///
    /// # Panics
    /// If there are no VNets.
    #[must_use]
    pub fn operation(&self, rng: &mut impl Rng) -> Operation {
        let mut plan = self.any(rng);
        while plan.nics.is_empty() && rng.random_bool(0.7) {
            plan = self.any(rng);
        }
        if !self.security_groups.is_empty() && rng.random_bool(0.3) {
            return self.security_operation(plan, rng);
        }
        let vnet = plan.name.clone();
        let remote = self.any(rng).name.clone();
        match rng.random_range(0..100_u8) {
            0..20 => Operation::PutPeering {
                vnet,
                remote,
                flags: Flags {
                    access: rng.random_bool(0.85),
                    forwarded: rng.random_bool(0.5),
                    transit: rng.random_bool(0.5),
                    use_remote: rng.random_bool(0.3),
                },
                sync: rng.random_bool(0.3),
            },
            20..27 => Operation::DeletePeering { vnet, remote },
            27..31 if !plan.nics.is_empty() => self.nic(plan, rng),
            31..46 if plan.balancer.is_some() && rng.random_bool(0.8) => self.balancer_operation(plan, rng),
            31..35 if !plan.nics.is_empty() => self.nic(plan, rng),
            31..46 => self.table(rng),
            46..53 => {
                let hubs = [&self.vnets[0].name, &self.vnets[2].name];
                self.announcement(hubs[rng.random_range(0..2)].clone(), rng)
            }
            53..65 => self.subnet(plan, rng.random_range(0..2), rng),
            65..69 => Operation::PutGateway {
                vnet,
                address: plan.gateway,
            },
            69..71 => Operation::DeleteGateway { vnet },
            71..79 => Operation::PutConnection {
                from: vnet,
                to: remote,
                key: rng
                    .random_bool(0.9)
                    .then(|| if rng.random_bool(0.8) { "same" } else { "other" }.to_string()),
            },
            79..81 => Operation::DeleteConnection { from: vnet, to: remote },
            81..86 => {
                let mut space = plan.space.clone();
                if rng.random_bool(0.7) {
                    space.push(plan.extra);
                }
                Operation::PutVnet {
                    vnet,
                    region: plan.region,
                    space,
                    flow_timeout: flow_timeout(rng),
                }
            }
            86..88 => Operation::DeleteVnet { vnet },
            88..92 => Operation::JoinGateway { vnet },
            92..94 => Operation::Revoke {
                agent: plan.any_agent(rng),
            },
            94..96 => Operation::DeleteAgent {
                agent: plan.any_agent(rng),
            },
            96.. if !plan.vms.is_empty() => {
                let (vm, nics, served) = plan.vms[rng.random_range(0..plan.vms.len())].clone();
                Operation::JoinVm { vm, nics, vnet, served }
            }
            _ => Operation::DeletePeering { vnet, remote },
        }
    }

    /// Draws a change of a NIC of the plan, which must have one.
    fn nic(&self, plan: &VnetPlan, rng: &mut impl Rng) -> Operation {
        let (nic, subnet, addresses) = plan.nics[rng.random_range(0..plan.nics.len())].clone();
        let (pool, nat_rule) = Self::balancers(plan, &nic, rng);
        Operation::PutNic {
            nic,
            vnet: plan.name.clone(),
            subnet,
            addresses,
            forwarding: rng.random_bool(0.6),
            security: self.attached(plan, rng),
            application_groups: self.joined(plan, rng),
            host_routes: self.host_routes(rng),
            pool,
            nat_rule,
        }
    }

    /// Draws the load balancers to whose pool and inbound NAT rule a NIC of the plan belongs. Only one NIC of a machine
    /// belongs to some.
    fn balancers(plan: &VnetPlan, nic: &str, rng: &mut impl Rng) -> (Option<String>, Option<String>) {
        let may_join = |balancer: &&BalancerPlan| {
            let mut machines = plan.vms.iter();
            machines.any(|(_, nics, _)| balancer.nic_of(nics).is_some_and(|n| n == nic))
        };
        let Some(balancer) = plan.balancer.as_ref().filter(may_join) else {
            return (None, None);
        };
        let pool = !balancer.by_address && rng.random_bool(0.75);
        let nat_rule = !balancer.is_for_appliances && rng.random_bool(0.25);
        let named = |named: bool| named.then(|| balancer.name.clone());
        (named(pool), named(nat_rule))
    }

    /// Draws an operation that concerns the load balancer of the plan, which must have one.
    fn balancer_operation(&self, plan: &VnetPlan, rng: &mut impl Rng) -> Operation {
        let Some(balancer) = &plan.balancer else {
            return self.table(rng);
        };
        let name = balancer.name.clone();
        match rng.random_range(0..20_u8) {
            0..5 => balancer.put(plan, rng),
            5 => Operation::DeleteBalancer { balancer: name },
            6..9 if !plan.nics.is_empty() => self.nic(plan, rng),
            _ => {
                // Often all are down, or none.
                let mut down = balancer.back_ends(plan);
                let share = [0.0, 0.5, 1.0, 1.0][rng.random_range(0..4)];
                down.retain(|_| rng.random_bool(share));
                Operation::SetHealth { balancer: name, down }
            }
        }
    }

    /// Draws the address of a front end of the wanted family. None: there is no such front end.
    #[must_use]
    pub fn front_end(&self, v4: bool, rng: &mut impl Rng) -> Option<IpAddr> {
        let all = self.vnets.iter().filter_map(|plan| plan.balancer.as_ref());
        let all = all.flat_map(|balancer| balancer.front_ends.clone());
        let all: Vec<IpAddr> = all.filter(|address| address.is_ipv4() == v4).collect();
        all.choose(rng).copied()
    }

    /// Draws the prefixes of the tag `tombolo-host-routes` of a NIC. Most NICs have none.
    fn host_routes(&self, rng: &mut impl Rng) -> Vec<IpNet> {
        let count = rng.random_range(0..=5_usize).saturating_sub(3);
        let mut prefixes: Vec<IpNet> = (0..count).map(|_| self.destination(rng)).collect();
        // The tag cannot have the prefix of all addresses.
        prefixes.retain(|p| p.prefix_len() > 0);
        prefixes
    }

    /// Draws a change of the subnet at this position in the plan.
    fn subnet(&self, plan: &VnetPlan, index: usize, rng: &mut impl Rng) -> Operation {
        let (subnet, prefixes) = plan.subnets[index].clone();
        let table = (rng.random_bool(0.75) && plan.region == HOME)
            .then(|| self.tables.choose(rng).cloned().unwrap_or_default());
        Operation::PutSubnet {
            vnet: plan.name.clone(),
            subnet,
            prefixes,
            table,
            security: self.attached(plan, rng),
        }
    }

    /// Draws the security group of a subnet or NIC of the plan. Most have none.
    fn attached(&self, plan: &VnetPlan, rng: &mut impl Rng) -> Option<String> {
        self.security_groups
            .choose(rng)
            .filter(|_| rng.random_bool(0.35) && plan.region == HOME)
            .cloned()
    }

    /// Draws the application security groups of a NIC of the plan. Only NICs of the first VNet have some, because all
    /// members of the groups of one rule must be in one VNet (N9).
    fn joined(&self, plan: &VnetPlan, rng: &mut impl Rng) -> Vec<String> {
        let mut joined = self.application_groups.clone();
        joined.retain(|_| rng.random_bool(0.6));
        joined.retain(|_| plan.name == self.vnets[0].name);
        joined
    }

    /// Draws an operation that concerns security groups. The universe must have some.
    fn security_operation(&self, plan: &VnetPlan, rng: &mut impl Rng) -> Operation {
        let group = self.security_groups.choose(rng).cloned().unwrap_or_default();
        match rng.random_range(0..100_u8) {
            0..45 => {
                let mut rules = self.rules(rng);
                // N1 refuses two rules of one direction with the same priority.
                if let Some(first) = rules.first().cloned()
                    && rng.random_bool(0.05)
                {
                    rules.push(first);
                }
                Operation::PutSecurityGroup { group, rules }
            }
            45..68 if !plan.nics.is_empty() => self.nic(plan, rng),
            68..88 => self.subnet(plan, rng.random_range(0..2), rng),
            88..90 if plan.region == HOME => {
                let (subnet, prefixes) = plan.subnets[2].clone();
                Operation::PutSubnet {
                    vnet: plan.name.clone(),
                    subnet,
                    prefixes,
                    table: None,
                    security: Some(group),
                }
            }
            90..93 => Operation::DeleteSecurityGroup { group },
            93..96 => Operation::SetReevaluate {
                on: rng.random_bool(0.5),
            },
            _ => Operation::SetAccessOff {
                block: rng.random_bool(0.5),
            },
        }
    }

    /// Draws the rules of a security group, with different priorities.
    fn rules(&self, rng: &mut impl Rng) -> Vec<Rule> {
        let mut rules: Vec<Rule> = Vec::new();
        for _ in 0..rng.random_range(0..=6_u8) {
            let priority = rng.random_range(100..=4096);
            if rules.iter().any(|r| r.priority == priority) {
                continue;
            }
            rules.push(Rule {
                priority,
                inbound: rng.random_bool(0.5),
                allow: rng.random_bool(0.6),
                protocol: match rng.random_range(0..10_u8) {
                    0..4 => None,
                    4..6 => Some(Protocol::Tcp),
                    6..8 => Some(Protocol::Udp),
                    _ => Some(Protocol::Icmp),
                },
                source: self.addresses(rng),
                // Part of the source ports of the packets; see `Script`.
                source_ports: rng
                    .random_bool(0.15)
                    .then(|| (40_000, rng.random_range(40_000..43_000))),
                destination: self.addresses(rng),
                destination_ports: {
                    const PORTS: [(u16, u16); 5] = [(7, 7), (22, 22), (80, 443), (443, 443), (0, 1023)];
                    let count = rng.random_range(0..=4_usize).saturating_sub(2);
                    (0..count).map(|_| PORTS[rng.random_range(0..PORTS.len())]).collect()
                },
            });
        }
        rules
    }

    /// Draws one side of a rule.
    fn addresses(&self, rng: &mut impl Rng) -> Addresses {
        match rng.random_range(0..20_u8) {
            0..6 => Addresses::Any,
            6..9 => Addresses::VirtualNetwork,
            9..11 => Addresses::Internet,
            11..13 => Addresses::LoadBalancer,
            13..16 if !self.application_groups.is_empty() => {
                let mut groups = self.application_groups.clone();
                if rng.random_bool(0.7) {
                    groups.swap_remove(rng.random_range(0..groups.len()));
                }
                Addresses::Groups(groups)
            }
            _ => {
                let count = rng.random_range(1..=3_u8);
                let mut prefixes: Vec<IpNet> = (0..count).map(|_| self.destination(rng)).collect();
                // The prefix 0.0.0.0/0 of a rule means the same as `*`, which has its own case.
                prefixes.retain(|p| p.prefix_len() > 0);
                match prefixes.is_empty() {
                    true => Addresses::Any,
                    false => Addresses::Prefixes(prefixes),
                }
            }
        }
    }

    /// Draws a route table. Destinations lie in, around and outside of the VNets; appliances are addresses of NICs.
    fn table(&self, rng: &mut impl Rng) -> Operation {
        let mut routes: Vec<(IpNet, UserHop)> = Vec::new();
        for _ in 0..rng.random_range(0..=4_u8) {
            let prefix = self.destination(rng);
            if routes.iter().any(|(p, _)| *p == prefix) {
                continue;
            }
            let hop = match rng.random_range(0..10_u8) {
                0..6 => {
                    let appliances = self.vnets.iter().filter_map(|v| v.balancer.as_ref());
                    let appliances: Vec<_> = appliances.filter(|b| b.is_for_appliances).collect();
                    let front_ends = appliances.iter().flat_map(|b| &b.front_ends).copied();
                    let same = |address: &IpAddr| address.is_ipv4() == prefix.addr().is_ipv4();
                    let front_ends: Vec<IpAddr> = front_ends.filter(same).collect();
                    let front_end = front_ends.choose(rng).copied();
                    let owner = self.any(rng);
                    let drawn = owner
                        .nics
                        .choose(rng)
                        .and_then(|(_, _, addresses)| addresses.iter().copied().find(same));
                    match front_end.filter(|_| rng.random_bool(0.4)).or(drawn) {
                        Some(address) => UserHop::Appliance(address),
                        None => UserHop::None,
                    }
                }
                6..8 => UserHop::Gateway,
                8 => UserHop::Local,
                _ => *[UserHop::None, UserHop::Internet].choose(rng).unwrap_or(&UserHop::None),
            };
            routes.push((prefix, hop));
        }
        Operation::PutTable {
            table: self.tables.choose(rng).cloned().unwrap_or_default(),
            no_gateway_routes: rng.random_bool(0.2),
            routes,
        }
    }

    /// Draws a site's announcement: prefixes that contain VNets, equal one, lie in one, or are unrelated to them.
    fn announcement(&self, vnet: String, rng: &mut impl Rng) -> Operation {
        const SETS: [&[&str]; 14] = [
            &["0.0.0.0/0"],
            &["::/0"],
            &["0.0.0.0/1", "128.0.0.0/1"],
            &["::/1", "8000::/1"],
            &["10.0.0.0/8"],
            &["10.0.0.0/13"],
            &["10.0.0.0/14", "10.4.0.0/14"],
            &["fc00::/7"],
            &["fd00::/29"],
            &["172.16.0.0/12"],
            &["198.51.100.0/24"],
            &["169.254.0.0/16"],
            &["169.254.0.0/16", "192.168.0.0/16"],
            &["169.254.3.0/24"],
        ];
        let mut prefixes: Vec<IpNet> = Vec::new();
        for _ in 0..rng.random_range(1..=4_u8) {
            if rng.random_bool(0.5) {
                let set = SETS[rng.random_range(0..SETS.len())];
                prefixes.extend(set.iter().map(|p| net(p)));
            } else {
                prefixes.push(self.destination(rng));
            }
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        Operation::Announce {
            vnet,
            prefixes,
            foreign_as: rng.random_bool(0.15),
            flood: rng.random_bool(0.05),
        }
    }

    /// Draws a route's destination: a VNet's range, a subnet, a single address, a default route, or an unrelated prefix.
    fn destination(&self, rng: &mut impl Rng) -> IpNet {
        let plan = self.any(rng);
        match rng.random_range(0..12_u8) {
            0..4 => plan.space.choose(rng).copied().unwrap_or(plan.extra),
            4..7 => plan
                .subnets
                .choose(rng)
                .and_then(|(_, prefixes)| prefixes.choose(rng).copied())
                .unwrap_or(plan.extra),
            7..9 => plan
                .nics
                .choose(rng)
                .and_then(|(_, _, addresses)| addresses.choose(rng).copied())
                .map_or(plan.extra, IpNet::from),
            9 => net("0.0.0.0/0"),
            10 => net("10.0.0.0/8"),
            _ => plan.extra,
        }
    }

    /// Draws one of the VNet plans, each with the same probability.
    ///
    /// # Panics
    /// If there are no VNets.
    pub fn any(&self, rng: &mut impl Rng) -> &VnetPlan {
        &self.vnets[rng.random_range(0..self.vnets.len())]
    }

    /// Draws an address of the wanted family: mostly the address of a NIC, sometimes that of a gateway, one in a
    /// martian prefix, the virtual address of Azure's hosts, or one that nobody owns.
    #[must_use]
    pub fn address(&self, v4: bool, rng: &mut impl Rng) -> IpAddr {
        let plan = self.any(rng);
        let of_nic = plan
            .nics
            .choose(rng)
            .and_then(|(_, _, addresses)| addresses.iter().find(|a| a.is_ipv4() == v4).copied());
        if rng.random_bool(0.05)
            && let Some(front_end) = self.front_end(v4, rng)
        {
            return front_end;
        }
        match (rng.random_range(0..21_u8), of_nic) {
            (0..15, Some(address)) => address,
            (15, _) if v4 => plan.gateway,
            (16, _) if v4 => IpAddr::V4(Ipv4Addr::new(172, 16, rng.random_range(1..7), 9)),
            (17, _) if v4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
            (18, _) if v4 => IpAddr::V4(Ipv4Addr::new(169, 254, 3, 3)),
            (20, _) if v4 => HOST_ADDRESS,
            (_, _) if v4 => IpAddr::V4(Ipv4Addr::new(
                10,
                rng.random_range(1..8),
                rng.random_range(0..2),
                rng.random_range(4..60),
            )),
            _ => IpAddr::V6(Ipv6Addr::new(
                0xfd00,
                rng.random_range(1..8),
                0,
                rng.random_range(0..2),
                0,
                0,
                0,
                rng.random_range(4..60),
            )),
        }
    }
}

impl VnetPlan {
    fn setup(&self, universe: &Universe, rng: &mut impl Rng) -> Vec<Operation> {
        let mut out = vec![Operation::PutVnet {
            vnet: self.name.clone(),
            region: self.region,
            space: self.space.clone(),
            flow_timeout: flow_timeout(rng),
        }];
        for (subnet, prefixes) in &self.subnets {
            out.push(Operation::PutSubnet {
                vnet: self.name.clone(),
                subnet: subnet.clone(),
                prefixes: prefixes.clone(),
                table: None,
                security: universe.attached(self, rng).filter(|_| subnet != GATEWAY_SUBNET),
            });
        }
        if let Some(balancer) = &self.balancer {
            out.push(balancer.put(self, rng));
        }
        for (nic, subnet, addresses) in &self.nics {
            let (pool, nat_rule) = Universe::balancers(self, nic, rng);
            out.push(Operation::PutNic {
                nic: nic.clone(),
                vnet: self.name.clone(),
                subnet: subnet.clone(),
                addresses: addresses.clone(),
                forwarding: rng.random_bool(0.5),
                security: universe.attached(self, rng),
                application_groups: universe.joined(self, rng),
                host_routes: universe.host_routes(rng),
                pool,
                nat_rule,
            });
        }
        for (vm, nics, served) in &self.vms {
            if rng.random_bool(0.95) {
                out.push(Operation::JoinVm {
                    vm: vm.clone(),
                    nics: nics.clone(),
                    vnet: self.name.clone(),
                    served: served.clone(),
                });
            }
        }
        out
    }

    fn any_agent(&self, rng: &mut impl Rng) -> String {
        match self.vms.choose(rng) {
            Some(vm) if rng.random_bool(0.7) => vm.0.clone(),
            _ => gateway_agent(&self.name),
        }
    }
}
