//! The migration of pools of network interfaces to pools of addresses (L2).

use super::load_balancer_members::{join, pool, ssh};
use super::load_balancers::{body, lb, only, put, reference, world};
use super::{World, codes, net, path};
use crate::change::{Change, Outcome, Rejection};
use crate::resource::pool_members;
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;

fn migrate(w: &mut World, body: Value) -> Result<Outcome, Rejection> {
    w.apply(&Change::MigratePools {
        path: path(&lb("")),
        body,
    })
}

/// A load balancer with the pools `pool`, `second` and `none`. `n` is in the first two and behind a NAT rule, `m` is in
/// the first.
fn balanced() -> World {
    let mut w = world();
    let pools = json!([{"name": "pool"}, {"name": "second"}, {"name": "none"}]);
    put(&mut w, json!({"backendAddressPools": pools})).unwrap();
    let second = json!({"id": lb("/backendAddressPools/second")});
    join(&mut w, "n", "hub/subnets/t", json!([pool(), second]), json!([ssh()])).unwrap();
    join(&mut w, "m", "hub/subnets/t", json!([pool()]), Value::Null).unwrap();
    w
}

fn addresses(w: &World, pool: &str) -> Vec<(String, String)> {
    let shown = w.get(&lb(&format!("/backendAddressPools/{pool}")));
    let addresses = shown["properties"]["loadBalancerBackendAddresses"].as_array().unwrap();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let of = |a: &Value| (text(&a["name"]), text(&a["properties"]["ipAddress"]));
    addresses.iter().map(of).collect()
}

#[test]
fn l2_a_migrated_pool_has_the_addresses_of_its_network_interfaces() {
    let mut w = balanced();
    let id = ResourceId::new(lb("/backendAddressPools/pool"));
    let before = pool_members(&w.now, &id);
    let etag = w.get(&lb("/backendAddressPools/second"))["etag"].clone();
    migrate(&mut w, json!({"pools": ["POOL"]})).unwrap();
    let named = |name: &str, address: &str| (name.to_owned(), address.to_owned());
    assert_eq!(
        addresses(&w, "pool"),
        [named("n_c", "10.0.1.4"), named("m_c", "10.0.1.5")]
    );
    // The members are the same as before, and the agents see no difference.
    assert_eq!(pool_members(&w.now, &id), before);
    let shown = w.get(id.as_str());
    let first = &shown["properties"]["loadBalancerBackendAddresses"][0]["properties"];
    assert_eq!(first["virtualNetwork"], reference("virtualNetworks/hub"));
    assert_eq!(shown["properties"]["backendIPConfigurations"], json!([]));
    assert_eq!(
        w.put(id.as_str(), shown.clone()).unwrap(),
        shown,
        "it can be written back"
    );
    // The network interface has left this pool only.
    let nic = w.get(&net("networkInterfaces/n"));
    let configuration = &nic["properties"]["ipConfigurations"][0]["properties"];
    let second = json!([{"id": lb("/backendAddressPools/second")}]);
    assert_eq!(configuration["loadBalancerBackendAddressPools"], second);
    assert_eq!(configuration["loadBalancerInboundNatRules"], json!([ssh()]));
    assert_eq!(w.get(&lb("/backendAddressPools/second"))["etag"], etag);
    // The interface may be deleted now, while the pool keeps its address.
    w.delete(&net("networkInterfaces/m")).unwrap();
    assert_eq!(addresses(&w, "pool").len(), 2);
}

#[test]
fn l2_without_names_all_pools_are_migrated() {
    let mut w = balanced();
    migrate(&mut w, json!({"pools": []})).unwrap();
    assert_eq!(
        pool_members(&w.now, &ResourceId::new(lb("/backendAddressPools/pool"))).len(),
        2
    );
    let nic = |w: &World| w.get(&net("networkInterfaces/n"))["properties"]["ipConfigurations"][0]["properties"].clone();
    assert_eq!(nic(&w)["loadBalancerBackendAddressPools"].as_array().unwrap().len(), 2);
    migrate(&mut w, json!({})).unwrap();
    assert_eq!(nic(&w)["loadBalancerBackendAddressPools"], json!([]));
    assert_eq!(addresses(&w, "second").len(), 1);
    assert!(
        addresses(&w, "none").is_empty(),
        "a pool without members still takes network interfaces"
    );
    // A pool of addresses stays as it is.
    let after = w.get(&lb(""));
    migrate(&mut w, json!({"pools": ["pool", "none"]})).unwrap();
    assert_eq!(w.get(&lb("")), after);
}

/// A network interface and its ip configuration may have names that are too long together, or equal to another pair.
#[test]
fn l2_migrated_addresses_have_valid_and_different_names() {
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    let long = "n".repeat(79);
    join(&mut w, &long, "hub/subnets/t", json!([pool()]), Value::Null).unwrap();
    let two = |name: &str| {
        let properties = json!({
            "subnet": reference("virtualNetworks/hub/subnets/t"), "loadBalancerBackendAddressPools": [pool()],
        });
        json!({"name": name, "properties": properties})
    };
    let nic = |one: &str| json!({"location": "region1", "properties": {"ipConfigurations": [two(one)]}});
    w.put(&net("networkInterfaces/a"), nic("b_c")).unwrap();
    w.put(&net("networkInterfaces/a_B"), nic("c")).unwrap();
    migrate(&mut w, Value::Object(serde_json::Map::new())).unwrap();
    let names: Vec<String> = addresses(&w, "pool").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["address-1", "a_b_c", "address-2"]);
    let shown = w.get(&lb("/backendAddressPools/pool"));
    assert_eq!(w.put(&lb("/backendAddressPools/pool"), shown.clone()).unwrap(), shown);
}

#[test]
fn l2_a_migration_that_is_not_possible_changes_nothing() {
    let mut w = balanced();
    let before = w.now.clone();
    let missing = migrate(&mut w, json!({"pools": ["pool", "other"]}));
    let expected = ("InvalidResourceReference", "pools[1]".to_owned());
    assert_eq!(only(missing, "no back-end pool 'other'"), expected);
    assert_eq!(
        codes(migrate(&mut w, json!({"pools": "pool"}))),
        ["InvalidRequestFormat"]
    );
    assert_eq!(codes(migrate(&mut w, json!({"pools": [1]}))), ["InvalidRequestFormat"]);
    assert_eq!(codes(migrate(&mut w, json!([]))), ["InvalidRequestFormat"]);
    assert!(w.now.documents_since(&before).is_empty());
    let mut basic = world();
    basic.put(&lb(""), body("Basic", json!({}))).unwrap();
    let refused = migrate(&mut basic, json!({}));
    assert_eq!(only(refused, "SKU"), ("XPoolOfAddressesNeedsStandard", lb("")));
    let mut none = world();
    let refused = migrate(&mut none, json!({})).unwrap_err();
    assert_eq!((refused.status, refused.problems[0].code), (404, "ResourceNotFound"));
}
