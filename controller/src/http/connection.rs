//! Serves one connection: the TLS handshake, then HTTP/1.1 or HTTP/2, with small limits for clients that have not
//! authenticated.

use super::lifo_semaphore::LifoSemaphore;
use crate::app::App;
use crate::connections::{Connection, Request};
use crate::grpc;
use crate::peer::{PeerAddr, PeerCertificate};
use axum::Router;
use bytes::Bytes;
use futures::future::poll_immediate;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

/// Longest time until the head of a request over HTTP/1.1 has arrived, including the wait for its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two HTTP/2 PINGs that the controller sends to detect dead clients. Agents send PINGs every 5 s to
/// detect a dead controller.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Longest time until a PING is acknowledged. If it is not, the connection is closed. 20 s is hyper's default.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time in milliseconds for which a client may leave sent bytes without an acknowledgement, or have no room for more.
/// A person may pause the output of a live stream for a moment.
const SEND_LIMIT_MS: u32 = 120_000;

/// Size of the read buffer for HTTP/1.1, in bytes. The head of a request must fit into it. hyper's default is 400 KiB,
/// which a client without a token could fill on each of its connections.
const MAX_HEAD: usize = 64 << 10;

/// Limits of an HTTP/2 connection.
struct Http2Limits {
    /// Maximum number of concurrent streams (SETTINGS_MAX_CONCURRENT_STREAMS).
    streams: u32,
    /// Flow-control window of each stream and of the connection, in bytes.
    window: u32,
    /// Maximum number of bytes of one stream that may wait until the client reads them.
    send_buffer: usize,
}

/// Limits for all clients except agents. hyper cannot raise them after it has sent its first SETTINGS frame, so they
/// also hold for clients that show a token later. They do not slow down Azure's clients, which use HTTP/1.1 and at most
/// 4 requests at a time. 65,535 bytes is the initial window of RFC 9113.
const STRANGER_LIMITS: Http2Limits = Http2Limits {
    streams: 4,
    window: 65_535,
    send_buffer: 64 << 10,
};

/// Limits for agents. 16 streams are enough for the control stream and renewals, also while streams of an earlier
/// attempt have not ended. The sizes of window and buffer are hyper's defaults.
const AGENT_LIMITS: Http2Limits = Http2Limits {
    streams: 16,
    window: 1 << 20,
    send_buffer: 400 << 10,
};

/// The state that all connections share.
pub(super) struct Service {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    pub(super) tls: Arc<rustls::ServerConfig>,
    /// Permits for TLS key exchanges that are computed at the same moment: one for every two cores, at least one.
    /// Connections from this host or from an address of a known agent need none.
    pub(super) key_exchanges: Arc<LifoSemaphore>,
}

impl Service {
    /// Serves a connection until it ends. An error ends the connection and is logged at the level `debug`. This
    /// function has no time limit: the task is aborted when [`crate::admission`] evicts the connection.
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, connection: Connection) {
        // Nagle's algorithm would delay small frames. If it cannot be disabled, the connection works, but is slower.
        let _ = stream.set_nodelay(true);
        // A client that has gone, or that reads nothing, would keep its live streams. Without the option, the kernel gives up
        // after a quarter of an hour, or never.
        let _ = setsockopt(&stream, TcpUserTimeout, &SEND_LIMIT_MS);
        match self.accept_tls(stream, &connection).await {
            // The future is boxed, so that a task that waits for a ClientHello does not hold the memory that HTTP needs
            // later.
            Ok(stream) => Box::pin(self.serve_http(stream, peer, connection)).await,
            Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        }
    }

    /// Completes the TLS handshake, after the wait that the rate limit of the client's address demands.
    ///
    /// # Errors
    /// The handshake failed, or the address of the client has begun too many key exchanges.
    async fn accept_tls(&self, stream: TcpStream, connection: &Connection) -> std::io::Result<TlsStream<TcpStream>> {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        connection.client_hello_received();
        connection.wait_for_key_exchange().await?;
        // The first poll computes the key exchange and the signature. A ClientHello costs its sender almost nothing, so
        // the responses to unknown clients must not occupy all cores.
        let permit = match connection.reserved {
            true => None,
            false => Some(self.key_exchanges.acquire().await),
        };
        let mut handshake = hello.into_stream(self.tls.clone());
        let first = poll_immediate(&mut handshake).await;
        drop(permit);
        match first {
            Some(done) => done,
            None => handshake.await,
        }
    }

    /// Serves requests over HTTP/1.1 or HTTP/2 until the connection ends.
    async fn serve_http(&self, stream: TlsStream<TcpStream>, peer: SocketAddr, connection: Connection) {
        let tls = stream.get_ref().1;
        let two = tls.alpn_protocol() == Some(b"h2");
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.map(|c| PeerCertificate(c.clone().into_owned()));
        // An agent with an expired certificate is identified too, because it connects to renew the certificate.
        let agent = certificate
            .as_ref()
            .and_then(|c| grpc::identify(&self.app, c, true).ok())
            .map(|caller| caller.agent);
        connection.handshake_completed(agent.as_ref());
        let is_agent = agent.is_some();
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
            let open = connection.request();
            let (mut parts, body) = request.into_parts();
            parts.extensions.insert(PeerAddr(peer));
            parts.extensions.insert(open.clone());
            if let Some(certificate) = &certificate {
                parts.extensions.insert(certificate.clone());
            }
            let body = match is_agent {
                true => axum::body::Body::new(body),
                false => axum::body::Body::new(CountedBody {
                    body,
                    request: open.clone(),
                }),
            };
            let response = self.router.clone().oneshot(hyper::Request::from_parts(parts, body));
            async move {
                Ok::<_, std::convert::Infallible>(response.await?.map(|body| ResponseBody { body, _request: open }))
            }
        });
        // The HTTP version is the one that ALPN has chosen. To detect it from the first bytes, the server would have to
        // wait for bytes that may never arrive.
        let stream = TokioIo::new(stream);
        let ended = if two {
            let limits = if is_agent { AGENT_LIMITS } else { STRANGER_LIMITS };
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.streams)
                .initial_stream_window_size(limits.window)
                .initial_connection_window_size(limits.window)
                .max_send_buf_size(limits.send_buffer)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT);
            builder.serve_connection(stream, service).await
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD);
            builder.serve_connection(stream, service).await
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// The body of a request from a client that is no agent. Reports to [`crate::admission`] how many bytes have arrived.
struct CountedBody {
    body: Incoming,
    request: Request,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.request.body_received(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response. The request counts as in progress until the body is sent or dropped.
struct ResponseBody {
    body: axum::body::Body,
    _request: Request,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
