//! How agents say that they are reached: each report may become a durable write, so one is under way at a time, the
//! newest wins, and they keep a distance.

use crate::writer::Writer;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tombolo_proto::config::MAX_LANES;
use tombolo_proto::control_stream::Hello;
use tombolo_proto::id::AgentId;
use tombolo_topology::change::Change;
use tombolo_topology::resource::Reach;

/// More endpoints than any agent has.
const MAX_ENDPOINTS: usize = 16;

/// Between two writes of one stream; the first one waits for nothing.
const DISTANCE: Duration = Duration::from_secs(1);

/// Stores what one stream tells; ends with it.
#[derive(Debug)]
pub(crate) struct Reports {
    newest: watch::Sender<Reach>,
    /// Where the agent is seen from.
    seen: IpAddr,
    /// Holds the task: it ends when this is dropped.
    _task: JoinSet<()>,
}

impl Reports {
    /// For a stream of `agent`, which is seen from there and says this.
    pub(crate) fn start(writer: Writer, agent: AgentId, seen: IpAddr, hello: &Hello) -> Self {
        let (newest, mut told) = watch::channel(of_hello(hello, seen));
        // Nothing usable is no news.
        if !newest.borrow().endpoints.is_empty() {
            told.mark_changed();
        }
        let mut task = JoinSet::new();
        task.spawn(async move {
            while told.changed().await.is_ok() {
                let reach = told.borrow_and_update().clone();
                if store(&writer, &agent, reach).await {
                    tokio::time::sleep(DISTANCE).await;
                }
            }
        });
        Self {
            newest,
            seen,
            _task: task,
        }
    }

    /// The endpoints that the agent tells now; nothing usable is no news.
    pub(crate) fn tell(&self, endpoints: &[String]) {
        let endpoints = resolve(endpoints, self.seen);
        if !endpoints.is_empty() {
            self.newest.send_modify(|reach| reach.endpoints = endpoints);
        }
    }
}

/// What Hello says of how the agent is reached.
fn of_hello(hello: &Hello, seen: IpAddr) -> Reach {
    Reach {
        endpoints: resolve(&hello.endpoints, seen),
        quic_endpoint: resolve(std::slice::from_ref(&hello.quic_endpoint), seen).pop(),
        lanes: u16::try_from(hello.lanes).unwrap_or(MAX_LANES).clamp(1, MAX_LANES),
    }
}

/// Stores how an agent is reached if that is news. Says whether something was written.
async fn store(writer: &Writer, agent: &AgentId, reach: Reach) -> bool {
    let topology = writer.current().topology;
    if topology.agents.get(agent).is_none_or(|a| a.reach == reach) {
        return false;
    }
    let change = Change::SetReach {
        agent: agent.clone(),
        reach,
    };
    if let Err(error) = writer.change(change).await {
        tracing::warn!(%agent, %error, "how the agent is reached was not stored");
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

    #[test]
    fn an_agent_that_says_little_has_one_lane_and_no_second_endpoint() {
        let seen = "198.51.100.9".parse().unwrap();
        let mut hello = Hello {
            endpoints: vec!["0.0.0.0:5".into()],
            ..Hello::default()
        };
        assert_eq!(of_hello(&hello, seen), Reach::at(resolve(&hello.endpoints, seen)));
        (hello.quic_endpoint, hello.lanes) = ("[::]:443".into(), 4);
        let reach = of_hello(&hello, seen);
        assert_eq!(
            (reach.quic_endpoint, reach.lanes),
            (Some("198.51.100.9:443".parse().unwrap()), 4)
        );
        hello.lanes = 70_000;
        assert_eq!(of_hello(&hello, seen).lanes, MAX_LANES);
    }
}
