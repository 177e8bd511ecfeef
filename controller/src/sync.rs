//! One agent's stream: the shell around [`AgentSync`].

use crate::agents::{Agents, Stream};
use crate::compiled::Compiled;
use crate::endpoints::Reports;
use crate::writer::Writer;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tombolo_proto::id::{AgentId, Revision};
use tombolo_proto::wire::{self, agent_message, controller_message};
use tombolo_topology::sync::{AgentSync, Close, Desired, Push, authorize};
use tonic::{Status, Streaming};

/// For the Hello, and for the agent to take what it is sent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Longest text of a refusal that is kept, bytes.
const MAX_REASON: usize = 1024;

/// What one stream is served with.
pub(crate) struct Session<'a> {
    pub(crate) agents: &'a Agents,
    pub(crate) writer: &'a Writer,
    pub(crate) compiled: watch::Receiver<Compiled>,
    /// Fingerprint of the key that the stream was opened with.
    pub(crate) key: String,
    /// Where the agent is seen from.
    pub(crate) peer: IpAddr,
    pub(crate) out: mpsc::Sender<Result<wire::ControllerMessage, Status>>,
}

/// One that may not speak for the agent.
pub(crate) fn closed(agent: &AgentId, close: Close) -> Status {
    Status::permission_denied(close.reason(agent))
}

impl Session<'_> {
    /// Serves a stream until it ends.
    pub(crate) async fn run(
        mut self,
        agent: &AgentId,
        incoming: &mut Streaming<wire::AgentMessage>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(PATIENCE, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(agent_message::Message::Hello(hello)) = first.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        if hello.agent != agent.as_str() {
            return Err(Status::permission_denied(format!(
                "the certificate is {agent}'s, the Hello {}'s",
                shortened(&hello.agent)
            )));
        }
        // Once more: Hello may have come late, and must not end the stream of whoever has the name by now.
        let current = self.writer.current();
        let known = current.topology.agents.get(agent);
        authorize(known.map(|a| &**a), &self.key).map_err(|close| closed(agent, close))?;
        tracing::info!(%agent, revision = hello.revision, from = %self.peer, "agent connected");
        let sync = AgentSync::hello(&self.key, current.revision, &hello.digest);
        let mut stream = self.agents.connected(agent, Revision(hello.revision), &hello.digest);
        let result = self.serve(&mut stream, sync, &hello, incoming).await;
        self.agents.disconnected(&stream);
        tracing::info!(%agent, "agent disconnected");
        result
    }

    async fn serve(
        &mut self,
        stream: &mut Stream,
        mut sync: AgentSync,
        hello: &wire::Hello,
        incoming: &mut Streaming<wire::AgentMessage>,
    ) -> Result<(), Status> {
        let reports = Reports::start(self.writer.clone(), stream.agent.clone(), self.peer, hello);
        self.compiled.mark_changed();
        loop {
            tokio::select! {
                changed = self.compiled.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the controller is shutting down"));
                    }
                    self.push(stream, &mut sync).await?;
                }
                message = incoming.next() => {
                    let Some(message) = message.transpose()? else { return Ok(()) };
                    self.receive(stream, &mut sync, &reports, message)?;
                    self.push(stream, &mut sync).await?;
                }
                Some(message) = stream.outgoing.recv() => self.send(message).await?,
                _ = &mut stream.superseded => {
                    return Err(Status::aborted("a newer connection of this agent took over"));
                }
            }
        }
    }

    /// Sends what the agent should run, if it runs something else and nothing is under way.
    async fn push(&mut self, stream: &Stream, sync: &mut AgentSync) -> Result<(), Status> {
        let agent = &stream.agent;
        let message = {
            // Held until what goes out is noted: whoever sees a newer state sees this too (see `Agents::progress`).
            let compiled = self.compiled.borrow_and_update();
            let config = compiled.configs.get(agent);
            let desired = Desired {
                revision: compiled.revision,
                agent: compiled.topology.agents.get(agent).map(|a| &**a),
                digest: config.map(|c| c.digest.as_str()),
            };
            match (sync.published(&desired), config) {
                (Push::Close(close), _) => return Err(closed(agent, close)),
                (Push::UpToDate, _) => {
                    let revision = compiled.revision.0;
                    controller_message::Message::UpToDate(wire::UpToDate { revision })
                }
                (Push::Config, Some(config)) => {
                    self.agents.sent(stream, &config.digest);
                    tracing::debug!(%agent, revision = %compiled.revision, bytes = config.bytes.len(), "configuration sent");
                    controller_message::Message::Config(wire::Config {
                        revision: compiled.revision.0,
                        digest: config.digest.clone(),
                        config: config.bytes.clone(),
                    })
                }
                (Push::Nothing, _) | (Push::Config, None) => return Ok(()),
            }
        };
        self.send(wire::ControllerMessage { message: Some(message) }).await
    }

    fn receive(
        &self,
        stream: &Stream,
        sync: &mut AgentSync,
        reports: &Reports,
        message: wire::AgentMessage,
    ) -> Result<(), Status> {
        let invalid = |e: serde_json::Error| Status::invalid_argument(e.to_string());
        match message.message {
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
                    .status(&stream.agent, serde_json::from_slice(&status.status).map_err(invalid)?);
                reports.tell(&status.endpoints);
            }
            Some(agent_message::Message::ProbeResult(result)) => {
                let report = serde_json::from_slice(&result.report).map_err(invalid)?;
                self.agents.probe_result(&stream.agent, result.id, report);
            }
            Some(agent_message::Message::Hello(_)) => {
                return Err(Status::invalid_argument("Hello is the first message, once"));
            }
            // A message of a later version.
            None => {}
        }
        Ok(())
    }

    async fn send(&self, message: wire::ControllerMessage) -> Result<(), Status> {
        let sent = tokio::time::timeout(PATIENCE, self.out.send(Ok(message))).await;
        let sent = sent.map_err(|_| Status::deadline_exceeded("the agent takes nothing"))?;
        sent.map_err(|_| Status::cancelled("the agent went away"))
    }
}

/// The first part of a text that is too long.
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
