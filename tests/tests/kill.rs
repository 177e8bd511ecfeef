//! `kill -9` ends the controller at random moments during concurrent writes. No acknowledged change may be lost. A
//! change without an acknowledgement may be applied completely or not at all, but not partially.
//!
//! Each writer owns one pair of VNets, with a gateway in each and a connection between them. The writer makes changes
//! that concern several documents: both halves of a peering (one request changes both), a VNet with all its subnets,
//! and a connection's key, which is stored in another document than the connection. `TOMBOLO_KILLS` is the number of
//! kills (25 unless set).

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tombolo_tests::arm::{connection_body, gateway_body, group, network, peering_body};
use tombolo_tests::controller::{Controller, Rest};
use tombolo_tests::operation::Flags;

/// The number of concurrent writers. There are several, so that the controller stores the changes of several requests
/// in one transaction.
const WRITERS: usize = 4;

/// The state of a writer's pair of VNets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pair {
    /// The tag of the first VNet. The number of the VNet's subnets derives from the tag.
    generation: u64,
    /// Whether the left and the right half of the peering exist.
    halves: (bool, bool),
    /// The number that the connection's shared key contains.
    key: u64,
}

/// What a writer knows about the state of its pair.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The state after the last acknowledged request.
    now: Pair,
    /// The state after the request that is not answered yet.
    pending: Option<Pair>,
}

fn vnet(writer: usize, side: char) -> String {
    network(&format!("virtualNetworks/w{writer}{side}"))
}

fn half(writer: usize, side: char) -> String {
    format!("{}/virtualNetworkPeerings/p", vnet(writer, side))
}

fn connection(writer: usize) -> String {
    network(&format!("connections/w{writer}"))
}

fn shared_key(writer: usize) -> String {
    format!("{}/sharedkey", connection(writer))
}

fn key(number: u64) -> String {
    format!("Key{number}")
}

/// The paths and bodies of a writer's public addresses, gateways and connection, in the order of creation. The
/// connection has its first key.
fn tunnel(writer: usize) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for side in ['a', 'b'] {
        let name = format!("w{writer}{side}");
        let address = [10, octet(writer, side), 255, 4].into();
        let public = json!({"location": "region1", "sku": {"name": "Standard"},
            "properties": {"publicIPAllocationMethod": "Static"}});
        all.push((network(&format!("publicIPAddresses/{name}-pip")), public));
        let gateway = network(&format!("virtualNetworkGateways/{name}-gw"));
        all.push((gateway, gateway_body("region1", &name, address)));
    }
    let (from, to) = (format!("w{writer}a"), format!("w{writer}b"));
    let body = connection_body("region1", &from, &to, Some(&key(0)));
    all.push((connection(writer), body));
    all
}

fn octet(writer: usize, side: char) -> u8 {
    let number = 10 + writer * 2 + usize::from(side == 'b');
    u8::try_from(number).expect("few writers")
}

/// A VNet's body. Both the tag and the number of subnets derive from the generation, so a partial write shows as a mismatch.
fn body(writer: usize, side: char, generation: u64) -> Value {
    let octet = octet(writer, side);
    let subnet = |name: &str, prefix: String| json!({"name": name, "properties": {"addressPrefix": prefix}});
    let mut subnets: Vec<Value> = (0..=generation % 5)
        .map(|i| subnet(&format!("s{i}"), format!("10.{octet}.{i}.0/24")))
        .collect();
    subnets.push(subnet("GatewaySubnet", format!("10.{octet}.255.0/27")));
    json!({"location": "region1", "tags": {"generation": generation.to_string()}, "properties": {
        "addressSpace": {"addressPrefixes": [format!("10.{octet}.0.0/16")]}, "subnets": subnets}})
}

/// Sends random changes of a writer's pair until `stop` is set or the controller does not answer. Returns the pair's
/// last acknowledged state and, if the last request got no answer, the state that this request would have made.
/// `acknowledged` counts the answered changes of all writers.
async fn write(
    rest: Rest,
    writer: usize,
    mut known: Known,
    seed: u64,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Known {
    let mut rng = StdRng::seed_from_u64(seed);
    while !stop.load(Ordering::Relaxed) {
        let mut next = known.now;
        let answer = match rng.random_range(0..5) {
            0 | 1 => {
                next.generation += 1;
                known.pending = Some(next);
                rest.put(&vnet(writer, 'a'), &body(writer, 'a', next.generation)).await
            }
            2 => {
                next.key += 1;
                known.pending = Some(next);
                rest.put(&shared_key(writer), &json!({"value": key(next.key)})).await
            }
            _ => {
                // The left half is created first and deleted last. If the right half was deleted, creating it again is
                // refused while the left half exists (P13, P14); the code below handles this refusal.
                let (side, create) = match known.now.halves {
                    (false, false) => ('a', true),
                    (true, false) if rng.random_bool(0.7) => ('b', true),
                    (true, false) => ('a', false),
                    (_, true) => ('b', false),
                };
                match side {
                    'a' => next.halves.0 = create,
                    _ => next.halves.1 = create,
                }
                known.pending = Some(next);
                if create {
                    let remote = format!("w{writer}{}", if side == 'a' { 'b' } else { 'a' });
                    let flags = Flags {
                        access: true,
                        forwarded: false,
                        transit: false,
                        use_remote: false,
                    };
                    rest.put(&half(writer, side), &peering_body(&remote, flags)).await
                } else {
                    rest.delete(&half(writer, side)).await
                }
            }
        };
        match answer {
            Ok((status, _)) if status.is_success() => {
                known.now = next;
                known.pending = None;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // P14: while one half of a peering is Disconnected, the other half cannot be created again; so the
            // Disconnected half is deleted too.
            Ok((status, answer)) => {
                assert_eq!(
                    answer["error"]["code"], "RemotePeeringIsDisconnected",
                    "{status} {answer}"
                );
                known.pending = None;
                let Ok((status, answer)) = rest.delete(&half(writer, 'a')).await else {
                    let mut gone = known.now;
                    gone.halves.0 = false;
                    known.pending = Some(gone);
                    return known;
                };
                assert!(status.is_success(), "{status} {answer}");
                known.now.halves.0 = false;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => return known,
        }
    }
    known
}

/// Reads a writer's pair from the restarted controller. Panics unless the pair is in the acknowledged state, or in the
/// complete state after the pending request.
async fn check(rest: &Rest, writer: usize, known: &Known) -> Known {
    let (status, left) = rest.get(&vnet(writer, 'a')).await.expect("GET");
    assert!(status.is_success(), "writer {writer}: VNet lost: {left}");
    let (_, right) = rest.get(&vnet(writer, 'b')).await.expect("GET");
    let generation: u64 = left["tags"]["generation"]
        .as_str()
        .and_then(|t| t.parse().ok())
        .expect("tag");
    let halves = |v: &Value| {
        v["properties"]["virtualNetworkPeerings"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    };
    let (lefts, rights) = (halves(&left), halves(&right));
    let (status, secret) = rest.get(&shared_key(writer)).await.expect("GET");
    assert!(status.is_success(), "writer {writer}: key lost: {secret}");
    let number = |text: &str| text.strip_prefix("Key")?.parse().ok();
    let found = Pair {
        generation,
        halves: (!lefts.is_empty(), !rights.is_empty()),
        key: secret["value"].as_str().and_then(number).expect("a key of this test"),
    };
    assert!(
        found == known.now || Some(found) == known.pending,
        "writer {writer}: found {found:?}, acknowledged {:?}, pending {:?}",
        known.now,
        known.pending
    );
    // If a change had been applied partially, the VNet's tag would not fit the number of its subnets, or the states of
    // the two halves would differ.
    let subnets = left["properties"]["subnets"].as_array().map_or(0, Vec::len);
    assert_eq!(subnets as u64, generation % 5 + 2, "writer {writer}: {left}");
    let state = |halves: &[Value]| halves.first().map(|h| h["properties"]["peeringState"].clone());
    match (state(&lefts), state(&rights)) {
        (Some(a), Some(b)) => {
            assert_eq!(
                (a.as_str(), b.as_str()),
                (Some("Connected"), Some("Connected")),
                "writer {writer}"
            );
            let guid = |h: &[Value]| h[0]["properties"]["resourceGuid"].clone();
            assert_eq!(guid(&lefts), guid(&rights), "writer {writer}");
        }
        (Some(alone), None) | (None, Some(alone)) => {
            assert!(alone != "Connected", "writer {writer}: one half is Connected alone");
        }
        (None, None) => {}
    }
    Known {
        now: found,
        pending: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_is_half_there() {
    let kills: u32 = std::env::var("TOMBOLO_KILLS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(25);
    let seed: u64 = std::env::var("TOMBOLO_SEED")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or_else(rand::random);
    println!("TOMBOLO_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let data = tempfile::tempdir().expect("folder");

    let mut controller = Controller::start(data.path(), None).await;
    let listen = controller.listen();
    let rest = controller.rest();
    let (status, answer) = rest
        .put(&group("g"), &json!({"location": "region1"}))
        .await
        .expect("group");
    assert!(status.is_success(), "{answer}");
    let mut known = [Known::default(); WRITERS];
    for writer in 0..WRITERS {
        for side in ['a', 'b'] {
            let (status, answer) = rest
                .put(&vnet(writer, side), &body(writer, side, 0))
                .await
                .expect("VNet");
            assert!(status.is_success(), "{answer}");
        }
        for (path, body) in tunnel(writer) {
            let (status, answer) = rest.put(&path, &body).await.expect("tunnel");
            assert!(status.is_success(), "{path}: {answer}");
        }
    }

    let acknowledged = Arc::new(AtomicU64::new(0));
    for kill in 0..kills {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let state = known[w];
                tokio::spawn(write(
                    controller.rest(),
                    w,
                    state,
                    rng.random(),
                    stop.clone(),
                    acknowledged.clone(),
                ))
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(rng.random_range(5_000..250_000))).await;
        controller.kill().await;
        stop.store(true, Ordering::Relaxed);
        for (slot, writer) in known.iter_mut().zip(writers) {
            *slot = writer.await.unwrap_or_else(|e| panic!("kill {kill}: {e}"));
        }
        controller = Controller::start(data.path(), Some(listen)).await;
        let rest = controller.rest();
        for (writer, slot) in known.iter_mut().enumerate() {
            *slot = check(&rest, writer, slot).await;
        }
    }
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    println!("{kills} kills, {acknowledged} acknowledged changes, none lost, none half there");
    assert!(
        acknowledged > u64::from(kills),
        "hardly anything was written: {acknowledged}"
    );
}
