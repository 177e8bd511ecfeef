//! Bad input leads to a clear error or a counted drop, never to a panic. These tests replay a corpus and add random inputs.
//! A fuzzer can run the same targets: `cargo bolero test -p tombolo-tests --test fuzz TARGET`.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use tombolo_proto::config::AgentConfig;
use tombolo_proto::probe::ProbeRequest;
use tombolo_proto::status::AgentStatus;
use tombolo_tests::arm;
use tombolo_tests::fuzz;
use tombolo_tests::operation::{Flags, Operation};
use tombolo_tests::product::{Product, put};

#[test]
fn configuration_decoder() {
    fuzz!("config", |bytes: &[u8]| {
        if let Ok(config) = AgentConfig::from_bytes(bytes) {
            let again = AgentConfig::from_bytes(&config.to_bytes()).expect("own bytes");
            assert_eq!(again, config);
        }
        // These are other JSON messages of the control stream. Reading them may fail, but not panic.
        let _ = serde_json::from_slice::<AgentStatus>(bytes);
        let _ = serde_json::from_slice::<ProbeRequest>(bytes);
    });
}

/// A topology that contains most resources that the corpus refers to.
fn populated() -> Product {
    let mut product = Product::new();
    let net = |s: &str| vec![s.parse().expect("prefix")];
    for (vnet, octet) in [("v1", 1), ("v2", 2), ("v3", 3)] {
        let operations = [
            Operation::PutVnet {
                vnet: vnet.into(),
                region: "region1",
                space: net(&format!("10.{octet}.0.0/16")),
                flow_timeout: None,
            },
            Operation::PutSubnet {
                vnet: vnet.into(),
                subnet: "a".into(),
                prefixes: net(&format!("10.{octet}.0.0/24")),
                table: None,
                security: None,
            },
            Operation::PutSubnet {
                vnet: vnet.into(),
                subnet: "GatewaySubnet".into(),
                prefixes: net(&format!("10.{octet}.255.0/27")),
                table: None,
                security: None,
            },
            Operation::PutTable {
                table: "t1".into(),
                no_gateway_routes: false,
                routes: vec![],
            },
            Operation::PutNic {
                nic: format!("{vnet}-n"),
                vnet: vnet.into(),
                subnet: "a".into(),
                addresses: vec![[10, octet, 0, 10].into()],
                forwarding: false,
                security: None,
                application_groups: vec![],
                host_routes: vec![],
                pool: None,
                nat_rule: None,
            },
            Operation::PutGateway {
                vnet: vnet.into(),
                address: [10, octet, 255, 4].into(),
            },
        ];
        for operation in operations {
            product
                .perform(&operation)
                .unwrap_or_else(|e| panic!("{operation:?}: {e:?}"));
        }
    }
    let flags = Flags {
        access: true,
        forwarded: false,
        transit: false,
        use_remote: false,
    };
    for (vnet, remote) in [("v1", "v2"), ("v2", "v1")] {
        let operation = Operation::PutPeering {
            vnet: vnet.into(),
            remote: remote.into(),
            flags,
            sync: false,
        };
        product.perform(&operation).expect("peering");
    }
    product
}

/// Paths of resources, each with a body that the topology accepts.
fn bodies() -> Vec<(String, Value)> {
    let flags = Flags {
        access: true,
        forwarded: true,
        transit: false,
        use_remote: false,
    };
    let space = [
        "10.4.0.0/16".parse().expect("prefix"),
        "fd00:4::/48".parse().expect("prefix"),
    ];
    let mut vnet = arm::vnet_body("region1", &space);
    vnet["tags"] = json!({"a": "b"});
    vnet["properties"]["subnets"] = json!([{"name": "a", "properties": {"addressPrefix": "10.4.0.0/24"}}]);
    vec![
        (arm::group("other"), json!({"location": "region1", "tags": {}})),
        (arm::network("virtualNetworks/v4"), vnet),
        (
            arm::network("virtualNetworks/v1/subnets/b"),
            arm::subnet_body(&["10.1.1.0/24".parse().expect("prefix")], Some("t1")),
        ),
        (
            arm::network("virtualNetworks/v1/virtualNetworkPeerings/p"),
            arm::peering_body("v3", flags),
        ),
        (
            arm::network("virtualNetworks/v1/virtualNetworkPeerings/v2"),
            arm::peering_body("v2", flags),
        ),
        (
            arm::network("networkInterfaces/n"),
            arm::nic_body("region1", "v1", "a", &[[10, 1, 0, 20].into()], true),
        ),
        (
            arm::network("routeTables/t2"),
            arm::table_body(
                true,
                &[(
                    "10.9.0.0/16".parse().expect("prefix"),
                    tombolo_tests::operation::UserHop::Appliance([10, 1, 0, 10].into()),
                )],
            ),
        ),
        (
            arm::network("routeTables/t1/routes/r"),
            json!({"properties": {"addressPrefix": "10.8.0.0/16", "nextHopType": "None"}}),
        ),
        (
            arm::network("publicIPAddresses/p"),
            json!({"location": "region1", "sku": {"name": "Standard"}, "properties": {"ipAddress": "198.51.100.1"}}),
        ),
        (
            arm::network("virtualNetworkGateways/v1-gw"),
            arm::gateway_body("region1", "v1", [10, 1, 255, 4].into()),
        ),
        (
            arm::network("connections/c"),
            arm::connection_body("region1", "v1", "v2", Some("key")),
        ),
    ]
}

/// Appends the JSON pointer of every place in a value to `out`.
fn places(value: &Value, at: &mut Vec<String>, out: &mut Vec<String>) {
    out.push(at.iter().map(|s| format!("/{s}")).collect());
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), v)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![],
    };
    for (step, child) in children {
        at.push(step);
        places(child, at, out);
        at.pop();
    }
}

/// Values that, in most places of a body, have a wrong type, size or content.
fn strange() -> Vec<Value> {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    let mut out = vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("x".repeat(100_000)),
        json!("\u{0}\u{202e}/../"),
        json!([]),
        json!([[], {}, null]),
        json!({}),
        json!({"id": {"id": []}}),
        deep,
        json!(vec!["10.0.0.0/8"; 5000]),
    ];
    for text in [
        "10.1.0.0/33",
        "10.1.0.5/16",
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "256.1.1.1",
        "10.1.0.0",
        "fe80::/10",
        "10.1.0.0/-1",
        "224.0.0.0/4",
        "127.0.0.0/8",
        "10.1.0.0/30",
        "10.1.0.0/32",
        "fd00::1/64",
        "١٠.1.0.0/16",
        "/subscriptions/x",
        "/subscriptions/x/resourceGroups/y/providers/Microsoft.Network/virtualNetworks/nobody",
        "/",
        "VirtualAppliance",
        "PolicyBased",
    ] {
        out.push(json!(text));
        out.push(json!([text]));
        out.push(json!([text, text]));
        out.push(json!({"id": text}));
    }
    out
}

fn attempt(product: &Product, path: &str, body: Value) -> bool {
    let mut after = product.clone();
    match after.change(&put(path, body.clone())) {
        Ok(()) => {
            // The controller must be able to read an accepted change after a restart; otherwise it could not start
            // again.
            let documents = after
                .topology
                .documents_since(&tombolo_topology::topology::Topology::default());
            let stored = documents
                .iter()
                .filter_map(|d| Some((d.key.as_str(), d.value.as_deref()?)));
            let again = tombolo_topology::topology::Topology::from_documents(stored)
                .unwrap_or_else(|e| panic!("{path} {body}: stored, but not readable: {e}"));
            assert!(after.topology.documents_since(&again).is_empty(), "{path} {body}");
            true
        }
        Err(refused) => {
            assert!(
                [400, 404, 409, 412].contains(&refused.status),
                "{path} {body}: {refused:?}"
            );
            assert!(!refused.problems.is_empty(), "{path} {body}");
            for problem in &refused.problems {
                assert!(
                    !problem.code.is_empty() && !problem.message.is_empty(),
                    "{path} {body}: {refused:?}"
                );
                assert!(
                    problem.message.len() < 10_000,
                    "{path}: a message of {} bytes",
                    problem.message.len()
                );
            }
            assert!(after.topology.documents_since(&product.topology).is_empty());
            false
        }
    }
}

#[test]
fn arm_bodies_with_one_thing_wrong() {
    let product = populated();
    let (mut accepted, mut refused) = (0, 0);
    for (path, body) in bodies() {
        assert!(
            attempt(&product, &path, body.clone()),
            "{path}: the plain body is refused: {body}"
        );
        let mut all = Vec::new();
        places(&body, &mut Vec::new(), &mut all);
        for place in all {
            for value in strange() {
                let mut broken = body.clone();
                if let Some(slot) = broken.pointer_mut(&place) {
                    *slot = value;
                }
                if attempt(&product, &path, broken) {
                    accepted += 1;
                } else {
                    refused += 1;
                }
            }
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(
        refused > 1000 && accepted > 100,
        "{accepted} accepted, {refused} refused"
    );
}

#[test]
fn arm_bodies() {
    let product = populated();
    let bodies = bodies();
    let texts: Vec<(String, Vec<u8>)> = bodies
        .into_iter()
        .map(|(path, body)| (path, body.to_string().into_bytes()))
        .collect();
    let count = RefCell::new(0_u32);
    let check = AssertUnwindSafe(|input: &[u8]| {
        // The first byte chooses a resource. The rest is tried both as a body and as a list of edits of a valid body,
        // because random bytes alone are hardly ever JSON.
        let Some((&choice, rest)) = input.split_first() else {
            return;
        };
        let (path, good) = &texts[usize::from(choice) % texts.len()];
        let mut edited = good.clone();
        for edit in rest.chunks_exact(3) {
            let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % edited.len();
            edited[at] = edit[2];
        }
        for text in [rest, &edited] {
            if let Ok(body) = serde_json::from_slice::<Value>(text) {
                attempt(&product, path, body);
                *count.borrow_mut() += 1;
            }
        }
    });
    fuzz!("arm", move |input: &[u8]| check(input));
    // Most inputs are not JSON, and never reach the rules. The test proves something only if enough of them are.
    let count = count.into_inner();
    println!("{count} bodies were tried");
    assert!(count > 1000, "only {count} inputs were bodies");
}

#[test]
fn arm_paths() {
    fuzz!("path", |input: &[u8]| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(path) = tombolo_topology::path::ArmPath::parse(text) {
            let id = path.id();
            let again = tombolo_topology::path::ArmPath::parse(id.as_str()).unwrap_or_else(|e| panic!("{id}: {e}"));
            assert_eq!(again.id(), id);
        }
    });
}
