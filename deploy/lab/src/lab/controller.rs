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

/// Longest that the controller may take to answer after its start: it creates keys and its store, on a busy machine.
const CONTROLLER_START_TIMEOUT: Duration = Duration::from_secs(20);
/// Time between two health checks of a starting controller.
const HEALTH_POLL_INTERVAL: Duration = Duration::from_millis(30);
/// Time that the controller has to end after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(10);

impl Lab {
    pub(super) fn make_client(&self) -> Result<Client> {
        client_of(&self.topology, self.path()?)
    }

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

    pub(super) async fn wait_for_controller(&mut self) -> Result<()> {
        let process = self.process(CONTROLLER)?;
        let deadline = Instant::now() + CONTROLLER_START_TIMEOUT;
        loop {
            // The controller writes its certificate and token at its first start, so the client cannot be made before.
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

    /// Kills the controller with SIGKILL.
    ///
    /// # Errors
    /// It was never started, or does not end.
    pub fn kill_controller(&self) -> Result<()> {
        self.process(CONTROLLER)?.kill()
    }

    /// Stops the controller with SIGTERM. Returns whether it ended without SIGKILL.
    ///
    /// # Errors
    /// It was never started, or does not end.
    pub fn stop_controller(&self) -> Result<bool> {
        self.process(CONTROLLER)?.stop(STOP_GRACE)
    }

    /// Starts the controller again and waits until it answers.
    ///
    /// # Errors
    /// It runs already, or does not answer within the timeout.
    pub async fn start_controller(&mut self) -> Result<()> {
        if self.process(CONTROLLER)?.alive() {
            bail!("the controller runs already");
        }
        self.launch_controller(!self.detached)?;
        self.wait_for_controller().await
    }
}

/// Returns the URL of a lab's controller.
pub(super) fn url(topology: &Topology) -> String {
    let at = &topology.underlay.controller;
    format!("https://{}", SocketAddr::new(at.address, at.port))
}

/// Returns the operator's client of the lab whose state is in `folder`.
///
/// # Errors
/// The controller has not written its certificate and token yet.
pub fn client_of(topology: &Topology, folder: &Path) -> Result<Client> {
    let read = |name: &str| {
        let file = folder.join(CONTROLLER).join(name);
        std::fs::read_to_string(&file).with_context(|| file.display().to_string())
    };
    let netns = Namespaces::new(&topology.name).netns(CONTROLLER);
    operator::client(&netns, &url(topology), read("admin.token")?.trim(), &read("ca.pem")?)
}
