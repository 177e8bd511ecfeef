//! Golden files of manifests with load balancers.

use super::network::{named, tags};
use tombolo_client::manifest::{
    BackendPool, BalancedProtocol, BalancingRule, FrontEnd, InboundNatRule, LoadBalancer, LoadBalancerSku, Named,
    NoHealthyBackends, Probe, ProbeProtocol,
};
use tombolo_golden::all_of;
use tombolo_proto::config::Distribution;

fn front_ends() -> Named<FrontEnd> {
    let one = |static_address: bool| FrontEnd {
        subnet: "hub/one".into(),
        private_ip_address: static_address.then(|| "10.1.0.36".parse().unwrap()),
    };
    named([("static", one(true)), ("dynamic", one(false))])
}

fn pools() -> Named<BackendPool> {
    let addresses = BackendPool {
        virtual_network: Some("hub".into()),
        addresses: named([("one", "10.1.0.9".parse().unwrap())]),
        drain_period_in_seconds: Some(60),
    };
    named([("addresses", addresses), ("interfaces", BackendPool::default())])
}

fn probes() -> Named<Probe> {
    let protocols = all_of!(ProbeProtocol { Tcp, Http, Https });
    let behaviors = all_of!(NoHealthyBackends {
        AllProbedDown,
        AllProbedUp
    });
    let probe =
        |((name, protocol), no_healthy_backends_behavior): ((&'static str, ProbeProtocol), NoHealthyBackends)| {
            let probe = Probe {
                protocol,
                port: 80.try_into().unwrap(),
                request_path: (protocol != ProbeProtocol::Tcp).then(|| "/health".into()),
                interval_in_seconds: 5,
                probe_threshold: 2,
                no_healthy_backends_behavior,
            };
            (name, probe)
        };
    let names = ["tcp", "http", "https"];
    named(
        names
            .into_iter()
            .zip(protocols)
            .zip(behaviors.into_iter().cycle())
            .map(probe),
    )
}

fn rules() -> Named<BalancingRule> {
    let protocols = all_of!(BalancedProtocol { Tcp, Udp, All });
    let distributions = all_of!(Distribution {
        Default,
        SourceIP,
        SourceIPProtocol
    });
    let rule = |((name, protocol), load_distribution): ((&'static str, BalancedProtocol), Distribution)| {
        let has_ports = protocol != BalancedProtocol::All;
        let rule = BalancingRule {
            protocol,
            front_end: Some("static".into()),
            front_end_port: has_ports.then_some(80),
            back_end_port: has_ports.then_some(8080),
            pool: Some("interfaces".into()),
            probe: Some("tcp".into()),
            load_distribution,
            idle_timeout_in_minutes: 30,
            enable_floating_ip: !has_ports,
            enable_tcp_reset: has_ports,
        };
        (name, rule)
    };
    let names = ["tcp", "udp", "all"];
    named(names.into_iter().zip(protocols).zip(distributions).map(rule))
}

/// Load balancers with every property, and one with defaults only.
pub(super) fn balancers() -> Named<LoadBalancer> {
    let nat_rule = InboundNatRule {
        protocol: BalancedProtocol::Tcp,
        front_end: Some("static".into()),
        front_end_port: 2222.try_into().unwrap(),
        back_end_port: Some(22.try_into().unwrap()),
        idle_timeout_in_minutes: 30,
        enable_floating_ip: false,
        enable_tcp_reset: true,
    };
    let skus = all_of!(LoadBalancerSku { Basic, Standard });
    let full = skus.into_iter().map(|sku| LoadBalancer {
        location: Some("region2".into()),
        tags: tags(),
        sku,
        front_ends: front_ends(),
        pools: pools(),
        probes: probes(),
        rules: rules(),
        inbound_nat_rules: named([("ssh", nat_rule.clone())]),
    });
    named(
        ["basic", "full"]
            .into_iter()
            .zip(full)
            .chain([("minimal", LoadBalancer::default())]),
    )
}
