//! The client's side of the health check, which container runtimes call.

use crate::app::AUTHORITY_FILE;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest time for the whole check. It is less than the 5 s after which the image's `HEALTHCHECK` ends the program, so
/// that the program can still print the reason.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(4);

/// Requests the health of the controller that listens at `listen` and has this data directory. If `listen` has an
/// unspecified address (`0.0.0.0` or `::`), loopback is used. Returns the JSON body of the response, unparsed. Connects
/// anew for each call, and needs no token.
///
/// # Errors
/// The authority's certificate in the data directory cannot be read or parsed, nothing listens there, another authority
/// has issued the server's certificate, the status is not 200, or there is no response within [`HEALTH_TIMEOUT`].
///
/// # Panics
/// Outside of a Tokio runtime.
pub async fn ask(data_dir: &Path, listen: SocketAddr) -> anyhow::Result<String> {
    let at = reachable(listen);
    tokio::time::timeout(HEALTH_TIMEOUT, request(data_dir, at))
        .await
        .map_err(|_| anyhow::anyhow!("no response within {HEALTH_TIMEOUT:?}"))
        .flatten()
        .with_context(|| format!("the controller at {at} is not healthy"))
}

/// The address at which a program on the same host reaches a server that listens at `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn request(data_dir: &Path, at: SocketAddr) -> anyhow::Result<String> {
    let file = data_dir.join(AUTHORITY_FILE);
    let authority = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let authority = CertificateDer::from_pem_slice(&authority).with_context(|| file.display().to_string())?;
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(at).await?;
    // Every server certificate of a controller carries the name `localhost`.
    let name = ServerName::try_from("localhost")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/fabric/v1/health")
        .header(http::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(connection);
    let (status, body) = tokio::select! {
        answer = exchange => answer?,
        ended = &mut connection => {
            ended?;
            anyhow::bail!("the connection was closed without a response");
        }
    };
    ensure!(status == StatusCode::OK, "its response was {status}: {body}");
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        for (listen, at) in [
            ("0.0.0.0:8443", "127.0.0.1:8443"),
            ("[::]:1", "[::1]:1"),
            ("192.0.2.1:8443", "192.0.2.1:8443"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), at.parse().unwrap());
        }
    }
}
