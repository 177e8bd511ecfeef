//! One connection: the TLS handshake, then HTTP/1.1 or HTTP/2, with little room for those who have not said who they are.

use super::turns::Turns;
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
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

/// For the head of a request over HTTP/1.1, and for the next one to begin.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two HTTP/2 PINGs, and for the answer to one. An agent sends PINGs itself every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Read buffer of HTTP/1.1, bytes: the longest head that is served. hyper's own limit is 400 KiB.
const MAX_HEAD: usize = 64 << 10;

/// HTTP/2's flow control, and its limit of streams.
struct Room {
    streams: u32,
    /// Bytes that may arrive before somebody reads them: of one stream, and of the connection.
    window: u32,
    /// Bytes that wait for the peer to read, of one stream.
    send_buffer: usize,
}

/// HTTP/2 cannot get more room after its first SETTINGS here, so users with a token have as much as strangers: 4 requests at
/// a time on one connection, which is what the stock clients do with HTTP/1.1 as well. The window is the protocol's smallest.
const STRANGER: Room = Room {
    streams: 4,
    window: 65_535,
    send_buffer: 64 << 10,
};

/// One stream for control, renewals now and then, and what a reconnecting agent leaves behind. The rest is hyper's default.
const AGENT: Room = Room {
    streams: 16,
    window: 1 << 20,
    send_buffer: 400 << 10,
};

/// What all connections are served with.
pub(super) struct Service {
    pub(super) app: Arc<App>,
    pub(super) router: Router,
    pub(super) tls: Arc<rustls::ServerConfig>,
    /// Key exchanges that are computed at a time for addresses that no agent is known at.
    pub(super) computing: Arc<Turns>,
}

impl Service {
    /// Serves a connection until it ends. Its time is limited from outside: see [`crate::admission`].
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, connection: Connection) {
        let _ = stream.set_nodelay(true);
        match self.secure(stream, &connection).await {
            // Boxed: a task that waits for a ClientHello needs no room for the rest.
            Ok(stream) => Box::pin(self.speak(stream, peer, connection)).await,
            Err(error) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        }
    }

    /// The TLS handshake.
    async fn secure(&self, stream: TcpStream, connection: &Connection) -> std::io::Result<TlsStream<TcpStream>> {
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        connection.greeted();
        connection.exchange().await?;
        // The server's part of the key exchange, and its signature, are made in the first step. A ClientHello costs its
        // sender nothing, so the answers to strangers must not take all cores.
        let turn = match connection.reserved {
            true => None,
            false => Some(self.computing.take().await),
        };
        let mut handshake = hello.into_stream(self.tls.clone());
        let first = poll_immediate(&mut handshake).await;
        drop(turn);
        match first {
            Some(done) => done,
            None => handshake.await,
        }
    }

    async fn speak(&self, stream: TlsStream<TcpStream>, peer: SocketAddr, connection: Connection) {
        let tls = stream.get_ref().1;
        let two = tls.alpn_protocol() == Some(b"h2");
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.map(|c| PeerCertificate(c.clone().into_owned()));
        // An expired certificate may still renew, and is no stranger's.
        let agent = certificate
            .as_ref()
            .and_then(|c| grpc::identify(&self.app, c, true).ok())
            .map(|caller| caller.agent);
        connection.secured(agent.as_ref());
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
                false => axum::body::Body::new(Counted {
                    body,
                    request: open.clone(),
                }),
            };
            let answer = self.router.clone().oneshot(hyper::Request::from_parts(parts, body));
            async move { Ok::<_, std::convert::Infallible>(answer.await?.map(|body| Answer { body, _request: open })) }
        });
        // By what TLS agreed on, and not by the first bytes: those may never come.
        let stream = TokioIo::new(stream);
        let ended = if two {
            let room = if is_agent { AGENT } else { STRANGER };
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(room.streams)
                .initial_stream_window_size(room.window)
                .initial_connection_window_size(room.window)
                .max_send_buf_size(room.send_buffer)
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

/// The body of a request, whose bytes are counted as they come.
struct Counted {
    body: Incoming,
    request: Request,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.request.received(data.len());
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

/// The body of an answer: the request is under way until it is sent or dropped.
struct Answer {
    body: axum::body::Body,
    _request: Request,
}

impl Body for Answer {
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
