//! Explanations, ping and trace.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;
use tombolo_proto::fabric::Probe;
use tombolo_proto::probe::{ProbeKind, ProbeReport};

/// What packet to explain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainRequest {
    /// Name or id of a VM, a NIC or an agent.
    pub from: String,
    /// The same, or an address.
    pub to: String,
    /// `icmp`, `tcp` or `udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// For `tcp` and `udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Time to live of the packet, 64 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
}

/// What a probe brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probed {
    /// The address probed from.
    #[serde(default)]
    pub from: Option<IpAddr>,
    /// The address probed.
    #[serde(default)]
    pub to: Option<IpAddr>,
    /// What came back.
    #[serde(flatten)]
    pub report: ProbeReport,
}

impl Client {
    /// What the agents would do with a packet, hop by hop.
    ///
    /// # Errors
    /// Those of the controller: an end that is not known.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<Value, Error> {
        let response = self
            .fabric(Method::POST, "explain", Body::Json(&json!(request)))
            .await?;
        self.json(response).await
    }

    /// Pings or traces, live, from the agent of the source.
    ///
    /// # Errors
    /// Those of the controller: an end that is not known, an agent that is not connected.
    pub async fn probe(&self, probe: &Probe) -> Result<Probed, Error> {
        let each = |ms: Option<u32>, default: u32| u64::from(ms.unwrap_or(default));
        let count = u64::from(probe.count.unwrap_or(5));
        let longest = match probe.kind {
            ProbeKind::Ping => count * each(probe.interval_ms, 1000) + each(probe.timeout_ms, 1000),
            ProbeKind::Trace => u64::from(probe.max_ttl.unwrap_or(30)) * count * each(probe.timeout_ms, 1000),
        };
        let limit = Some(Duration::from_millis(longest) + Duration::from_secs(20));
        let body = json!(probe);
        let response = self
            .send(Method::POST, "/fabric/v1/probe", &[], Body::Json(&body), limit)
            .await?;
        self.typed(response).await
    }
}
