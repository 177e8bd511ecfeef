//! The client of one controller. It sends requests, and reads responses and errors. The response to each write gives
//! the revision of the controller's store after that write, and the client remembers the largest of these numbers.

use crate::error::{ApiError, Error};
use reqwest::{Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tombolo_proto::id::Revision;

/// The header that the response to every write has. Its value is the store's revision after that write.
const REVISION_HEADER: &str = "x-tombolo-revision";
/// Longest time to establish a TCP and TLS connection. If it takes longer, the controller is reported as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a request may take, unless the call sets another timeout.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of one controller, authenticated by at most one token. Clones are cheap; they share the pool of connections
/// and the last revision.
///
/// The async methods send requests over HTTPS, and panic outside of a Tokio runtime. Several calls may run at the same
/// time. A request without a response within 60 s ends with [`Error::Timeout`], unless the method states another time.
/// If a method ends with an error other than [`Error::Api`] or [`Error::Invalid`], or its future is dropped, the
/// controller may have carried out the request nevertheless.
///
/// A parameter `path` begins with `/`, such as `/subscriptions/…` (see [`crate::path`]), and has no query. Instead of a
/// path, an absolute URL of the same controller is accepted. A path or an id with whitespace, `?`, `#`, `%`, `\` or a
/// segment `.` or `..` ends with [`Error::Invalid`], and nothing is sent. ARM requests get the `api-version`
/// [`API_VERSION`](crate::path::API_VERSION).
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Arc<str>>,
    revision: Arc<AtomicU64>,
}

/// The body of a request: none, or a JSON value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    None,
    Json(&'a Value),
}

impl Client {
    /// Returns a client of the controller at `base` (`https://host:port`). This function does not connect, so a wrong
    /// token or certificate shows at the first request. If the process has no default cryptography provider of rustls,
    /// aws-lc-rs becomes the default.
    ///
    /// The client trusts only the certificates in `ca_pem`. If `ca_pem` is `None`, it trusts the system's authorities.
    /// Proxy settings of the environment are ignored, and redirects are not followed. Whitespace around `token` is
    /// removed; without a token, the controller answers only a few requests.
    ///
    /// # Errors
    /// [`Error::Invalid`]: `base` is not an https URL without a path, `ca_pem` holds no certificate in PEM, or TLS
    /// cannot be set up.
    pub fn new(base: &str, token: Option<&str>, ca_pem: Option<&str>) -> Result<Self, Error> {
        Self::with_http(base, token, ca_pem, |http| http)
    }

    /// As [`Self::new`]; `customize` gets the builder with the settings that [`Self::new`] describes, and can change
    /// how connections are made, for example from another network namespace.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_http(
        base: &str,
        token: Option<&str>,
        ca_pem: Option<&str>,
        customize: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Result<Self, Error> {
        let base =
            Url::parse(base).map_err(|e| Error::Invalid(format!("the controller '{base}' is not a URL: {e}")))?;
        if base.scheme() != "https" || base.host().is_none() || !matches!(base.path(), "" | "/") {
            return Err(Error::Invalid(format!(
                "the controller '{base}' must be written as https://host:port"
            )));
        }
        // reqwest is built without a cryptography provider for TLS, so one is installed here. The call fails if the
        // program has installed a provider already; that one then stays in use.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT);
        if let Some(pem) = ca_pem {
            let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|e| Error::Invalid(format!("the CA is not a PEM certificate: {e}")))?;
            if certificates.is_empty() {
                return Err(Error::Invalid("the CA file holds no PEM certificate".into()));
            }
            builder = builder.tls_certs_only(certificates);
        }
        let http = customize(builder)
            .build()
            .map_err(|e| Error::Invalid(format!("cannot set up TLS: {e}")))?;
        Ok(Self {
            http,
            base,
            token: token.map(|t| t.trim().into()),
            revision: Arc::default(),
        })
    }

    /// Returns the controller's URL without a trailing `/`.
    #[must_use]
    pub fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// Returns the largest revision in the responses to this client and its clones so far; 0 before the first one. The
    /// responses to all writes have a revision: that of the store after the write. The responses to
    /// [`Self::agent_config`] and [`Self::agent_tables`] have one too: that of the state from which they are computed.
    #[must_use]
    pub fn last_revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Relaxed))
    }

    /// Sends one request, and turns an error status into an [`Error::Api`]. Returns when the head of the response has
    /// arrived. `path` begins with `/`, or is an absolute URL of this controller. `timeout` replaces
    /// [`REQUEST_TIMEOUT`], for requests to which the controller responds late.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Body<'_>,
        timeout: Option<Duration>,
    ) -> Result<Response, Error> {
        let url = self.url(path)?;
        let what = format!("{method} {}", url.path());
        let mut request = self.http.request(method, url);
        if !query.is_empty() {
            request = request.query(query);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(timeout) = timeout {
            request = request.timeout(timeout);
        }
        if let Body::Json(json) = body {
            request = request.json(json);
        }
        let response = request
            .send()
            .await
            .map_err(|e| Error::transport(self.base(), &what, &e))?;
        let named = response
            .headers()
            .get(REVISION_HEADER)
            .and_then(|v| v.to_str().ok()?.parse().ok());
        if let Some(revision) = named {
            self.revision.fetch_max(revision, Ordering::Relaxed);
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response
            .bytes()
            .await
            .map_err(|e| Error::transport(self.base(), &what, &e))?;
        Err(Error::Api(Box::new(ApiError::read(status.as_u16(), &what, &bytes))))
    }

    /// Reads the whole body as JSON. An empty body is null. A body that is not JSON is an [`Error::Protocol`].
    pub(crate) async fn json(&self, response: Response) -> Result<Value, Error> {
        let what = response.url().path().to_owned();
        let empty = response.status() == StatusCode::NO_CONTENT;
        let bytes = response
            .bytes()
            .await
            .map_err(|e| Error::transport(self.base(), &what, &e))?;
        if empty || bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|e| Error::Protocol {
            what,
            reason: format!("not JSON: {e}"),
        })
    }

    /// Reads the whole body as a `T` in JSON. A body of another form is an [`Error::Protocol`].
    pub(crate) async fn typed<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let what = response.url().path().to_owned();
        let value = self.json(response).await?;
        serde_json::from_value(value).map_err(|e| Error::Protocol {
            what,
            reason: e.to_string(),
        })
    }

    /// Returns the URL of a path. An absolute URL, such as a link that the controller has sent, is returned unchanged.
    ///
    /// URLs of another origin are refused, because every request carries the token.
    fn url(&self, path: &str) -> Result<Url, Error> {
        let url = if path.starts_with('/') {
            let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '%' | '\\');
            if path.contains(forbidden) || path.split('/').any(|s| s == "." || s == "..") {
                return Err(Error::Invalid(format!(
                    "'{path}' is not a path of a resource: it must not contain whitespace, '?', '#', '%', '\\', or the \
                     segments '.' and '..'"
                )));
            }
            self.base.join(path)
        } else {
            Url::parse(path)
        };
        let url = url.map_err(|e| Error::Invalid(format!("'{path}' is not a URL: {e}")))?;
        if url.origin() == self.base.origin() {
            Ok(url)
        } else {
            Err(Error::Invalid(format!(
                "the controller at {} points to another host, where the token is not sent: {url}",
                self.base()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_must_be_https_without_a_path() {
        for bad in ["", "tombolo", "http://127.0.0.1:1", "https://h/path", "ftp://h"] {
            assert!(Client::new(bad, None, None).is_err(), "{bad}");
        }
        assert_eq!(
            Client::new("https://h:8443/", None, None).unwrap().base(),
            "https://h:8443"
        );
        assert!(Client::new("https://h", None, Some("no certificate")).is_err());
    }

    #[test]
    fn the_token_never_leaves_the_controller() {
        let client = Client::new("https://h:8443", Some("secret"), None).unwrap();
        assert!(client.url("/a/b").is_ok());
        assert!(client.url("https://h:8443/next?x=1").is_ok());
        for bad in [
            "https://evil:8443/next",
            "http://h:8443/next",
            "//evil/x",
            "/a/../b",
            "/a?b",
            "/a%2fb",
            "/a b",
        ] {
            assert!(client.url(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("https://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = Client::new(&base, None, None)
            .unwrap()
            .arm_get("/subscriptions")
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::Unreachable { reason, .. } if reason.contains("refused")),
            "{error:?}"
        );
    }
}
