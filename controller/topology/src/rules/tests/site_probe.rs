//! The rules of site probes (M10).

use super::{World, codes, net, token};
use crate::change::Change;
use crate::resource::Binding;
use serde_json::{Value, json};
use tombolo_proto::id::{AgentId, ResourceId};

fn site(name: &str) -> String {
    net(&format!("localNetworkGateways/{name}"))
}

fn probe(attachments: &[String], address: &str) -> Binding {
    Binding::Site {
        attachments: attachments.iter().map(ResourceId::new).collect(),
        address: address.parse().unwrap(),
    }
}

fn bgp() -> Value {
    json!({"bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.8.0.125"}})
}

/// A hub with a VPN gateway, and two sites that are connected to it: `plain` has configured prefixes, `routed` uses BGP.
fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.gateway("hub", "10.1.255.0/27").unwrap();
    w.site("plain", &["10.7.0.0/16"], json!({})).unwrap();
    w.site("routed", &[], bgp()).unwrap();
    w.connect_site("to-plain", "hub", "plain", json!({})).unwrap();
    w.connect_site("to-routed", "hub", "routed", json!({"enableBgp": true}))
        .unwrap();
    w.circuit("er1", 30).unwrap();
    w
}

/// M10: a probe is bound to local network gateways and circuits that exist, each once, at an address that can be the site's.
/// The error names the field and the prefixes.
#[test]
fn m10_a_probe_is_in_its_site() {
    let mut w = world();
    let circuit = net("expressRouteCircuits/er1");
    let mut put = |binding| codes(w.apply(&Change::PutToken(token("x", binding))));
    assert_eq!(put(probe(&[], "10.7.0.9")), ["InvalidRequestFormat"]);
    assert_eq!(
        put(probe(&vec![site("plain"); 9], "10.7.0.9")),
        ["InvalidRequestFormat"]
    );
    assert_eq!(
        put(probe(&[site("plain"), site("PLAIN")], "10.7.0.9")),
        ["InvalidRequestFormat"]
    );
    assert_eq!(
        put(probe(&[net("virtualNetworks/hub")], "10.7.0.9")),
        ["InvalidResourceReference"]
    );
    for special in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "168.63.129.16", "fe80::1"] {
        assert_eq!(
            put(probe(&[site("plain")], special)),
            ["XAddressPrefixNotAllowed"],
            "{special}"
        );
    }
    for (sites, address) in [
        (vec![site("plain")], "10.9.0.9"),
        // An address of the VNet to which the site is attached is in no site, even if the site announces what it likes.
        (vec![site("plain")], "10.1.0.4"),
        (vec![site("routed")], "10.1.0.4"),
        (vec![circuit.clone(), site("routed")], "10.1.0.4"),
    ] {
        assert_eq!(
            put(probe(&sites, address)),
            ["XAddressOutsideOfSite"],
            "{sites:?} {address}"
        );
    }
    let refused = w.apply(&Change::PutToken(token("x", probe(&[site("plain")], "10.9.0.9"))));
    let problem = refused.unwrap_err().problems.remove(0);
    assert_eq!(problem.target.as_deref(), Some("binding.address"));
    for part in [
        "binding.address: 10.9.0.9",
        "plain",
        "10.7.0.0/16",
        "localNetworkAddressSpace",
        "(M10)",
    ] {
        assert!(problem.message.contains(part), "{part}: {}", problem.message);
    }
    // The prefixes of a site with BGP are known only while it announces them.
    for (sites, address) in [
        (vec![site("PLAIN")], "10.7.0.9"),
        (vec![site("routed")], "10.8.0.9"),
        (vec![circuit, site("plain")], "10.9.0.9"),
    ] {
        w.apply(&Change::PutToken(token(
            &address.replace('.', "-"),
            probe(&sites, address),
        )))
        .unwrap();
    }
    let stored = &w.now.tokens["token-of-10-7-0-9"].binding;
    assert_eq!(
        *stored,
        probe(&[site("plain")], "10.7.0.9"),
        "ids have the stored casing"
    );
}

/// M10: one probe has an address of a site, and what attaches the site stays while the probe exists.
#[test]
fn m10_a_probe_keeps_its_place() {
    let mut w = world();
    let circuit = net("expressRouteCircuits/er1");
    w.join("one", probe(&[circuit.clone(), site("plain")], "10.7.0.9"))
        .unwrap();
    assert_eq!(
        codes(w.join("two", probe(&[site("plain")], "10.7.0.9"))),
        ["XBoundElsewhere"]
    );
    w.join("two", probe(&[site("plain")], "10.7.0.10")).unwrap();
    w.join("other", probe(&[site("routed")], "10.7.0.9")).unwrap();
    assert_eq!(codes(w.delete(&circuit)), ["XCircuitInUseByAgent"]);
    w.delete(&net("connections/to-plain")).unwrap();
    assert_eq!(codes(w.delete(&site("plain"))), ["XLocalNetworkGatewayInUseByAgent"]);
    for agent in ["one", "two"] {
        w.apply(&Change::DeleteAgent(AgentId::new(agent).unwrap())).unwrap();
    }
    w.delete(&site("plain")).unwrap();
    w.delete(&circuit).unwrap();
}
