//! The endpoints that agents report. Each report may become a durable write, so each stream has at most one write in
//! progress, and at most one per [`MIN_WRITE_INTERVAL`]; of the reports in between, only the newest is stored.

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

/// Most endpoints of one report; further ones are ignored. An agent reports fewer.
const MAX_ENDPOINTS: usize = 16;

/// Least time between two writes of one stream, so that an agent that roams quickly costs one durable write a second.
const MIN_WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// Stores the endpoints that are reported over one stream. Dropping it stops its task.
#[derive(Debug)]
pub(crate) struct EndpointReports {
    newest: watch::Sender<Reach>,
    /// The source address of the stream.
    seen: IpAddr,
    /// The task, in a set because a set aborts its tasks when it is dropped.
    _task: JoinSet<()>,
}

impl EndpointReports {
    /// Starts the task that stores reports, with the endpoints, lanes and QUIC endpoint of a Hello as the first one.
    /// `seen` is the source address of the stream. A Hello without usable endpoints is not stored. Errors of the store
    /// are logged and not repeated.
    pub(crate) fn start(writer: Writer, agent: AgentId, seen: IpAddr, hello: &Hello) -> Self {
        let (newest, mut reports) = watch::channel(of_hello(hello, seen));
        // A Hello without usable endpoints must not erase those of the store.
        if !newest.borrow().endpoints.is_empty() {
            reports.mark_changed();
        }
        let mut task = JoinSet::new();
        task.spawn(async move {
            while reports.changed().await.is_ok() {
                let reach = reports.borrow_and_update().clone();
                if store(&writer, &agent, reach).await {
                    tokio::time::sleep(MIN_WRITE_INTERVAL).await;
                }
            }
        });
        Self {
            newest,
            seen,
            _task: task,
        }
    }

    /// Replaces the endpoints of the agent, and returns at once; the task stores them. Ignored if none of them is
    /// usable.
    pub(crate) fn report(&self, endpoints: &[String]) {
        let endpoints = resolve(endpoints, self.seen);
        if !endpoints.is_empty() {
            self.newest.send_modify(|reach| reach.endpoints = endpoints);
        }
    }
}

/// The endpoints and lanes that a Hello states; a number of lanes out of range becomes the nearest valid one.
fn of_hello(hello: &Hello, seen: IpAddr) -> Reach {
    Reach {
        endpoints: resolve(&hello.endpoints, seen),
        quic_endpoint: resolve(std::slice::from_ref(&hello.quic_endpoint), seen).pop(),
        lanes: u16::try_from(hello.lanes).unwrap_or(MAX_LANES).clamp(1, MAX_LANES),
    }
}

/// Stores how an agent is reached, if that differs from the store and the agent exists. Returns whether a write was
/// tried.
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
        tracing::warn!(%agent, %error, "the endpoints of the agent were not stored");
    }
    true
}

/// Parses endpoints of the form `ADDRESS:PORT`, in their order, at most [`MAX_ENDPOINTS`]. An unspecified address
/// (`0.0.0.0` or `::`) stands for `seen`, the address that the agent connects from. Leaves out malformed endpoints,
/// port 0 and duplicates.
pub(crate) fn resolve(reported: &[String], seen: IpAddr) -> Vec<SocketAddr> {
    let parsed = reported
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
        let reported = ["0.0.0.0:5", "[::]:5", "192.0.2.1:7", "nonsense", "192.0.2.1:0"].map(String::from);
        let seen = "198.51.100.9".parse().unwrap();
        let expected: Vec<SocketAddr> = ["198.51.100.9:5", "192.0.2.1:7"].map(|e| e.parse().unwrap()).to_vec();
        assert_eq!(resolve(&reported, seen), expected);
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
