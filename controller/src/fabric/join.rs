//! Join tokens, and joining: a token is used up in the transaction that makes its agent.

use crate::auth::{now, public_part};
use crate::peer::PeerAddr;
use crate::rest::failure::{Failure, at_revision, empty, ok, reply, shown};
use crate::rest::{Rest, json};
use crate::{endpoints, secret};
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json as object;
use std::sync::Arc;
use tombolo_proto::fabric;
use tombolo_proto::id::{AgentId, PublicKey};
use tombolo_topology::change::Change;
use tombolo_topology::resource::{Agent, Binding, JoinToken, Reach};

/// First part of a token's text.
const KIND: &str = "tmb1";
/// Seconds that a token is valid unless asked otherwise, and at most.
const LIFE: (u64, u64) = (3600, 30 * 24 * 3600);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NewToken {
    agent: AgentId,
    binding: Binding,
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

/// POST `tokens`.
pub(super) async fn create(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let wanted: NewToken = json::typed(request).await?;
    let life = wanted.ttl_seconds.unwrap_or(LIFE.0);
    if !(1..=LIFE.1).contains(&life) {
        let message = format!("ttlSeconds: {life} is not within 1 to {}", LIFE.1);
        return Err(Failure::bad("InvalidRequestFormat", message).at("ttlSeconds"));
    }
    let (id, secret) = (public_part(), secret::random());
    let token = JoinToken {
        id: id.clone(),
        hash: secret::hash(&secret),
        agent: wanted.agent.clone(),
        binding: wanted.binding,
        expires: now() + life,
    };
    let expires = token.expires;
    let committed = rest.app.writer.change(Change::PutToken(token)).await?;
    let text = format!("{KIND}.{id}.{secret}.{}", rest.app.authority.pin());
    tracing::info!(token = id, agent = %wanted.agent, "join token made");
    let body = object!(fabric::NewToken {
        id,
        token: text,
        agent: wanted.agent,
        expires,
    });
    Ok(at_revision(
        reply(StatusCode::CREATED, &body),
        committed.published.revision,
    ))
}

/// GET `tokens`.
pub(super) async fn list(State(rest): State<Arc<Rest>>) -> Response {
    let topology = rest.app.writer.current().topology;
    let view = |t: &Arc<JoinToken>| object!({"id": t.id, "agent": t.agent, "binding": t.binding, "expires": t.expires});
    let value: Vec<_> = topology.tokens.values().map(view).collect();
    ok(&object!({"value": value}))
}

/// DELETE `tokens/{id}`.
pub(super) async fn delete(State(rest): State<Arc<Rest>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let committed = rest.app.writer.change(Change::DeleteToken(id)).await?;
    Ok(at_revision(empty(StatusCode::NO_CONTENT), committed.published.revision))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Joining {
    token: String,
    csr: String,
    public_key: PublicKey,
    #[serde(default)]
    endpoints: Vec<String>,
    #[serde(default)]
    quic_endpoint: Option<String>,
    #[serde(default)]
    lanes: Option<u16>,
}

/// POST `join`: needs no other credential than the token in its body.
pub(super) async fn join(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let peer = request.extensions().get::<PeerAddr>().map(|p| p.0.ip());
    let joining: Joining = json::typed_within(request, json::MAX_OPEN_BODY).await?;
    let token = find(&rest, &joining.token)?;
    let quic: Vec<String> = joining.quic_endpoint.into_iter().collect();
    for (what, told) in [("endpoints", &joining.endpoints), ("quicEndpoint", &quic)] {
        if let Some(bad) = told.iter().find(|e| e.parse::<std::net::SocketAddr>().is_err()) {
            let message = format!("{what}: '{}' is not written as ADDRESS:PORT", shown(bad));
            return Err(Failure::bad("XInvalidEndpoint", message).at(what));
        }
    }
    let resolved = |told: &[String]| peer.map(|seen| endpoints::resolve(told, seen)).unwrap_or_default();
    let reach = Reach {
        endpoints: resolved(&joining.endpoints),
        quic_endpoint: resolved(&quic).pop(),
        lanes: joining.lanes.unwrap_or(1),
    };
    let signed = rest.app.authority.sign(&token.agent, &joining.csr);
    let (certificate, certificate_key) =
        signed.map_err(|e| Failure::bad("InvalidRequestFormat", format!("{e:#}")).at("csr"))?;
    let agent = Agent {
        id: token.agent.clone(),
        binding: token.binding.clone(),
        public_key: joining.public_key,
        certificate_key,
        reach,
        revoked: false,
    };
    let change = Change::Join {
        token: token.id.clone(),
        agent,
    };
    let committed = rest.app.writer.change(change).await?;
    tracing::info!(agent = %token.agent, token = token.id, "agent joined");
    let body = object!({"agent": token.agent, "certificate": certificate, "ca": rest.app.authority.pem()});
    Ok(at_revision(ok(&body), committed.published.revision))
}

/// The token whose text this is. What is wrong with it is not told apart, except that it is too late.
fn find(rest: &Rest, text: &str) -> Result<Arc<JoinToken>, Failure> {
    let refuse = |message: &str| Failure::new(StatusCode::FORBIDDEN, "XTokenInvalid", message).at("token");
    let mut parts = text.trim().split('.');
    let (Some(KIND), Some(id), Some(secret)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(refuse("token: not a join token; it has the form tmb1.ID.SECRET.PIN"));
    };
    let topology = rest.app.writer.current().topology;
    let token = topology.tokens.get(id).filter(|t| secret::matches(secret, &t.hash));
    match token {
        Some(token) if token.expires > now() => Ok(token.clone()),
        Some(_) => Err(refuse("token: it has expired")),
        None => Err(refuse("token: it does not exist, was used already, or was deleted")),
    }
}
