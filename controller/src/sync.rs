//! The control stream of one agent: IO around the state machine [`AgentSync`].

use crate::agents::{Agents, ReportedHealth, Stream};
use crate::compiled::{Compiled, Config};
use crate::delta::{self, Sent};
use crate::endpoints::EndpointReports;
use crate::writer::Writer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream::{self, agent_message, controller_message};
use tombolo_proto::fabric::Binding;
use tombolo_proto::id::{AgentId, Revision};
use tombolo_topology::sync::{AgentSync, Close, Desired, Push, authorize};
use tonic::{Status, Streaming};
use uuid::Uuid;

/// Longest time until the Hello of a new stream arrives. Agents send their Hello right after the request, so it usually
/// takes one round trip.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time until a stream's queue accepts a message. After it, the stream ends, because the agent does not read.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest reason of a rejection that is kept, in bytes.
const MAX_REASON: usize = 1024;

/// The values that serving one control stream needs: the controller's state, the client's identity, and the queue of
/// messages to the client.
pub(crate) struct Session<'a> {
    pub(crate) agents: &'a Agents,
    pub(crate) writer: &'a Writer,
    pub(crate) compiled: watch::Receiver<Compiled>,
    /// The fingerprint of the certificate key with which the stream was opened.
    pub(crate) key: String,
    /// The source address of the connection.
    pub(crate) peer: IpAddr,
    /// The queue of messages to the agent.
    pub(crate) out: mpsc::Sender<Result<control_stream::ControllerMessage, Status>>,
}

/// Longest report of a probe, in bytes. The longest one that a request can ask for, a trace over 64 hops with 10 probes for
/// each, has some 10,000.
const MAX_REPORT: usize = 64 << 10;

/// The packet captures and tails of an agent.
type CaptureList = BTreeMap<Uuid, control_stream::Capture>;

/// The status for a client that may not act as `agent`, with the reason as text.
pub(crate) fn permission_denied(agent: &AgentId, close: Close) -> Status {
    Status::permission_denied(close.reason(agent))
}

/// The configurations that the agent got over a stream. The next one is sent as a change of the one in force.
#[derive(Default)]
struct SentConfigs {
    /// Sent, and not answered yet.
    in_flight: Option<Arc<Config>>,
    /// Applied by the agent. `None`: the controller does not know it, because the agent got it over an earlier stream.
    in_force: Option<Arc<Config>>,
}

impl SentConfigs {
    /// Whether the agent has got a configuration, or has it already.
    const fn has_any(&self) -> bool {
        self.in_flight.is_some() || self.in_force.is_some()
    }

    /// The agent has applied the configuration with this digest.
    fn applied(&mut self, digest: &str, features: &BTreeSet<Feature>) {
        let sent = self.in_flight.take();
        self.in_force = sent.filter(|config| config.for_agent(features).0 == digest);
    }
}

/// The message that [`Session::push`] sends.
enum Next {
    UpToDate(u64),
    Config(Revision, Arc<Config>),
}

impl Session<'_> {
    /// Serves a stream from its Hello to its end. `agent`: the agent that the client's certificate names; the Hello
    /// must name the same agent. Pushes the compiled configuration when it differs from the one that the agent runs,
    /// and no configuration is in flight.
    ///
    /// # Errors
    /// The status with which the stream ends. If the agent has closed the stream, the result is `Ok`.
    pub(crate) async fn run(
        mut self,
        agent: &AgentId,
        incoming: &mut Streaming<control_stream::AgentMessage>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded(format!("no Hello within {HELLO_TIMEOUT:?}")))??;
        let Some(agent_message::Message::Hello(hello)) = first.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        if hello.agent != agent.as_str() {
            return Err(Status::permission_denied(format!(
                "the certificate names agent '{agent}', the Hello '{}'",
                shortened(&hello.agent)
            )));
        }
        // The agent is checked again. Since the request was authorized, the agent may have been deleted, and another
        // host may have joined with its name. This Hello must not replace the stream of the other host.
        let current = self.writer.current();
        let known = current.topology.agents.get(agent);
        authorize(known.map(|a| &**a), &self.key).map_err(|close| permission_denied(agent, close))?;
        tracing::info!(%agent, revision = hello.revision, from = %self.peer, "agent connected");
        let is_probe = known.is_some_and(|agent| matches!(agent.binding, Binding::Site { .. }));
        // M10: a site probe runs no configuration, so what it says about one has no meaning.
        let (running, digest) = match is_probe {
            true => (Revision::default(), ""),
            false => (Revision(hello.revision), hello.digest.as_str()),
        };
        let sync = AgentSync::hello(&self.key, current.revision, digest);
        let features = Feature::of_names(&hello.features);
        let mut stream = self.agents.connected(agent, running, digest, features);
        let result = self.serve(&mut stream, sync, &hello, is_probe, incoming).await;
        self.agents.disconnected(&stream);
        tracing::info!(%agent, "agent disconnected");
        result
    }

    async fn serve(
        &mut self,
        stream: &mut Stream,
        mut sync: AgentSync,
        hello: &control_stream::Hello,
        is_probe: bool,
        incoming: &mut Streaming<control_stream::AgentMessage>,
    ) -> Result<(), Status> {
        let reports = || EndpointReports::start(self.writer.clone(), stream.agent.clone(), self.peer, hello);
        // M10: a site probe has no endpoints.
        let reports = (!is_probe).then(reports);
        self.compiled.mark_changed();
        let mut sent = SentConfigs::default();
        let mut health = self.agents.watch_health();
        let mut sent_health = None;
        let mut captures = self.agents.watch_captures();
        let mut sent_captures = BTreeMap::new();
        loop {
            tokio::select! {
                changed = self.compiled.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the controller is shutting down"));
                    }
                    self.push(stream, &mut sync, &mut sent).await?;
                    // Between the two, the first configuration of an agent may be compiled: it goes first.
                    if sent_health.is_some() || sent.has_any() {
                        self.send_health(stream, &mut sent_health).await?;
                        self.send_captures(stream, &mut sent_captures).await?;
                    }
                }
                // The agent gets its configuration first. The sender lives as long as the agents' state.
                Ok(()) = health.changed(), if sent_health.is_some() => self.send_health(stream, &mut sent_health).await?,
                // The agent resolves the network interfaces of a capture by its configuration.
                Ok(()) = captures.changed(), if sent.has_any() => {
                    self.send_captures(stream, &mut sent_captures).await?;
                }
                message = incoming.next() => {
                    let Some(message) = message.transpose()? else { return Ok(()) };
                    if let Some(agent_message::Message::Applied(applied)) = &message.message {
                        sent.applied(&applied.digest, &stream.features);
                    }
                    let is_unknown = match (&reports, message.message) {
                        (Some(reports), message) => self.receive(stream, &mut sync, reports, message)?,
                        // M10: of a site probe only the reports of probes count. Its host belongs to the site, and must not
                        // put routes, health or endpoints into the state of the network.
                        (None, Some(agent_message::Message::ProbeResult(result))) => {
                            self.probe_result(stream, &result)?;
                            false
                        }
                        (None, _) => false,
                    };
                    if is_unknown {
                        sent_captures = self.agents.captures_of(&stream.agent);
                        self.send_capture_list(&sent_captures).await?;
                    }
                    self.push(stream, &mut sync, &mut sent).await?;
                }
                Some(message) = stream.outgoing.recv() => self.send(message).await?,
                _ = &mut stream.superseded => {
                    return Err(Status::aborted("a newer stream of this agent replaces this one, or the agent is reset: connect again"));
                }
            }
        }
    }

    /// Tells the agent which of the back ends in its configuration are down, and by which reports, if it knows load balancers
    /// and this has changed since the last call over this stream (L6, D36). `last`: what the agent was told; `None`: nothing
    /// yet.
    async fn send_health(&self, stream: &Stream, last: &mut Option<ReportedHealth>) -> Result<(), Status> {
        if !stream.features.contains(&Feature::LoadBalancers) {
            return Ok(());
        }
        let config = self.compiled.borrow().configs.get(&stream.agent).cloned();
        let probed = config.as_ref().map(|config| &config.probed[..]).unwrap_or_default();
        let health = self.agents.health(probed);
        // The agent may still have what it was told over an earlier stream. That is of no use if it has no back ends.
        if last.as_ref() == Some(&health) || last.is_none() && probed.is_empty() {
            return Ok(());
        }
        let down = health.down.iter().map(|(probe, address)| control_stream::Down {
            probe: probe.to_string(),
            address: address.to_string(),
        });
        let owners = health.owners.iter().map(|(agent, version)| control_stream::Owner {
            agent: agent.to_string(),
            start: version.start,
            change: version.change,
        });
        let message = controller_message::Message::Health(control_stream::Health {
            down: down.collect(),
            owners: owners.collect(),
            has_owners: true,
        });
        *last = Some(health);
        self.send(control_stream::ControllerMessage { message: Some(message) })
            .await
    }

    /// Sends the agent the list of its packet captures and tails, if it has changed since the last call over this stream (D42).
    async fn send_captures(&self, stream: &Stream, last: &mut CaptureList) -> Result<(), Status> {
        let wanted = self.agents.captures_of(&stream.agent);
        if !stream.features.contains(&Feature::PacketCapture) || wanted == *last {
            return Ok(());
        }
        *last = wanted;
        self.send_capture_list(last).await
    }

    async fn send_capture_list(&self, list: &CaptureList) -> Result<(), Status> {
        let message = controller_message::Message::Captures(control_stream::Captures {
            captures: list.values().cloned().collect(),
        });
        self.send(control_stream::ControllerMessage { message: Some(message) })
            .await
    }

    /// Sends the agent its compiled configuration if the agent runs another configuration, has not rejected this one,
    /// and no configuration is in flight. Sends UpToDate once for each stream if the agent runs its compiled
    /// configuration already. If the agent may no longer be connected, the result is the status with which the stream
    /// ends.
    async fn push(&mut self, stream: &Stream, sync: &mut AgentSync, sent: &mut SentConfigs) -> Result<(), Status> {
        let agent = &stream.agent;
        let next = {
            // The compiled state stays locked until the configuration is noted as in flight. So whoever reads a newer
            // compiled state also sees that a configuration is in flight, and does not rely on the digest that the
            // agent reported before (see `Agents::progress`).
            let compiled = self.compiled.borrow_and_update();
            let config = compiled.configs.get(agent);
            let desired = Desired {
                revision: compiled.revision,
                agent: compiled.topology.agents.get(agent).map(|a| &**a),
                digest: config.map(|c| c.for_agent(&stream.features).0),
            };
            match (sync.published(&desired), config) {
                (Push::Close(close), _) => return Err(permission_denied(agent, close)),
                (Push::UpToDate, _) => {
                    let revision = compiled.revision.0;
                    // The agent has this configuration in force, so the next one can be sent as a change of it.
                    sent.in_force = config.cloned();
                    Next::UpToDate(revision)
                }
                (Push::Config, Some(config)) => {
                    if let Some(shortcoming) = config.shortcoming(&stream.features) {
                        tracing::warn!(%agent, shortcoming, "the agent is too old for its configuration");
                    }
                    let (digest, _) = config.for_agent(&stream.features);
                    self.agents.sent(stream, digest);
                    Next::Config(compiled.revision, config.clone())
                }
                (Push::Nothing, _) | (Push::Config, None) => return Ok(()),
            }
        };
        // The comparison of two large configurations takes milliseconds, so it runs without the lock on the compiled
        // state.
        let message = match next {
            Next::UpToDate(revision) => controller_message::Message::UpToDate(control_stream::UpToDate { revision }),
            Next::Config(revision, config) => {
                let base = sent
                    .in_force
                    .as_ref()
                    .map(|config| Sent::of(config.for_agent(&stream.features)));
                let new = Sent::of(config.for_agent(&stream.features));
                let message = delta::message(revision.0, new, base, &stream.features);
                tracing::debug!(
                    %agent, %revision, bytes = new.bytes.len(), as_change = !message.base.is_empty(), "configuration sent"
                );
                sent.in_flight = Some(config);
                controller_message::Message::Config(message)
            }
        };
        self.send(control_stream::ControllerMessage { message: Some(message) })
            .await
    }

    /// Handles a message of the agent after its Hello. Returns whether the agent reports a packet capture that it should not
    /// make, so that it needs the list of its captures.
    fn receive(
        &self,
        stream: &Stream,
        sync: &mut AgentSync,
        reports: &EndpointReports,
        message: Option<agent_message::Message>,
    ) -> Result<bool, Status> {
        match message {
            Some(agent_message::Message::Applied(applied)) => {
                sync.applied(&applied.digest);
                self.agents.applied(stream, Revision(applied.revision), &applied.digest);
            }
            Some(agent_message::Message::Rejected(rejected)) => {
                sync.rejected(&rejected.digest);
                let (revision, reason) = (Revision(rejected.revision), shortened(&rejected.reason));
                self.agents.rejected(stream, revision, &rejected.digest, reason);
            }
            Some(agent_message::Message::Status(status)) => {
                self.agents
                    .status(stream, serde_json::from_slice(&status.status).map_err(|e| invalid(&e))?);
                reports.report(&status.endpoints);
            }
            Some(agent_message::Message::ProbeResult(result)) => self.probe_result(stream, &result)?,
            Some(agent_message::Message::CaptureReport(reported)) => {
                let report = serde_json::from_slice(&reported.report).map_err(|e| invalid(&e))?;
                let id = Uuid::try_parse(&reported.id).map_err(|e| Status::invalid_argument(e.to_string()))?;
                return Ok(!self.agents.take_capture_report(stream, id, report));
            }
            Some(agent_message::Message::CaptureData(data)) => self.agents.take_stream_data(stream, data),
            Some(agent_message::Message::Hello(_)) => {
                return Err(Status::invalid_argument(
                    "Hello must be the first message and must not be repeated",
                ));
            }
            // A message that only a later version of the protocol defines. It is ignored.
            None => {}
        }
        Ok(false)
    }

    /// Passes the report of a probe to the request that waits for it.
    fn probe_result(&self, stream: &Stream, result: &control_stream::ProbeResult) -> Result<(), Status> {
        if result.report.len() > MAX_REPORT {
            return Err(Status::invalid_argument(format!(
                "the report of a probe has {} bytes; at most {MAX_REPORT} are possible",
                result.report.len()
            )));
        }
        let report = serde_json::from_slice(&result.report).map_err(|e| invalid(&e))?;
        self.agents.probe_result(&stream.agent, result.id, report);
        Ok(())
    }

    async fn send(&self, message: control_stream::ControllerMessage) -> Result<(), Status> {
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.out.send(Ok(message))).await;
        let sent =
            sent.map_err(|_| Status::deadline_exceeded(format!("the agent has read nothing for {SEND_TIMEOUT:?}")))?;
        sent.map_err(|_| Status::cancelled("the agent has disconnected"))
    }
}

fn invalid(error: &serde_json::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The text itself, or, if it is longer than [`MAX_REASON`] bytes, its beginning and `…`.
fn shortened(text: &str) -> String {
    if text.len() <= MAX_REASON {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_REASON)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("overlaps eth0"), "overlaps eth0");
        let long = shortened(&"ü".repeat(MAX_REASON));
        assert_eq!(long, format!("{}…", "ü".repeat(MAX_REASON / 2)));
    }
}
