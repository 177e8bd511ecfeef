//! Stores the endpoints that agents report. A report can cause a durable write. To limit these writes, each control
//! stream has at most one write in progress, and begins at most one write in each [`MIN_WRITE_INTERVAL`]. Of the
//! reports that arrive between two writes, only the newest is stored.

use crate::writer::Writer;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tombolo_proto::config::{Feature, MAX_LANES};
use tombolo_proto::control_stream::Hello;
use tombolo_proto::id::AgentId;
use tombolo_topology::change::Change;
use tombolo_topology::resource::Reach;

/// Maximum number of endpoints that are read from one report; further ones are ignored. Agents report fewer.
const MAX_ENDPOINTS: usize = 16;

/// Least time between two writes for one stream, so that an agent whose address changes often causes at most one
/// durable write a second.
const MIN_WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// Stores the endpoints that are reported over one stream. Dropping this value stops the task that stores them.
#[derive(Debug)]
pub(crate) struct EndpointReports {
    newest: watch::Sender<Reach>,
    /// The source address of the stream.
    seen: IpAddr,
    /// The task that stores reports. It is in a `JoinSet`, because dropping the set aborts the task.
    _task: JoinSet<()>,
}

impl EndpointReports {
    /// Starts the task that stores reports. The endpoints, lanes and QUIC endpoint of `hello` are the first report.
    /// `seen` is the address from which the agent has connected. A Hello without usable endpoints is not stored. If the
    /// store fails, the error is logged and the write is not tried again.
    pub(crate) fn start(writer: Writer, agent: AgentId, seen: IpAddr, hello: &Hello) -> Self {
        let (newest, mut reports) = watch::channel(of_hello(hello, seen));
        // A Hello without usable endpoints must not erase the endpoints that the store has.
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

    /// Replaces the endpoints of the agent. Returns at once; the task stores the endpoints later. The call is ignored
    /// if no endpoint is usable.
    pub(crate) fn report(&self, endpoints: &[String]) {
        let endpoints = resolve(endpoints, self.seen);
        if !endpoints.is_empty() {
            self.newest.send_modify(|reach| reach.endpoints = endpoints);
        }
    }
}

/// The endpoints, lanes and features that a Hello states. If the number of lanes is out of range, the nearest valid number is
/// used.
fn of_hello(hello: &Hello, seen: IpAddr) -> Reach {
    Reach {
        endpoints: resolve(&hello.endpoints, seen),
        quic_endpoint: resolve(std::slice::from_ref(&hello.quic_endpoint), seen).pop(),
        lanes: u16::try_from(hello.lanes).unwrap_or(MAX_LANES).clamp(1, MAX_LANES),
        many_routes: Feature::of_names(&hello.features).contains(&Feature::ManyRoutes),
    }
}

/// Stores how an agent is reached. Writes nothing if the store has the same endpoints and lanes already, or the agent
/// does not exist. Returns whether a write was tried.
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
    fn an_agent_that_says_little_has_one_lane_no_second_endpoint_and_no_feature() {
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
        assert!(!reach.many_routes);
        hello.features = vec![Feature::ManyRoutes.name().into()];
        assert!(of_hello(&hello, seen).many_routes);
        hello.lanes = 70_000;
        assert_eq!(of_hello(&hello, seen).lanes, MAX_LANES);
    }
}
