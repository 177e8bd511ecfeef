//! What every request handler needs, and whether a request may reach it.

use super::failure::Failure;
use crate::app::App;
use crate::auth::{Auth, Refused};
use crate::connections;
use crate::deployments::Deployments;
use crate::packages::Packages;
use http::header::{AUTHORIZATION, HOST};
use http::{Extensions, HeaderMap, StatusCode, Uri};
use std::sync::Arc;

/// What every request handler needs.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) app: Arc<App>,
    pub(crate) auth: Auth,
    pub(crate) deployments: Deployments,
    pub(crate) packages: Arc<Packages>,
}

impl Rest {
    /// Whether a request carries a valid token. If so, its connection is no stranger's any more.
    pub(crate) fn check(&self, headers: &HeaderMap, uri: &Uri, extensions: &Extensions) -> Result<(), Failure> {
        let authorization = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
        let (code, message) = match self.auth.check(authorization) {
            Ok(_) => {
                if let Some(open) = extensions.get::<connections::Request>() {
                    open.authorized();
                }
                return Ok(());
            }
            Err(Refused::Expired) => (
                "ExpiredAuthenticationToken",
                "The access token has expired: log in again.",
            ),
            Err(Refused::Invalid) if authorization.is_none() => (
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing.",
            ),
            Err(Refused::Invalid) => ("AuthenticationFailed", "Authentication failed. The token is not valid."),
        };
        let challenge = format!(
            "Bearer authorization_uri=\"{}/{}\", error=\"invalid_token\"",
            base(headers, uri),
            self.auth.tenant
        );
        Err(Failure::new(StatusCode::UNAUTHORIZED, code, message).challenge(challenge))
    }
}

/// The base of URLs that are handed out: the one that the caller used.
pub(crate) fn base(headers: &HeaderMap, uri: &Uri) -> String {
    let named = headers.get(HOST).and_then(|v| v.to_str().ok());
    let authority = uri.authority().map(http::uri::Authority::as_str).or(named);
    let plain = |a: &&str| a.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]_".contains(c));
    format!("https://{}", authority.filter(plain).unwrap_or("localhost"))
}
