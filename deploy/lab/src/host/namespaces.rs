//! Hosts that are network namespaces.

use super::{Hosts, inside};
use crate::command::{self, run};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Hosts that are named network namespaces `tb-<lab>-<host>` of this machine.
#[derive(Debug, Clone)]
pub struct Namespaces {
    lab: String,
}

impl Namespaces {
    /// Returns the hosts of the lab with this name, as namespaces. Creates nothing. The name is not checked.
    #[must_use]
    pub fn new(lab: &str) -> Self {
        Self { lab: lab.to_owned() }
    }

    /// Returns the name that a host's namespace has in iproute2: `tb-<lab>-<host>`. The host need not exist.
    #[must_use]
    pub fn name(&self, host: &str) -> String {
        format!("tb-{}-{host}", self.lab)
    }
}

/// Folder in which iproute2 keeps the files of named namespaces.
const NETNS_DIR: &str = "/run/netns";

impl Hosts for Namespaces {
    fn create(&self, host: &str) -> Result<()> {
        run(&["ip", "netns", "add", &self.name(host)])?;
        inside(&self.netns(host), || run(&["ip", "link", "set", "lo", "up"]))??;
        Ok(())
    }

    fn remove(&self, host: &str) -> Result<()> {
        if self.exists(host) {
            run(&["ip", "netns", "del", &self.name(host)])?;
        }
        Ok(())
    }

    fn exists(&self, host: &str) -> bool {
        self.netns(host).exists()
    }

    fn netns(&self, host: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.name(host))
    }

    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String> {
        let mut all = ["ip", "netns", "exec"].map(str::to_owned).to_vec();
        all.push(self.name(host));
        all.extend_from_slice(argv);
        all
    }

    fn wrap_with_signals(&self, host: &str, argv: &[String]) -> Vec<String> {
        self.wrap(host, argv)
    }

    fn processes(&self, host: &str) -> Vec<i32> {
        let argv = ["ip", "netns", "pids", &self.name(host)].map(str::to_owned);
        let found = command::finish(&argv, command::HELPER_TIMEOUT);
        let pids = found.map(|f| f.stdout).unwrap_or_default();
        pids.split_whitespace().filter_map(|p| p.parse().ok()).collect()
    }
}
