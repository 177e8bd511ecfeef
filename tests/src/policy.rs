//! Random topologies with security groups, and the questions that are asked about them: does a connection between two
//! machines succeed, and which rules decide?
//!
//! * [`in_process`] compares the answers of `explain`, of IP flow verify, of the agents' engines and of the reference
//!   model.
//! * [`live`] compares the answers of a running controller with real connections between real agents, and with the
//!   counters of rules at these agents.
//! * [`lab`] writes a topology as a lab's topology file.
//! * [`prediction`] reads what an answer of `explain` predicts.

pub mod in_process;
pub mod lab;
pub mod live;
pub mod prediction;

use crate::operation::{Addresses, Flags, Operation, Protocol, Rule, UserHop};
use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The source port of TCP and UDP in all questions: the port for which `explain` answers.
pub const CLIENT_PORT: u16 = 49_152;

/// The ports at which servers answer, and for which questions are asked.
pub const PORTS: [Port; 6] = [
    Port(Protocol::Icmp, 0),
    Port(Protocol::Tcp, 22),
    Port(Protocol::Tcp, 80),
    Port(Protocol::Tcp, 443),
    Port(Protocol::Udp, 53),
    Port(Protocol::Udp, 443),
];

/// A protocol with a destination port, which is 0 for ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port(pub Protocol, pub u16);

/// A topology with security groups, as operations that the product must accept.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The seed from which [`Policy::draw`] drew the rest.
    pub seed: u64,
    /// Creates all resources and joins all agents, in this order.
    pub operations: Vec<Operation>,
    /// The machines, each with an agent and one NIC.
    pub machines: Vec<Machine>,
}

/// A machine with one NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The name of the machine and of its agent. The NIC's name is `NAME-nic`.
    pub name: String,
    /// The name of the VNet.
    pub vnet: String,
    /// The name of the subnet.
    pub subnet: &'static str,
    /// An IPv4 address and, in a VNet with both address families, an IPv6 address.
    pub addresses: Vec<IpAddr>,
    /// Whether the machine forwards packets of other machines: the NIC's `enableIPForwarding` and the kernel's setting.
    pub forwards: bool,
}

/// A question: can a machine reach a port of another machine?
#[derive(Debug, Clone, Copy)]
pub struct Question<'p> {
    /// The machine that sends the first packet.
    pub from: &'p Machine,
    /// The machine with the server.
    pub to: &'p Machine,
    /// The address of the sender.
    pub source: IpAddr,
    /// The address of the server, of the same family.
    pub destination: IpAddr,
    /// The port of the server.
    pub port: Port,
}

/// A VNet of a policy, before its machines are drawn.
struct Network {
    name: String,
    slot: u8,
    dual: bool,
}

impl Network {
    fn space(&self) -> Vec<IpNet> {
        let mut space = vec![net(&format!("10.{}.0.0/16", self.slot))];
        if self.dual {
            space.push(net(&format!("fd00:{:x}::/48", self.slot)));
        }
        space
    }

    fn prefixes(&self, subnet: usize) -> Vec<IpNet> {
        let mut prefixes = vec![net(&format!("10.{}.{subnet}.0/24", self.slot))];
        if self.dual {
            prefixes.push(net(&format!("fd00:{:x}:0:{subnet}::/64", self.slot)));
        }
        prefixes
    }

    fn addresses(&self, subnet: u8, host: u8) -> Vec<IpAddr> {
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::new(10, self.slot, subnet, host))];
        if self.dual {
            let (slot, subnet, host) = (self.slot.into(), subnet.into(), host.into());
            addresses.push(IpAddr::V6(Ipv6Addr::new(0xfd00, slot, 0, subnet, 0, 0, 0, host)));
        }
        addresses
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|e| unreachable!("{text}: {e}"))
}

/// The names of the subnets of every VNet, in the order of their third octet.
const SUBNETS: [&str; 2] = ["a", "b"];
const GROUPS: [&str; 4] = ["g0", "g1", "g2", "g3"];
const APPLICATION_GROUPS: [&str; 2] = ["web", "db"];

impl Policy {
    /// Draws the policy of a seed: a hub, in most cases with an appliance, and one or two spokes, with 3 to 6 machines
    /// in all. The same seed gives the same policy.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let rng = &mut rng;
        let dual = rng.random_bool(0.3);
        let networks: Vec<Network> = ["hub", "left", "right"][..rng.random_range(2..=3)]
            .iter()
            .zip(1..)
            .map(|(name, slot)| Network {
                name: (*name).to_owned(),
                slot,
                dual,
            })
            .collect();
        let mut machines = Vec::new();
        let has_appliance = rng.random_bool(0.6);
        if has_appliance {
            machines.push(Machine {
                name: "fw".into(),
                vnet: "hub".into(),
                subnet: SUBNETS[1],
                addresses: networks[0].addresses(1, 4),
                forwards: true,
            });
        }
        for network in &networks {
            let is_hub = network.slot == 1;
            for number in 1..=rng.random_range(1..=if is_hub && has_appliance { 1 } else { 2_u8 }) {
                let subnet = rng.random_range(0..2_u8);
                machines.push(Machine {
                    name: format!("{}-{number}", network.name),
                    vnet: network.name.clone(),
                    subnet: SUBNETS[usize::from(subnet)],
                    addresses: network.addresses(subnet, 10 * number),
                    forwards: false,
                });
            }
        }
        let operations = operations(&networks, &machines, rng);
        Self {
            seed,
            operations,
            machines,
        }
    }

    /// Every question about one port: all ordered pairs of machines, in each address family that both have.
    pub fn questions(&self, port: Port) -> impl Iterator<Item = Question<'_>> {
        let pairs = self
            .machines
            .iter()
            .flat_map(|from| self.machines.iter().map(move |to| (from, to)));
        let different = pairs.filter(|(from, to)| from.name != to.name);
        different.flat_map(move |(from, to)| {
            let ends = from.addresses.iter().zip(&to.addresses);
            ends.map(move |(source, destination)| Question {
                from,
                to,
                source: *source,
                destination: *destination,
                port,
            })
        })
    }
}

/// The operations that create the resources of these VNets and machines.
fn operations(networks: &[Network], machines: &[Machine], rng: &mut impl Rng) -> Vec<Operation> {
    let mut out = Vec::new();
    for group in APPLICATION_GROUPS {
        out.push(Operation::PutApplicationGroup { group: group.into() });
    }
    for group in GROUPS {
        let rules = rules(networks, machines, rng);
        out.push(Operation::PutSecurityGroup {
            group: group.into(),
            rules,
        });
    }
    out.push(Operation::SetAccessOff {
        block: rng.random_bool(0.3),
    });
    let attached = |share: f64, rng: &mut dyn rand::RngCore| {
        let group = GROUPS.choose(rng).map(ToString::to_string);
        group.filter(|_| rng.random_bool(share))
    };
    for network in networks {
        let vnet = network.name.clone();
        out.push(Operation::PutVnet {
            vnet: vnet.clone(),
            region: "region1",
            space: network.space(),
            flow_timeout: None,
        });
        for (number, subnet) in SUBNETS.into_iter().enumerate() {
            // Routes in the appliance's own subnet would lead packets that the appliance forwards back to the
            // appliance.
            let is_of_appliance = machines
                .iter()
                .any(|m| m.forwards && m.vnet == vnet && m.subnet == subnet);
            let table = table(networks, machines, network, rng).filter(|_| !is_of_appliance && rng.random_bool(0.6));
            let name = format!("{vnet}-{subnet}");
            if let Some(routes) = &table {
                out.push(Operation::PutTable {
                    table: name.clone(),
                    no_gateway_routes: false,
                    routes: routes.clone(),
                });
            }
            out.push(Operation::PutSubnet {
                vnet: vnet.clone(),
                subnet: subnet.into(),
                prefixes: network.prefixes(number),
                table: table.map(|_| name),
                security: attached(0.4, rng),
            });
        }
    }
    for (index, network) in networks.iter().enumerate() {
        for other in &networks[index + 1..] {
            // The spokes are mostly joined through the hub alone.
            if network.slot != 1 && rng.random_bool(0.7) {
                continue;
            }
            for (vnet, remote) in [(network, other), (other, network)] {
                out.push(Operation::PutPeering {
                    vnet: vnet.name.clone(),
                    remote: remote.name.clone(),
                    flags: Flags {
                        access: rng.random_bool(0.85),
                        forwarded: rng.random_bool(0.7),
                        transit: false,
                        use_remote: false,
                    },
                    sync: false,
                });
            }
        }
    }
    // All members of the application security groups of one rule must be in one VNet (N9).
    let home = networks.choose(rng).map(|network| network.name.clone());
    for machine in machines {
        let nic = machine.nic();
        let mut application_groups: Vec<String> = APPLICATION_GROUPS.iter().map(ToString::to_string).collect();
        application_groups.retain(|_| home.as_ref() == Some(&machine.vnet) && rng.random_bool(0.7));
        out.push(Operation::PutNic {
            nic: nic.clone(),
            vnet: machine.vnet.clone(),
            subnet: machine.subnet.into(),
            addresses: machine.addresses.clone(),
            forwarding: machine.forwards,
            security: attached(0.5, rng),
            application_groups,
            host_routes: vec![],
            pool: None,
            nat_rule: None,
        });
        out.push(Operation::JoinVm {
            vm: machine.name.clone(),
            nics: vec![nic],
            vnet: machine.vnet.clone(),
            served: vec![],
        });
    }
    out
}

impl Machine {
    /// The name of the machine's NIC.
    #[must_use]
    pub fn nic(&self) -> String {
        format!("{}-nic", self.name)
    }
}

/// Draws the routes of a subnet: mostly ones that lead to other VNets through the appliance. `None`: there is no
/// appliance.
fn table(
    networks: &[Network],
    machines: &[Machine],
    home: &Network,
    rng: &mut impl Rng,
) -> Option<Vec<(IpNet, UserHop)>> {
    let appliance = machines.iter().find(|m| m.forwards)?;
    let mut targets: Vec<IpNet> = networks
        .iter()
        .filter(|n| n.slot != home.slot)
        .flat_map(Network::space)
        .collect();
    targets.push(net("0.0.0.0/0"));
    targets.retain(|_| rng.random_bool(0.6));
    let hop = |prefix: &IpNet, rng: &mut dyn rand::RngCore| {
        let same = |a: &&IpAddr| a.is_ipv4() == prefix.addr().is_ipv4();
        let address = appliance.addresses.iter().find(same);
        match address {
            Some(address) if rng.random_bool(0.85) => UserHop::Appliance(*address),
            _ if rng.random_bool(0.5) => UserHop::None,
            _ => UserHop::Internet,
        }
    };
    Some(targets.iter().map(|prefix| (*prefix, hop(prefix, rng))).collect())
}

/// Draws the rules of a security group, with different priorities.
fn rules(networks: &[Network], machines: &[Machine], rng: &mut impl Rng) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for _ in 0..rng.random_range(1..=7_u8) {
        let priority = rng.random_range(100..=4096);
        if rules.iter().any(|r| r.priority == priority) {
            continue;
        }
        rules.push(Rule {
            priority,
            inbound: rng.random_bool(0.5),
            allow: rng.random_bool(0.55),
            protocol: match rng.random_range(0..10_u8) {
                0..4 => None,
                4..6 => Some(Protocol::Tcp),
                6..8 => Some(Protocol::Udp),
                _ => Some(Protocol::Icmp),
            },
            source: addresses(networks, machines, rng),
            // With and without the port of the questions.
            source_ports: [(CLIENT_PORT, 65_535), (1024, CLIENT_PORT), (1024, CLIENT_PORT - 1)]
                .choose(rng)
                .copied()
                .filter(|_| rng.random_bool(0.15)),
            destination: addresses(networks, machines, rng),
            destination_ports: {
                const RANGES: [(u16, u16); 6] = [(22, 22), (80, 80), (443, 443), (53, 80), (0, 1023), (1024, 65_535)];
                let count = rng.random_range(0..=4_usize).saturating_sub(2);
                RANGES.choose_multiple(rng, count).copied().collect()
            },
        });
    }
    rules
}

/// Draws one side of a rule.
fn addresses(networks: &[Network], machines: &[Machine], rng: &mut impl Rng) -> Addresses {
    match rng.random_range(0..20_u8) {
        0..7 => Addresses::Any,
        7..10 => Addresses::VirtualNetwork,
        10 => Addresses::Internet,
        11 => Addresses::LoadBalancer,
        12..15 => {
            let mut groups: Vec<String> = APPLICATION_GROUPS.iter().map(ToString::to_string).collect();
            if rng.random_bool(0.7) {
                groups.swap_remove(rng.random_range(0..2));
            }
            Addresses::Groups(groups)
        }
        _ => {
            let mut prefixes = Vec::new();
            for _ in 0..rng.random_range(1..=3_u8) {
                let network = networks
                    .choose(rng)
                    .map(|n| (n.space(), n.prefixes(rng.random_range(0..2))));
                let address = machines.choose(rng).map(|m| m.addresses.clone());
                let (space, subnet) = network.unwrap_or_default();
                match rng.random_range(0..4_u8) {
                    0 => prefixes.extend(space),
                    1 => prefixes.extend(subnet),
                    2 => prefixes.push(net("10.0.0.0/8")),
                    _ => prefixes.extend(address.into_iter().flatten().map(IpNet::from)),
                }
            }
            prefixes.sort_unstable();
            prefixes.dedup();
            Addresses::Prefixes(prefixes)
        }
    }
}
