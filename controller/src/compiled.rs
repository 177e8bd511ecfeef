//! Every agent's configuration of the newest revision, computed once for all.

use crate::metrics::histogram::Histogram;
use crate::writer::Published;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tombolo_proto::config::digest;
use tombolo_proto::id::{AgentId, Revision};
use tombolo_topology::compile::Compiler;
use tombolo_topology::topology::Topology;

/// A configuration as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Of `bytes`.
    pub digest: String,
    /// Canonical bytes.
    pub bytes: Vec<u8>,
}

/// All configurations of one revision.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Which.
    pub revision: Revision,
    /// The state they were made from.
    pub topology: Arc<Topology>,
    /// When that state was published.
    pub since: Instant,
    /// What each agent should run; revoked agents are left out.
    pub configs: Arc<BTreeMap<AgentId, Arc<Config>>>,
}

/// Compiles one state. Configurations that did not change stay the same `Arc`.
fn compile(published: &Published, before: &BTreeMap<AgentId, Arc<Config>>) -> Compiled {
    let compiler = Compiler::new(&published.topology);
    let mut configs = BTreeMap::new();
    for agent in published.topology.agents.keys() {
        let Some(config) = compiler.compile(agent) else {
            continue;
        };
        let bytes = config.to_bytes();
        let same = before.get(agent).filter(|c| c.bytes == bytes).cloned();
        let config = same.unwrap_or_else(|| {
            Arc::new(Config {
                digest: digest(&bytes),
                bytes,
            })
        });
        configs.insert(agent.clone(), config);
    }
    Compiled {
        revision: published.revision,
        topology: published.topology.clone(),
        since: published.since,
        configs: Arc::new(configs),
    }
}

/// Compiles every new state on a thread of its own; intermediate ones are skipped. Ends with the writer.
///
/// # Errors
/// No thread could be started.
pub fn start(
    mut published: watch::Receiver<Published>,
    durations: Arc<Histogram>,
) -> std::io::Result<watch::Receiver<Compiled>> {
    let first = compile(&published.borrow_and_update(), &BTreeMap::new());
    let (publish, compiled) = watch::channel(first);
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new().name("compile".into()).spawn(move || {
        while runtime.block_on(published.changed()).is_ok() {
            let state = published.borrow_and_update().clone();
            let begin = Instant::now();
            let next = compile(&state, &publish.borrow().configs);
            durations.observe(begin.elapsed());
            tracing::debug!(revision = %state.revision, micros = begin.elapsed().as_micros(), "compiled");
            publish.send_replace(next);
        }
    })?;
    Ok(compiled)
}
