//! Compares the formats on the network and on disk with recorded files.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod arm;
mod capture;
mod config;
mod fabric;
mod flow_tail;
mod report;
mod role;
#[cfg(feature = "grpc")]
mod stream;
mod words;

use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use tombolo_proto::id::{AgentId, ResourceId};

fn agent(name: &str) -> AgentId {
    name.parse().unwrap()
}

fn id(path: &str) -> ResourceId {
    ResourceId::new(format!(
        "/subscriptions/s/resourceGroups/rg/providers/Microsoft.Network/{path}"
    ))
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
