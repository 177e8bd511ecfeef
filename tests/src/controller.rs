//! A real controller process on loopback, with its certificate authority and admin token.

use crate::binary::binary;
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// A start takes a fraction of a second; the limit covers a machine that runs all tests at once.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running controller. Dropping it kills it.
pub struct Controller {
    process: Child,
    data: PathBuf,
    listen: SocketAddr,
}

/// A client of one controller. It trusts the controller's certificate authority and sends its admin token.
#[derive(Clone)]
pub struct Rest {
    client: Client,
    base: String,
    token: String,
}

impl Controller {
    /// Starts a controller on `data`, on a free port unless one is given, and waits until it answers.
    ///
    /// # Panics
    /// If it does not answer in time.
    pub async fn start(data: &Path, listen: Option<SocketAddr>) -> Self {
        Self::start_with(data, listen, &[]).await
    }

    /// As [`Self::start`], with further arguments.
    ///
    /// # Panics
    /// If it does not answer in time.
    pub async fn start_with(data: &Path, listen: Option<SocketAddr>, arguments: &[&str]) -> Self {
        // An error means that another test of this process has installed it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listen = listen.unwrap_or_else(free_port);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(data.join("controller.log"))
            .unwrap_or_else(|e| panic!("log: {e}"));
        let process = Command::new(binary("tombolo-controller"))
            .arg("--data-dir")
            .arg(data)
            .arg("--listen")
            .arg(listen.to_string())
            .args(arguments)
            .env("TOMBOLO_LOG_FORMAT", "text")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("controller: {e}"));
        let mut started = Self {
            process,
            data: data.to_path_buf(),
            listen,
        };
        let begin = Instant::now();
        while !started.healthy().await {
            if let Ok(Some(status)) = started.process.try_wait() {
                panic!("the controller ended with {status}: {}", started.log());
            }
            assert!(
                begin.elapsed() < START_TIMEOUT,
                "no answer in {START_TIMEOUT:?}: {}",
                started.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        started
    }

    async fn healthy(&self) -> bool {
        if !self.certificate().is_file() || !self.data.join("admin.token").is_file() {
            return false;
        }
        let answer = self.rest().call(Method::GET, "/fabric/v1/health", None).await;
        answer.is_ok_and(|(status, _)| status == StatusCode::OK)
    }

    /// `https://ADDRESS:PORT`.
    #[must_use]
    pub fn base(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// The address and port of REST and of the control stream.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The file with its certificate authority.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.data.join("ca.pem")
    }

    /// The admin token.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn token(&self) -> String {
        let text = std::fs::read_to_string(self.data.join("admin.token"));
        text.unwrap_or_else(|e| panic!("admin.token: {e}")).trim().to_string()
    }

    /// A new client: connections are not shared with earlier ones.
    ///
    /// # Panics
    /// If the certificate cannot be read.
    #[must_use]
    pub fn rest(&self) -> Rest {
        let pem = std::fs::read(self.certificate()).unwrap_or_else(|e| panic!("ca.pem: {e}"));
        let authority = Certificate::from_pem(&pem).unwrap_or_else(|e| panic!("ca.pem: {e}"));
        let client = Client::builder()
            .tls_certs_only([authority])
            .no_proxy()
            .timeout(Duration::from_secs(60))
            .build()
            .unwrap_or_else(|e| panic!("client: {e}"));
        Rest {
            client,
            base: self.base(),
            token: self.token(),
        }
    }

    /// Sends SIGKILL, and waits for the end of the process.
    ///
    /// # Panics
    /// If it cannot be killed.
    pub async fn kill(mut self) {
        self.process.kill().await.unwrap_or_else(|e| panic!("kill: {e}"));
    }

    /// The last 20 lines of its log, newest first.
    #[must_use]
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.data.join("controller.log")).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }
}

impl Rest {
    /// Sends a request; `path` is absolute, with its query. ARM paths get an api-version.
    ///
    /// # Errors
    /// If the controller did not answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), reqwest::Error> {
        let version = match (path.starts_with("/fabric/"), path.contains('?')) {
            (true, _) => "",
            (false, true) => "&api-version=2024-05-01",
            (false, false) => "?api-version=2024-05-01",
        };
        let url = format!("{}{path}{version}", self.base);
        let mut request = self.client.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let bytes = answer.bytes().await?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// Sends a PUT request, as [`Self::call`].
    ///
    /// # Errors
    /// If no answer came.
    pub async fn put(&self, path: &str, body: &Value) -> Result<(StatusCode, Value), reqwest::Error> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// Sends a GET request, as [`Self::call`].
    ///
    /// # Errors
    /// If no answer came.
    pub async fn get(&self, path: &str) -> Result<(StatusCode, Value), reqwest::Error> {
        self.call(Method::GET, path, None).await
    }

    /// Sends a DELETE request, as [`Self::call`].
    ///
    /// # Errors
    /// If no answer came.
    pub async fn delete(&self, path: &str) -> Result<(StatusCode, Value), reqwest::Error> {
        self.call(Method::DELETE, path, None).await
    }
}

/// A free port on loopback. Another process may take it before the caller does.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> SocketAddr {
    let probe = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    probe.unwrap_or_else(|e| panic!("a free port: {e}"))
}
