//! Removes what an agent leaves on its host, and its identity.

use crate::claim::clear_host;
use crate::config::Config;
use crate::host;
use crate::state::{StateDir, file};
use anyhow::Result;

/// Removes everything that an agent leaves on the host when it ends: the rules, routes and packet filter that confine
/// overlay packets, the changed switch for ICMP redirects, and the file of the local socket. The identity stays. A
/// second call finds nothing and succeeds. Needs CAP_NET_ADMIN, and works in the network namespace of the calling
/// thread. Holds the lock of the state directory meanwhile.
///
/// # Errors
/// The agent is running, its settings cannot be read, another agent has its device or a routing table, the kernel or
/// `nft` refuses a change, or a file cannot be removed. What was removed before stays removed. A switch that cannot be
/// restored is only logged.
pub async fn clean(state: &StateDir) -> Result<()> {
    let config = Config::load(state)?;
    let _lock = state.lock()?;
    if config.site_probe {
        // M10: a site probe changes nothing on the host.
        return state.remove(file::ADMIN_SOCKET);
    }
    let count = clear_host(state, &config).await?;
    let switched = host::restore_or_warn(&config.interface);
    state.remove(file::ADMIN_SOCKET)?;
    tracing::info!(rules_and_routes = count, redirects_restored = switched, "clean");
    Ok(())
}

/// Removes everything from the host as [`clean`] does, and deletes the agent's keys, certificates, settings and stored
/// configuration. If the directory has no settings, the host is not changed and only the files are deleted, so that a
/// failed call can be repeated. The controller is not told. The directory itself, its lock file and the directory with
/// BIRD's files stay.
///
/// # Errors
/// [`clean`] fails, the agent is running, or a file cannot be deleted. Files that were deleted before stay deleted.
pub async fn leave(state: &StateDir) -> Result<()> {
    if state.path(file::CONFIG).exists() {
        clean(state).await?;
    }
    let _lock = state.lock()?;
    // The settings are deleted first. A directory without settings counts as not joined, even if a later deletion
    // fails.
    for name in [
        file::CONFIG,
        file::CERTIFICATE,
        file::TLS_KEY,
        file::LINK_KEY,
        file::CA,
        file::LAST_GOOD,
        file::ENDPOINTS,
        file::NUMBERS,
        file::FLOWS,
        // A controller would charge them to the name with which the agent joins next.
        file::METERS,
        file::EARLIER_METERS,
    ] {
        state.remove(name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Meter-6: an agent that leaves and joins with another name does not report what it has counted before under this name.
    #[tokio::test]
    async fn meter_6_an_agent_that_leaves_forgets_its_totals() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        for name in [file::METERS, file::EARLIER_METERS] {
            state.write(name, b"{}").unwrap();
        }
        leave(&state).await.unwrap();
        assert!(!state.path(file::METERS).exists() && !state.path(file::EARLIER_METERS).exists());
    }
}
