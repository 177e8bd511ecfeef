//! The controller of one test: its process, its data directory, and a client of it.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tombolo_controller::store::sqlite::SqliteStore;
use tombolo_controller::store::{Store as _, Transaction};

/// The subscription of the resources of all tests.
pub(crate) const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";
/// The resource group of all tests.
pub(crate) const GROUP: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/lab";
/// Longest time that a test waits for an event. It is enough for a machine that runs all tests at the same time.
pub(crate) const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// A response with its JSON body; `null` if the body is not JSON.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The code in ARM's error object; empty if the body is no error object.
    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// A header of the response; `None` if it is missing or is not text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The revision in the response to a write. Panics for any other response.
    pub(crate) fn revision(&self) -> u64 {
        self.header("x-tombolo-revision").unwrap().parse().unwrap()
    }
}

/// A running controller, and a client of it with the admin token. Dropping it kills the process and deletes its
/// directory.
pub(crate) struct World {
    process: Child,
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) client: reqwest::Client,
    pub(crate) token: String,
    arguments: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        // A destructor has nobody to report a failure to.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(dir: &Path, port: u16, arguments: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tombolo-controller"))
        .args([
            "--data-dir",
            dir.to_str().unwrap(),
            "--listen",
            &format!("127.0.0.1:{port}"),
        ])
        .args(arguments)
        .env("TOMBOLO_LOG_FORMAT", "text")
        .env("TOMBOLO_LOG", "debug,hyper=info,h2=info,rustls=info")
        .stdin(Stdio::null())
        .stderr(
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(dir.with_extension("log"))
                .unwrap(),
        )
        .spawn()
        .unwrap()
}

impl World {
    /// Starts a controller in a new directory, and waits until it is ready.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, arguments).await
    }

    /// Starts a controller with a directory, on a loopback port that was free just before, and waits until the
    /// controller is ready.
    pub(crate) async fn start_in(dir: tempfile::TempDir, arguments: &[&str]) -> Self {
        // The call fails if another test in this process has already installed the provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let process = spawn(&dir.path().join("data"), port, &arguments);
        let mut world = Self {
            process,
            dir,
            port,
            client: reqwest::Client::new(),
            token: String::new(),
            arguments,
        };
        world.ready().await;
        world
    }

    /// The controller's data directory. A restarted controller uses the same one.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The log, so far, of all processes that this value has started.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("data.log")).unwrap_or_default()
    }

    /// Waits until the process answers the health check, and reads its admin token. Panics with the log if the process
    /// ends, or after [`EVENT_TIMEOUT`].
    async fn ready(&mut self) {
        let deadline = Instant::now() + EVENT_TIMEOUT;
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("the controller ended with {status}:\n{}", self.log());
            }
            if let Some((client, token)) = self.credentials() {
                let health = client.get(self.url("/fabric/v1/health")).send().await;
                if health.is_ok_and(|h| h.status().is_success()) {
                    (self.client, self.token) = (client, token);
                    return;
                }
            }
            assert!(Instant::now() < deadline, "not ready:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A client that trusts the controller's authority, and the admin token; `None` until their files exist.
    fn credentials(&self) -> Option<(reqwest::Client, String)> {
        let ca = std::fs::read(self.data().join("ca.pem")).ok()?;
        let token = std::fs::read_to_string(self.data().join("admin.token")).ok()?;
        let ca = reqwest::Certificate::from_pem(&ca).ok()?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([ca])
            .timeout(EVENT_TIMEOUT)
            .build();
        Some((client.unwrap(), token.trim().to_owned()))
    }

    /// Kills the process by SIGKILL, so that it cannot clean up, and starts it again.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.restart().await;
    }

    /// Sends SIGTERM, blocks until the process has ended, and returns its exit status.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        let done = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status()
            .unwrap();
        assert!(done.success());
        let deadline = Instant::now() + EVENT_TIMEOUT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "SIGTERM did not end it");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the controller again, with the same directory, port and arguments, after its process has ended. Waits
    /// until it is ready.
    pub(crate) async fn restart(&mut self) {
        self.process = spawn(&self.data(), self.port, &self.arguments);
        self.ready().await;
    }

    /// The newest value of a document in the store. The controller may be running.
    pub(crate) fn document(&self, key: &str) -> Value {
        let store = rusqlite::Connection::open(self.data().join("state.db")).unwrap();
        let sql = "SELECT value FROM log WHERE key = ?1 ORDER BY revision DESC LIMIT 1";
        let bytes: Vec<u8> = store.query_row(sql, [key], |row| row.get(0)).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Ends the controller by SIGTERM, changes a document of its store, and starts it again.
    pub(crate) async fn change_document(&mut self, key: &str, change: impl FnOnce(&mut Value)) {
        assert!(self.terminate().success(), "{}", self.log());
        let mut store = SqliteStore::open(&self.data().join("state.db")).unwrap();
        let (_, found) = store.range(key).unwrap();
        let mut document = serde_json::from_slice(&found.first().expect("the document").value).unwrap();
        change(&mut document);
        let transaction = Transaction {
            compare: Vec::new(),
            changes: vec![(key.to_owned(), Some(document.to_string().into_bytes()))],
        };
        for committed in store.commit(&[transaction]).unwrap() {
            committed.unwrap();
        }
        drop(store);
        self.restart().await;
    }

    /// The URL of a path of this controller.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// Sends a request with the admin token, to a path with a leading `/`. Any status is returned.
    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let mut request = self.client.request(method, self.url(path)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    /// Sends a request to the fabric API; `path` is relative to `/fabric/v1/`.
    pub(crate) async fn fabric(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.send(method, &format!("/fabric/v1/{path}"), body.as_ref()).await
    }

    /// Sends a request to ARM with an `api-version`. A leading `~` in a path stands for the resource group of all
    /// tests.
    pub(crate) async fn arm(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let path = match path.strip_prefix('~') {
            Some(inner) => format!("{GROUP}{inner}"),
            None => path.to_owned(),
        };
        let join = if path.contains('?') { '&' } else { '?' };
        self.send(method, &format!("{path}{join}api-version=2024-05-01"), body.as_ref())
            .await
    }

    /// Sends a PUT to ARM, as [`Self::arm`] does. Panics if it is refused.
    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        let answer = self.arm(Method::PUT, path, Some(body)).await;
        assert!(answer.status.is_success(), "{path}: {answer:?}");
        answer
    }

    /// Creates the resource group, and the VNets `a` (10.1.0.0/16) and `b` (10.2.0.0/16) with a subnet `w` and a NIC
    /// each.
    pub(crate) async fn two_vnets(&self) {
        self.put("~", json!({"location": "region1"})).await;
        for (name, n) in [("a", 1), ("b", 2)] {
            let body = json!({"location": "region1", "properties": {
                "addressSpace": {"addressPrefixes": [format!("10.{n}.0.0/16")]},
                "subnets": [{"name": "w", "properties": {"addressPrefix": format!("10.{n}.0.0/24")}}],
            }});
            self.put(&format!("~/providers/Microsoft.Network/virtualNetworks/{name}"), body)
                .await;
            self.nic(&format!("{name}-nic"), name, &format!("10.{n}.0.4")).await;
        }
    }

    /// Creates a NIC with a static address in the subnet `w` of a VNet.
    pub(crate) async fn nic(&self, name: &str, vnet: &str, address: &str) -> Answer {
        let subnet = format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/{vnet}/subnets/w");
        let body = json!({"location": "region1", "properties": {"ipConfigurations": [{"name": "ipconfig1", "properties": {
            "subnet": {"id": subnet}, "privateIPAllocationMethod": "Static", "privateIPAddress": address,
        }}]}});
        self.put(&format!("~/providers/Microsoft.Network/networkInterfaces/{name}"), body)
            .await
    }

    /// Creates the half of a peering that belongs to the VNet `from`, with the name `to-` and the other VNet's name.
    pub(crate) async fn peer(&self, from: &str, to: &str) -> Answer {
        let remote = format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/{to}");
        let body = json!({"properties": {"remoteVirtualNetwork": {"id": remote}, "allowVirtualNetworkAccess": true}});
        let path = format!("~/providers/Microsoft.Network/virtualNetworks/{from}/virtualNetworkPeerings/to-{to}");
        self.put(&path, body).await
    }
}

/// Sends a request, and reads the response.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status, headers, body }
}

/// Polls a condition until it returns a value. Panics with `what` after [`EVENT_TIMEOUT`].
pub(crate) async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    loop {
        if let Some(found) = holds().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {EVENT_TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
