//! The state that request handlers share, and the authorization of requests.

use super::failure::Failure;
use crate::app::App;
use crate::asserted::Asserted;
use crate::auth::{Auth, AuthError};
use crate::captures::Captures;
use crate::connections;
use crate::deployments::Deployments;
use crate::monitors::Monitors;
use crate::packages::Packages;
use crate::reach_cache::ReachCache;
use crate::troubleshooting::Troubleshooting;
use http::header::{AUTHORIZATION, HOST};
use http::{Extensions, HeaderMap, StatusCode, Uri};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, Semaphore};

/// The state of all request handlers.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) app: Arc<App>,
    pub(crate) auth: Auth,
    pub(crate) captures: Captures,
    pub(crate) deployments: Deployments,
    pub(crate) monitors: Monitors,
    pub(crate) packages: Arc<Packages>,
    /// The places of tails of flow logs.
    pub(crate) tails: Arc<Semaphore>,
    pub(crate) reach: ReachCache,
    /// Held during a search for repairs.
    pub(crate) repairs: Arc<Mutex<()>>,
    pub(crate) troubleshooting: Troubleshooting,
    pub(crate) asserted: Asserted,
}

/// Who sends a request: an extension of requests that are recorded. Empty until the token has been checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller(Arc<OnceLock<String>>);

impl Caller {
    /// The id of the API token, also of the one with which a login token was issued. `None`: no valid token was shown.
    pub(super) fn get(&self) -> Option<String> {
        self.0.get().cloned()
    }

    fn set(&self, id: String) {
        self.0.get_or_init(|| id);
    }
}

impl Rest {
    /// Checks the bearer token of a request, an API token or a login token. A valid token moves the request's
    /// connection to the stage `bearer`, whose limits are larger.
    ///
    /// # Errors
    /// 401 if the token is missing, not valid or expired, with the challenge that tells stock clients where to log in.
    pub(crate) fn check(&self, headers: &HeaderMap, uri: &Uri, extensions: &Extensions) -> Result<(), Failure> {
        let authorization = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let (code, message) = match self.auth.check(authorization) {
            Ok(id) => {
                if let Some(caller) = extensions.get::<Caller>() {
                    caller.set(id);
                }
                if let Some(open) = extensions.get::<connections::Request>() {
                    open.authorized();
                }
                return Ok(());
            }
            Err(AuthError::Expired) => (
                "ExpiredAuthenticationToken",
                "The access token has expired: log in again.",
            ),
            Err(AuthError::Invalid) if authorization.is_none() => (
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing.",
            ),
            Err(AuthError::Invalid) => ("AuthenticationFailed", "Authentication failed. The token is not valid."),
        };
        let challenge = format!(
            "Bearer authorization_uri=\"{}/{}\", error=\"invalid_token\"",
            external_url(headers, uri),
            self.auth.tenant
        );
        Err(Failure::new(StatusCode::UNAUTHORIZED, code, message).challenge(challenge))
    }
}

/// The URL `https://HOST:PORT` at which the client reached this controller, for absolute URLs in responses. Host and
/// port are those of `uri` if it is absolute, otherwise those of the header `Host`. The result is `https://localhost`
/// if the request names no host, or a host with unusual characters.
pub(crate) fn external_url(headers: &HeaderMap, uri: &Uri) -> String {
    let named = headers.get(HOST).and_then(|v| v.to_str().ok());
    let authority = uri.authority().map(http::uri::Authority::as_str).or(named);
    let plain = |a: &&str| a.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]_".contains(c));
    format!("https://{}", authority.filter(plain).unwrap_or("localhost"))
}
