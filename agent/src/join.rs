//! Joining: exchanges a one-time token for a certificate, and fills the state directory.

#[cfg(test)]
mod golden;
mod token;

pub use token::JoinToken;

use crate::config::{Config, DEFAULT_LISTEN_PORT};
use crate::identity::{LinkKey, TlsKey, certificate_from_pem};
use crate::state::{StateDir, file};
use crate::tls;
use anyhow::{Context, Result, bail};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::time::Duration;
use tombolo_proto::fabric::{JoinReply, JoinRequest};
use tombolo_proto::id::AgentId;

/// Timeout of each of the two requests. The timeout is long, because the controller writes to its store before it
/// answers, and other agents may join at the same moment.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Parameters of joining.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// `https://host:port` of the controller.
    pub controller: String,
    /// The one-time token.
    pub token: JoinToken,
    /// Local settings for `agent.toml`.
    pub settings: JoinSettings,
}

/// Local settings that the operator chooses when joining. [`join`] stores them as a [`Config`].
#[derive(Debug, Clone, Default)]
pub struct JoinSettings {
    /// UDP port of the links. None: 51820.
    pub listen_port: Option<u16>,
    /// Endpoints to advertise, best first. Empty: the listen port, at the address from which the agent connects to the
    /// controller.
    pub endpoints: Vec<SocketAddr>,
    /// A second UDP port, for QUIC only. None: QUIC uses only the port of the links.
    pub quic_port: Option<u16>,
    /// Name of the TUN device. None: derived from the agent's name.
    pub interface: Option<String>,
    /// At the edge of a circuit: the interface that faces the customer's router. None in other agents.
    pub customer_interface: Option<String>,
    /// Whether a user-defined or learned default route may replace the host's default route.
    pub allow_default_route: bool,
}

impl JoinSettings {
    /// # Errors
    /// A setting of links or devices is given, which a site probe does not have (M10).
    fn check_site_probe(&self) -> Result<()> {
        let given = [
            ("--listen-port", self.listen_port.is_some()),
            ("--endpoint", !self.endpoints.is_empty()),
            ("--quic-port", self.quic_port.is_some()),
            ("--interface", self.interface.is_some()),
            ("--customer-interface", self.customer_interface.is_some()),
            ("--allow-default-route", self.allow_default_route),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((name, _)) => {
                bail!("{name}: the token is that of a site probe, which has no links; leave it out (M10)")
            }
            None => Ok(()),
        }
    }
}

/// The controller has refused to let the agent join.
#[derive(Debug, thiserror::Error)]
#[error("the controller refused: {reason}")]
pub struct Refused {
    status: reqwest::StatusCode,
    reason: String,
}

impl Refused {
    /// Whether a later attempt with the same token may succeed, because the controller failed (status 5xx) or limits
    /// the rate (429).
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.status.is_server_error() || self.status == reqwest::StatusCode::TOO_MANY_REQUESTS
    }
}

/// Joins a network. Fetches the authority's certificate, and compares its hash with the hash in the token. Then sends
/// the token with a certificate request, and writes keys, certificates and `agent.toml` to the state directory. Returns
/// the settings that were written. The settings are checked before the token is sent, because the token works only
/// once. If joining fails after keys were generated, the keys stay in the directory, and the next attempt uses them.
/// Waits up to 15 s for each of two answers. The caller must hold the directory's lock.
///
/// If the future is dropped, or an error occurs, after the token was sent, the token may be used up, although the
/// directory has not joined; a new token is then needed.
///
/// # Errors
/// The directory has joined already, a setting is out of range, the controller is unreachable, is not the one that
/// issued the token, refuses ([`Refused`]), or answers in an unknown format, or a file cannot be read or written.
///
/// # Panics
/// If the program has not installed a cryptography provider of rustls before, with `CryptoProvider::install_default`.
pub async fn join(state: &StateDir, options: JoinOptions) -> Result<Config> {
    if state.path(file::CONFIG).exists() {
        bail!(
            "{} exists: this directory has joined already; use another, or 'tombolo-agent leave' first",
            state.path(file::CONFIG).display()
        );
    }
    let controller = options.controller.trim_end_matches('/').to_owned();
    let settings = options.settings;
    let mut config = Config::new(AgentId::new("unknown")?, controller.clone());
    config.site_probe = options.token.site_probe;
    if config.site_probe {
        settings.check_site_probe()?;
    }
    config.listen_port = settings.listen_port.unwrap_or(DEFAULT_LISTEN_PORT);
    config.endpoints = settings.endpoints;
    config.quic_port = settings.quic_port;
    config.customer_interface = settings.customer_interface;
    config.allow_default_route = settings.allow_default_route;
    if let Some(name) = &settings.interface {
        config.interface.clone_from(name);
    }
    // The token works only once, so a wrong setting must be found before the token is sent.
    config.check()?;
    let authority = fetch_authority(&controller, &options.token.pin).await?;

    let (link_key, tls_key) = (LinkKey::load_or_create(state)?, TlsKey::load_or_create(state)?);
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::anonymous(&authority)?)
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()?;
    let request = JoinRequest {
        token: options.token.text.clone(),
        csr: tls_key.request()?,
        public_key: link_key.public(),
        // A site probe has no links.
        endpoints: if config.site_probe {
            Vec::new()
        } else {
            config.advertised()
        },
        quic_endpoint: config.quic_endpoint(),
        lanes: Some(config.lane_count()).filter(|n| *n > 1 && !config.site_probe),
    };
    let reply = client
        .post(format!("{controller}/fabric/v1/join"))
        .json(&request)
        .send()
        .await;
    let reply = reply.with_context(|| format!("joining at {controller}"))?;
    let status = reply.status();
    let body = reply.bytes().await?;
    if !status.is_success() {
        let reason = error_message(&body).unwrap_or_else(|| status.to_string());
        return Err(Refused { status, reason }.into());
    }
    let reply: JoinReply = serde_json::from_slice(&body).context("the controller's answer to join")?;
    if certificate_from_pem(reply.ca.as_bytes())? != authority {
        bail!("the controller answered with a certificate authority other than the token's");
    }
    certificate_from_pem(reply.certificate.as_bytes()).context("the certificate that the controller issued")?;

    let usual = Config::new(reply.agent.clone(), controller);
    config.interface = settings.interface.unwrap_or(usual.interface);
    config.agent = reply.agent;
    state.write(file::CA, reply.ca.as_bytes())?;
    state.write(file::CERTIFICATE, reply.certificate.as_bytes())?;
    // The settings are written last, because the presence of this file marks the directory as joined.
    config.save(state)?;
    Ok(config)
}

/// Fetches the authority's certificate over TLS, without verifying the server. Then compares the certificate's hash
/// with `pin`, the hash in the token.
async fn fetch_authority(controller: &str, pin: &[u8; 32]) -> Result<CertificateDer<'static>> {
    let client = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .no_proxy()
        .timeout(REQUEST_TIMEOUT)
        .build()?;
    let reply = client.get(format!("{controller}/fabric/v1/ca")).send().await;
    let reply = reply
        .and_then(reqwest::Response::error_for_status)
        .with_context(|| format!("asking {controller} for its authority"))?;
    let authority = certificate_from_pem(&reply.bytes().await?)?;
    if Sha256::digest(&authority).as_slice() != pin {
        bail!(
            "the authority of {controller} is not the one that the token names: \
             check the controller's URL; if it is right, the connection is being intercepted"
        );
    }
    Ok(authority)
}

/// Returns the code and the message of an error object in the format of Azure Resource Manager. None: the body has
/// another format.
fn error_message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = value.get("error")?;
    Some(format!(
        "{}: {}",
        error.get("code")?.as_str()?,
        error.get("message")?.as_str()?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// M10: the token says that the agent is a site probe. Settings of links are refused by name, before anything is sent; a
    /// token of another form is refused with the form.
    #[tokio::test]
    async fn m10_a_probe_is_joined_by_its_token() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let text = |prefix: &str| format!("{prefix}.id.secret.{}", "ab".repeat(32));
        let token: JoinToken = text("tmb1probe").parse().unwrap();
        assert!(token.site_probe && !text("tmb1").parse::<JoinToken>().unwrap().site_probe);
        assert!(text("tmb1x").parse::<JoinToken>().is_err());
        let options = |change: fn(&mut JoinSettings)| {
            let mut settings = JoinSettings::default();
            change(&mut settings);
            JoinOptions {
                // No service listens on port 1, so an attempt to connect would fail with another error.
                controller: "https://127.0.0.1:1/".into(),
                token: token.clone(),
                settings,
            }
        };
        type Given = fn(&mut JoinSettings);
        let given: [(Given, &str); 6] = [
            (|s| s.listen_port = Some(1), "--listen-port"),
            (|s| s.endpoints = vec!["192.0.2.1:1".parse().unwrap()], "--endpoint"),
            (|s| s.quic_port = Some(443), "--quic-port"),
            (|s| s.interface = Some("a".into()), "--interface"),
            (|s| s.customer_interface = Some("a".into()), "--customer-interface"),
            (|s| s.allow_default_route = true, "--allow-default-route"),
        ];
        for (change, name) in given {
            let error = join(&state, options(change)).await.unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains("(M10)"), "{error}");
        }
        assert!(state.read(file::LINK_KEY).unwrap().is_none());
    }

    /// A wrong setting must be found before anything is sent, because the token works only once.
    #[tokio::test]
    async fn settings_are_checked_before_the_token_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let options = JoinOptions {
            controller: "https://192.0.2.1:1/".into(),
            token: format!("tmb1.id.secret.{}", "ab".repeat(32)).parse().unwrap(),
            settings: JoinSettings::default(),
        };
        let mut port = options.clone();
        port.settings.listen_port = Some(0);
        let mut endpoint = options.clone();
        endpoint.settings.endpoints = vec!["192.0.2.1:0".parse().unwrap()];
        let mut quic = options.clone();
        quic.settings.quic_port = Some(DEFAULT_LISTEN_PORT);
        let mut interface = options.clone();
        interface.settings.interface = Some("a/b".into());
        let mut line = options.clone();
        line.settings.customer_interface = Some("much-too-long-a-name".into());
        for (options, what) in [
            (line, "customer_interface"),
            (port, "listen_port"),
            (endpoint, "endpoints"),
            (quic, "quic_port"),
            (interface, "interface"),
        ] {
            let error = join(&state, options).await.unwrap_err().to_string();
            assert!(error.starts_with(what), "{error}");
        }
        assert!(state.read(file::LINK_KEY).unwrap().is_none());
    }
}
