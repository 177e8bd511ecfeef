//! Random sequences of requests. After each accepted request the topology satisfies its invariants; a refused request
//! changes nothing.

use super::{World, connection_body, gateway_body, half, net, path, vm_id};
use crate::change::{Change, Rejection};
use crate::net::{overlap, overlaps_within, same_set};
use crate::path::parent_id;
use crate::resource::{Binding, PeeringState, pool_members};
use crate::topology::{AgentStatuses, Topology};
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::id::{AgentId, ResourceId};

const VNETS: usize = 5;

#[derive(Debug, Clone)]
enum Op {
    Vnet(usize, Vec<u8>),
    DeleteVnet(usize),
    Subnet(usize, bool, u8),
    DeleteSubnet(usize, bool),
    Peer {
        from: usize,
        to: usize,
        transit: bool,
        remote: bool,
        sync: bool,
    },
    Unpeer(usize, usize),
    Nic(usize, usize, Option<u8>),
    DeleteNic(usize),
    /// A load balancer in a VNet, with or without a front end, whose address may be static.
    Balancer(usize, usize, Option<Option<u8>>),
    DeleteBalancer(usize),
    /// A NIC joins the pool of a load balancer.
    JoinPool(usize, usize),
    Gateway(usize),
    DeleteGateway(usize),
    Connect(usize, usize),
    Disconnect(usize, usize),
    Join(usize),
    Leave(usize),
    WriteBack(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let v = 0..VNETS;
    prop_oneof![
        4 => (v.clone(), prop::collection::vec(0u8..8, 1..4)).prop_map(|(v, s)| Op::Vnet(v, s)),
        1 => v.clone().prop_map(Op::DeleteVnet),
        2 => (v.clone(), any::<bool>(), 0u8..8).prop_map(|(v, g, s)| Op::Subnet(v, g, s)),
        1 => (v.clone(), any::<bool>()).prop_map(|(v, g)| Op::DeleteSubnet(v, g)),
        8 => (v.clone(), v.clone(), any::<bool>(), prop::bool::weighted(0.3), any::<bool>())
            .prop_map(|(from, to, transit, remote, sync)| Op::Peer { from, to, transit, remote, sync }),
        2 => (v.clone(), v.clone()).prop_map(|(a, b)| Op::Unpeer(a, b)),
        2 => (0..4usize, v.clone(), prop::option::of(0u8..16)).prop_map(|(n, v, a)| Op::Nic(n, v, a)),
        1 => (0..4usize).prop_map(Op::DeleteNic),
        2 => (0..3usize, v.clone(), prop::option::weighted(0.8, prop::option::of(0u8..16)))
            .prop_map(|(b, v, a)| Op::Balancer(b, v, a)),
        1 => (0..3usize).prop_map(Op::DeleteBalancer),
        2 => (0..4usize, 0..3usize).prop_map(|(n, b)| Op::JoinPool(n, b)),
        2 => v.clone().prop_map(Op::Gateway),
        1 => v.clone().prop_map(Op::DeleteGateway),
        2 => (v.clone(), v.clone()).prop_map(|(a, b)| Op::Connect(a, b)),
        1 => (v.clone(), v.clone()).prop_map(|(a, b)| Op::Disconnect(a, b)),
        1 => (0..4usize).prop_map(Op::Join),
        1 => (0..4usize).prop_map(Op::Leave),
        1 => v.prop_map(Op::WriteBack),
    ]
}

fn vnet(v: usize) -> String {
    net(&format!("virtualNetworks/v{v}"))
}

fn run(w: &mut World, op: &Op) -> Result<(), Rejection> {
    let name = |v: &usize| format!("v{v}");
    match op {
        Op::Vnet(v, slots) => {
            let prefixes: Vec<String> = slots.iter().map(|s| format!("10.{s}.0.0/16")).collect();
            let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
            w.vnet(&name(v), &prefixes).map(|_| ())
        }
        Op::DeleteVnet(v) => w.delete(&vnet(*v)).map(|_| ()),
        Op::Subnet(v, gateway, slot) => {
            let (subnet, third) = if *gateway { ("GatewaySubnet", 255) } else { ("s", 0) };
            w.subnet(&name(v), subnet, &format!("10.{slot}.{third}.0/28"))
                .map(|_| ())
        }
        Op::DeleteSubnet(v, gateway) => {
            let subnet = if *gateway { "GatewaySubnet" } else { "s" };
            w.delete(&format!("{}/subnets/{subnet}", vnet(*v))).map(|_| ())
        }
        Op::Peer {
            from,
            to,
            transit,
            remote,
            sync,
        } => {
            let flags = json!({"allowGatewayTransit": transit, "useRemoteGateways": remote});
            w.peer_synced(&name(from), &name(to), flags, *sync).map(|_| ())
        }
        Op::Unpeer(a, b) => w.delete(&half(&name(a), &name(b))).map(|_| ()),
        Op::Nic(n, v, last) => {
            let address = last.map(|l| format!("10.{v}.0.{l}"));
            w.nic(&format!("n{n}"), &format!("v{v}/subnets/s"), address.as_deref())
                .map(|_| ())
        }
        Op::DeleteNic(n) => w.delete(&net(&format!("networkInterfaces/n{n}"))).map(|_| ()),
        Op::Balancer(b, v, front_end) => {
            let subnet = json!({"id": format!("{}/subnets/s", vnet(*v))});
            let of = |last: Option<u8>| {
                let address = last.map(|l| format!("10.{v}.0.{l}"));
                json!({"name": "fe", "properties": {"subnet": subnet, "privateIPAddress": address}})
            };
            let front_ends: Vec<_> = front_end.map(of).into_iter().collect();
            let lists = json!({"frontendIPConfigurations": front_ends, "backendAddressPools": [{"name": "pool"}]});
            let body = json!({"location": "region1", "properties": lists});
            w.put(&net(&format!("loadBalancers/b{b}")), body).map(|_| ())
        }
        Op::DeleteBalancer(b) => w.delete(&net(&format!("loadBalancers/b{b}"))).map(|_| ()),
        Op::JoinPool(n, b) => {
            let id = net(&format!("networkInterfaces/n{n}"));
            let Some(mut body) = w.view(&id) else { return Ok(()) };
            let pool = net(&format!("loadBalancers/b{b}/backendAddressPools/pool"));
            body["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"] =
                json!([{"id": pool}]);
            w.put(&id, body).map(|_| ())
        }
        Op::Gateway(v) => {
            let body = gateway_body(&name(v), json!({}));
            w.put(&net(&format!("virtualNetworkGateways/v{v}-gw")), body)
                .map(|_| ())
        }
        Op::DeleteGateway(v) => w.delete(&net(&format!("virtualNetworkGateways/v{v}-gw"))).map(|_| ()),
        Op::Connect(a, b) => {
            let body = connection_body(&name(a), &name(b), json!({}));
            w.put(&net(&format!("connections/c{a}{b}")), body).map(|_| ())
        }
        Op::Disconnect(a, b) => w.delete(&net(&format!("connections/c{a}{b}"))).map(|_| ()),
        Op::Join(n) => {
            let binding = Binding::Vm {
                vm: vm_id(&format!("vm{n}")),
                nics: vec![ResourceId::new(net(&format!("networkInterfaces/n{n}")))],
                served: vec![],
            };
            w.join(&format!("agent{n}"), binding)
        }
        Op::Leave(n) => {
            let agent = AgentId::new(format!("agent{n}")).unwrap();
            w.apply(&Change::DeleteAgent(agent)).map(|_| ())
        }
        Op::WriteBack(v) => {
            let Some(body) = w.view(&vnet(*v)) else { return Ok(()) };
            let before = w.now.clone();
            let result = w.put(&vnet(*v), body).map(|_| ());
            assert!(result.is_ok(), "what was read can be written: {result:?}");
            assert!(w.now.documents_since(&before).is_empty(), "and changes nothing");
            result
        }
    }
}

fn check(t: &Topology) {
    for (id, vnet) in &t.vnets {
        let space = &vnet.address_space;
        assert!(!space.is_empty() && overlaps_within(space).is_empty(), "P4: {id}");
        let subnets: Vec<_> = vnet.subnets.iter().flat_map(|s| s.prefixes.clone()).collect();
        assert!(overlaps_within(&subnets).is_empty(), "P2: {id}");
        assert!(subnets.iter().all(|s| space.iter().any(|r| r.contains(s))), "P2: {id}");
        let mut remotes = BTreeSet::new();
        for half in &vnet.peerings {
            assert!(remotes.insert(half.remote_vnet.clone()), "P7: {id}");
            let other = t
                .vnets
                .get(&half.remote_vnet)
                .and_then(|r| r.peerings.iter().find(|p| p.remote_vnet == *id));
            match half.state {
                PeeringState::Connected => {
                    let other = other.expect("P13: a Connected half has a counterpart");
                    assert_eq!(other.state, PeeringState::Connected, "P13: {}", half.id);
                    assert_eq!(other.resource_guid, half.resource_guid);
                    assert!(
                        same_set(&other.local_address_space, &half.remote_address_space),
                        "P27: {}",
                        half.id
                    );
                }
                PeeringState::Initiated | PeeringState::Disconnected => {
                    assert!(
                        other.is_none(),
                        "P13: {} has a counterpart and is not Connected",
                        half.id
                    );
                }
            }
        }
        // P10, P11: the prefixes of a VNet's peering routes overlap neither each other nor the VNet's own address
        // space.
        let connected = || vnet.peerings.iter().filter(|p| p.state == PeeringState::Connected);
        for (i, half) in connected().enumerate() {
            let routed = &half.remote_address_space;
            assert!(
                routed.iter().all(|r| space.iter().all(|s| !overlap(r, s))),
                "P10: {}",
                half.id
            );
            let now = &t.vnets[&half.remote_vnet].address_space;
            assert!(
                now.iter().all(|r| space.iter().all(|s| !overlap(r, s))),
                "P10: {}",
                half.id
            );
            for later in connected().skip(i + 1) {
                let all = routed.iter().chain(now);
                let others = || {
                    later
                        .remote_address_space
                        .iter()
                        .chain(&t.vnets[&later.remote_vnet].address_space)
                };
                assert!(
                    all.clone().all(|a| others().all(|b| !overlap(a, b))),
                    "P11: {} {}",
                    half.id,
                    later.id
                );
            }
        }
        let own_gateways = t
            .gateways
            .values()
            .filter(|g| parent_id(&g.ip_configurations[0].subnet) == *id)
            .count();
        let remote_gateways = vnet.peerings.iter().filter(|p| p.use_remote_gateways).count();
        assert!(own_gateways + remote_gateways <= 1, "P23, G2: {id}");
    }
    let mut addresses = BTreeSet::new();
    for nic in t.nics.values() {
        for c in &nic.ip_configurations {
            let vnet = &t.vnets[&parent_id(&c.subnet)];
            let subnet = vnet
                .subnets
                .iter()
                .find(|s| s.id == c.subnet)
                .expect("the subnet of a NIC");
            assert!(subnet.prefixes.iter().any(|p| p.contains(&c.address)));
            assert!(
                addresses.insert((vnet.envelope.id.clone(), c.address)),
                "{} twice",
                c.address
            );
        }
    }
    for balancer in t.load_balancers.values() {
        for front_end in &balancer.front_ends {
            let vnet = &t.vnets[&parent_id(&front_end.subnet)];
            let mut subnets = vnet.subnets.iter();
            let subnet = subnets
                .find(|s| s.id == front_end.subnet)
                .expect("the subnet of a front end");
            assert!(subnet.prefixes.iter().any(|p| p.contains(&front_end.address)));
            assert!(
                addresses.insert((vnet.envelope.id.clone(), front_end.address)),
                "{} twice",
                front_end.address
            );
        }
    }
    for nic in t.nics.values() {
        for c in &nic.ip_configurations {
            for pool in &c.load_balancer_pools {
                let balancer = &t.load_balancers[&parent_id(pool)];
                assert!(balancer.pools.iter().any(|p| p.id == *pool));
                let vnet = parent_id(&c.subnet);
                assert!(balancer.vnet().is_none_or(|v| v == vnet), "L2: {pool}");
                assert!(pool_members(t, pool).iter().any(|m| m.address == c.address));
            }
        }
    }
    let mut pairs = BTreeMap::new();
    for c in t.connections.values() {
        assert!(t.gateways.contains_key(&c.gateway1) && t.gateways.contains_key(&c.gateway2));
        *pairs.entry((c.gateway1.clone(), c.gateway2.clone())).or_insert(0) += 1;
    }
    assert!(pairs.values().all(|n| *n == 1), "G13");
    for agent in t.agents.values() {
        let Binding::Vm { nics, .. } = &agent.binding else {
            continue;
        };
        assert!(nics.iter().all(|n| t.nics.contains_key(n)));
    }
}

/// Applies the documents of a change to a store, and reads the store back.
fn store(documents: &mut BTreeMap<String, Vec<u8>>, before: &Topology, after: &Topology) -> Topology {
    for change in after.documents_since(before) {
        match change.value {
            Some(value) => documents.insert(change.key, value),
            None => documents.remove(&change.key),
        };
    }
    Topology::from_documents(documents.iter().map(|(k, v)| (k.as_str(), v.as_slice()))).unwrap()
}

/// The ARM bodies of all items of a topology.
fn bodies(t: &Topology) -> Vec<serde_json::Value> {
    let kinds = [
        "virtualNetworks",
        "networkInterfaces",
        "loadBalancers",
        "virtualNetworkGateways",
        "connections",
    ];
    kinds
        .iter()
        .flat_map(|k| t.list(&net(k), &AgentStatuses::default()).unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_keep_the_rules(ops in prop::collection::vec(op(), 1..80)) {
        let mut w = World::new();
        let mut documents = BTreeMap::new();
        store(&mut documents, &Topology::default(), &w.now);
        for v in 0..VNETS {
            w.vnet(&format!("v{v}"), &[&format!("10.{v}.0.0/16")]).unwrap();
            w.subnet(&format!("v{v}"), "s", &format!("10.{v}.0.0/28")).unwrap();
            w.subnet(&format!("v{v}"), "GatewaySubnet", &format!("10.{v}.255.0/28")).unwrap();
        }
        let empty = Topology::from_documents(std::iter::empty()).unwrap();
        let mut stored = store(&mut documents, &empty, &w.now);
        for op in &ops {
            let before = w.now.clone();
            let result = run(&mut w, op);
            if result.is_err() && !matches!(op, Op::Join(_)) {
                prop_assert!(w.now.documents_since(&before).is_empty(), "refused, and changed something: {op:?}");
            }
            check(&w.now);
            stored = store(&mut documents, &before, &w.now);
        }
        // The topology that is read back from the store equals the one that was written: there are no changes of
        // documents between the two.
        prop_assert!(w.now.documents_since(&stored).is_empty());
        prop_assert!(stored.documents_since(&w.now).is_empty());
        prop_assert_eq!(bodies(&stored), bodies(&w.now));
    }

    #[test]
    fn any_json_is_an_answer_not_a_panic(text in "[\\[\\]{}\",:a-z0-9./]{0,60}", kind in 0usize..13) {
        let mut w = World::new();
        w.vnet("v", &["10.0.0.0/16"]).unwrap();
        let kinds = ["virtualNetworks/x", "virtualNetworks/v/subnets/x", "virtualNetworks/v/virtualNetworkPeerings/x",
            "routeTables/x", "networkInterfaces/x", "publicIPAddresses/x", "virtualNetworkGateways/x", "connections/x", "odd/x",
            "loadBalancers/x", "loadBalancers/v/backendAddressPools/x", "loadBalancers/v/inboundNatRules/x", "loadBalancers/v/probes/x"];
        w.put(&net("loadBalancers/v"), json!({"location": "region1"})).unwrap();
        let body = serde_json::from_str(&text).unwrap_or(json!({"location": text, "properties": {"addressPrefix": text, "subnets": text}}));
        let change = Change::Put { path: path(&net(kinds[kind])), body, if_match: None, sync_remote_address_space: false };
        let _ = w.apply(&change);
    }
}
