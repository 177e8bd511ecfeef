//! TCP listeners at which a site probe returns what it receives, so that checks of a port in the site have an answer. The
//! host's own settings choose the addresses; the controller cannot.

use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Largest number of connections at a time at one address; further ones wait. A check opens 10.
const MAX_CONNECTIONS: usize = 64;

/// Longest time of a connection. Checks close theirs at once.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Largest number of bytes that one connection gets back.
const MAX_BYTES: u64 = 64 << 10;

/// Pause after a failed `accept`, whose usual cause is that the process has no free file descriptor.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Binds the listeners of the setting `tcp_echo`.
///
/// # Errors
/// No interface of this host has an address, another program listens there, or the agent may not bind a port below 1024.
pub(super) async fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let bound = TcpListener::bind(address).await;
        listeners.push(bound.with_context(|| format!("tcp_echo: cannot listen at {address}"))?);
    }
    Ok(listeners)
}

/// Serves a listener until its task is cancelled.
pub(super) async fn serve(listener: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Further connections wait in the kernel's accept queue.
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    // Whether the client read its bytes is of no interest.
                    let _ = timeout(MAX_TIME, echo(stream)).await;
                    drop(permit);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "tcp_echo");
                sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader.take(MAX_BYTES), &mut writer).await?;
    writer.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// M10: a listener returns at most 64 KiB of what it receives, and further clients are served after that.
    #[tokio::test]
    async fn m10_a_listener_returns_a_bounded_part_of_what_it_receives() {
        let mut bound = bind(&["127.0.0.1:0".parse().unwrap()]).await.unwrap();
        let listener = bound.pop().unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener));
        for sent in [5, 200_000] {
            let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
            let writing = tokio::spawn(async move {
                // The listener closes the connection before it has read all.
                let _ = writer.write_all(&vec![7; sent]).await;
                let _ = writer.shutdown().await;
            });
            let (mut back, mut part) = (0, [0; 4096]);
            // A listener that closes with unread bytes resets the connection, after the bytes that it returned.
            while let Ok(n @ 1..) = reader.read(&mut part).await {
                assert!(part[..n].iter().all(|byte| *byte == 7));
                back += n;
            }
            writing.await.unwrap();
            let limit = usize::try_from(MAX_BYTES).unwrap();
            assert!(back <= limit && (sent > limit || back == sent), "{back} of {sent}");
        }
        server.abort();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(&[taken.local_addr().unwrap()]).await.unwrap_err();
        assert!(
            format!("{error:#}").starts_with("tcp_echo: cannot listen at 127.0.0.1"),
            "{error:#}"
        );
    }
}
