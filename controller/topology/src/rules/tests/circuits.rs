//! The rules of circuits and of their private peering (E1, E3, G4, X13).

use super::{World, codes, net, peering_properties, with};
use crate::change::Change;
use crate::resource::Binding;
use crate::topology::AgentStatuses;
use serde_json::{Value, json};
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, ResourceId};

fn circuit(name: &str) -> String {
    net(&format!("expressRouteCircuits/{name}"))
}

fn peering(name: &str) -> String {
    format!("{}/peerings/AzurePrivatePeering", circuit(name))
}

/// The body of a circuit with a private peering. `more` overrides properties of the peering.
fn body(more: Value) -> Value {
    let peering = json!({"name": "AzurePrivatePeering", "properties": with(peering_properties(30), more)});
    json!({"location": "region1", "properties": {"peerings": [peering]}})
}

#[test]
fn e1_a_circuit_and_its_peering() {
    let mut w = World::new();
    let bare = w.put(&circuit("er1"), json!({"location": "region1"})).unwrap();
    let p = &bare["properties"];
    assert_eq!(p["peerings"], json!([]));
    assert_eq!(p["authorizations"], json!([]));
    assert_eq!(p["circuitProvisioningState"], "Enabled");
    assert_eq!(p["serviceProviderProvisioningState"], "Provisioned");
    assert_eq!(bare["sku"]["tier"], "Standard");
    assert_eq!(
        w.put(&circuit("er1"), bare.clone()).unwrap(),
        bare,
        "writing back changes nothing"
    );
    // A circuit's private peering can be changed in two ways: by a PUT of the peering, and by a PUT of the circuit.
    let child = w
        .put(&peering("er1"), json!({"properties": peering_properties(30)}))
        .unwrap();
    assert_eq!(child["type"], "Microsoft.Network/expressRouteCircuits/peerings");
    let p = &child["properties"];
    assert_eq!(
        (&p["peerASN"], &p["azureASN"], &p["vlanId"]),
        (&json!(65021), &json!(12076), &json!(300))
    );
    assert_eq!(p["primaryPeerAddressPrefix"], "192.168.30.16/30");
    let parent = w.get(&circuit("er1"));
    assert_eq!(parent["properties"]["peerings"], json!([child]));
    assert_ne!(parent["etag"], bare["etag"]);
    assert_eq!(
        w.put(&peering("er1"), child.clone()).unwrap(),
        child,
        "writing back changes nothing"
    );
    assert_eq!(w.put(&circuit("er1"), parent.clone()).unwrap(), parent, "nor here");
    let changed = w.put(&circuit("er1"), body(json!({"vlanId": 0}))).unwrap();
    assert_eq!(w.get(&peering("er1"))["properties"]["vlanId"], 0);
    // If the body of a PUT has no `peerings`, the present peering stays, as with the lists of a VNet.
    let kept = w
        .put(&circuit("er1"), json!({"location": "region1", "tags": {"a": "b"}}))
        .unwrap();
    assert_eq!(kept["properties"]["peerings"], changed["properties"]["peerings"]);
    let list = |w: &World, what: &str| {
        w.now
            .list(&format!("{}/{what}", circuit("er1")), &AgentStatuses::default())
            .unwrap()
    };
    assert_eq!(list(&w, "peerings").len(), 1);
    assert!(list(&w, "authorizations").is_empty());
    assert!(w.delete(&peering("er1")).unwrap());
    assert!(!w.delete(&peering("er1")).unwrap());
    assert!(w.view(&peering("er1")).is_none());
    w.put(&circuit("er1"), body(json!({}))).unwrap();
    let none = json!({"location": "region1", "properties": {"peerings": []}});
    w.put(&circuit("er1"), none).unwrap();
    assert!(list(&w, "peerings").is_empty());
    assert!(w.delete(&circuit("er1")).unwrap());
    assert_eq!(codes(w.put(&peering("er1"), json!({}))), ["ParentResourceNotFound"]);
}

#[test]
fn e1_only_the_private_peering() {
    let mut w = World::new();
    w.circuit("er1", 30).unwrap();
    for name in ["MicrosoftPeering", "other"] {
        let id = format!("{}/peerings/{name}", circuit("er1"));
        let put = w.put(&id, json!({"properties": peering_properties(30)}));
        assert_eq!(codes(put), ["XPeeringTypeNotSupported"], "{name}");
        assert!(!w.delete(&id).unwrap());
    }
    let public = body(json!({"peeringType": "AzurePublicPeering"}));
    assert_eq!(codes(w.put(&circuit("er1"), public)), ["XPeeringTypeNotSupported"]);
}

#[test]
fn e1_g4_what_a_peering_may_be() {
    let mut w = World::new();
    for asn in [8074, 12076, 23456, 65515, 65517, 65520, 65551] {
        assert_eq!(
            codes(w.put(&circuit("er1"), body(json!({"peerASN": asn})))),
            ["XReservedAsn"],
            "{asn}"
        );
    }
    for (more, code) in [
        (json!({"peerASN": null}), "InvalidRequestFormat"),
        (json!({"peerASN": 0}), "InvalidRequestFormat"),
        (json!({"vlanId": 4095}), "InvalidRequestFormat"),
        (json!({"vlanId": -1}), "InvalidRequestFormat"),
        (json!({"vlanId": null}), "InvalidRequestFormat"),
        (json!({"primaryPeerAddressPrefix": null}), "InvalidRequestFormat"),
        (
            json!({"primaryPeerAddressPrefix": "192.168.30.17/30"}),
            "InvalidCIDRNotation",
        ),
        (
            json!({"primaryPeerAddressPrefix": "192.168.30.8/29"}),
            "XInvalidPeerAddressPrefix",
        ),
        (
            json!({"primaryPeerAddressPrefix": "192.168.30.12/31"}),
            "XInvalidPeerAddressPrefix",
        ),
        (
            json!({"primaryPeerAddressPrefix": "169.254.0.0/30"}),
            "XInvalidPeerAddressPrefix",
        ),
        (
            json!({"primaryPeerAddressPrefix": "192.168.30.20/30"}),
            "XInvalidPeerAddressPrefix",
        ),
        (
            json!({"primaryPeerAddressPrefix": "fd00::/126"}),
            "XInvalidPeerAddressPrefix",
        ),
        (json!({"sharedKey": "a b"}), "XInvalidSharedKey"),
        (json!({"sharedKey": "k".repeat(81)}), "XInvalidSharedKey"),
        // A key with a quotation mark is refused, because a string in BIRD's configuration cannot contain one.
        (json!({"sharedKey": "a\"b"}), "XInvalidSharedKey"),
        (
            json!({"ipv6PeeringConfig": {"primaryPeerAddressPrefix": "fd00::/126"}}),
            "XNotSupported",
        ),
        (json!({"state": "Disabled"}), "XNotSupported"),
    ] {
        assert_eq!(codes(w.put(&circuit("er1"), body(more.clone()))), [code], "{more}");
    }
    let both = json!({"primaryPeerAddressPrefix": "fd00::/126", "secondaryPeerAddressPrefix": "fd00::4/126"});
    w.put(&circuit("er1"), body(both)).unwrap();
}

#[test]
fn e1_a_peerings_key_is_kept_and_never_shown() {
    let mut w = World::new();
    let shown = w
        .put(&circuit("er1"), body(json!({"sharedKey": "verysecret"})))
        .unwrap();
    assert!(!shown.to_string().contains("verysecret"));
    let key = |w: &World| {
        let circuit = &w.now.circuits[&ResourceId::new(circuit("er1"))];
        circuit.private_peering.clone().unwrap().shared_key
    };
    w.put(&circuit("er1"), shown).unwrap();
    w.put(&peering("er1"), json!({"properties": peering_properties(30)}))
        .unwrap();
    assert_eq!(key(&w).as_deref(), Some("verysecret"));
}

#[test]
fn d7_an_edge_stands_for_one_link() {
    let mut w = World::new();
    let edge = |name: &str, link| Binding::Edge {
        circuit: ResourceId::new(circuit(name)),
        link,
    };
    assert_eq!(
        codes(w.join("edge1", edge("er1", CircuitLink::Primary))),
        ["InvalidResourceReference"]
    );
    w.circuit("er1", 30).unwrap();
    w.join("edge1", edge("ER1", CircuitLink::Primary)).unwrap();
    let agent = AgentId::new("edge1").unwrap();
    assert_eq!(w.now.agents[&agent].binding, edge("er1", CircuitLink::Primary));
    let Binding::Edge { circuit: stored, .. } = &w.now.agents[&agent].binding else {
        panic!("an edge")
    };
    assert_eq!(stored.as_str(), circuit("er1"), "in the casing of its creation");
    assert_eq!(
        codes(w.join("edge2", edge("er1", CircuitLink::Primary))),
        ["XBoundElsewhere"]
    );
    w.join("edge2", edge("er1", CircuitLink::Secondary)).unwrap();
    assert_eq!(codes(w.delete(&circuit("er1"))), ["XCircuitInUseByAgent"]);
    w.apply(&Change::RevokeAgent(agent)).unwrap();
    w.join("edge3", edge("er1", CircuitLink::Primary)).unwrap();
    for name in ["edge2", "edge3"] {
        w.apply(&Change::DeleteAgent(AgentId::new(name).unwrap())).unwrap();
    }
    assert!(w.delete(&circuit("er1")).unwrap());
}
