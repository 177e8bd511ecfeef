//! The control service: who may speak, and the task that serves each stream.

use crate::app::App;
use crate::ca;
use crate::http::{PeerAddr, PeerCertificate};
use crate::sync::{self, Session, closed};
use crate::writer::WriteError;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::middleware::{self, Next};
use axum::response::Response as HttpResponse;
use http_body_util::{BodyExt, Limited};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_proto::id::AgentId;
use tombolo_proto::wire;
use tombolo_proto::wire::control_server::{Control, ControlServer};
use tombolo_topology::change::Change;
use tombolo_topology::sync::authorize;
use tonic::{Extensions, Request, Response, Status, Streaming};

/// Largest configuration that travels, bytes.
const MAX_CONFIG: usize = 64 << 20;

/// Largest message of an agent, bytes.
const MAX_FROM_AGENT: usize = 1 << 20;

/// Where agents renew their certificates.
const RENEW: &str = "/tombolo.v1.Control/Renew";

/// Largest request for a renewal, bytes. A certificate signing request has some 500.
const MAX_RENEWAL: usize = 16 << 10;

/// For a whole request for a renewal to arrive.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The service of the agents. Who calls is found out before the body of a request is looked at: decoding it reserves as much
/// memory as its first bytes say.
pub fn router(app: &Arc<App>) -> Router {
    let control = ControlServer::new(ControlService(app.clone()))
        .max_decoding_message_size(MAX_FROM_AGENT)
        .max_encoding_message_size(MAX_CONFIG);
    Router::new()
        .route_service("/tombolo.v1.Control/{*method}", control)
        .route_layer(middleware::from_fn_with_state(app.clone(), admit))
}

/// Lets agents through, with [`Caller`] in the extensions of the request.
async fn admit(State(app): State<Arc<App>>, mut request: HttpRequest, next: Next) -> HttpResponse {
    let renewal = request.uri().path() == RENEW;
    let caller = match request.extensions().get::<PeerCertificate>() {
        Some(certificate) => identify(&app, certificate, renewal),
        None => Err(Status::unauthenticated("a client certificate is required")),
    };
    match caller {
        Ok(caller) => request.extensions_mut().insert(caller),
        Err(status) => {
            app.metrics.control_refused.fetch_add(1, Ordering::Relaxed);
            return status.into_http();
        }
    };
    if renewal {
        let (head, body) = request.into_parts();
        let whole = tokio::time::timeout(RENEWAL_TIMEOUT, Limited::new(body, MAX_RENEWAL).collect()).await;
        let body = match whole {
            Ok(Ok(whole)) => Body::from(whole.to_bytes()),
            Ok(Err(error)) => {
                let status = Status::resource_exhausted(format!(
                    "the request is longer than {MAX_RENEWAL} bytes, or broke off: {error}"
                ));
                return status.into_http();
            }
            Err(_) => {
                let status = Status::deadline_exceeded("the request did not arrive in time");
                return status.into_http();
            }
        };
        request = HttpRequest::from_parts(head, body);
    }
    next.run(request).await
}

/// The agent behind a request: an extension of the requests that [`router`] serves.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) agent: AgentId,
    /// Fingerprint of the key, which the request stays bound to.
    key: String,
}

/// The agent behind a certificate: the certificate is ours, names an agent that is not revoked, and has the key that was
/// pinned when it joined.
///
/// # Errors
/// Why not, for the agent.
pub(crate) fn identify(app: &App, certificate: &PeerCertificate, may_be_expired: bool) -> Result<Caller, Status> {
    let certificate = &certificate.0;
    let bad = |e: anyhow::Error| Status::unauthenticated(format!("the client certificate is not usable: {e}"));
    let (agent, expired) = ca::agent_of(certificate).map_err(bad)?;
    if expired && !may_be_expired {
        return Err(Status::unauthenticated("the certificate has expired: renew it"));
    }
    let key = ca::key_fingerprint(certificate).map_err(bad)?;
    let topology = app.writer.current().topology;
    match authorize(topology.agents.get(&agent).map(|a| &**a), &key) {
        Ok(()) => Ok(Caller { agent, key }),
        Err(close) => Err(closed(&agent, close)),
    }
}

/// Serves the control service.
#[derive(Debug, Clone)]
struct ControlService(Arc<App>);

/// Who was let through.
fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    let caller = extensions.get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("nobody looked who calls"))
}

#[tonic::async_trait]
impl Control for ControlService {
    type SyncStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::ControllerMessage, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let Caller { agent, key } = caller(request.extensions())?;
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
        let Caller { agent, key } = caller(request.extensions())?;
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
