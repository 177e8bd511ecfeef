//! The controller's certificate authority: it issues the server's certificate and those of the agents.

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use tombolo_proto::id::AgentId;
use x509_parser::prelude::FromDer;

/// A DNS name that every server certificate carries. Agents check that the certificate has this name, and not the
/// address at which they connect, so the controller may have any address.
pub const CONTROLLER_NAME: &str = "tombolo-controller";

/// Lifetime of the authority's certificate, in days. It is 10 years, because operators must copy each new certificate
/// to clients by hand.
const AUTHORITY_LIFETIME_DAYS: i64 = 3650;

/// Lifetime of the server's certificate, in days. The server replaces it after two thirds of that time (see
/// [`Authority::server_renewal`]).
const SERVER_LIFETIME_DAYS: i64 = 90;

/// A certificate is valid from this time before its issue on, because the clocks of agents may be slow. For a
/// short-lived certificate the time is shorter (see `lifetime`).
const CLOCK_SKEW: Duration = Duration::minutes(10);

/// A certificate authority with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    agent_lifetime: Duration,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("pin", &self.pin())
            .finish_non_exhaustive()
    }
}

/// The authority's document in the store, with key and certificate in PEM. Backups contain this document, so that
/// agents trust a restored controller.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    certificate: String,
    key: String,
}

/// The key of the authority's document in the store.
pub const DOCUMENT: &str = "own/authority";

impl Authority {
    /// Generates a new authority with a P-256 key and a self-signed certificate for 10 years. Returns its document for
    /// [`Self::open`]; the caller stores it at [`DOCUMENT`].
    ///
    /// # Errors
    /// The key cannot be generated.
    pub fn generate() -> anyhow::Result<Vec<u8>> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = authority_params()?.self_signed(&key)?.pem();
        let key = key.serialize_pem();
        Ok(serde_json::to_vec(&Document { certificate, key })?)
    }

    /// Reads the authority's document. `agent_lifetime`: the lifetime of the certificates that [`Self::sign`] issues to
    /// agents. Whether the authority's certificate has expired is not checked. Reads no file.
    ///
    /// # Errors
    /// The document is malformed, its key does not match its certificate, or the lifetime is out of range.
    pub fn open(document: &[u8], agent_lifetime: std::time::Duration) -> anyhow::Result<Self> {
        let Document { certificate, key } = serde_json::from_slice(document)?;
        let key = KeyPair::from_pem(&key).context("its key is malformed")?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).context("its certificate is malformed")?;
        if !public_key_of(&der)?.eq(&key.subject_public_key_info()) {
            bail!("its key does not match its certificate");
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate, key)?;
        let agent_lifetime = Duration::try_from(agent_lifetime)?;
        Ok(Self {
            issuer,
            pem: certificate,
            der,
            agent_lifetime,
        })
    }

    /// The authority's certificate in PEM, for clients to trust. It contains no private key.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate in DER, with which TLS verifies the certificates of agents.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the authority's certificate (DER) in 64 hexadecimal digits. Join tokens contain this hash, and a
    /// joining agent compares the server's authority with it.
    #[must_use]
    pub fn pin(&self) -> String {
        hex(&Sha256::digest(&self.der))
    }

    /// Issues a server certificate with a new P-256 key, for these DNS names and IP addresses and for
    /// [`CONTROLLER_NAME`]. It is valid for 90 days, and the authority's certificate follows it in the chain. Nothing
    /// is stored. The caller replaces it after [`Self::server_renewal`].
    ///
    /// # Errors
    /// A name is not valid in a certificate, or the key cannot be generated or used.
    pub fn server(&self, names: &[String]) -> anyhow::Result<Arc<CertifiedKey>> {
        let mut names = names.to_vec();
        names.push(CONTROLLER_NAME.into());
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, CONTROLLER_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        lifetime(&mut params, Duration::days(SERVER_LIFETIME_DAYS));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
        Ok(Arc::new(CertifiedKey::new(
            vec![certificate.der().clone(), self.der.clone()],
            signer,
        )))
    }

    /// The age at which the caller of [`Self::server`] must replace a server certificate: 60 days.
    #[must_use]
    pub const fn server_renewal() -> std::time::Duration {
        std::time::Duration::from_secs(SERVER_LIFETIME_DAYS as u64 * 86_400 * 2 / 3)
    }

    /// Issues a certificate for an agent. Only the public key is taken from the request (PKCS #10, PEM); the subject is
    /// `agent`. Returns the certificate in PEM, and its [`key_fingerprint`]. The caller must check that the agent
    /// exists and may have this key, and must store the key's fingerprint. Nothing is stored. A second call for the
    /// same request returns another certificate.
    ///
    /// # Errors
    /// The request is malformed or asks for an extension that is not supported, its signature is not valid, or the
    /// algorithm of its key is not supported.
    ///
    /// # Panics
    /// The lifetime of the certificate ends after the year 9999.
    pub fn sign(&self, agent: &AgentId, request: &str) -> anyhow::Result<(String, String)> {
        let mut request =
            CertificateSigningRequestParams::from_pem(request).context("csr: not a PKCS #10 request in PEM")?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, agent.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        lifetime(&mut params, self.agent_lifetime);
        request.params = params;
        let certificate = request.signed_by(&self.issuer)?;
        let key = key_fingerprint(certificate.der())?;
        Ok((certificate.pem(), key))
    }
}

fn authority_params() -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Tombolo certificate authority");
    // With a path length of 0, clients accept no further authority that this one has signed.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    lifetime(&mut params, Duration::days(AUTHORITY_LIFETIME_DAYS));
    Ok(params)
}

fn lifetime(params: &mut CertificateParams, valid: Duration) {
    let now = OffsetDateTime::now_utc();
    // An agent renews its certificate when a certain share of its lifetime has passed. So the start of the validity
    // lies at most a tenth of the lifetime before the issue. Otherwise a short-lived certificate would be due for
    // renewal at once.
    params.not_before = now - CLOCK_SKEW.min(valid / 10);
    params.not_after = now + valid;
}

fn public_key_of(certificate: &CertificateDer<'_>) -> anyhow::Result<Vec<u8>> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)?;
    Ok(parsed.public_key().raw.to_vec())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo in 64 lower-case hexadecimal digits. Signature and validity period
/// are not checked.
///
/// # Errors
/// The certificate is malformed.
pub fn key_fingerprint(certificate: &CertificateDer<'_>) -> anyhow::Result<String> {
    Ok(hex(&Sha256::digest(public_key_of(certificate)?)))
}

/// The agent that the first common name of a certificate's subject names, and whether the certificate is outside of its
/// validity period by this host's clock. The signature is not verified, and the agent need not exist.
///
/// # Errors
/// The certificate is malformed, or its common name is not the name of an agent.
pub fn agent_of(certificate: &CertificateDer<'_>) -> anyhow::Result<(AgentId, bool)> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)?;
    let name = parsed
        .subject()
        .iter_common_name()
        .next()
        .context("the certificate has no common name")?;
    let expired = !parsed.validity().is_valid();
    Ok((AgentId::new(name.as_str()?)?, expired))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod golden {
    use super::Document;
    use tombolo_golden::golden;

    #[test]
    fn documents_of_authorities() {
        let document = Document {
            certificate: "certificate".into(),
            key: "key".into(),
        };
        golden!().document("authority", &document);
    }
}
