//! Authentication of QUIC links by raw public keys (RFC 7250) at both ends. Each end pins the other's key by its
//! SHA-256 hash. There are no certificates and no authority, and nothing expires (D21).

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, SignatureScheme,
    version,
};
use sha2::{Digest, Sha256};
use std::sync::{Arc, PoisonError, RwLock};
use tombolo_proto::id::KeyPin;

/// The protocol that both ends negotiate (ALPN, RFC 7301).
const ALPN: &[u8] = b"tombolo/1";

/// The pin of a raw public key, given as its SubjectPublicKeyInfo in DER.
pub(super) fn pin_of(key: &[u8]) -> KeyPin {
    KeyPin(Sha256::digest(key).into())
}

/// The agent's key, for handshakes as client and as server. All engines of the agent have the same key.
pub(super) struct Identity {
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    pin: KeyPin,
}

impl Identity {
    /// Loads a private key in PKCS #8.
    ///
    /// # Errors
    /// The key cannot be parsed, TLS 1.3 has no signature scheme for it, or its public key cannot be derived.
    pub(super) fn new(key: PrivateKeyDer<'static>) -> Result<Self, Error> {
        let mut provider = aws_lc_rs::default_provider();
        // The cheapest cipher comes first: AES-128 has 10 rounds and AES-256 has 14, and ChaCha20 takes four times as
        // long as AES-128.
        provider.cipher_suites = vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let key = provider.key_provider.load_private_key(key)?;
        let public = key
            .public_key()
            .ok_or(Error::General("the key has no public half".into()))?;
        let public = CertificateDer::from(public.to_vec());
        Ok(Self {
            pin: pin_of(&public),
            key: Arc::new(CertifiedKey::new(vec![public], key)),
            provider: Arc::new(provider),
        })
    }

    /// The pin of this key, which peers must have in their configuration.
    pub(super) fn pin(&self) -> KeyPin {
        self.pin
    }

    /// Settings for a connection to the holder of the key with this pin. No other peer is accepted.
    pub(super) fn client(&self, pin: KeyPin) -> Result<Arc<QuicClientConfig>, Error> {
        let config = QuicClientConfig::try_from(self.client_tls(pin)?);
        config.map(Arc::new).map_err(|e| Error::General(e.to_string()))
    }

    fn client_tls(&self, pin: KeyPin) -> Result<rustls::ClientConfig, Error> {
        let verifier = Verifier {
            provider: self.provider.clone(),
            pins: Arc::new(Pins::of([pin])),
        };
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Sessions are never resumed, because a resumed session would not check the peer's key against the present
        // pins.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// Settings for connections from peers that hold one of the keys in `pins`. Each handshake uses the pins that
    /// `pins` has at the time of the handshake.
    pub(super) fn server(&self, pins: Arc<Pins>) -> Result<Arc<QuicServerConfig>, Error> {
        let config = QuicServerConfig::try_from(self.server_tls(pins)?);
        config.map(Arc::new).map_err(|e| Error::General(e.to_string()))
    }

    fn server_tls(&self, pins: Arc<Pins>) -> Result<rustls::ServerConfig, Error> {
        let verifier = Verifier {
            provider: self.provider.clone(),
            pins,
        };
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A server issues no tickets, so that no session is ever resumed (see `client_tls`).
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The pins of the keys whose holders may connect. Handshakes of all connections share them.
#[derive(Debug, Default)]
pub(super) struct Pins(RwLock<Vec<KeyPin>>);

impl Pins {
    fn of(pins: impl IntoIterator<Item = KeyPin>) -> Self {
        let this = Self::default();
        this.replace(pins);
        this
    }

    /// Replaces all pins. A handshake in progress that has not checked the peer's key yet will check it against the new
    /// pins.
    pub(super) fn replace(&self, pins: impl IntoIterator<Item = KeyPin>) {
        let mut sorted: Vec<_> = pins.into_iter().collect();
        sorted.sort_unstable();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = sorted;
    }

    fn contains(&self, pin: &KeyPin) -> bool {
        let pins = self.0.read().unwrap_or_else(PoisonError::into_inner);
        pins.binary_search(pin).is_ok()
    }
}

/// The verifier of both roles, which accepts a peer that proves to hold a key with one of these pins.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    pins: Arc<Pins>,
}

#[derive(Debug, thiserror::Error)]
#[error("the key is not the one that is pinned")]
struct OtherKey;

impl Verifier {
    fn check(&self, key: &CertificateDer<'_>) -> Result<(), Error> {
        if self.pins.contains(&pin_of(key)) {
            return Ok(());
        }
        Err(CertificateError::Other(OtherError(Arc::new(OtherKey))).into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(key).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(key).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::NamedGroup;
    use rustls::quic::{ClientConnection, Connection, ServerConnection, Version};

    fn identity() -> Identity {
        let random = ::aws_lc_rs::rand::SystemRandom::new();
        let algorithm = &::aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let key = ::aws_lc_rs::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Identity::new(rustls::pki_types::PrivatePkcs8KeyDer::from(key.as_ref().to_vec()).into()).unwrap()
    }

    /// Both ends choose a hybrid key exchange with ML-KEM. So packets that somebody records today stay secret when
    /// quantum computers exist.
    #[test]
    fn the_key_exchange_is_post_quantum() {
        let (a, b) = (identity(), identity());
        let pins = Arc::new(Pins::of([a.pin()]));
        let name = ServerName::try_from("b").unwrap();
        let client = Arc::new(a.client_tls(b.pin()).unwrap());
        let server = Arc::new(b.server_tls(pins).unwrap());
        let mut client: Connection = ClientConnection::new(client, Version::V1, name, vec![]).unwrap().into();
        let mut server: Connection = ServerConnection::new(server, Version::V1, vec![]).unwrap().into();
        while client.is_handshaking() || server.is_handshaking() {
            pass(&mut client, &mut server);
            pass(&mut server, &mut client);
        }
        for end in [&client, &server] {
            let group = end.negotiated_key_exchange_group().map(|g| g.name());
            assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        }
    }

    /// Passes the handshake messages of one end to the other. Each pass of the loop handles the messages of one
    /// encryption level.
    fn pass(from: &mut Connection, to: &mut Connection) {
        loop {
            let mut bytes = Vec::new();
            let keys = from.write_hs(&mut bytes);
            let quiet = bytes.is_empty() && keys.is_none();
            to.read_hs(&bytes).unwrap();
            if quiet {
                return;
            }
        }
    }
}
