//! A simulation of the control plane in one process, with one random seed and one clock. It runs the product's
//! topology, compiler and push state machines, and agents that build the tables of real agents. Faults stop processes
//! and break streams, and messages, compilations and changes of tables take random times.
//!
//! All randomness comes from the seed, and time is a count of steps. The same seed therefore gives the same log.

use crate::differential::Script;
use crate::product::Product;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_proto::config::{AgentConfig, digest};
use tombolo_proto::id::{AgentId, Revision};
use tombolo_topology::compile::compile;
use tombolo_topology::sync::{AgentSync, Desired, Push};
use tombolo_topology::topology::Topology;

/// The longest delay of a message, a compilation or a change of tables, in steps of the clock.
const MAX_DELAY: u64 = 8;

/// Steps between an agent's attempts to open a stream.
const RECONNECT_INTERVAL: u64 = 5;

/// Steps without a fault after which every agent must run its newest configuration. A push takes a few delays of at most
/// [`MAX_DELAY`] steps each; the limit leaves room for several pushes.
const CONVERGENCE_LIMIT: u64 = 200;

/// A configuration as an agent runs or receives it: revision, digest and canonical bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Running {
    revision: Revision,
    digest: String,
    bytes: Vec<u8>,
}

/// A message of the control stream. `Hello` and `Applied` have the digest of the agent's configuration.
#[derive(Debug, Clone)]
enum Message {
    Hello(String),
    Config(Running),
    UpToDate(Revision),
    Applied(String),
}

/// A control stream with its messages in flight, each with the step in which it arrives. `sync` is what the controller
/// knows about the stream; it exists once the agent's `Hello` has arrived.
#[derive(Debug, Default)]
struct Stream {
    to_agent: VecDeque<(u64, Message)>,
    to_controller: VecDeque<(u64, Message)>,
    sync: Option<AgentSync>,
}

#[derive(Debug, Default)]
struct Agent {
    running: Running,
    /// The configuration that the agent has on disk. Usually the agent writes it after it has sent `Applied`; `serve`
    /// describes the exception.
    disk: Running,
    /// The step in which an accepted configuration comes into force, and the configuration.
    changing: Option<(u64, Running)>,
    stream: Option<Stream>,
    retry: u64,
    dead: bool,
    /// Whether the controller refuses this agent's streams, because it does not know the agent or the agent is revoked.
    /// The agent then does not try again.
    refused: bool,
    received: u64,
}

/// A simulated controller with its agents, and the streams between them.
pub struct Simulation {
    rng: StdRng,
    step: u64,
    product: Product,
    revision: Revision,
    /// The newest revision that is compiled, with its topology.
    compiled: (Revision, Topology),
    /// The running compilation: the step in which it ends, its revision and topology.
    compiling: Option<(u64, Revision, Topology)>,
    controller_dead: bool,
    agents: BTreeMap<AgentId, Agent>,
    /// The events of the run, in order: one line for each, with the step in which it happened.
    pub log: Vec<String>,
}

impl Simulation {
    /// A controller at step 0, with a topology that has only the empty resource group `g`, and without agents. Only
    /// [`Self::play`] advances a simulation, and it makes one of its own.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let product = Product::new();
        Self {
            rng: StdRng::seed_from_u64(seed),
            step: 0,
            revision: Revision(1),
            compiled: (Revision(1), product.topology.clone()),
            product,
            compiling: None,
            controller_dead: false,
            agents: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    /// Plays the operations of [`Script::draw`] for this seed with random faults between the operations, and then a
    /// period without faults. Checks that all agents converge to their newest configurations, and that an outage of the
    /// controller changes no configuration of an agent. Returns the simulation at its end.
    ///
    /// # Errors
    /// The first violated property, as text.
    pub fn play(seed: u64) -> Result<Self, String> {
        let mut this = Self::new(seed);
        for operation in &Script::draw(seed).operations {
            if this.rng.random_bool(0.15) {
                this.fault();
            }
            if !this.controller_dead && this.product.perform(operation).is_ok() {
                this.revision = Revision(this.revision.0 + 1);
                this.record(format!("revision {}: {operation:?}", this.revision));
            }
            for _ in 0..this.rng.random_range(0..MAX_DELAY) {
                this.advance()?;
            }
        }
        this.check_convergence()?;
        this.check_controller_outage()?;
        Ok(this)
    }

    fn record(&mut self, what: String) {
        self.log.push(format!("{:5} {what}", self.step));
    }

    fn arrival(&mut self) -> u64 {
        self.step + self.rng.random_range(1..=MAX_DELAY)
    }

    /// A random fault: the controller or an agent dies or restarts, or a stream breaks.
    fn fault(&mut self) {
        let which = self.rng.random_range(0..3_u8);
        let chosen = match self.agents.len() {
            0 => None,
            n => self.agents.keys().nth(self.rng.random_range(0..n)).cloned(),
        };
        match (which, chosen) {
            (0, _) => {
                self.controller_dead = !self.controller_dead;
                self.record(format!("controller dead: {}", self.controller_dead));
                self.compiling = None;
                for agent in self.agents.values_mut() {
                    agent.stream = None;
                }
            }
            (1, Some(id)) => {
                let agent = self.agents.entry(id.clone()).or_default();
                agent.dead = !agent.dead;
                // A restarted agent has only the state on its disk.
                (agent.stream, agent.changing) = (None, None);
                agent.running = agent.disk.clone();
                let dead = agent.dead;
                self.record(format!("{id} dead: {dead}"));
            }
            (_, Some(id)) => {
                self.agents.entry(id.clone()).or_default().stream = None;
                self.record(format!("{id}: the stream breaks"));
            }
            (_, None) => {}
        }
    }

    /// Advances the clock by one step, and lets the controller and each agent act once.
    fn advance(&mut self) -> Result<(), String> {
        self.step += 1;
        // A new agent starts in the step after its join. A deleted agent stays in the map, and the controller closes its stream.
        for id in self.product.topology.agents.keys() {
            self.agents.entry(id.clone()).or_default();
        }
        self.compile();
        let ids: Vec<_> = self.agents.keys().cloned().collect();
        for id in ids {
            let mut agent = self.agents.remove(&id).unwrap_or_default();
            let result = self.serve(&id, &mut agent);
            self.agents.insert(id, agent);
            result?;
        }
        Ok(())
    }

    fn compile(&mut self) {
        if self.controller_dead {
            return;
        }
        match &self.compiling {
            Some((at, revision, topology)) if *at <= self.step => {
                self.compiled = (*revision, topology.clone());
                self.compiling = None;
            }
            None if self.compiled.0 < self.revision => {
                let at = self.arrival();
                self.compiling = Some((at, self.revision, self.product.topology.clone()));
            }
            Some(_) | None => {}
        }
    }

    fn serve(&mut self, id: &AgentId, agent: &mut Agent) -> Result<(), String> {
        if agent.dead {
            return Ok(());
        }
        if let Some((at, next)) = agent.changing.take() {
            if at > self.step {
                agent.changing = Some((at, next));
            } else {
                self.record(format!("{id} runs {}", next.revision));
                let at = self.arrival();
                if let Some(stream) = &mut agent.stream {
                    stream
                        .to_controller
                        .push_back((at, Message::Applied(next.digest.clone())));
                }
                agent.running = next;
                // In one case of ten the configuration on disk stays old, as if the agent's crash came before the
                // write. The agent itself runs on here. If a later fault restarts it, it starts with the older
                // configuration.
                if self.rng.random_bool(0.9) {
                    agent.disk = agent.running.clone();
                }
            }
        }
        if agent.refused && self.product.topology.agents.get(id).is_some_and(|a| !a.revoked) {
            // The id exists again: another host has joined with the name of the deleted agent.
            *agent = Agent {
                received: agent.received,
                ..Agent::default()
            };
        }
        if agent.stream.is_none() && !agent.refused && !self.controller_dead && agent.retry <= self.step {
            agent.retry = self.step + RECONNECT_INTERVAL;
            let known = self.product.topology.agents.get(id).is_some_and(|a| !a.revoked);
            if !known {
                agent.refused = true;
                return Ok(());
            }
            let mut stream = Stream::default();
            stream
                .to_controller
                .push_back((self.arrival(), Message::Hello(agent.running.digest.clone())));
            agent.stream = Some(stream);
        }
        let Some(mut stream) = agent.stream.take() else {
            return Ok(());
        };
        self.receive(id, agent, &mut stream)?;
        if self.push(id, agent, &mut stream) {
            agent.stream = Some(stream);
        }
        Ok(())
    }

    /// Handles the messages that arrive in this step, at the controller and then at the agent.
    fn receive(&mut self, id: &AgentId, agent: &mut Agent, stream: &mut Stream) -> Result<(), String> {
        while let Some((_, message)) = stream.to_controller.pop_front_if(|(at, _)| *at <= self.step) {
            match (message, &mut stream.sync) {
                (Message::Hello(digest), sync) => {
                    let key = self.product.topology.agents.get(id).map(|a| a.certificate_key.clone());
                    *sync = Some(AgentSync::hello(&key.unwrap_or_default(), self.revision, &digest));
                }
                (Message::Applied(digest), Some(sync)) => sync.applied(&digest),
                (Message::Applied(_) | Message::Config(_) | Message::UpToDate(_), _) => {}
            }
        }
        while let Some((_, message)) = stream.to_agent.pop_front_if(|(at, _)| *at <= self.step) {
            match message {
                Message::Config(next) => {
                    let config = AgentConfig::from_bytes(&next.bytes).map_err(|e| format!("{id}: {e}"))?;
                    Tables::build(&config, &RoutingState::default()).map_err(|e| format!("{id}: {e}"))?;
                    agent.received += 1;
                    agent.changing = Some((self.arrival(), next));
                }
                Message::UpToDate(revision) => agent.running.revision = agent.running.revision.max(revision),
                Message::Hello(_) | Message::Applied(_) => {}
            }
        }
        Ok(())
    }

    /// Sends what the controller's newest compiled state requires. Returns whether the stream stays open.
    fn push(&mut self, id: &AgentId, agent: &mut Agent, stream: &mut Stream) -> bool {
        if self.controller_dead {
            return false;
        }
        let Some(sync) = &mut stream.sync else { return true };
        let (revision, topology) = &self.compiled;
        let wanted = compile(topology, id).map(|config| config.to_bytes());
        let digest = wanted.as_deref().map(digest);
        let desired = Desired {
            revision: *revision,
            agent: topology.agents.get(id).map(|a| &**a),
            digest: digest.as_deref(),
        };
        let message = match sync.published(&desired) {
            Push::Nothing => return true,
            Push::UpToDate => Message::UpToDate(*revision),
            Push::Config => Message::Config(Running {
                revision: *revision,
                digest: digest.unwrap_or_default(),
                bytes: wanted.unwrap_or_default(),
            }),
            Push::Close(why) => {
                agent.refused = self.product.topology.agents.get(id).is_none_or(|a| a.revoked);
                self.record(format!("{id}: the controller closes the stream: {why:?}"));
                return false;
            }
        };
        let after = stream.to_agent.back().map_or(0, |(at, _)| *at);
        let at = self.arrival().max(after);
        stream.to_agent.push_back((at, message));
        true
    }

    /// Starts all dead processes, and checks that every agent runs its newest configuration after [`CONVERGENCE_LIMIT`] steps.
    fn check_convergence(&mut self) -> Result<(), String> {
        self.controller_dead = false;
        for agent in self.agents.values_mut() {
            agent.dead = false;
        }
        for _ in 0..CONVERGENCE_LIMIT {
            self.advance()?;
        }
        for (id, agent) in &self.agents {
            let known = self.product.topology.agents.get(id).is_some_and(|a| !a.revoked);
            match compile(&self.product.topology, id).filter(|_| known) {
                Some(wanted) if agent.running.bytes != wanted.to_bytes() => {
                    return Err(format!(
                        "{id} runs revision {} instead of {}",
                        agent.running.revision, self.revision
                    ));
                }
                Some(_) | None => {}
            }
            if known == agent.stream.is_none() {
                return Err(format!("{id}: known {known}, and stream {:?}", agent.stream));
            }
        }
        Ok(())
    }

    /// Checks that an outage of the controller changes no agent's configuration, and that after the outage the
    /// controller sends no agent a configuration that the agent already has.
    fn check_controller_outage(&mut self) -> Result<(), String> {
        let before: Vec<_> = self
            .agents
            .values()
            .map(|a| (a.running.bytes.clone(), a.received))
            .collect();
        self.controller_dead = true;
        for agent in self.agents.values_mut() {
            agent.stream = None;
        }
        for _ in 0..CONVERGENCE_LIMIT / 2 {
            self.advance()?;
        }
        self.check_convergence()?;
        let after: Vec<_> = self
            .agents
            .values()
            .map(|a| (a.running.bytes.clone(), a.received))
            .collect();
        if before == after {
            Ok(())
        } else {
            Err("the controller's return changed or re-sent something".into())
        }
    }

    /// The number of configurations that all agents together have received since the start.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.agents.values().map(|a| a.received).sum()
    }
}
