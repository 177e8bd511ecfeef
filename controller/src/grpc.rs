//! The control service: who may speak, and the task that serves each stream.

use crate::app::App;
use crate::ca;
use crate::http::{PeerAddr, PeerCertificate};
use crate::sync::{self, Session, closed};
use crate::writer::WriteError;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_proto::id::AgentId;
use tombolo_proto::wire;
use tombolo_proto::wire::control_server::Control;
use tombolo_topology::change::Change;
use tombolo_topology::sync::standing;
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
    /// pinned when it joined. With that key's fingerprint, which the request stays bound to.
    fn identify(&self, extensions: &Extensions, may_be_expired: bool) -> Result<(AgentId, String), Status> {
        let certificate = extensions.get::<PeerCertificate>().map(|c| &c.0);
        let certificate = certificate.ok_or_else(|| Status::unauthenticated("a client certificate is required"))?;
        let bad = |e: anyhow::Error| Status::unauthenticated(format!("the client certificate is not usable: {e}"));
        let (agent, expired) = ca::agent_of(certificate).map_err(bad)?;
        if expired && !may_be_expired {
            return Err(Status::unauthenticated("the certificate has expired: renew it"));
        }
        let key = ca::key_fingerprint(certificate).map_err(bad)?;
        let topology = self.0.writer.current().topology;
        match standing(topology.agents.get(&agent).map(|a| &**a), &key) {
            Ok(()) => Ok((agent, key)),
            Err(close) => Err(closed(&agent, close)),
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
        let (agent, key) = self.identify(request.extensions(), false)?;
        let peer = request.extensions().get::<PeerAddr>().map(|p| p.0.ip());
        let peer = peer.ok_or_else(|| Status::internal("the connection has no address"))?;
        let (out, stream) = mpsc::channel(4);
        let app = self.0.clone();
        tokio::spawn(async move {
            let session = Session {
                agents: &app.agents,
                writer: &app.writer,
                compiled: app.compiled.clone(),
                key,
                peer,
                out: out.clone(),
            };
            if let Err(status) = session.run(&agent, &mut request.into_inner()).await {
                tracing::debug!(%agent, %status, "control stream ended");
                // One that takes nothing is not waited for.
                let _ = tokio::time::timeout(sync::PATIENCE, out.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::RenewReply>, Status> {
        let (agent, key) = self.identify(request.extensions(), true)?;
        let signed = self.0.authority.sign(&agent, &request.get_ref().csr);
        let (certificate, certificate_key) = signed.map_err(|e| Status::invalid_argument(format!("{e:#}")))?;
        if certificate_key != key {
            let change = Change::SetCertificateKey {
                agent: agent.clone(),
                expected: key,
                certificate_key,
            };
            let stored = self.0.writer.change(change).await;
            stored.map_err(|e| match e {
                WriteError::Rejected(_) => Status::permission_denied(e.to_string()),
                WriteError::Store(_) => Status::unavailable(e.to_string()),
            })?;
        }
        tracing::info!(%agent, "certificate renewed");
        Ok(Response::new(wire::RenewReply { certificate }))
    }
}
