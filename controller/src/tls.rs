//! The server's TLS configuration: a replaceable server certificate, and optional client certificates for agents.

use crate::ca::Authority;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::{Arc, PoisonError, RwLock};

/// The TLS configuration of the port. A client certificate is optional; if there is one, it must be signed by
/// `authority`. An expired certificate passes the handshake, so that its agent can renew it (D21). For all other calls,
/// the gRPC service refuses an expired certificate. ALPN offers HTTP/2 and HTTP/1.1. `resolver` provides the server's
/// certificate for each handshake, so a later [`Resolver::replace`] takes effect.
///
/// # Errors
/// The authority's certificate is not usable.
pub fn server(authority: &Authority, resolver: Arc<Resolver>) -> anyhow::Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let strict = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder()
        .with_client_cert_verifier(Arc::new(ExpiredMayRenew(strict)))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Holds the current server certificate. rustls asks this value for the certificate in each handshake.
#[derive(Debug)]
pub struct Resolver(RwLock<Arc<CertifiedKey>>);

impl Resolver {
    /// A resolver with a first certificate (see [`Authority::server`]). Whether it is valid is not checked.
    #[must_use]
    pub const fn new(first: Arc<CertifiedKey>) -> Self {
        Self(RwLock::new(first))
    }

    /// Replaces the certificate from the next handshake on. Established connections keep the certificate that they have
    /// used.
    pub fn replace(&self, next: Arc<CertifiedKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Verifies client certificates as the inner verifier does, but accepts expired certificates.
#[derive(Debug)]
struct ExpiredMayRenew(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ExpiredMayRenew {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.0.verify_client_cert(end_entity, intermediates, now) {
            Err(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
                // Signature, chain and usage must be valid, so an expired certificate is verified as of a time before
                // its expiry.
                let at = valid_at(end_entity).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
                self.0.verify_client_cert(end_entity, intermediates, at)
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The last second before a certificate expires. `None`: the certificate cannot be parsed, or expires before 1970.
fn valid_at(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    use x509_parser::prelude::FromDer;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let end = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        end.saturating_sub(1),
    )))
}
