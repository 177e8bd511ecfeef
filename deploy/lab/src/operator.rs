//! The operator's connection to a lab's controller: opened inside the controller's namespace, from any thread.

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

/// A client whose connections are made in the network namespace `netns`.
///
/// # Errors
/// The namespace does not exist, or the URL or CA is not valid.
pub fn client(netns: &Path, url: &str, token: &str, ca_pem: &str) -> Result<Client> {
    let there = File::open(netns).with_context(|| format!("network namespace {}", netns.display()))?;
    let here = File::open("/proc/thread-self/ns/net").context("the own network namespace")?;
    let layer = Inside(Arc::new(Pair { there, here }));
    Ok(Client::with_http(url, Some(token), Some(ca_pem), |http| {
        http.connector_layer(layer)
    })?)
}

#[derive(Debug)]
struct Pair {
    there: File,
    here: File,
}

impl Pair {
    /// Does `action` with this thread in the other namespace. Sockets stay where they were made.
    fn run<T>(&self, action: impl FnOnce() -> T) -> Result<T, nix::Error> {
        /// Brings the thread back, whatever happens.
        struct Return<'a>(&'a File);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                if let Err(e) = setns(self.0, CloneFlags::CLONE_NEWNET) {
                    // Going on would do the caller's work in the wrong network.
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

/// Makes connections inside a namespace.
#[derive(Debug, Clone)]
struct Inside(Arc<Pair>);

impl<S> Layer<S> for Inside {
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
    namespaces: Arc<Pair>,
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
        // Each poll may be on another thread; the socket is made in one of them.
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
