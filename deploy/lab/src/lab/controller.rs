//! The controller of a lab, and the operator's client.

use super::Lab;
use crate::host::{Hosts as _, Namespaces};
use crate::operator;
use crate::topology::{CONTROLLER, Topology};
use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tombolo_client::Client;

/// Longest time from the controller's start to its first answer. At the first start the controller creates its keys and
/// its store, which takes seconds on a busy machine.
const CONTROLLER_START_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two health requests to a starting controller.
const HEALTH_POLL_INTERVAL: Duration = Duration::from_millis(30);
/// Time that the controller has to end after SIGTERM, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);

impl Lab {
    /// Returns a new client of the controller. The controller need not run. Fails if the controller has not written its
    /// token yet.
    pub(super) fn make_client(&self) -> Result<Client> {
        client_of(&self.topology, self.path()?)
    }

    /// Starts the controller without waiting for an answer. `tied`: whether it ends with this program.
    pub(super) fn launch_controller(&self, tied: bool) -> Result<()> {
        let at = &self.topology.underlay.controller;
        let argv = vec![
            self.hosts.program(CONTROLLER, "tombolo-controller")?,
            "--data-dir".to_owned(),
            self.controller_dir()?.display().to_string(),
            "--listen".to_owned(),
            SocketAddr::new(at.address, at.port).to_string(),
        ];
        self.launch(CONTROLLER, CONTROLLER, &argv, tied).map(drop)
    }

    /// Waits until the controller answers, and keeps a client of it. Fails if the controller's process ends, or does
    /// not answer within [`CONTROLLER_START_TIMEOUT`]. The error contains the last lines of the controller's log.
    pub(super) async fn wait_for_controller(&mut self) -> Result<()> {
        let process = self.process(CONTROLLER)?;
        let deadline = Instant::now() + CONTROLLER_START_TIMEOUT;
        loop {
            // The client needs the certificate and the token, which the controller writes at its first start. So a
            // client is made for each attempt.
            let client = self.make_client();
            let health = match &client {
                Ok(client) => client.health().await.map(drop).map_err(Into::into),
                Err(e) => Err(anyhow::anyhow!("{e:#}")),
            };
            match (health, client) {
                (Ok(()), Ok(client)) => {
                    self.client = Some(client);
                    return Ok(());
                }
                (Err(e), _) if !process.alive() || Instant::now() > deadline => {
                    bail!("the controller does not answer: {e:#}\n{}", process.tail(15));
                }
                _ => tokio::time::sleep(HEALTH_POLL_INTERVAL).await,
            }
        }
    }

    /// Kills the controller with SIGKILL, and blocks the thread until its process has ended. A controller that has
    /// ended before is no error. The agents go on working with their configurations.
    ///
    /// # Errors
    /// The controller was never started, the kernel refuses the signal, or the process still runs five seconds after
    /// the signal.
    pub fn kill_controller(&self) -> Result<()> {
        self.process(CONTROLLER)?.kill()
    }

    /// Sends SIGTERM to the controller, and SIGKILL if it still runs after ten seconds. Blocks the thread until its
    /// process has ended. Returns true if the controller ended without SIGKILL, or had ended before the call.
    ///
    /// # Errors
    /// The controller was never started, the kernel refuses a signal, or the process still runs five seconds after
    /// SIGKILL.
    pub fn stop_controller(&self) -> Result<bool> {
        self.process(CONTROLLER)?.stop(STOP_GRACE)
    }

    /// Starts the controller again with its store, and waits until it answers. Does not wait for the agents. Replaces
    /// the client: [`Self::client`] then returns one that has made no change yet. The controller ends with this program
    /// unless the lab is detached.
    ///
    /// If the future is dropped, or the controller does not answer in time, its process keeps running and the earlier
    /// client stays.
    ///
    /// # Errors
    /// The controller runs already or was never started, its program is missing, its process ends, or it does not
    /// answer within 20 seconds.
    pub async fn start_controller(&mut self) -> Result<()> {
        if self.process(CONTROLLER)?.alive() {
            bail!("the controller runs already");
        }
        self.launch_controller(!self.detached)?;
        self.wait_for_controller().await
    }
}

/// Returns the URL of the controller of a lab with this topology.
pub(super) fn url(topology: &Topology) -> String {
    let at = &topology.underlay.controller;
    format!("https://{}", SocketAddr::new(at.address, at.port))
}

/// Returns an operator's client of the controller of the lab with this topology and with the state folder `folder`.
/// Opens no connection yet, and needs no lock. The controller need not run.
///
/// The client makes its connections in the network namespace of the controller's host, for which root is needed. The
/// caller's thread must be in the program's own network namespace: the threads that make connections return to the
/// namespace in which the caller's thread is now.
///
/// # Errors
/// The controller has not written its certificate and token yet, their files cannot be read, the controller's host does
/// not exist, or the CA certificate or the URL is not valid. The token is not checked.
pub fn client_of(topology: &Topology, folder: &Path) -> Result<Client> {
    let read = |name: &str| {
        let file = folder.join(CONTROLLER).join(name);
        std::fs::read_to_string(&file).with_context(|| file.display().to_string())
    };
    let netns = Namespaces::new(&topology.name).netns(CONTROLLER);
    operator::client(&netns, &url(topology), read("admin.token")?.trim(), &read("ca.pem")?)
}
