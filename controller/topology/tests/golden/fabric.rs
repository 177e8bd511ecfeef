//! Recorded documents of agents, join tokens and settings.

use super::{GROUP, id};
use tombolo_golden::{all_of, every_variant, golden};
use tombolo_proto::config::{AccessOff, CircuitLink, SiteTtl};
use tombolo_proto::id::{PublicKey, ResourceId};
use tombolo_topology::resource::{
    AddressSpaceChange, Agent, Binding, Era, GatewayBandwidth, JoinToken, Reach, Settings,
};

fn bindings() -> Vec<(&'static str, Binding)> {
    let bindings = vec![
        (
            "vm",
            Binding::Vm {
                vm: ResourceId::new(format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/Vm")),
                nics: vec![id("networkInterfaces/Vm")],
                served: vec![id("virtualNetworks/Hub/subnets/default")],
            },
        ),
        (
            "gateway",
            Binding::Gateway {
                gateway: id("virtualNetworkGateways/Vpn"),
                ip_configuration: "one".into(),
            },
        ),
        (
            "edge",
            Binding::Edge {
                circuit: id("expressRouteCircuits/Circuit"),
                link: CircuitLink::Primary,
            },
        ),
        (
            "site",
            Binding::Site {
                attachments: vec![id("expressRouteCircuits/Circuit"), id("localNetworkGateways/Site")],
                address: "192.168.7.10".parse().unwrap(),
            },
        ),
    ];
    every_variant!(
        Binding {
            Vm,
            Gateway,
            Edge,
            Site
        },
        bindings.iter().map(|(_, binding)| binding)
    );
    bindings
}

pub(super) fn agents() -> Vec<(&'static str, Agent)> {
    let agent = |(name, binding): (&'static str, Binding)| {
        let agent = Agent {
            id: name.parse().unwrap(),
            binding,
            public_key: PublicKey([1; 32]),
            certificate_key: "ab".repeat(32),
            reach: Reach {
                endpoints: vec!["192.0.2.7:51820".parse().unwrap()],
                quic_endpoint: Some("192.0.2.7:443".parse().unwrap()),
                lanes: 4,
                many_routes: true,
            },
            revoked: false,
        };
        (name, agent)
    };
    bindings().into_iter().map(agent).collect()
}

pub(super) fn token() -> JoinToken {
    let (_, binding) = bindings().swap_remove(0);
    JoinToken {
        id: "0123456789abcdef".into(),
        hash: "cd".repeat(32),
        agent: "vm2".parse().unwrap(),
        binding,
        expires: 1_800_000_000,
    }
}

pub(super) fn settings() -> Settings {
    Settings {
        era: Era::Azure2017,
        address_space_change: AddressSpaceChange::Strict,
        global_gateway_transit: false,
        global_load_balancing: false,
        peerings_per_vnet: 60,
        tunnels_per_gateway: 11,
        mtu: 1400,
        circuit_vnet_to_vnet: true,
        vnet_access_off: AccessOff::Block,
        reevaluate: true,
        vpn_ttl_for_site_traffic: SiteTtl::Transparent,
        gateway_bandwidth: GatewayBandwidth::Mbps(100),
        flows_per_nic: 1000,
        bgp_hold_time: 9,
        probe_interval: 200,
        probe_misses: 4,
        probe_answers: 5,
        probe_hold: 6000,
    }
}

#[test]
fn documents_of_the_fabric() {
    let golden = golden!();
    golden.cases("binding", &bindings());
    let mut agents = agents();
    let (_, binding) = bindings().swap_remove(1);
    agents.push((
        "minimal",
        Agent {
            id: "minimal".parse().unwrap(),
            binding,
            public_key: PublicKey([1; 32]),
            certificate_key: String::new(),
            reach: Reach {
                endpoints: vec![],
                quic_endpoint: None,
                lanes: 1,
                many_routes: false,
            },
            revoked: true,
        },
    ));
    golden.cases("agent", &agents);
    golden.document("join_token", &token());
    let mut cases = vec![("full", settings())];
    for (name, era) in ["azure2017", "azureCurrent"].into_iter().zip(all_of!(Era {
        Azure2017,
        AzureCurrent
    })) {
        cases.push((name, Settings::of(era)));
    }
    golden.cases("settings", &cases);
    golden.document("address_space_change", &all_of!(AddressSpaceChange { Strict, Sync }));
    let bandwidths = [
        ("unlimited", GatewayBandwidth::Unlimited),
        ("azure", GatewayBandwidth::Azure),
        ("mbps", GatewayBandwidth::Mbps(100)),
    ];
    every_variant!(
        GatewayBandwidth { Unlimited, Azure, Mbps },
        bandwidths.iter().map(|(_, bandwidth)| bandwidth)
    );
    golden.cases("gateway_bandwidth", &bandwidths);
}
