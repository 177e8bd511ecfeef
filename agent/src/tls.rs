//! TLS towards the controller: its authority is pinned, the agent shows its certificate.

use crate::identity::{Certificate, TlsKey};
use anyhow::Result;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// The name that every controller certificate carries, so that an agent may reach its controller by any address.
const CONTROLLER_NAME: &str = "tombolo-controller";

/// A configuration that trusts one authority and shows no certificate.
///
/// # Errors
/// The authority's certificate is malformed.
pub fn anonymous(authority: &CertificateDer<'static>) -> Result<ClientConfig> {
    Ok(ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(ControllerVerifier::new(authority)?)
        .with_no_client_auth())
}

/// A configuration that trusts one authority and shows the agent's certificate, for gRPC.
///
/// # Errors
/// A certificate or the key is malformed, or they do not belong together.
pub fn mutual(certificate: &Certificate, key: &TlsKey) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(ControllerVerifier::new(&certificate.authority)?)
        .with_client_auth_cert(vec![certificate.own.clone()], key.der()?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Accepts a certificate of the pinned authority that is valid for the address in use or for [`CONTROLLER_NAME`].
#[derive(Debug)]
struct ControllerVerifier(Arc<WebPkiServerVerifier>);

impl ControllerVerifier {
    fn new(authority: &CertificateDer<'static>) -> Result<Arc<Self>> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        Ok(Arc::new(Self(WebPkiServerVerifier::builder(Arc::new(roots)).build()?)))
    }
}

impl ServerCertVerifier for ControllerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |name: &ServerName<'_>| self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verify(server_name) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {
                let name = ServerName::try_from(CONTROLLER_NAME).map_err(|e| Error::General(e.to_string()))?;
                verify(&name)
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
