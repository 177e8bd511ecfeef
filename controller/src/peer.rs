//! The other end of a connection, as extensions of each request on it.

use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;

/// The source address and TCP port of the client's connection: an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// The client certificate of the connection: an extension of its requests, absent if the client showed none. The
/// authority's signature on the certificate is verified. The certificate may have expired, because an agent renews an
/// expired certificate with it (D21).
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub CertificateDer<'static>);
