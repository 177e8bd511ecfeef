//! The control service of the agents: authorization, streams and certificate renewal.

use crate::app::App;
use crate::ca;
use crate::peer::{PeerAddr, PeerCertificate};
use crate::sync::{self, Session, permission_denied};
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
use tombolo_proto::control_stream;
use tombolo_proto::control_stream::control_server::{Control, ControlServer};
use tombolo_proto::id::AgentId;
use tombolo_topology::change::Change;
use tombolo_topology::sync::authorize;
use tonic::{Extensions, Request, Response, Status, Streaming};

/// Largest message with a configuration that the controller can send, in bytes. Agents accept no more than 32 MiB, so
/// in practice the limit of the agents applies.
const MAX_CONFIG: usize = 64 << 20;

/// Largest message that an agent may send, in bytes.
const MAX_FROM_AGENT: usize = 1 << 20;

/// The path of the method that renews certificates.
const RENEW: &str = "/tombolo.v1.Control/Renew";

/// Size of the largest body of a renewal, in bytes. A certificate signing request has some 500 bytes.
const MAX_RENEWAL: usize = 16 << 10;

/// Longest time until the whole body of a renewal has arrived. Such a body fits into one or two packets, so the time is
/// enough for many retransmissions.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The routes of the control service. A client is identified before the body of its request is read, because the gRPC
/// decoder reserves as much memory as the length in front of a message states. The server must add [`PeerAddr`] and, if
/// the client has shown a certificate, [`PeerCertificate`] to the extensions of each request. A request without a
/// certificate gets the status `UNAUTHENTICATED`.
pub fn router(app: &Arc<App>) -> Router {
    let control = ControlServer::new(ControlService(app.clone()))
        .max_decoding_message_size(MAX_FROM_AGENT)
        .max_encoding_message_size(MAX_CONFIG);
    Router::new()
        .route_service("/tombolo.v1.Control/{*method}", control)
        .route_layer(middleware::from_fn_with_state(app.clone(), authenticate))
}

/// Middleware that admits agents, and adds [`Caller`] to the extensions of their requests. An agent with an expired
/// certificate may call the renewal, so the size of a renewal's body is limited before the body is decoded.
async fn authenticate(State(app): State<Arc<App>>, mut request: HttpRequest, next: Next) -> HttpResponse {
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
                    "the request is longer than {MAX_RENEWAL} bytes or incomplete: {error}"
                ));
                return status.into_http();
            }
            Err(_) => {
                let status =
                    Status::deadline_exceeded(format!("the request did not arrive within {RENEWAL_TIMEOUT:?}"));
                return status.into_http();
            }
        };
        request = HttpRequest::from_parts(head, body);
    }
    next.run(request).await
}

/// The agent that sends a request: an extension of the requests that [`router`] serves.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) agent: AgentId,
    /// The fingerprint of the key in the client's certificate. A stream ends when the controller has pinned another key
    /// for the agent.
    key: String,
}

/// Identifies the agent of a client certificate, whose signature TLS has verified. By the present desired state, the
/// agent must exist, must not be revoked, and must have the key that was pinned at its joining or last renewal. An
/// expired certificate is accepted only if `may_be_expired` is true.
///
/// # Errors
/// The status for the client: `unauthenticated` if the certificate is malformed or expired, otherwise
/// `permission_denied`.
pub(crate) fn identify(app: &App, certificate: &PeerCertificate, may_be_expired: bool) -> Result<Caller, Status> {
    let certificate = &certificate.0;
    let bad = |e: anyhow::Error| Status::unauthenticated(format!("the client certificate is not valid: {e}"));
    let (agent, expired) = ca::agent_of(certificate).map_err(bad)?;
    if expired && !may_be_expired {
        return Err(Status::unauthenticated("the client certificate has expired: renew it"));
    }
    let key = ca::key_fingerprint(certificate).map_err(bad)?;
    let topology = app.writer.current().topology;
    match authorize(topology.agents.get(&agent).map(|a| &**a), &key) {
        Ok(()) => Ok(Caller { agent, key }),
        Err(close) => Err(permission_denied(&agent, close)),
    }
}

/// The implementation of the control service.
#[derive(Debug, Clone)]
struct ControlService(Arc<App>);

/// The agent that `authenticate` has identified.
fn caller(extensions: &Extensions) -> Result<Caller, Status> {
    let caller = extensions.get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("the request was not authenticated"))
}

#[tonic::async_trait]
impl Control for ControlService {
    type SyncStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<control_stream::ControllerMessage, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<control_stream::AgentMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let Caller { agent, key } = caller(request.extensions())?;
        let peer = request.extensions().get::<PeerAddr>().map(|p| p.0.ip());
        let peer = peer.ok_or_else(|| Status::internal("the address of the client is unknown"))?;
        // At most 4 messages wait here. Each may be a large configuration, which takes memory until the agent reads it.
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
                // The status does not arrive if the agent does not read or has disconnected. The stream ends in any
                // case.
                let _ = tokio::time::timeout(sync::SEND_TIMEOUT, out.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn renew(
        &self,
        request: Request<control_stream::RenewRequest>,
    ) -> Result<Response<control_stream::RenewReply>, Status> {
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
        Ok(Response::new(control_stream::RenewReply { certificate }))
    }
}
