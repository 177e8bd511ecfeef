//! The controller's own certificate authority: its key, the server's certificate, the agents' certificates.

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

/// The name that every server certificate carries, so that an agent may reach its controller by any address.
pub const CONTROLLER_NAME: &str = "tombolo-controller";

/// The authority's certificate outlives every machine that it is copied to by hand.
const AUTHORITY_DAYS: i64 = 3650;

/// The server's certificate; a new one is made when less than a third is left.
const SERVER_DAYS: i64 = 90;

/// Clocks of agents may be behind by so much.
const SKEW: Duration = Duration::minutes(10);

/// The authority.
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

/// The authority as it stands in the store, so that a backup holds it: a restored controller is the one that agents pinned.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    certificate: String,
    key: String,
}

/// The key of the authority's document in the store.
pub const DOCUMENT: &str = "own/authority";

impl Authority {
    /// Makes a new authority, as the document to store.
    ///
    /// # Errors
    /// No randomness.
    pub fn generate() -> anyhow::Result<Vec<u8>> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = authority_params()?.self_signed(&key)?.pem();
        let key = key.serialize_pem();
        Ok(serde_json::to_vec(&Document { certificate, key })?)
    }

    /// Reads the authority's document.
    ///
    /// # Errors
    /// It is damaged, or its key and its certificate do not belong together.
    pub fn open(document: &[u8], agent_lifetime: std::time::Duration) -> anyhow::Result<Self> {
        let Document { certificate, key } = serde_json::from_slice(document)?;
        let key = KeyPair::from_pem(&key).context("its key")?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).context("its certificate")?;
        if !public_key_of(&der)?.eq(&key.subject_public_key_info()) {
            bail!("its key and its certificate do not belong together");
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

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The authority's certificate.
    #[must_use]
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// SHA-256 of the certificate, hex: what join tokens carry.
    #[must_use]
    pub fn pin(&self) -> String {
        hex(&Sha256::digest(&self.der))
    }

    /// A certificate for the server, for these names and addresses.
    ///
    /// # Errors
    /// A name is not one.
    pub fn server(&self, names: &[String]) -> anyhow::Result<Arc<CertifiedKey>> {
        let mut names = names.to_vec();
        names.push(CONTROLLER_NAME.into());
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, CONTROLLER_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        lifetime(&mut params, Duration::days(SERVER_DAYS));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&private)?;
        Ok(Arc::new(CertifiedKey::new(
            vec![certificate.der().clone(), self.der.clone()],
            signer,
        )))
    }

    /// After how long a server certificate is to be replaced.
    #[must_use]
    pub const fn server_renewal() -> std::time::Duration {
        std::time::Duration::from_secs(SERVER_DAYS as u64 * 86_400 * 2 / 3)
    }

    /// Signs an agent's request. Only the key of the request counts: the name is `agent`.
    /// Returns the certificate (PEM) and SHA-256 of its key, hex.
    ///
    /// # Errors
    /// The request is malformed or does not verify.
    pub fn sign(&self, agent: &AgentId, request: &str) -> anyhow::Result<(String, String)> {
        let mut request = CertificateSigningRequestParams::from_pem(request).context("csr: not a PKCS#10 request")?;
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
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    lifetime(&mut params, Duration::days(AUTHORITY_DAYS));
    Ok(params)
}

fn lifetime(params: &mut CertificateParams, valid: Duration) {
    let now = OffsetDateTime::now_utc();
    // A tenth at most, so that a short life is not mostly over when it begins.
    params.not_before = now - SKEW.min(valid / 10);
    params.not_after = now + valid;
}

fn public_key_of(certificate: &CertificateDer<'_>) -> anyhow::Result<Vec<u8>> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)?;
    Ok(parsed.public_key().raw.to_vec())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo, hex.
///
/// # Errors
/// It is no certificate.
pub fn key_fingerprint(certificate: &CertificateDer<'_>) -> anyhow::Result<String> {
    Ok(hex(&Sha256::digest(public_key_of(certificate)?)))
}

/// The agent that a certificate names, and whether its time is over.
///
/// # Errors
/// It is no certificate, or it names no agent.
pub fn agent_of(certificate: &CertificateDer<'_>) -> anyhow::Result<(AgentId, bool)> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)?;
    let name = parsed
        .subject()
        .iter_common_name()
        .next()
        .context("the certificate names nobody")?;
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
