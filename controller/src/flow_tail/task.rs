//! A source of bytes in a task of its own, which ends although nobody asks for more bytes.

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;

/// The bytes of the source. The source ends with the stream, and when nothing is taken for `wait`: a client that gives its
/// HTTP/2 stream no window keeps the connection open, and its stream is not polled any more.
pub(super) fn in_a_task(
    source: impl Stream<Item = Bytes> + Send + 'static,
    wait: Duration,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut source = pin!(source);
        loop {
            let bytes = tokio::select! {
                bytes = source.next() => bytes,
                () = sender.closed() => None,
            };
            let Some(bytes) = bytes else { break };
            if sender.send_timeout(Ok(bytes), wait).await.is_err() {
                break;
            }
        }
    });
    stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    /// Waits until the place of a source is free again.
    async fn free(places: &Arc<Semaphore>) {
        let place = tokio::time::timeout(Duration::from_secs(30), places.acquire()).await;
        let place = place.unwrap_or_else(|_| panic!("the source runs on"));
        drop(place.unwrap());
    }

    #[tokio::test]
    async fn d38_a_tail_ends_although_its_client_takes_nothing() {
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().acquire_owned().await.unwrap();
        let source = stream::repeat_with(move || {
            let _ = &place;
            Bytes::from_static(b"a line\n")
        });
        let taken = in_a_task(source, Duration::from_millis(50));
        free(&places).await;
        // What was sent before can still be taken.
        assert_eq!(taken.count().await, 1);
    }

    #[tokio::test]
    async fn d38_a_tail_without_lines_ends_with_its_client() {
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().acquire_owned().await.unwrap();
        let source = stream::pending().map(move |bytes: Bytes| {
            let _ = &place;
            bytes
        });
        drop(in_a_task(source, Duration::from_secs(3600)));
        free(&places).await;
    }
}
