//! A real controller process on loopback, and a REST client of it.

use crate::binary::binary;
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::Value;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// The time in which a controller must answer after its start. A start usually takes a fraction of a second; the limit
/// allows for a machine that runs all tests at once.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running controller. Dropping the value kills the process, and leaves its data directory.
pub struct Controller {
    process: Child,
    data: PathBuf,
    listen: SocketAddr,
}

/// A REST client of one controller. The client trusts only that controller's certificate authority, and sends that
/// controller's admin token. Clones share connections.
#[derive(Clone)]
pub struct Rest {
    client: Client,
    base: String,
    token: String,
}

impl Controller {
    /// Starts a controller with the data directory `data`, and waits until it answers. It listens at `listen`, or at a
    /// free port of loopback. Its log is appended to `controller.log` in the data directory, which must exist. A data
    /// directory of an earlier controller is continued, but two controllers must not use one directory at the same
    /// time. If the future is dropped, the process is killed.
    ///
    /// # Panics
    /// If the program is not built, cannot start, ends (for example because another process has the port), or does not
    /// answer within 30 seconds. Also outside of a Tokio runtime with I/O and time enabled.
    pub async fn start(data: &Path, listen: Option<SocketAddr>) -> Self {
        Self::start_with(data, listen, &[]).await
    }

    /// Starts a controller as [`Self::start`] does, with further arguments on its command line. They follow
    /// `--data-dir` and `--listen`.
    ///
    /// # Panics
    /// As for [`Self::start`].
    pub async fn start_with(data: &Path, listen: Option<SocketAddr>, arguments: &[&str]) -> Self {
        // An error means that another test of this process has installed the cryptography provider already.
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

    /// The controller's URL, `https://ADDRESS:PORT`, without a final slash.
    #[must_use]
    pub fn base(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// The address and port of REST and of the control stream.
    #[must_use]
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The PEM file with the certificate of the controller's authority. It exists once the controller has started.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.data.join("ca.pem")
    }

    /// The admin token, as `admin.token` in the data directory has it now.
    ///
    /// # Panics
    /// If the file cannot be read.
    #[must_use]
    pub fn token(&self) -> String {
        let text = std::fs::read_to_string(self.data.join("admin.token"));
        text.unwrap_or_else(|e| panic!("admin.token: {e}")).trim().to_string()
    }

    /// A new client, which shares no connections with earlier clients. Each of its requests may take 60 s. The client
    /// stays valid when the controller is started again with the same data directory and address.
    ///
    /// # Panics
    /// If `ca.pem` or `admin.token` cannot be read, or `ca.pem` holds no certificate.
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

    /// Sends SIGKILL, and waits until the process has ended. The data directory stays.
    ///
    /// # Panics
    /// If the process cannot be killed.
    pub async fn kill(mut self) {
        self.process.kill().await.unwrap_or_else(|e| panic!("kill: {e}"));
    }

    /// The last 20 lines of the controller's log, newest first. Empty if the log cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.data.join("controller.log")).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }
}

impl Rest {
    /// Sends a request and waits for the complete answer: its status, whatever it is, and its body. The body is `Null`
    /// if it is not JSON. `path` begins with `/` and includes the query. A path outside of `/fabric/` gets an
    /// `api-version`, so it must not have one. If the future is dropped, the controller may have carried out the
    /// request.
    ///
    /// # Errors
    /// The controller cannot be reached, the connection breaks, or the answer takes longer than 60 s. A status of 400
    /// or more is no error.
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

    /// Sends a PUT request with [`Self::call`].
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<(StatusCode, Value), reqwest::Error> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// Sends a GET request with [`Self::call`].
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub async fn get(&self, path: &str) -> Result<(StatusCode, Value), reqwest::Error> {
        self.call(Method::GET, path, None).await
    }

    /// Sends a DELETE request with [`Self::call`].
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub async fn delete(&self, path: &str) -> Result<(StatusCode, Value), reqwest::Error> {
        self.call(Method::DELETE, path, None).await
    }
}

/// 127.0.0.1 with a TCP port that is free now. The port is not reserved: another process may take it before the caller
/// does.
///
/// # Panics
/// If no port is free.
#[must_use]
pub fn free_port() -> SocketAddr {
    let probe = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    probe.unwrap_or_else(|e| panic!("a free port: {e}"))
}
