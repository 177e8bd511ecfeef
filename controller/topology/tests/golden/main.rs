//! The controller's stored documents and answers are compared with recorded files, because a later version of the
//! product must read what an earlier one has written.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod answers;
mod documents;
mod fabric;
mod hybrid;
mod load_balancer;
mod metering;
mod network;
mod reach;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use tombolo_topology::resource::Envelope;
use uuid::Uuid;

const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/Lab";

fn id(path: &str) -> ResourceId {
    ResourceId::new(format!("{GROUP}/providers/Microsoft.Network/{path}"))
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn etag() -> Uuid {
    Uuid::from_u128(1)
}

fn echoed(properties: Value) -> Map<String, Value> {
    Map::from_iter([("properties".to_owned(), properties)])
}

/// An envelope with all optional members.
fn envelope(path: &str) -> Envelope {
    Envelope {
        id: id(path),
        location: "region1".into(),
        tags: BTreeMap::from([("owner".into(), "net".into())]),
        etag: etag(),
        resource_guid: Uuid::from_u128(2),
        echoed: echoed(json!({"flowTimeoutInMinutes": 4})),
    }
}

/// An envelope without optional members.
fn bare(path: &str) -> Envelope {
    Envelope {
        id: id(path),
        location: "region1".into(),
        tags: BTreeMap::new(),
        etag: etag(),
        resource_guid: Uuid::from_u128(2),
        echoed: Map::new(),
    }
}
