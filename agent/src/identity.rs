//! The agent's keys and certificates. The agent generates its keys itself, and stores them in files of mode 0600.
//! Outside of this module, private keys are used only as arguments of the engine and of TLS.

use crate::state::{StateDir, file};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use boringtun::x25519;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tombolo_engine::link::secure::SecureLinks;
use tombolo_proto::id::PublicKey;

/// The advice that errors give if a key is missing.
const AGAIN: &str = "run 'tombolo-agent leave', then join again";

/// The X25519 key that identifies this agent on its links.
#[derive(Clone)]
pub struct LinkKey(x25519::StaticSecret);

impl std::fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LinkKey({})", self.public())
    }
}

impl LinkKey {
    /// Reads the key from the state directory.
    ///
    /// # Errors
    /// The file is missing, cannot be read, or does not contain 32 bytes in base64.
    pub fn load(state: &StateDir) -> Result<Self> {
        let path = state.path(file::LINK_KEY);
        let missing = || {
            format!(
                "{} is missing, and peers identify this agent by it: {AGAIN}",
                path.display()
            )
        };
        let text = state.read(file::LINK_KEY)?.with_context(missing)?;
        let key = BASE64.decode(text.trim_ascii()).ok();
        let key = key.and_then(|k| <[u8; 32]>::try_from(k).ok());
        let key = key.with_context(|| format!("{}: not 32 bytes in base64", path.display()))?;
        Ok(Self(key.into()))
    }

    /// Reads the key, or generates and stores one if there is none. Only the code for joining may call this function:
    /// peers would not know a new key, because only joining registers a public key at the controller. The caller must
    /// hold the lock of the state directory, so that no other process creates a key at the same time.
    ///
    /// # Errors
    /// The file cannot be read or written, or is malformed.
    pub fn load_or_create(state: &StateDir) -> Result<Self> {
        if state.path(file::LINK_KEY).exists() {
            return Self::load(state);
        }
        let key: [u8; 32] = rand::random();
        state.write(file::LINK_KEY, format!("{}\n", BASE64.encode(key)).as_bytes())?;
        Ok(Self(key.into()))
    }

    /// The public key, by which peers know this agent.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    /// The private key, for the engine's handshakes. It must not be logged or stored.
    #[must_use]
    pub fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

/// The ECDSA P-256 key of the agent's certificate, for TLS with the controller and for QUIC links.
#[derive(Debug)]
pub struct TlsKey(KeyPair);

impl TlsKey {
    /// Reads the key from the state directory. Whether it is an ECDSA P-256 key is not checked.
    ///
    /// # Errors
    /// The file is missing, cannot be read, or is malformed.
    pub fn load(state: &StateDir) -> Result<Self> {
        let path = state.path(file::TLS_KEY);
        let pem = state.read(file::TLS_KEY)?;
        let pem = pem.with_context(|| format!("{} is missing: {AGAIN}", path.display()))?;
        let pem = String::from_utf8(pem).context("tls.key is not text")?;
        Ok(Self(KeyPair::from_pem(&pem).context("tls.key")?))
    }

    /// Reads the key, or generates and stores one if there is none. Only the code for joining may call this function: a
    /// new key would have no certificate, because only joining gets one for it from the controller. The caller must
    /// hold the lock of the state directory, so that no other process creates a key at the same time.
    ///
    /// # Errors
    /// The file cannot be read or written, or is malformed.
    pub fn load_or_create(state: &StateDir) -> Result<Self> {
        if state.path(file::TLS_KEY).exists() {
            return Self::load(state);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        state.write(file::TLS_KEY, key.serialize_pem().as_bytes())?;
        Ok(Self(key))
    }

    /// A new certificate request (PKCS#10) in PEM, signed with this key. Its subject is empty, because the controller
    /// decides the contents of the certificate.
    ///
    /// # Errors
    /// The request cannot be signed or encoded.
    pub fn request(&self) -> Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok(params.serialize_request(&self.0)?.pem()?)
    }

    /// A copy of the private key in DER, for TLS and QUIC. It must not be logged or stored.
    pub(crate) fn der(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::try_from(self.0.serialize_der()).map_err(|e| anyhow::anyhow!("tls.key: {e}"))
    }
}

/// The keys that authenticate an agent on its links.
pub struct LinkKeys {
    wireguard: LinkKey,
    /// The key for QUIC. None: the key is unusable, and all links use WireGuard.
    quic: Option<PrivateKeyDer<'static>>,
}

impl LinkKeys {
    /// Reads both keys from the state directory. Without a usable key for QUIC, logs an error and continues: all links
    /// then use WireGuard.
    ///
    /// # Errors
    /// The key for WireGuard is missing, cannot be read, or is malformed.
    pub fn load(state: &StateDir) -> Result<Self> {
        let quic = TlsKey::load(state).and_then(|key| key.der());
        if let Err(e) = &quic {
            tracing::error!(error = %format!("{e:#}"), "no usable key for QUIC; all links use WireGuard");
        }
        Ok(Self {
            wireguard: LinkKey::load(state)?,
            quic: quic.ok(),
        })
    }

    /// A new set of links for one lane, which has the agent's keys and no links yet. Without a usable key for QUIC the
    /// set uses WireGuard only. Each call returns a set of its own for lane 0; [`SecureLinks::of_lane`] sets another
    /// lane.
    #[must_use]
    pub fn links(&self) -> SecureLinks {
        let links = || SecureLinks::new(self.wireguard.secret().to_bytes());
        let Some(key) = &self.quic else { return links() };
        links().with_quic(key.clone_key(), rand::random()).unwrap_or_else(|e| {
            tracing::error!(error = %e, "the key is not usable for QUIC; all links use WireGuard");
            links()
        })
    }
}

/// The agent's certificate, and the certificate of the authority that issued it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The agent's certificate in DER.
    pub own: CertificateDer<'static>,
    /// The certificate of the controller's authority in DER.
    pub authority: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Certificate {
    /// Reads both certificates from the state directory. Checks only their format. This function does not check whether
    /// they have expired, or whether the authority issued the agent's certificate.
    ///
    /// # Errors
    /// A file is missing, cannot be read, or contains no valid certificate.
    pub fn load(state: &StateDir) -> Result<Self> {
        let read = |name: &str| -> Result<CertificateDer<'static>> {
            let path = state.path(name);
            let pem = state
                .read(name)?
                .with_context(|| format!("{} is missing: run 'tombolo-agent join' first", path.display()))?;
            certificate_from_pem(&pem).with_context(|| path.display().to_string())
        };
        Self::new(read(file::CERTIFICATE)?, read(file::CA)?)
    }

    /// A copy of this value in which the certificate in `pem` replaces the agent's own; the authority's certificate
    /// stays. Checks only the format. Whether the certificate fits the key is checked by
    /// [`tls::mutual`](crate::tls::mutual); who issued the certificate is not checked. Writes no file.
    ///
    /// # Errors
    /// `pem` contains no valid certificate.
    pub fn renewed(&self, pem: &[u8]) -> Result<Self> {
        Self::new(certificate_from_pem(pem)?, self.authority.clone())
    }

    fn new(own: CertificateDer<'static>, authority: CertificateDer<'static>) -> Result<Self> {
        let (not_before, not_after) = validity(&own)?;
        Ok(Self {
            own,
            authority,
            not_before,
            not_after,
        })
    }

    /// When to renew the certificate: after two thirds of its lifetime. The controller may renew an expired certificate
    /// too (D21).
    #[must_use]
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life * 2 / 3
    }

    /// When the certificate expires, by the wall clock.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// Decodes the first certificate in a PEM text to DER. Other contents of the text are ignored. Whether the DER is a
/// valid certificate is not checked.
///
/// # Errors
/// The text contains no certificate in PEM.
pub fn certificate_from_pem(pem: &[u8]) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem).map_err(|e| anyhow::anyhow!("not a certificate in PEM: {e}"))
}

fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("malformed certificate")?;
    let time = |t: x509_parser::time::ASN1Time| UNIX_EPOCH + Duration::from_secs(t.timestamp().try_into().unwrap_or(0));
    Ok((time(parsed.validity().not_before), time(parsed.validity().not_after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let (a, b) = (
            LinkKey::load_or_create(&state).unwrap(),
            LinkKey::load_or_create(&state).unwrap(),
        );
        assert_eq!(a.public(), b.public());
        let (a, b) = (
            TlsKey::load_or_create(&state).unwrap(),
            TlsKey::load_or_create(&state).unwrap(),
        );
        assert_eq!(a.0.serialize_der(), b.0.serialize_der());
        assert!(a.request().unwrap().contains("BEGIN CERTIFICATE REQUEST"));
    }

    #[test]
    fn keys_do_not_print() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let key = LinkKey::load_or_create(&state).unwrap();
        let stored = String::from_utf8(state.read(file::LINK_KEY).unwrap().unwrap()).unwrap();
        assert!(!format!("{key:?}").contains(stored.trim()));
    }

    #[test]
    fn certificates_are_renewed_after_two_thirds_of_their_life() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let key = TlsKey::load_or_create(&state).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 31);
        let pem = params.self_signed(&key.0).unwrap().pem();
        for name in [file::CERTIFICATE, file::CA] {
            state.write(name, pem.as_bytes()).unwrap();
        }
        let certificate = Certificate::load(&state).unwrap();
        assert_eq!(
            certificate.renew_at().duration_since(certificate.not_before).unwrap(),
            Duration::from_secs(20 * 86400)
        );
    }
}
