//! The limits of bandwidth and flows in configurations and in `explain` (P32, G5, X9, X16).

use crate::world::{World, hub_and_spokes, id};
use std::sync::Arc;
use tombolo_proto::config::{AgentConfig, BANDWIDTH_TAG, Feature, Limits, NicBandwidth};
use tombolo_proto::fabric::ExplainRequest;
use tombolo_topology::explain::{BandwidthLimit, Explanation, explain};
use tombolo_topology::resource::{Era, GatewayBandwidth, Settings, VirtualNetworkGateway};

fn set_bandwidth(w: &mut World, nic: &str, rate: &str) {
    let tags = &mut w.nic_mut(nic).envelope.tags;
    tags.insert(BANDWIDTH_TAG.into(), rate.into());
}

fn settings(w: &mut World, change: impl FnOnce(&mut Settings)) {
    change(Arc::make_mut(&mut w.topology.settings));
}

/// Two VNets whose gateways are joined. That of the left one has two instances.
fn two_gateways() -> World {
    let mut w = World::default();
    w.vnet("left", "10.1.0.0/16", "work=10.1.0.0/24 GatewaySubnet=10.1.255.0/27")
        .vnet("right", "10.2.0.0/16", "work=10.2.0.0/24 GatewaySubnet=10.2.255.0/27")
        .vm("left-vm", "left/work=10.1.0.4")
        .vm("right-vm", "right/work=10.2.0.4")
        .gateway("left", "10.1.255.4 10.1.255.5")
        .gateway("right", "10.2.255.4")
        .connect("left", "right");
    w
}

fn gateway_mut<'w>(w: &'w mut World, vnet: &str) -> &'w mut VirtualNetworkGateway {
    let gateways = &mut w.topology.gateways;
    Arc::make_mut(
        gateways
            .get_mut(&id("virtualNetworkGateways", &format!("{vnet}-gw")))
            .unwrap(),
    )
}

fn tunnels(config: &AgentConfig) -> Option<u32> {
    config.limits.as_ref().and_then(|limits| limits.tunnels)
}

fn ask(w: &World, from: &str, to: &str) -> Explanation {
    let question: ExplainRequest = serde_json::from_value(serde_json::json!({"from": from, "to": to})).unwrap();
    explain(&w.topology, &Default::default(), &question).unwrap()
}

/// The resource and the limit of each hop that has one, on the way there.
fn shown(answer: &Explanation) -> Vec<(&str, &str, u64)> {
    let hops = answer.request.hops.iter();
    hops.filter_map(|hop| {
        let BandwidthLimit { resource, mbps } = hop.bandwidth.as_ref()?;
        Some((hop.agent.as_str(), resource.name(), *mbps))
    })
    .collect()
}

/// P32: the bandwidth is the NIC's. The configurations of other agents, and the peerings, have none.
#[test]
fn p32_the_bandwidth_of_a_nic_is_in_the_configuration_of_its_agent_alone() {
    let mut w = hub_and_spokes();
    let before = w.clone();
    set_bandwidth(&mut w, "a-vm-nic", "50");
    assert_eq!(w.changed_since(&before), ["a-vm"]);
    let limits = Limits {
        nics: vec![NicBandwidth {
            nic: id("networkInterfaces", "a-vm-nic"),
            outbound: 50,
        }],
        ..Limits::default()
    };
    let config = w.config("a-vm");
    assert_eq!(config.limits, Some(limits));
    assert_eq!(config.without_limits(), before.config("a-vm"));
    AgentConfig::from_bytes(&config.to_bytes()).unwrap();
    // A NIC that was stored with a malformed tag has no limit.
    set_bandwidth(&mut w, "a-vm-nic", "fast");
    assert_eq!(w.config("a-vm"), before.config("a-vm"));
}

/// P32: `explain` states the limit at the sender, to each destination, and not on the way back.
#[test]
fn p32_explain_states_the_bandwidth_of_a_nic() {
    let mut w = hub_and_spokes();
    set_bandwidth(&mut w, "a-vm-nic", "50");
    for to in ["hub-vm", "hub-nva"] {
        let answer = ask(&w, "a-vm", to);
        assert!(answer.reachable);
        assert_eq!(shown(&answer), [("a-vm", "a-vm-nic", 50)]);
    }
    let answer = ask(&w, "hub-vm", "a-vm");
    assert_eq!(shown(&answer), []);
    let back = answer.reply.unwrap();
    assert!(back.hops[0].bandwidth.is_some(), "the reply leaves the NIC");
}

/// G5, X9: the limit of a gateway is what the setting says, and nothing by default. The instances of an active-active
/// gateway have equal parts of it, those of others the whole.
#[test]
fn g5_x9_a_gateway_has_the_bandwidth_of_the_setting() {
    let mut w = two_gateways();
    let before = w.clone();
    for era in [Era::Azure2017, Era::AzureCurrent] {
        settings(&mut w, |settings| *settings = Settings::of(era));
        assert_eq!(tunnels(&w.config("left-gw")), None, "{era:?}");
    }
    settings(&mut w, |settings| settings.gateway_bandwidth = GatewayBandwidth::Azure);
    let mut changed = w.changed_since(&before);
    changed.sort();
    assert_eq!(changed, ["left-gw", "left-gw-2", "right-gw"]);
    for (agent, expected) in [("left-gw", 325), ("left-gw-2", 325), ("right-gw", 650)] {
        let config = w.config(agent);
        assert_eq!(tunnels(&config), Some(expected), "{agent}");
        assert_eq!(config.without_limits(), before.config(agent));
        AgentConfig::from_bytes(&config.to_bytes()).unwrap();
    }
    gateway_mut(&mut w, "left").active_active = false;
    assert_eq!(tunnels(&w.config("left-gw")), Some(650));
    assert_eq!(tunnels(&w.config("left-gw-2")), Some(650));
    gateway_mut(&mut w, "left").sku = "Basic".into();
    assert_eq!(tunnels(&w.config("left-gw")), Some(100));
    // There is no figure for this SKU.
    gateway_mut(&mut w, "left").sku = "Later9".into();
    assert_eq!(w.config("left-gw").limits, None);
    settings(&mut w, |settings| {
        settings.gateway_bandwidth = GatewayBandwidth::Mbps(1)
    });
    gateway_mut(&mut w, "left").active_active = true;
    assert_eq!(tunnels(&w.config("left-gw")), Some(1), "the smallest limit");
    // An instance without an agent carries nothing.
    w.topology.agents.remove(&crate::world::agent("left-gw-2"));
    settings(&mut w, |settings| {
        settings.gateway_bandwidth = GatewayBandwidth::Mbps(100)
    });
    assert_eq!(tunnels(&w.config("left-gw")), Some(100));
}

/// G5: `explain` states the limit at both gateways of a connection.
#[test]
fn g5_explain_states_the_bandwidth_of_tunnels() {
    let mut w = two_gateways();
    settings(&mut w, |settings| {
        settings.gateway_bandwidth = GatewayBandwidth::Mbps(100)
    });
    let answer = ask(&w, "left-vm", "right-vm");
    assert!(answer.reachable, "{answer:#?}");
    let limits = shown(&answer);
    assert_eq!(limits.len(), 2, "{limits:?}");
    assert_eq!(limits[1], ("right-gw", "right-gw", 100));
    assert_eq!((limits[0].1, limits[0].2), ("left-gw", 50));
}

/// X16: the number of flows is in a configuration only if it is not Azure's.
#[test]
fn x16_a_machine_gets_another_number_of_flows_only() {
    let mut w = two_gateways();
    let before = w.clone();
    settings(&mut w, |settings| settings.flows_per_nic = 1000);
    let mut changed = w.changed_since(&before);
    changed.sort();
    assert_eq!(changed, ["left-vm", "right-vm"]);
    let limits = w.config("left-vm").limits.unwrap();
    assert_eq!(limits.flows_of_nic, Some(1000));
    settings(&mut w, |settings| settings.flows_per_nic = 500_000);
    assert!(w.changed_since(&before).is_empty());
}

/// An agent of a version before gets no limits, and everything else.
#[test]
fn p32_an_agent_without_the_feature_gets_no_limits() {
    let mut w = two_gateways();
    assert!(!w.config("left-vm").needs().contains(&Feature::Limits));
    let before = w.config("left-vm");
    set_bandwidth(&mut w, "left-vm-nic", "50");
    let config = w.config("left-vm");
    assert_eq!(config.needs(), [Feature::Limits].into());
    assert!(config.reduced().needs().is_empty());
    assert_eq!(config.reduced(), before);
}
