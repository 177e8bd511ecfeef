//! Join tokens, and the joining of agents. The transaction that creates an agent deletes its join token, so that the
//! token works only once.

use crate::auth::{now, public_part};
use crate::peer::PeerAddr;
use crate::rest::failure::{Failure, at_revision, empty, excerpt, ok, reply};
use crate::rest::{Rest, json};
use crate::{endpoints, secret};
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::json as object;
use std::sync::Arc;
use tombolo_proto::fabric::{Binding, JoinReply, JoinRequest, ListResponse, NewToken, Token, TokenRequest};
use tombolo_topology::change::Change;
use tombolo_topology::resource::{Agent, JoinToken, Reach};

/// First part of the text of a join token, which has the form `tmb1.ID.SECRET.PIN`. PIN is the SHA-256 of the
/// authority's certificate.
const TOKEN_PREFIX: &str = "tmb1";
/// First part of the text of a join token for a site probe (M10). The host learns from it that it is a probe, before it
/// joins. An agent that is too old for this role does not accept such a token.
const PROBE_TOKEN_PREFIX: &str = "tmb1probe";

const fn prefix_of(binding: &Binding) -> &'static str {
    match binding {
        Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } => TOKEN_PREFIX,
        Binding::Site { .. } => PROBE_TOKEN_PREFIX,
    }
}
/// Lifetime of a join token in seconds if the request has no `ttlSeconds`: an hour, which is enough to start a machine.
const DEFAULT_LIFETIME_SECONDS: u64 = 3600;
/// Longest lifetime of a join token in seconds: 30 days, for machines that are prepared long before their first start.
const MAX_LIFETIME_SECONDS: u64 = 30 * 24 * 3600;

/// POST `tokens`: creates a join token for an agent. The response has its text, which is not stored.
pub(super) async fn create(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let requested: TokenRequest = json::typed(request).await?;
    let lifetime = requested.ttl_seconds.unwrap_or(DEFAULT_LIFETIME_SECONDS);
    if !(1..=MAX_LIFETIME_SECONDS).contains(&lifetime) {
        let message = format!("ttlSeconds: {lifetime} is not within 1 to {MAX_LIFETIME_SECONDS}");
        return Err(Failure::bad("InvalidRequestFormat", message).at("ttlSeconds"));
    }
    let (id, secret) = (public_part(), secret::random());
    let token = JoinToken {
        id: id.clone(),
        hash: secret::hash(&secret),
        agent: requested.agent.clone(),
        binding: requested.binding,
        expires: now() + lifetime,
    };
    let (expires, prefix) = (token.expires, prefix_of(&token.binding));
    let committed = rest.app.writer.change(Change::PutToken(token)).await?;
    let text = format!("{prefix}.{id}.{secret}.{}", rest.app.authority.pin());
    tracing::info!(token = id, agent = %requested.agent, "join token created");
    let body = object!(NewToken {
        id,
        token: text,
        agent: requested.agent,
        expires,
    });
    Ok(at_revision(
        reply(StatusCode::CREATED, &body),
        committed.published.revision,
    ))
}

/// GET `tokens`: unused join tokens, without their secrets.
pub(super) async fn list(State(rest): State<Arc<Rest>>) -> Response {
    let topology = rest.app.writer.current().topology;
    let view = |t: &Arc<JoinToken>| Token {
        id: t.id.clone(),
        agent: t.agent.clone(),
        binding: t.binding.clone(),
        expires: t.expires,
    };
    let value: Vec<Token> = topology.tokens.values().map(view).collect();
    ok(&object!(ListResponse { value }))
}

/// DELETE `tokens/{id}`: the token cannot be used any more.
pub(super) async fn delete(State(rest): State<Arc<Rest>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let committed = rest.app.writer.change(Change::DeleteToken(id)).await?;
    Ok(at_revision(empty(StatusCode::NO_CONTENT), committed.published.revision))
}

/// POST `join`: creates the agent of a join token. The token in the body is the only credential.
pub(super) async fn join(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let peer = request.extensions().get::<PeerAddr>().map(|p| p.0.ip());
    let joining: JoinRequest = json::typed_within(request, json::MAX_OPEN_BODY).await?;
    let token = find(&rest, &joining.token)?;
    let quic: Vec<String> = joining.quic_endpoint.into_iter().collect();
    for (field, reported) in [("endpoints", &joining.endpoints), ("quicEndpoint", &quic)] {
        if let Some(bad) = reported.iter().find(|e| e.parse::<std::net::SocketAddr>().is_err()) {
            let message = format!("{field}: '{}' is not of the form ADDRESS:PORT", excerpt(bad));
            return Err(Failure::bad("XInvalidEndpoint", message).at(field));
        }
    }
    let resolved = |reported: &[String]| peer.map(|seen| endpoints::resolve(reported, seen)).unwrap_or_default();
    let is_probe = matches!(token.binding, Binding::Site { .. });
    let reported = || Reach {
        endpoints: resolved(&joining.endpoints),
        quic_endpoint: resolved(&quic).pop(),
        lanes: joining.lanes.unwrap_or(1),
        // The agent's first Hello says more.
        many_routes: false,
    };
    // M10: a site probe has no links, so no endpoint of its host is stored.
    let reach = if is_probe { Reach::at(Vec::new()) } else { reported() };
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
    let body = object!(JoinReply {
        agent: token.agent.clone(),
        certificate,
        ca: rest.app.authority.pem().to_owned(),
    });
    Ok(at_revision(ok(&body), committed.published.revision))
}

/// The join token with this text.
///
/// # Errors
/// Status 403. The message says whether the token has expired. It does not say whether the id or the secret is wrong,
/// so that nobody can find out which ids exist.
fn find(rest: &Rest, text: &str) -> Result<Arc<JoinToken>, Failure> {
    let refuse = |message: &str| Failure::new(StatusCode::FORBIDDEN, "XTokenInvalid", message).at("token");
    let mut parts = text.trim().split('.');
    let (Some(prefix @ (TOKEN_PREFIX | PROBE_TOKEN_PREFIX)), Some(id), Some(secret)) =
        (parts.next(), parts.next(), parts.next())
    else {
        return Err(refuse("token: not a join token; the form is tmb1.ID.SECRET.PIN"));
    };
    let topology = rest.app.writer.current().topology;
    let token = topology.tokens.get(id).filter(|t| secret::matches(secret, &t.hash));
    let token = token.filter(|t| prefix_of(&t.binding) == prefix);
    match token {
        Some(token) if token.expires > now() => Ok(token.clone()),
        Some(_) => Err(refuse("token: it has expired; create a new one")),
        None => Err(refuse(
            "token: it does not exist, was used already, or was deleted; create a new one",
        )),
    }
}
