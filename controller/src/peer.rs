//! The client's end of a connection: types that are extensions of each HTTP request on the connection.

use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;

/// The source address and TCP port of the client's connection: an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// The client certificate of the connection: an extension of the connection's requests, absent if the client showed no
/// certificate. The authority's signature on the certificate is verified. The certificate may have expired, because an
/// agent renews an expired certificate with it (D21).
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub CertificateDer<'static>);
