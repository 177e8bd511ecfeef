//! Recorded documents of load balancers.

use super::{bare, envelope, etag, id, ip};
use serde_json::{Map, Value, json};
use tombolo_golden::{all_of, golden};
use tombolo_topology::resource::{
    AdminState, BackendPool, BalancedProtocol, BalancingRule, Distribution, FrontEnd, InboundNatRule, LoadBalancer,
    LoadBalancerSku, PoolAddress, Probe, ProbeProtocol,
};

fn echoed(properties: Value) -> Map<String, Value> {
    properties.as_object().unwrap().clone()
}

fn probes() -> Vec<Probe> {
    let protocols = all_of!(ProbeProtocol { Tcp, Http, Https });
    let probe = |(n, protocol): (usize, ProbeProtocol)| Probe {
        id: id(&format!("loadBalancers/Balancer/probes/p{n}")),
        etag: etag(),
        protocol,
        port: 8080,
        request_path: (protocol != ProbeProtocol::Tcp).then(|| "/up".into()),
        interval_seconds: 5,
        threshold: 3,
        number: 2,
        all_up_when_all_down: n == 1,
    };
    protocols.into_iter().enumerate().map(probe).collect()
}

fn rules() -> Vec<BalancingRule> {
    let protocols = all_of!(BalancedProtocol { Tcp, Udp, All });
    let distributions = all_of!(Distribution {
        Default,
        SourceIp,
        SourceIpProtocol
    });
    let rule = |(n, (protocol, distribution)): (usize, (BalancedProtocol, Distribution))| {
        let port = |port| if protocol == BalancedProtocol::All { 0 } else { port };
        BalancingRule {
            id: id(&format!("loadBalancers/Balancer/loadBalancingRules/r{n}")),
            etag: etag(),
            protocol,
            front_end: id(&format!("loadBalancers/Balancer/frontendIPConfigurations/f{}", n / 2)),
            front_end_port: port(80),
            back_end_port: port(8080),
            pools: vec![id("loadBalancers/Balancer/backendAddressPools/Nics")],
            probe: (n == 0).then(|| id("loadBalancers/Balancer/probes/p0")),
            distribution,
            idle_timeout_minutes: 4,
            floating_ip: n == 1,
            tcp_reset: n == 0,
            echoed: if n == 0 {
                echoed(json!({"enableConnectionTracking": true}))
            } else {
                Map::new()
            },
        }
    };
    let both = protocols.into_iter().zip(distributions);
    both.enumerate().map(rule).collect()
}

/// A load balancer with every protocol, distribution and state, with a pool of each kind.
pub(super) fn load_balancer() -> LoadBalancer {
    let states = all_of!(AdminState { None, Up, Down });
    let address = |(n, admin_state): (usize, AdminState)| PoolAddress {
        name: format!("a{n}"),
        address: ip(&format!("10.1.0.{}", 4 + n)),
        admin_state,
    };
    let pool = |name: &str| BackendPool {
        id: id(&format!("loadBalancers/Balancer/backendAddressPools/{name}")),
        etag: etag(),
        addresses: Vec::new(),
        virtual_network: None,
        names_virtual_network: false,
        drain_period_seconds: None,
        echoed: Map::new(),
    };
    let addresses = BackendPool {
        addresses: states.into_iter().enumerate().map(address).collect(),
        virtual_network: Some(id("virtualNetworks/Hub")),
        names_virtual_network: true,
        drain_period_seconds: Some(30),
        echoed: echoed(json!({"syncMode": "Manual"})),
        ..pool("Addresses")
    };
    let front_end = |n: u8| FrontEnd {
        id: id(&format!("loadBalancers/Balancer/frontendIPConfigurations/f{n}")),
        etag: etag(),
        subnet: id("virtualNetworks/Hub/subnets/default"),
        address: ip(&format!("10.1.0.{}", 20 + n)),
        is_static: n == 0,
        zones: if n == 0 { vec!["1".into()] } else { Vec::new() },
    };
    LoadBalancer {
        envelope: envelope("loadBalancers/Balancer"),
        sku: LoadBalancerSku::Standard,
        front_ends: vec![front_end(0), front_end(1)],
        pools: vec![pool("Nics"), addresses],
        probes: probes(),
        rules: rules(),
        nat_rules: vec![InboundNatRule {
            id: id("loadBalancers/Balancer/inboundNatRules/Ssh"),
            etag: etag(),
            protocol: BalancedProtocol::Tcp,
            front_end: id("loadBalancers/Balancer/frontendIPConfigurations/f0"),
            front_end_port: 2222,
            back_end_port: 22,
            floating_ip: false,
            idle_timeout_minutes: 4,
            tcp_reset: true,
        }],
    }
}

#[test]
fn documents_of_load_balancers() {
    let skus = all_of!(LoadBalancerSku { Basic, Standard });
    let empty = LoadBalancer {
        envelope: bare("loadBalancers/Balancer"),
        sku: skus[0],
        front_ends: vec![],
        pools: vec![],
        probes: vec![],
        rules: vec![],
        nat_rules: vec![],
    };
    golden!().cases("load_balancer", &[("full", load_balancer()), ("minimal", empty)]);
}
