//! The other end of a connection, as extensions of each request on it.

use rustls_pki_types::CertificateDer;
use std::net::SocketAddr;

/// The address and TCP port of the client: an extension of every request.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddr(pub SocketAddr);

/// The client certificate of the connection: an extension of its requests. The authority's signature on it is verified;
/// it may have expired, because an agent renews an expired certificate with it (D21).
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub CertificateDer<'static>);
