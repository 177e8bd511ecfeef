//! The rules of agents, tokens and settings (D7, D8).

use super::{SUBSCRIPTION, World, agent_of, codes, net, token, vm_id};
use crate::change::Change;
use crate::resource::{Binding, Reach, Settings};
use serde_json::json;
use tombolo_proto::id::{AgentId, ResourceId};

fn nic(name: &str) -> ResourceId {
    ResourceId::new(net(&format!("networkInterfaces/{name}")))
}

fn id(agent: &str) -> AgentId {
    AgentId::new(agent).unwrap()
}

fn vm(name: &str, nics: &[&str]) -> Binding {
    Binding::Vm {
        vm: vm_id(name),
        nics: nics.iter().map(|n| nic(n)).collect(),
        served: vec![],
    }
}

fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.vnet("spoke", &["10.2.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.1.0.0/24").unwrap();
    w.subnet("hub", "lan", "10.1.1.0/24").unwrap();
    w.subnet("spoke", "s", "10.2.0.0/24").unwrap();
    w.nic("n1", "hub/subnets/s", None).unwrap();
    w.nic("n2", "hub/subnets/s", None).unwrap();
    w.nic("far", "spoke/subnets/s", None).unwrap();
    w
}

#[test]
fn d7_a_token_is_used_once_and_for_what_it_was_made() {
    let mut w = world();
    w.apply(&Change::PutToken(token("vm1", vm("vm1", &["n1"])))).unwrap();
    let join = |agent, binding| Change::Join {
        token: "token-of-vm1".to_owned(),
        agent: agent_of(agent, binding),
    };
    assert_eq!(codes(w.apply(&join("vm2", vm("vm1", &["n1"])))), ["XTokenInvalid"]);
    assert_eq!(codes(w.apply(&join("vm1", vm("vm1", &["n2"])))), ["XTokenInvalid"]);
    w.apply(&join("vm1", vm("vm1", &["n1"]))).unwrap();
    assert!(w.now.tokens.is_empty());
    assert_eq!(codes(w.apply(&join("vm1", vm("vm1", &["n1"])))), ["XTokenInvalid"]);
}

#[test]
fn d7_bindings_exist_and_fit_together() {
    let mut w = world();
    let mut put = |binding| codes(w.apply(&Change::PutToken(token("x", binding))));
    assert_eq!(put(vm("x", &[])), ["InvalidRequestFormat"]);
    assert_eq!(put(vm("x", &["nowhere"])), ["InvalidResourceReference"]);
    assert_eq!(put(vm("x", &["n1", "N1"])), ["InvalidRequestFormat"]);
    assert_eq!(put(vm("x", &["n1", "far"])), ["XBindingInDifferentVnets"]);
    let wrong = Binding::Vm {
        vm: nic("n1"),
        nics: vec![nic("n1")],
        served: vec![],
    };
    assert_eq!(put(wrong), ["InvalidRequestFormat"]);
    let elsewhere =
        format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/x/providers/Microsoft.Compute/virtualMachines/v");
    let no_group = Binding::Vm {
        vm: ResourceId::new(elsewhere),
        nics: vec![nic("n1")],
        served: vec![],
    };
    assert_eq!(put(no_group), ["ResourceGroupNotFound"]);
    let gateway = |name: &str, config: &str| Binding::Gateway {
        gateway: ResourceId::new(net(&format!("virtualNetworkGateways/{name}"))),
        ip_configuration: config.to_owned(),
    };
    assert_eq!(put(gateway("hub-gw", "default")), ["InvalidResourceReference"]);
    w.gateway("hub", "10.1.255.0/27").unwrap();
    let wrong = Change::PutToken(token("x", gateway("hub-gw", "other")));
    assert_eq!(codes(w.apply(&wrong)), ["InvalidResourceReference"]);
    w.join("gw", gateway("HUB-gw", "Default")).unwrap();
    let stored = Binding::Gateway {
        gateway: ResourceId::new(net("virtualNetworkGateways/hub-gw")),
        ip_configuration: "default".to_owned(),
    };
    assert_eq!(w.now.agents[&id("gw")].binding, stored);
    assert_eq!(codes(w.join("gw2", gateway("hub-gw", "default"))), ["XBoundElsewhere"]);
}

#[test]
fn d7_nothing_is_bound_twice_until_revoked() {
    let mut w = world();
    w.join("vm1", vm("vm1", &["n1"])).unwrap();
    assert_eq!(codes(w.join("vm1", vm("vm2", &["n2"]))), ["XAgentExists"]);
    assert_eq!(codes(w.join("vm2", vm("vm2", &["n1"]))), ["XBoundElsewhere"]);
    assert_eq!(codes(w.join("vm2", vm("VM1", &["n2"]))), ["XBoundElsewhere"]);
    // Two join tokens can exist for one NIC. The agent that joins first gets the NIC, and the other one is refused.
    w.apply(&Change::PutToken(token("a", vm("a", &["n2"])))).unwrap();
    w.join("b", vm("b", &["n2"])).unwrap();
    let late = Change::Join {
        token: "token-of-a".to_owned(),
        agent: agent_of("a", vm("a", &["n2"])),
    };
    assert_eq!(codes(w.apply(&late)), ["XBoundElsewhere"]);
    w.apply(&Change::RevokeAgent(id("b"))).unwrap();
    assert!(w.now.agents[&id("b")].revoked);
    w.apply(&late).unwrap();
}

#[test]
fn d16_names_of_sites_devices_are_nobodys() {
    let mut w = world();
    let reserved = format!("{}x", AgentId::SITE);
    assert_eq!(codes(w.join(&reserved, vm("vm1", &["n1"]))), ["XReservedAgentName"]);
    w.join("site1", vm("vm1", &["n1"])).unwrap();
}

#[test]
fn d8_served_subnets() {
    let mut w = world();
    let lan = || ResourceId::new(net("virtualNetworks/hub/subnets/lan"));
    let serving = |name: &str, nics: &str, served: Vec<ResourceId>| Binding::Vm {
        vm: vm_id(name),
        nics: vec![nic(nics)],
        served,
    };
    let gateway_subnet = ResourceId::new(net("virtualNetworks/hub/subnets/GatewaySubnet"));
    w.subnet("hub", "GatewaySubnet", "10.1.255.0/27").unwrap();
    assert_eq!(
        codes(w.join("x", serving("x", "n1", vec![gateway_subnet]))),
        ["GatewaySubnet"]
    );
    let other_vnet = ResourceId::new(net("virtualNetworks/spoke/subnets/s"));
    assert_eq!(
        codes(w.join("x", serving("x", "n1", vec![other_vnet]))),
        ["XBindingInDifferentVnets"]
    );
    w.join("host", serving("host", "n1", vec![lan()])).unwrap();
    assert_eq!(codes(w.join("x", serving("x", "n2", vec![lan()]))), ["XBoundElsewhere"]);
    assert_eq!(codes(w.delete(lan().as_str())), ["InUseSubnetCannotBeDeleted"]);
    w.apply(&Change::DeleteAgent(id("host"))).unwrap();
    assert!(w.delete(lan().as_str()).unwrap());
}

#[test]
fn endpoints_keys_and_revocation() {
    let mut w = world();
    w.join("vm1", vm("vm1", &["n1"])).unwrap();
    let set = |endpoint: &str| Change::SetReach {
        agent: id("vm1"),
        reach: Reach::at(vec![endpoint.parse().unwrap()]),
    };
    for bad in ["0.0.0.0:1", "[::]:1", "192.0.2.1:0", "224.0.0.1:1"] {
        assert_eq!(codes(w.apply(&set(bad))), ["XInvalidEndpoint"], "{bad}");
    }
    w.apply(&set("[2001:db8::1]:4500")).unwrap();
    assert_eq!(
        w.now.agents[&id("vm1")].reach.endpoints,
        ["[2001:db8::1]:4500".parse().unwrap()]
    );
    let reach = Reach {
        quic_endpoint: Some("192.0.2.1:443".parse().unwrap()),
        lanes: 4,
        ..Reach::at(vec!["192.0.2.1:4500".parse().unwrap()])
    };
    let set = |change: &dyn Fn(&mut Reach)| {
        let (agent, mut reach) = (id("vm1"), reach.clone());
        change(&mut reach);
        Change::SetReach { agent, reach }
    };
    let nowhere = set(&|r| r.quic_endpoint = Some("0.0.0.0:443".parse().unwrap()));
    assert_eq!(codes(w.apply(&nowhere)), ["XInvalidEndpoint"]);
    for lanes in [0, 65] {
        assert_eq!(codes(w.apply(&set(&|r| r.lanes = lanes))), ["XInvalidLanes"], "{lanes}");
    }
    w.apply(&set(&|_| {})).unwrap();
    assert_eq!(w.now.agents[&id("vm1")].reach, reach);
    let key_after = |agent: &str, expected: &str, key: &str| Change::SetCertificateKey {
        agent: id(agent),
        expected: expected.to_owned(),
        certificate_key: key.to_owned(),
    };
    let key = |agent: &str, key: &str| key_after(agent, &format!("cert-{agent}"), key);
    w.join("vm2", vm("vm2", &["n2"])).unwrap();
    assert_eq!(codes(w.apply(&key("vm1", "cert-vm2"))), ["XKeyInUse"]);
    w.apply(&key("vm1", "renewed")).unwrap();
    assert_eq!(
        codes(w.apply(&key("vm1", "renewed again"))),
        ["XAgentHasOtherKey"],
        "who renews with a key that counts no more gets nothing"
    );
    w.apply(&key_after("vm1", "renewed", "renewed again")).unwrap();
    assert_eq!(w.apply(&Change::RevokeAgent(id("nobody"))).unwrap_err().status, 404);
    w.apply(&Change::RevokeAgent(id("vm1"))).unwrap();
    w.apply(&Change::RevokeAgent(id("vm1"))).unwrap();
    assert_eq!(codes(w.apply(&set(&|_| {}))), ["XAgentRevoked"]);
    assert_eq!(codes(w.apply(&key("vm1", "again"))), ["XAgentRevoked"]);
    assert!(w.get(nic("n1").as_str())["properties"].get("virtualMachine").is_none());
    assert!(w.apply(&Change::DeleteAgent(id("vm1"))).unwrap().created_or_removed);
    assert!(!w.apply(&Change::DeleteAgent(id("vm1"))).unwrap().created_or_removed);
    assert!(
        !w.apply(&Change::DeleteToken("none".to_owned()))
            .unwrap()
            .created_or_removed
    );
}

#[test]
fn settings_have_bounds() {
    let mut w = world();
    let bad = Settings {
        mtu: 1000,
        peerings_per_vnet: 0,
        tunnels_per_gateway: 5000,
        bgp_hold_time: 2,
        probe_interval: 10,
        ..Settings::default()
    };
    assert_eq!(codes(w.apply(&Change::SetSettings(bad))).len(), 5);
    let good = Settings {
        mtu: 9000,
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(good)).unwrap();
    assert_eq!(w.now.settings.mtu, 9000);
}

#[test]
fn vms_are_what_agents_stand_for() {
    let mut w = world();
    w.join("vm1", vm("vm1", &["n1", "n2"])).unwrap();
    let body = w.get(vm_id("VM1").as_str());
    assert_eq!(body["type"], "Microsoft.Compute/virtualMachines");
    assert_eq!(
        body["properties"]["networkProfile"]["networkInterfaces"],
        json!([
            {"id": nic("n1").as_str(), "properties": {"primary": true}},
            {"id": nic("n2").as_str(), "properties": {"primary": false}},
        ])
    );
    assert_eq!(body["location"], "region1");
    assert_eq!(w.get(nic("n2").as_str())["properties"]["primary"], false);
    let refused = w.put(vm_id("vm1").as_str(), json!({})).unwrap_err();
    assert_eq!(refused.problems[0].code, "XReadOnlyResource");
}

/// D7: the deletion of a virtual machine removes its agent and its join tokens, and frees its NICs. An agent that was
/// revoked before stays, so that nobody else can use its name and keys.
#[test]
fn d7_a_deleted_vm_takes_its_agent_with_it() {
    let mut w = world();
    for name in ["n3", "n4"] {
        w.nic(name, "hub/subnets/s", None).unwrap();
    }
    w.join("old", vm("vm1", &["n1"])).unwrap();
    w.apply(&Change::RevokeAgent(id("old"))).unwrap();
    let vm1 = vm_id("vm1");
    assert!(!w.delete(vm1.as_str()).unwrap(), "a revoked agent is no machine");
    w.join("vm1", vm("vm1", &["n1", "n2"])).unwrap();
    w.join("vm3", vm("vm3", &["n3"])).unwrap();
    assert_eq!(codes(w.delete(nic("n1").as_str())), ["NicInUse"]);
    let stale = Change::Delete {
        path: super::path(vm1.as_str()),
        if_match: Some("W/\"00000000-0000-0000-0000-000000000000\"".to_owned()),
    };
    assert_eq!(codes(w.apply(&stale)), ["PreconditionFailed"]);
    assert!(w.delete(&vm1.as_str().to_uppercase()).unwrap());
    assert!(!w.delete(vm1.as_str()).unwrap());
    assert!(w.view(vm1.as_str()).is_none());
    let left: Vec<&str> = w.now.agents.keys().map(|agent| agent.as_str()).collect();
    assert_eq!(left, ["old", "vm3"]);
    w.delete(nic("n1").as_str()).unwrap();
    // The name of the agent is free again. The deletion of the machine also removes the tokens for it.
    w.join("vm1", vm("vm1", &["n2"])).unwrap();
    w.apply(&Change::PutToken(token("next", vm("other", &["n4"])))).unwrap();
    assert!(
        !w.delete(vm_id("other").as_str()).unwrap(),
        "a token alone is no machine"
    );
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/lab");
    assert!(w.delete(&group).unwrap());
    assert!(w.now.tokens.is_empty(), "{:?}", w.now.tokens);
    assert_eq!(w.now.agents.len(), 1, "only the revoked agent");
}
