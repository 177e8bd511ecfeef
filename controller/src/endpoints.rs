//! Where agents say that they are reached: each report may become a durable write, so one is under way at a time, the
//! newest wins, and they keep a distance.

use crate::writer::Writer;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tombolo_proto::id::AgentId;
use tombolo_topology::change::Change;

/// More endpoints than any agent has.
const MAX_ENDPOINTS: usize = 16;

/// Between two writes of one stream; the first one waits for nothing.
const DISTANCE: Duration = Duration::from_secs(1);

/// Stores the endpoints that one stream tells; ends with it.
#[derive(Debug)]
pub(crate) struct Reports {
    newest: watch::Sender<Vec<SocketAddr>>,
    /// Holds the task: it ends when this is dropped.
    _task: JoinSet<()>,
}

impl Reports {
    /// For a stream of `agent`.
    pub(crate) fn start(writer: Writer, agent: AgentId) -> Self {
        let (newest, mut told) = watch::channel(Vec::new());
        let mut task = JoinSet::new();
        task.spawn(async move {
            while told.changed().await.is_ok() {
                let endpoints = told.borrow_and_update().clone();
                if store(&writer, &agent, endpoints).await {
                    tokio::time::sleep(DISTANCE).await;
                }
            }
        });
        Self { newest, _task: task }
    }

    /// What the agent tells now; nothing usable is no news.
    pub(crate) fn tell(&self, endpoints: Vec<SocketAddr>) {
        if !endpoints.is_empty() {
            self.newest.send_replace(endpoints);
        }
    }
}

/// Stores endpoints if they are news. Says whether something was written.
async fn store(writer: &Writer, agent: &AgentId, endpoints: Vec<SocketAddr>) -> bool {
    let topology = writer.current().topology;
    if topology.agents.get(agent).is_none_or(|a| a.endpoints == endpoints) {
        return false;
    }
    let change = Change::SetEndpoints {
        agent: agent.clone(),
        endpoints,
    };
    if let Err(error) = writer.change(change).await {
        tracing::warn!(%agent, %error, "endpoints were not stored");
    }
    true
}

/// Endpoints as told, with "the address you see me from" filled in; what is no endpoint is left out.
pub(crate) fn resolve(told: &[String], seen: IpAddr) -> Vec<SocketAddr> {
    let parsed = told
        .iter()
        .take(MAX_ENDPOINTS)
        .filter_map(|e| e.parse::<SocketAddr>().ok());
    let mut endpoints: Vec<SocketAddr> = Vec::new();
    for endpoint in parsed {
        let ip = if endpoint.ip().is_unspecified() {
            seen.to_canonical()
        } else {
            endpoint.ip()
        };
        let endpoint = SocketAddr::new(ip, endpoint.port());
        if endpoint.port() != 0 && !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_is_the_one_seen() {
        let told = ["0.0.0.0:5", "[::]:5", "192.0.2.1:7", "nonsense", "192.0.2.1:0"].map(String::from);
        let seen = "198.51.100.9".parse().unwrap();
        let expected: Vec<SocketAddr> = ["198.51.100.9:5", "192.0.2.1:7"].map(|e| e.parse().unwrap()).to_vec();
        assert_eq!(resolve(&told, seen), expected);
    }
}
