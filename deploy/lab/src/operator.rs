//! The operator's client of a lab's controller. The client makes its connections in the network namespace of the
//! controller's host, because the underlay cannot be reached from this machine's own namespace.

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

/// Returns a client whose connections are made in the network namespace with the file `netns`. `url` is the
/// controller's URL, `https://ADDRESS:PORT`; `token` an API token; `ca_pem` the controller's CA certificate in PEM.
/// Opens no connection yet. The caller's thread must be in the program's own namespace: a thread enters `netns` to make
/// a connection, and then returns to the namespace in which the caller's thread is now. If the thread cannot return,
/// the program is aborted.
///
/// Root is needed only when the client makes a connection. Without it, the client's requests fail.
///
/// # Errors
/// The namespace does not exist, or the URL or the CA certificate is not valid. The token is not checked.
pub fn client(netns: &Path, url: &str, token: &str, ca_pem: &str) -> Result<Client> {
    let there = File::open(netns).with_context(|| format!("network namespace {}", netns.display()))?;
    let here = File::open("/proc/thread-self/ns/net").context("the own network namespace")?;
    let layer = InNamespace(Arc::new(NamespacePair { there, here }));
    Ok(Client::with_http(url, Some(token), Some(ca_pem), |http| {
        http.connector_layer(layer)
    })?)
}

/// The namespace of the connections (`there`), and the program's own (`here`).
#[derive(Debug)]
struct NamespacePair {
    there: File,
    here: File,
}

impl NamespacePair {
    /// Runs `action` with this thread in the namespace of the connections. A socket that `action` creates stays in that
    /// namespace, also after this thread has left it.
    fn run<T>(&self, action: impl FnOnce() -> T) -> Result<T, nix::Error> {
        /// When this value is dropped, also by a panic, the thread returns to the program's own namespace.
        struct Return<'a>(&'a File);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                if let Err(e) = setns(self.0, CloneFlags::CLONE_NEWNET) {
                    // The program must end here. Otherwise all further connections of this thread would be made in the
                    // controller's namespace.
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

/// The layer of the HTTP client by which connections are made in another namespace.
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
        // Each poll may run on another thread, and any poll may create the socket. So each poll enters the namespace.
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
