//! One controller and one token: sends requests, reads answers and errors, remembers the revision.

use crate::error::{ApiError, Error};
use reqwest::{Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tombolo_proto::id::Revision;

/// The header in which every write answers the revision that holds after it.
const REVISION: &str = "x-tombolo-revision";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(60);

/// One controller and one token. Cheap to clone; clones share the connections and the last revision.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Arc<str>>,
    revision: Arc<AtomicU64>,
}

/// What a request carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    None,
    Json(&'a Value),
}

impl Client {
    /// A client of the controller at `base` (`https://host:port`). `ca_pem` is the only authority trusted; without it
    /// the system's are. The controller is called directly: proxy settings of the environment are not used.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the base is no https URL, or the CA is no PEM certificate.
    pub fn new(base: &str, token: Option<&str>, ca_pem: Option<&str>) -> Result<Self, Error> {
        Self::with_http(base, token, ca_pem, |http| http)
    }

    /// As [`Self::new`], with a say in how connections are made (from another network namespace, through a proxy).
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
        // reqwest is built without a TLS provider; a program that has installed another one keeps it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT);
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

    /// The controller's address, without a trailing `/`.
    #[must_use]
    pub fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The largest revision that an answer to a write has named so far; 0: none.
    #[must_use]
    pub fn last_revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Relaxed))
    }

    /// Sends one request and reads errors. `timeout` is for calls that wait at the controller.
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
            .get(REVISION)
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

    /// The body as JSON; nothing becomes null.
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

    /// The body as a type.
    pub(crate) async fn typed<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let what = response.url().path().to_owned();
        let value = self.json(response).await?;
        serde_json::from_value(value).map_err(|e| Error::Protocol {
            what,
            reason: e.to_string(),
        })
    }

    /// A path of this controller, or an absolute URL that it handed out. The token goes nowhere else.
    fn url(&self, path: &str) -> Result<Url, Error> {
        let url = if path.starts_with('/') {
            let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#' | '%' | '\\');
            if path.contains(odd) || path.split('/').any(|s| s == "." || s == "..") {
                return Err(Error::Invalid(format!("'{path}' is not a path of a resource")));
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
                "the controller at {} points to another host: {url}",
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
