//! TLS to the controller. The agent trusts only the controller's certificate authority, and presents its own
//! certificate.

use crate::identity::{Certificate, TlsKey};
use anyhow::Result;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// The name in every certificate of a controller. Because of this name an agent accepts its controller at any address.
const CONTROLLER_NAME: &str = "tombolo-controller";

/// A client configuration for joining. It trusts only `authority`, and presents no certificate. The certificate of the
/// server must be valid for the address in use or for the name `tombolo-controller`.
///
/// # Errors
/// The authority's certificate is malformed, or cannot be a trust anchor.
///
/// # Panics
/// If the program has not installed a cryptography provider of rustls before, with `CryptoProvider::install_default`.
pub fn anonymous(authority: &CertificateDer<'static>) -> Result<ClientConfig> {
    Ok(ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(ControllerVerifier::new(authority)?)
        .with_no_client_auth())
}

/// A client configuration for gRPC that trusts only the authority in `certificate`, and presents the agent's
/// certificate. The server's certificate must satisfy the same conditions as for [`anonymous`]. Whether the authority
/// issued the agent's certificate, and whether that certificate is still valid, is not checked here: the controller
/// does that.
///
/// # Errors
/// A certificate or the key is malformed, or the key does not fit the certificate.
///
/// # Panics
/// If the program has not installed a cryptography provider of rustls before, with `CryptoProvider::install_default`.
pub fn mutual(certificate: &Certificate, key: &TlsKey) -> Result<ClientConfig> {
    let mut config = ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(ControllerVerifier::new(&certificate.authority)?)
        .with_client_auth_cert(vec![certificate.own.clone()], key.der()?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Accepts a certificate that the pinned authority has issued, and that is valid for the address in use or for
/// [`CONTROLLER_NAME`].
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConnection, HandshakeKind, NamedGroup, ServerConfig, ServerConnection};

    /// Configurations contain pre-shared keys. An attacker who records the traffic with the controller must not be able
    /// to decrypt it with a future quantum computer, so the key exchange is X25519MLKEM768.
    #[test]
    fn the_key_exchange_with_the_controller_is_post_quantum() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec![CONTROLLER_NAME.to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let config = anonymous(certificate.der()).unwrap();
        let name = ServerName::try_from("192.0.2.1").unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets().unwrap();
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        let group = client.negotiated_key_exchange_group().map(|g| g.name());
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        assert_eq!(
            client.handshake_kind(),
            Some(HandshakeKind::Full),
            "without another round trip"
        );
    }
}
