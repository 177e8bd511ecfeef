//! The front ends of load balancers, with their rules and back ends, as configurations have them (L1 to L9).

use crate::path::parent_id;
use crate::resource::{BackendPool, BalancedProtocol, Distribution, LoadBalancer, LoadBalancerSku, ProbeProtocol};
use crate::topology::Topology;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config;
use tombolo_proto::id::ResourceId;

/// A front end, as configurations have it.
#[derive(Debug)]
pub(super) struct BalancedFrontEnd {
    pub(super) config: config::FrontEnd,
    /// The SKU of the load balancer.
    pub(super) sku: LoadBalancerSku,
}

/// The back ends that ip configurations of network interfaces name: the addresses by pool and by inbound NAT rule.
struct Referred<'t>(BTreeMap<&'t ResourceId, BTreeSet<IpAddr>>);

impl<'t> Referred<'t> {
    fn of(topology: &'t Topology) -> Self {
        let mut all: BTreeMap<&ResourceId, BTreeSet<IpAddr>> = BTreeMap::new();
        for configuration in topology.nics.values().flat_map(|nic| &nic.ip_configurations) {
            let named = configuration.load_balancer_pools.iter();
            for id in named.chain(&configuration.inbound_nat_rules) {
                all.entry(id).or_default().insert(configuration.address);
            }
        }
        Self(all)
    }

    fn named_by(&self, id: &ResourceId) -> Vec<IpAddr> {
        self.0.get(id).into_iter().flatten().copied().collect()
    }

    /// The members of a pool, in ascending order.
    fn members_of(&self, pool: &BackendPool) -> Vec<IpAddr> {
        if pool.addresses.is_empty() {
            return self.named_by(&pool.id);
        }
        let all: BTreeSet<IpAddr> = pool.addresses.iter().map(|a| a.address).collect();
        all.into_iter().collect()
    }
}

/// The members of a pool whose `adminState` decides whether they get flows, and whether they do.
fn decided(pool: &BackendPool) -> impl Iterator<Item = (IpAddr, bool)> {
    let members = pool.addresses.iter();
    members.filter_map(|member| Some((member.address, member.admin_state.decided()?)))
}

/// The front ends of each VNet, ordered by address.
pub(super) fn of_vnets(topology: &Topology) -> BTreeMap<ResourceId, Vec<BalancedFrontEnd>> {
    let mut all: BTreeMap<ResourceId, Vec<BalancedFrontEnd>> = BTreeMap::new();
    if topology.load_balancers.is_empty() {
        return all;
    }
    let referred = Referred::of(topology);
    for balancer in topology.load_balancers.values() {
        for front_end in &balancer.front_ends {
            let vnet = parent_id(&front_end.subnet);
            let config = config::FrontEnd {
                id: front_end.id.clone(),
                vnet: vnet.clone(),
                address: front_end.address,
                rules: rules(balancer, &front_end.id, front_end.address, &referred),
            };
            all.entry(vnet).or_default().push(BalancedFrontEnd {
                config,
                sku: balancer.sku,
            });
        }
    }
    for front_ends in all.values_mut() {
        front_ends.sort_by_key(|f| f.config.address);
    }
    all
}

/// The load-balancing rules and inbound NAT rules of a front end, ordered by id. Back ends of another address family
/// are left out.
fn rules(
    balancer: &LoadBalancer,
    front_end: &ResourceId,
    address: IpAddr,
    referred: &Referred<'_>,
) -> Vec<config::BalancingRule> {
    let of_family = |back_ends: Vec<IpAddr>| {
        let same = back_ends.into_iter().filter(|a| a.is_ipv6() == address.is_ipv6());
        same.collect::<Vec<_>>()
    };
    let pool = |id: &ResourceId| balancer.pools.iter().find(|pool| pool.id == *id);
    let balanced = balancer.rules.iter().filter(|rule| rule.front_end == *front_end);
    let balanced = balanced.map(|rule| config::BalancingRule {
        id: rule.id.clone(),
        protocol: protocol(rule.protocol),
        port: rule.front_end_port,
        back_end_port: rule.back_end_port,
        distribution: match rule.distribution {
            Distribution::Default => config::Distribution::Default,
            Distribution::SourceIp => config::Distribution::SourceIP,
            Distribution::SourceIpProtocol => config::Distribution::SourceIPProtocol,
        },
        floating_ip: rule.floating_ip,
        idle_timeout_minutes: minutes(rule.idle_timeout_minutes),
        tcp_reset: rule.tcp_reset,
        back_ends: {
            let pools = rule.pools.iter().filter_map(pool);
            let members: BTreeSet<IpAddr> = pools.flat_map(|pool| referred.members_of(pool)).collect();
            of_family(members.into_iter().collect())
        },
        decided: {
            let pools = rule.pools.iter().filter_map(pool);
            let all = pools.flat_map(decided);
            all.filter(|(member, _)| member.is_ipv6() == address.is_ipv6())
                .collect()
        },
        probe: rule.probe.as_ref().and_then(|id| probe(balancer, id)),
        ends_flows: balancer.sku == LoadBalancerSku::Basic,
    });
    let translated = balancer.nat_rules.iter().filter(|rule| rule.front_end == *front_end);
    let translated = translated.map(|rule| config::BalancingRule {
        id: rule.id.clone(),
        protocol: protocol(rule.protocol),
        port: rule.front_end_port,
        back_end_port: rule.back_end_port,
        distribution: config::Distribution::Default,
        floating_ip: rule.floating_ip,
        idle_timeout_minutes: minutes(rule.idle_timeout_minutes),
        tcp_reset: rule.tcp_reset,
        back_ends: of_family(referred.named_by(&rule.id)),
        // The target of an inbound NAT rule gets its packets whether or not it answers.
        probe: None,
        decided: BTreeMap::new(),
        ends_flows: false,
    });
    let mut rules: Vec<_> = balanced.chain(translated).collect();
    rules.sort_by(|a, b| a.id.cmp(&b.id));
    rules
}

fn probe(balancer: &LoadBalancer, id: &ResourceId) -> Option<config::HealthProbe> {
    let probe = balancer.probes.iter().find(|probe| probe.id == *id)?;
    Some(config::HealthProbe {
        id: probe.id.clone(),
        protocol: match probe.protocol {
            ProbeProtocol::Tcp => config::ProbeProtocol::Tcp,
            ProbeProtocol::Http => config::ProbeProtocol::Http,
            ProbeProtocol::Https => config::ProbeProtocol::Https,
        },
        port: probe.port,
        path: probe.request_path.clone().unwrap_or_default(),
        interval: u32::from(probe.interval_seconds).max(1),
        threshold: probe.threshold.max(1),
        all_up_when_all_down: probe.all_up_when_all_down,
    })
}

const fn protocol(protocol: BalancedProtocol) -> config::BalancedProtocol {
    match protocol {
        BalancedProtocol::Tcp => config::BalancedProtocol::Tcp,
        BalancedProtocol::Udp => config::BalancedProtocol::Udp,
        BalancedProtocol::All => config::BalancedProtocol::All,
    }
}

fn minutes(minutes: u16) -> u8 {
    u8::try_from(minutes.clamp(4, 30)).unwrap_or(30)
}

/// The addresses of front ends, as prefixes of one address.
pub(super) fn addresses(front_ends: &[BalancedFrontEnd]) -> Vec<IpNet> {
    front_ends.iter().map(|f| f.config.address.into()).collect()
}

/// The addresses of front ends that a machine may use as source, because it has or serves a back end of theirs (L5).
pub(super) fn sources(front_ends: &[BalancedFrontEnd], own: &[IpNet]) -> Vec<IpNet> {
    let is_own = |address: &IpAddr| own.iter().any(|prefix| prefix.contains(address));
    let used = front_ends.iter().filter(|front_end| {
        let mut back_ends = front_end.config.rules.iter().flat_map(|rule| &rule.back_ends);
        back_ends.any(is_own)
    });
    used.map(|front_end| front_end.config.address.into()).collect()
}
