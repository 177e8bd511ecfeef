//! One agent's side of the control stream: level-triggered, one configuration in flight, nothing queued.

use crate::agents::{Agents, Stream};
use crate::compiled::Compiled;
use crate::writer::Writer;
use std::net::{IpAddr, SocketAddr};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tombolo_proto::id::{AgentId, Revision};
use tombolo_proto::wire::{self, agent_message, controller_message};
use tombolo_topology::change::Change;
use tonic::{Status, Streaming};

/// More endpoints than any agent has.
const MAX_ENDPOINTS: usize = 16;

/// What one stream is served with.
pub(crate) struct Session<'a> {
    pub(crate) agents: &'a Agents,
    pub(crate) writer: &'a Writer,
    pub(crate) compiled: watch::Receiver<Compiled>,
    /// Where the agent is seen from.
    pub(crate) peer: IpAddr,
    pub(crate) out: mpsc::Sender<Result<wire::ControllerMessage, Status>>,
}

/// What the agent runs, and what it was sent.
struct Progress {
    digest: String,
    in_flight: Option<String>,
    refused: Option<String>,
}

impl Session<'_> {
    /// Serves a stream until it ends.
    pub(crate) async fn run(
        mut self,
        agent: &AgentId,
        incoming: &mut Streaming<wire::AgentMessage>,
    ) -> Result<(), Status> {
        let first = incoming.message().await?.and_then(|m| m.message);
        let Some(agent_message::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        if hello.agent != agent.as_str() {
            return Err(Status::permission_denied(format!(
                "the certificate is {agent}'s, the Hello {}'s",
                hello.agent
            )));
        }
        tracing::info!(%agent, revision = hello.revision, from = %self.peer, "agent connected");
        let mut stream = self.agents.connected(agent, Revision(hello.revision), &hello.digest);
        let result = self.serve(&mut stream, &hello, incoming).await;
        self.agents.disconnected(&stream);
        tracing::info!(%agent, "agent disconnected");
        result
    }

    async fn serve(
        &mut self,
        stream: &mut Stream,
        hello: &wire::Hello,
        incoming: &mut Streaming<wire::AgentMessage>,
    ) -> Result<(), Status> {
        let agent = stream.agent.clone();
        self.endpoints(&agent, &hello.endpoints);
        let mut progress = Progress {
            digest: hello.digest.clone(),
            in_flight: None,
            refused: None,
        };
        self.compiled.mark_changed();
        let mut greeted = false;
        loop {
            tokio::select! {
                changed = self.compiled.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the controller is shutting down"));
                    }
                    self.push(&agent, &mut progress, &mut greeted).await?;
                }
                message = incoming.next() => {
                    let Some(message) = message.transpose()? else { return Ok(()) };
                    self.receive(&agent, &mut progress, message)?;
                    self.push(&agent, &mut progress, &mut greeted).await?;
                }
                Some(message) = stream.outgoing.recv() => self.send(message).await?,
                _ = &mut stream.superseded => {
                    return Err(Status::aborted("a newer connection of this agent took over"));
                }
            }
        }
    }

    /// Sends what the agent should run, if it runs something else and nothing is under way.
    async fn push(&mut self, agent: &AgentId, progress: &mut Progress, greeted: &mut bool) -> Result<(), Status> {
        let compiled = self.compiled.borrow_and_update().clone();
        match compiled.topology.agents.get(agent) {
            None => {
                return Err(Status::permission_denied(format!(
                    "{agent} is no agent of this controller"
                )));
            }
            Some(a) if a.revoked => return Err(Status::permission_denied(format!("{agent} was revoked"))),
            Some(_) => {}
        }
        let Some(config) = compiled.configs.get(agent) else {
            return Ok(());
        };
        if config.digest == progress.digest {
            // Once a stream; later revisions that change nothing here are nobody's business.
            if !std::mem::replace(greeted, true) {
                let revision = compiled.revision.0;
                let message = controller_message::Message::UpToDate(wire::UpToDate { revision });
                self.send(wire::ControllerMessage { message: Some(message) }).await?;
            }
            return Ok(());
        }
        *greeted = true;
        if progress.in_flight.is_some() || progress.refused.as_ref() == Some(&config.digest) {
            return Ok(());
        }
        tracing::debug!(%agent, revision = %compiled.revision, bytes = config.bytes.len(), "configuration sent");
        progress.in_flight = Some(config.digest.clone());
        let message = controller_message::Message::Config(wire::Config {
            revision: compiled.revision.0,
            digest: config.digest.clone(),
            config: config.bytes.clone(),
        });
        self.send(wire::ControllerMessage { message: Some(message) }).await
    }

    fn receive(&self, agent: &AgentId, progress: &mut Progress, message: wire::AgentMessage) -> Result<(), Status> {
        let invalid = |e: serde_json::Error| Status::invalid_argument(e.to_string());
        match message.message {
            Some(agent_message::Message::Applied(applied)) => {
                progress.in_flight = None;
                progress.refused = None;
                self.agents.applied(agent, Revision(applied.revision), &applied.digest);
                progress.digest = applied.digest;
            }
            Some(agent_message::Message::Rejected(rejected)) => {
                progress.in_flight = None;
                self.agents
                    .rejected(agent, Revision(rejected.revision), &rejected.digest, rejected.reason);
                progress.refused = Some(rejected.digest);
            }
            Some(agent_message::Message::Status(status)) => {
                self.agents
                    .status(agent, serde_json::from_slice(&status.status).map_err(invalid)?);
                if !status.endpoints.is_empty() {
                    self.endpoints(agent, &status.endpoints);
                }
            }
            Some(agent_message::Message::ProbeResult(result)) => {
                let report = serde_json::from_slice(&result.report).map_err(invalid)?;
                self.agents.probe_result(agent, result.id, report);
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
        self.out
            .send(Ok(message))
            .await
            .map_err(|_| Status::cancelled("the agent went away"))
    }

    /// Stores where an agent is reached, if that is news.
    fn endpoints(&self, agent: &AgentId, told: &[String]) {
        let endpoints = resolve(told, self.peer);
        let known = self
            .writer
            .current()
            .topology
            .agents
            .get(agent)
            .map(|a| a.endpoints.clone());
        if endpoints.is_empty() || known.as_ref() == Some(&endpoints) {
            return;
        }
        let (writer, agent) = (self.writer.clone(), agent.clone());
        tokio::spawn(async move {
            let change = Change::SetEndpoints {
                agent: agent.clone(),
                endpoints,
            };
            if let Err(error) = writer.change(change).await {
                tracing::warn!(%agent, %error, "endpoints were not stored");
            }
        });
    }
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
