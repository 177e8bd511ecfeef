//! The control service: who may speak, and the task that serves each stream.

use crate::app::App;
use crate::ca;
use crate::http::{PeerAddr, PeerCertificate};
use crate::sync::Session;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_proto::id::AgentId;
use tombolo_proto::wire;
use tombolo_proto::wire::control_server::Control;
use tombolo_topology::change::Change;
use tonic::{Extensions, Request, Response, Status, Streaming};

/// Serves the control service.
#[derive(Debug, Clone)]
pub struct ControlService(Arc<App>);

impl ControlService {
    /// Over this state.
    #[must_use]
    pub const fn new(app: Arc<App>) -> Self {
        Self(app)
    }

    /// The agent behind a request: its certificate is ours, names an agent that is not revoked, and has the key that was
    /// pinned when it joined.
    fn identify(&self, extensions: &Extensions, may_be_expired: bool) -> Result<AgentId, Status> {
        let certificate = extensions.get::<PeerCertificate>().map(|c| &c.0);
        let certificate = certificate.ok_or_else(|| Status::unauthenticated("a client certificate is required"))?;
        let bad = |e: anyhow::Error| Status::unauthenticated(format!("the client certificate is not usable: {e}"));
        let (agent, expired) = ca::agent_of(certificate).map_err(bad)?;
        if expired && !may_be_expired {
            return Err(Status::unauthenticated("the certificate has expired: renew it"));
        }
        let key = ca::key_fingerprint(certificate).map_err(bad)?;
        let topology = self.0.writer.current().topology;
        match topology.agents.get(&agent) {
            None => Err(Status::permission_denied(format!(
                "{agent} is no agent of this controller"
            ))),
            Some(a) if a.revoked => Err(Status::permission_denied(format!("{agent} was revoked"))),
            Some(a) if a.certificate_key != key => {
                Err(Status::permission_denied(format!("{agent} joined with another key")))
            }
            Some(_) => Ok(agent),
        }
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    type SyncStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::ControllerMessage, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let agent = self.identify(request.extensions(), false)?;
        let peer = request.extensions().get::<PeerAddr>().map(|p| p.0.ip());
        let peer = peer.ok_or_else(|| Status::internal("the connection has no address"))?;
        let (out, stream) = mpsc::channel(4);
        let app = self.0.clone();
        tokio::spawn(async move {
            let session = Session {
                agents: &app.agents,
                writer: &app.writer,
                compiled: app.compiled.clone(),
                peer,
                out: out.clone(),
            };
            if let Err(status) = session.run(&agent, &mut request.into_inner()).await {
                tracing::debug!(%agent, %status, "control stream ended");
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::RenewReply>, Status> {
        let agent = self.identify(request.extensions(), true)?;
        let signed = self.0.authority.sign(&agent, &request.get_ref().csr);
        let (certificate, certificate_key) = signed.map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
        let known = self
            .0
            .writer
            .current()
            .topology
            .agents
            .get(&agent)
            .map(|a| a.certificate_key.clone());
        if known.as_ref() != Some(&certificate_key) {
            let change = Change::SetCertificateKey {
                agent: agent.clone(),
                certificate_key,
            };
            self.0
                .writer
                .change(change)
                .await
                .map_err(|e| Status::unavailable(e.to_string()))?;
        }
        tracing::info!(%agent, "certificate renewed");
        Ok(Response::new(wire::RenewReply { certificate }))
    }
}
