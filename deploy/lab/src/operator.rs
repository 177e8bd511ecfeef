//! The operator's client of a lab's controller. It opens its connections in the controller's network namespace.

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tombolo_client::Client;
use tower::{Layer, Service};

/// Returns a client that opens its connections in the network namespace `netns`.
///
/// # Errors
/// The namespace does not exist, or the URL or CA is not valid.
pub fn client(netns: &Path, url: &str, token: &str, ca_pem: &str) -> Result<Client> {
    let there = File::open(netns).with_context(|| format!("network namespace {}", netns.display()))?;
    let here = File::open("/proc/thread-self/ns/net").context("the own network namespace")?;
    let layer = InNamespace(Arc::new(NamespacePair { there, here }));
    Ok(Client::with_http(url, Some(token), Some(ca_pem), |http| {
        http.connector_layer(layer)
    })?)
}

/// The namespace of the connections, and the program's own.
#[derive(Debug)]
struct NamespacePair {
    there: File,
    here: File,
}

impl NamespacePair {
    /// Runs `action` with this thread in the other namespace. A socket belongs to the namespace that it was created in.
    fn run<T>(&self, action: impl FnOnce() -> T) -> Result<T, nix::Error> {
        /// Returns the thread to its namespace when it is dropped, also after a panic.
        struct Return<'a>(&'a File);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                if let Err(e) = setns(self.0, CloneFlags::CLONE_NEWNET) {
                    // Otherwise the thread would do the caller's further work in the controller's network.
                    tracing::error!(error = %e, "cannot return to the own network namespace");
                    std::process::abort();
                }
            }
        }
        setns(&self.there, CloneFlags::CLONE_NEWNET)?;
        let _return = Return(&self.here);
        Ok(action())
    }
}

/// The layer that opens connections in a namespace.
#[derive(Debug, Clone)]
struct InNamespace(Arc<NamespacePair>);

impl<S> Layer<S> for InNamespace {
    type Service = Connector<S>;
    fn layer(&self, inner: S) -> Connector<S> {
        Connector {
            inner,
            namespaces: self.0.clone(),
        }
    }
}

#[derive(Debug, Clone)]
struct Connector<S> {
    inner: S,
    namespaces: Arc<NamespacePair>,
}

impl<S, R> Service<R> for Connector<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
    S::Error: From<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let mut connecting = Box::pin(self.inner.call(request));
        let namespaces = self.namespaces.clone();
        // Each poll may run on another thread, and one of them creates the socket.
        Box::pin(std::future::poll_fn(move |cx| {
            match namespaces.run(|| connecting.as_mut().poll(cx)) {
                Ok(poll) => poll,
                Err(e) => {
                    let text = format!("entering the controller's network namespace: {e}");
                    Poll::Ready(Err(S::Error::from(text.into())))
                }
            }
        }))
    }
}
