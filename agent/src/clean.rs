//! Removes what an agent leaves on its host, and its identity.

use crate::claim::clear_host;
use crate::config::Config;
use crate::host;
use crate::state::{StateDir, file};
use anyhow::Result;

/// Removes everything that agents leave on the host when they end: the rules, routes and packet filter that confine
/// overlay packets.
///
/// # Errors
/// The agent is running, another one has its device or a routing table, or the kernel refuses.
pub async fn clean(state: &StateDir) -> Result<()> {
    let config = Config::load(state)?;
    let _lock = state.lock()?;
    let count = clear_host(state, &config).await?;
    let switched = host::restore_or_warn(&config.interface);
    state.remove(file::ADMIN_SOCKET)?;
    tracing::info!(rules_and_routes = count, redirects_restored = switched, "clean");
    Ok(())
}

/// Removes everything from the host as [`clean`] does, and deletes the agent's identity.
///
/// # Errors
/// The agent is running, the kernel refuses, or a file cannot be deleted.
pub async fn leave(state: &StateDir) -> Result<()> {
    if state.path(file::CONFIG).exists() {
        clean(state).await?;
    }
    let _lock = state.lock()?;
    // The settings go first: a directory without them counts as not joined, even if a later step fails.
    for name in [
        file::CONFIG,
        file::CERTIFICATE,
        file::TLS_KEY,
        file::LINK_KEY,
        file::CA,
        file::LAST_GOOD,
        file::ENDPOINTS,
        file::NUMBERS,
    ] {
        state.remove(name)?;
    }
    Ok(())
}
