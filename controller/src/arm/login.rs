//! Discovery (cloud metadata, OpenID Connect) and login (OAuth 2.0) for stock clients. These requests need no token.

use super::call::Call;
use crate::auth::LOGIN_LIFETIME;
use crate::rest::Rest;
use crate::rest::failure::{Failure, ok, reply};
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// A request that needs no token.
enum OpenRequest<'a> {
    /// The metadata of the cloud.
    Metadata,
    /// The OpenID configuration of an authority, i.e. of an issuer of login tokens. The first value has the segments of
    /// the authority's path in lower case. If the second one is true, the endpoints in the response contain `/v2.0`.
    OpenId(&'a [&'a str], bool),
    /// The OpenID configuration of the tenant. Each name means the one tenant.
    Tenant,
    /// The list of public keys for verifying tokens. It is empty, because tokens have a symmetric signature.
    Keys,
    /// A login with the client-credentials grant.
    Token,
}

/// Returns which request without a token this is, by its method and its path in lower case. `None`: the request needs a
/// token.
fn open_request<'a>(method: &Method, path: &'a [&'a str]) -> Option<OpenRequest<'a>> {
    Some(match (method.as_str(), path) {
        ("GET", ["metadata", "endpoints"]) => OpenRequest::Metadata,
        // `az login --tenant NAME` asks below the login endpoint, and takes the tenant's id from the issuer.
        ("GET", ["adfs", _, "v2.0", ".well-known", "openid-configuration"]) => OpenRequest::Tenant,
        ("GET", [authority @ .., "v2.0", ".well-known", "openid-configuration"]) if authority.len() == 1 => {
            OpenRequest::OpenId(authority, true)
        }
        ("GET", [authority @ .., ".well-known", "openid-configuration"]) if (1..=2).contains(&authority.len()) => {
            OpenRequest::OpenId(authority, authority.len() == 2)
        }
        ("GET", ["discovery", "keys"]) => OpenRequest::Keys,
        ("POST", [authority @ .., "oauth2", "v2.0", "token"] | [authority @ .., "oauth2", "token"])
            if (1..=2).contains(&authority.len()) =>
        {
            OpenRequest::Token
        }
        _ => return None,
    })
}

/// Whether a request is served without a token, by its method and path.
pub(super) fn needs_no_token(call: &Call) -> bool {
    let path: Vec<&str> = call.lower.iter().map(String::as_str).collect();
    open_request(&call.method, &path).is_some()
}

/// Serves a request for which [`needs_no_token`] is true. The response to any other request is 404.
pub(super) fn serve(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path: Vec<&str> = call.lower.iter().map(String::as_str).collect();
    match open_request(&call.method, &path) {
        Some(OpenRequest::Metadata) => Ok(metadata(rest, call)),
        Some(OpenRequest::OpenId(authority, v2)) => Ok(openid(call, &authority.join("/"), v2)),
        Some(OpenRequest::Tenant) => Ok(openid(call, &rest.auth.tenant.to_string(), true)),
        Some(OpenRequest::Keys) => Ok(ok(&json!({"keys": []}))),
        Some(OpenRequest::Token) => token(rest, call),
        None => Err(call.not_found()),
    }
}

/// The metadata that `az cloud register` and the SDKs read. If the path of the login endpoint is `/adfs`, clients do
/// not ask Azure's public cloud whether the authority is genuine.
fn metadata(rest: &Rest, call: &Call) -> Response {
    let base = &call.base;
    let body = json!({
        "name": "Tombolo",
        "portal": base,
        "resourceManager": format!("{base}/"),
        "authentication": {
            "loginEndpoint": format!("{base}/adfs"),
            "audiences": [base],
            "tenant": rest.auth.tenant,
            "identityProvider": "ADFS",
        },
        "graphAudience": format!("{base}/graph"),
        "graph": format!("{base}/graph"),
        "microsoftGraphResourceId": format!("{base}/graph/"),
        "gallery": base,
        "batch": base,
        "media": base,
        "sqlManagement": base,
        "activeDirectoryDataLake": base,
        "vmImageAliasDoc": format!("{base}/aliases.json"),
        "suffixes": {"storage": "core.local", "keyVaultDns": "vault.local"},
    });
    // In these versions of the metadata API, the response is an array of clouds.
    let version = call.query.get("api-version").map(String::as_str).unwrap_or_default();
    if version.starts_with("2019-") || version.starts_with("2020-") {
        ok(&json!([body]))
    } else {
        ok(&body)
    }
}

/// The OpenID configuration of an authority: the URLs of its endpoints. `v2`: these contain `/v2.0`.
fn openid(call: &Call, authority: &str, v2: bool) -> Response {
    let issuer = format!("{}/{authority}", call.base);
    let endpoints = format!("{issuer}/oauth2{}", if v2 { "/v2.0" } else { "" });
    ok(&json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{endpoints}/authorize"),
        "token_endpoint": format!("{endpoints}/token"),
        "device_authorization_endpoint": format!("{endpoints}/devicecode"),
        "jwks_uri": format!("{}/discovery/keys", call.base),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "response_types_supported": ["code", "token"],
        "response_modes_supported": ["query", "form_post"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["HS256"],
        "scopes_supported": ["openid"],
    }))
}

/// The client-credentials grant (RFC 6749, section 4.4): `client_id` is the id of an API token, `client_secret` its
/// text.
fn token(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let form = call.form()?;
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    if field("grant_type") != "client_credentials" {
        let message = "grant_type: only client_credentials is supported; log in as a service principal.";
        return Ok(refuse(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            message,
            70003,
        ));
    }
    let scope = [field("scope"), field("resource"), &call.base]
        .into_iter()
        .find(|s| !s.is_empty());
    let audience = scope.unwrap_or_default();
    let audience = audience.strip_suffix("/.default").unwrap_or(audience);
    let issuer = format!("{}/{}", call.base, rest.auth.tenant);
    match rest
        .auth
        .login(field("client_id"), field("client_secret"), audience, &issuer)
    {
        Some(token) => {
            // The response states one second less than the token's lifetime, because the response itself takes time to
            // arrive.
            let seconds = LOGIN_LIFETIME.as_secs() - 1;
            Ok(ok(&json!({
                "token_type": "Bearer",
                "expires_in": seconds,
                "ext_expires_in": seconds,
                "access_token": token,
            })))
        }
        None => {
            let message = "Invalid client: client_id must be the id of an API token, and client_secret its text.";
            Ok(refuse(StatusCode::UNAUTHORIZED, "invalid_client", message, 7_000_215))
        }
    }
}

/// An error response of OAuth 2.0, with the code of Azure's error (AADSTS).
fn refuse(status: StatusCode, error: &str, description: &str, code: u32) -> Response {
    let body: Value = json!({"error": error, "error_description": description, "error_codes": [code]});
    reply(status, &body)
}
