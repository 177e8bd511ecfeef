//! Which connections the port keeps: a state machine without IO or clock.
//!
//! ```text
//! accept ─▶ Silent ──ClientHello──▶ Handshake ──TLS up──▶ Stranger ──bearer token──▶ Bearer
//!                                       │                    ▲                          │
//!                                       │                    └─ no token for 60 s ──────┘
//!                                       └── an agent's certificate ─▶ Agent
//! ```
//!
//! A newcomer is practically never refused. Each unauthenticated stage is a [`Pool`] with limits for each address and for all
//! of them, and a connection that enters a full pool takes the place of another one: the oldest of its own address, or the oldest
//! of the address that has the most. An honest client passes each stage within round trips. A flood in one stage only displaces
//! connections in that stage, and mostly its own: idle TCP connections do not displace handshakes, and handshakes, which cost the
//! attacker computing time, do not displace requests.
//!
//! Addresses at which agents are known have pools of their own, so that strangers elsewhere cannot displace agents that reconnect.
//! Agents and holders of tokens are counted apart and displace only each other.

mod limits;
mod pool;
#[cfg(test)]
mod tests;

pub use limits::{Limits, Unauthenticated};
pub use pool::Share;

use limits::{DOWNLOAD_TIMEOUT, IDLE_TIMEOUT, LONGEST_WAIT, STRANGER_IDLE_TIMEOUT, STRANGER_REQUEST_TIMEOUT};
use pool::Pool;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_proto::budget::{Budgets, Rate};
use tombolo_proto::id::AgentId;

/// Connections that may be waiting to be closed while the port is full: part of [`limits::RESERVED_DESCRIPTORS`].
const CLOSING_SLACK: usize = 128;

/// Addresses that are remembered of one agent: it roams, or has an IPv4 and an IPv6 address.
const ADDRESSES_OF_AGENT: usize = 4;

/// A connection. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u64);

/// What is counted as one address: an IPv4 address, or the /64 that an IPv6 host has for itself. An IPv4 address that is written as
/// IPv6 is IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// All 32 bits.
    V4(u32),
    /// The first 64 bits.
    V6(u64),
}

impl Address {
    const fn is_loopback(self) -> bool {
        match self {
            Self::V4(bits) => bits >> 24 == 127,
            Self::V6(bits) => bits == 0,
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::V4(bits) => std::net::Ipv4Addr::from_bits(bits).fmt(f),
            Self::V6(bits) => write!(f, "{}/64", std::net::Ipv6Addr::from_bits(u128::from(bits) << 64)),
        }
    }
}

/// How far a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Accepted; the ClientHello is not whole.
    Silent,
    /// The rest of the TLS handshake.
    Handshake,
    /// TLS is up, and nothing is known about who it is.
    Stranger,
    /// A valid bearer token came on it.
    Bearer,
    /// It showed the certificate of this agent, which is not revoked.
    Agent(AgentId),
}

impl Stage {
    /// All stages, as metrics name them.
    pub const NAMES: [&str; 5] = ["silent", "handshake", "stranger", "bearer", "agent"];

    const fn index(&self) -> usize {
        match self {
            Self::Silent => 0,
            Self::Handshake => 1,
            Self::Stranger => 2,
            Self::Bearer => 3,
            Self::Agent(_) => 4,
        }
    }
}

/// Why a connection is closed or was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no room even after giving up connections.
    Refused,
    /// A newer connection took its place.
    Displaced,
    /// Its stage lasted too long.
    Timeout,
    /// Its address held the most bytes of request bodies.
    Bytes,
    /// Its address asked for more key exchanges than it gets.
    Rate,
}

impl Why {
    /// All reasons, as metrics name them.
    pub const NAMES: [&str; 5] = ["refused", "displaced", "timeout", "body_bytes", "rate"];

    const fn index(self) -> usize {
        match self {
            Self::Refused => 0,
            Self::Displaced => 1,
            Self::Timeout => 2,
            Self::Bytes => 3,
            Self::Rate => 4,
        }
    }
}

/// What came of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Its name from now on. None: it has to be closed at once.
    pub id: Option<Id>,
    /// Other connections that have to be closed: one because the port is full, one because its pool is.
    pub evicted: Vec<Id>,
}

/// Numbers for operators.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections now, in the order of [`Stage::NAMES`].
    pub open: [usize; Stage::NAMES.len()],
    /// Connections that have to be closed and are not yet.
    pub closing: usize,
    /// Accepted since the start.
    pub accepted: u64,
    /// Closed or refused by stage and reason, in the order of [`Stage::NAMES`] and [`Why::NAMES`].
    pub closed: [[u64; Why::NAMES.len()]; Stage::NAMES.len()],
    /// Bytes of strangers' request bodies that are held.
    pub body_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    address: Address,
    /// Its address was known for an agent when it was accepted.
    reserved: bool,
    stage: Stage,
    /// Its place in its pool.
    order: u64,
    deadline: Instant,
    /// Requests that have no complete answer yet.
    requests: usize,
    /// Of these, the ones with a valid token.
    authorized: usize,
    /// Of these, the ones whose answer is a package.
    downloads: usize,
    /// When the last of those came.
    last_authorized: Option<Instant>,
    /// Bytes of request bodies that are held.
    bytes: usize,
}

/// The pools of unauthenticated connections.
#[derive(Debug)]
struct Pools {
    silent: Pool<Address>,
    handshake: Pool<Address>,
    strangers: Pool<Address>,
}

impl Pools {
    fn new(limits: &Unauthenticated) -> Self {
        Self {
            silent: Pool::new(limits.silent),
            handshake: Pool::new(limits.handshake),
            strangers: Pool::new(limits.strangers),
        }
    }
}

/// The connections of one port.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    connections: HashMap<Id, Entry>,
    /// Given up here, but their sockets are still open.
    closing: HashSet<Id>,
    open: Pools,
    reserved: Pools,
    bearers: Pool<()>,
    agents: Pool<AgentId>,
    /// Where each agent was seen, the latest last, and how many agents were seen at an address.
    seen: HashMap<AgentId, VecDeque<Address>>,
    known: HashMap<Address, usize>,
    /// Key exchanges of each address.
    exchanges: Budgets<Address>,
    deadlines: BTreeSet<(Instant, Id)>,
    /// Numbers connections and places in pools.
    next: u64,
    counts: Counts,
}

impl Admission {
    /// No connections yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            connections: HashMap::new(),
            closing: HashSet::new(),
            open: Pools::new(&limits.open),
            reserved: Pools::new(&limits.reserved),
            bearers: Pool::new(Share {
                each: limits.bearers,
                total: limits.bearers,
            }),
            agents: Pool::new(Share {
                each: limits.each_agent,
                total: limits.total,
            }),
            seen: HashMap::new(),
            known: HashMap::new(),
            exchanges: Budgets::default(),
            deadlines: BTreeSet::new(),
            next: 0,
            counts: Counts::default(),
            limits,
        }
    }

    /// Notes that an agent may come from an address: connections from there use the reserved pools from now on. The last
    /// few addresses of each agent are kept.
    pub fn know(&mut self, agent: &AgentId, address: Address) {
        let seen = self.seen.entry(agent.clone()).or_default();
        if let Some(at) = seen.iter().position(|a| *a == address) {
            seen.remove(at);
        } else {
            *self.known.entry(address).or_default() += 1;
        }
        seen.push_back(address);
        if seen.len() > ADDRESSES_OF_AGENT
            && let Some(old) = seen.pop_front()
            && let Some(agents) = self.known.get_mut(&old)
        {
            *agents -= 1;
            if *agents == 0 {
                self.known.remove(&old);
            }
        }
    }

    /// Whether connections from an address use the reserved pools.
    #[must_use]
    pub fn is_known(&self, ip: IpAddr) -> bool {
        ip.to_canonical().is_loopback() || self.known.contains_key(&ip.into())
    }

    /// Key exchanges of an address; none: without limit.
    fn exchange_rate(&self, address: Address) -> Option<Rate> {
        let agents = self.known.get(&address).copied().unwrap_or_default();
        let rate = self.limits.exchanges.and(self.limits.exchanges_of_agent, agents);
        (!address.is_loopback()).then_some(rate)
    }

    /// Takes a connection that was accepted.
    pub fn accept(&mut self, ip: IpAddr, now: Instant) -> Admitted {
        self.counts.accepted += 1;
        let address = Address::from(ip);
        let rate = self.exchange_rate(address);
        // Its key exchange would be refused: nothing else is spent on it.
        if rate.is_some_and(|rate| self.exchanges.wait(&address, rate, now) > LONGEST_WAIT) {
            self.counts.closed[Stage::Silent.index()][Why::Rate.index()] += 1;
            return Admitted {
                id: None,
                evicted: Vec::new(),
            };
        }
        let full = self.connections.len() >= self.limits.total;
        let mut evicted = Vec::new();
        if full {
            evicted.extend(self.give_up_one());
        }
        // Connections that are being closed have their file descriptors still.
        let sockets = self.connections.len() + self.closing.len();
        if full && evicted.is_empty() || sockets >= self.limits.total + CLOSING_SLACK {
            self.counts.closed[Stage::Silent.index()][Why::Refused.index()] += 1;
            return Admitted { id: None, evicted };
        }
        let id = Id(self.next_number());
        let reserved = self.is_known(ip);
        let timeout = self.unauthenticated(reserved).handshake_timeout;
        let entry = Entry {
            address,
            reserved,
            stage: Stage::Silent,
            order: 0,
            deadline: now + timeout,
            requests: 0,
            authorized: 0,
            downloads: 0,
            last_authorized: None,
            bytes: 0,
        };
        self.deadlines.insert((entry.deadline, id));
        self.connections.insert(id, entry);
        evicted.extend(self.enter(id, Stage::Silent));
        Admitted { id: Some(id), evicted }
    }

    /// The ClientHello of a connection is whole. Returns the connection to close for it.
    pub fn greeted(&mut self, id: Id) -> Option<Id> {
        self.enter(id, Stage::Handshake)
    }

    /// The answer to a ClientHello is to be computed. Returns how long that has to wait for the rate of its address; none: too
    /// long, and the connection has to be closed.
    pub fn exchanging(&mut self, id: Id, now: Instant) -> Option<Duration> {
        let address = self.connections.get(&id)?.address;
        let Some(rate) = self.exchange_rate(address) else {
            return Some(Duration::ZERO);
        };
        if self.exchanges.wait(&address, rate, now) > LONGEST_WAIT {
            self.evict(id, Why::Rate);
            return None;
        }
        Some(self.exchanges.take(address, rate, now))
    }

    /// The TLS handshake of a connection ended well, with the certificate of this agent perhaps. The caller has checked that
    /// the certificate is valid and the agent not revoked. Returns the connection to close for it.
    pub fn secured(&mut self, id: Id, agent: Option<&AgentId>, now: Instant) -> Option<Id> {
        let address = self.connections.get(&id)?.address;
        let evicted = match agent {
            Some(agent) => {
                self.know(agent, address);
                self.enter(id, Stage::Agent(agent.clone()))
            }
            None => self.enter(id, Stage::Stranger),
        };
        self.renew_deadline(id, now);
        evicted
    }

    /// A request begins. Returns the connection to close: one that showed no token for long becomes a stranger again.
    pub fn request_begins(&mut self, id: Id, now: Instant) -> Option<Id> {
        let entry = self.connections.get_mut(&id)?;
        entry.requests += 1;
        let stale = entry.authorized == 0
            && entry
                .last_authorized
                .is_none_or(|at| now.saturating_duration_since(at) > IDLE_TIMEOUT);
        let evicted = if entry.stage == Stage::Bearer && stale {
            self.enter(id, Stage::Stranger)
        } else {
            None
        };
        self.renew_deadline(id, now);
        evicted
    }

    /// A request turned out to carry a valid token. Returns the connection to close: the bearer that was silent the longest.
    pub fn authorized(&mut self, id: Id, now: Instant) -> Option<Id> {
        let entry = self.connections.get_mut(&id)?;
        entry.authorized += 1;
        entry.last_authorized = Some(now);
        let evicted = match entry.stage {
            Stage::Stranger | Stage::Bearer => self.enter(id, Stage::Bearer),
            Stage::Silent | Stage::Handshake | Stage::Agent(_) => None,
        };
        self.renew_deadline(id, now);
        evicted
    }

    /// The answer to a request is a package.
    pub fn download_begins(&mut self, id: Id, now: Instant) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.downloads += 1;
            self.renew_deadline(id, now);
        }
    }

    /// A package was sent, or given up. [`Self::request_ends`] follows.
    pub fn download_ends(&mut self, id: Id) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.downloads = entry.downloads.saturating_sub(1);
        }
    }

    /// The answer to a request is complete, or given up. `authorized`: [`Self::authorized`] was called for it.
    pub fn request_ends(&mut self, id: Id, authorized: bool, now: Instant) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.requests = entry.requests.saturating_sub(1);
            entry.authorized = entry.authorized.saturating_sub(usize::from(authorized));
            self.renew_deadline(id, now);
        }
    }

    /// A part of a request body is held for a connection. Returns the connections to close if all strangers together hold too
    /// much: of the address that holds the most, the one that holds the most, until it is enough.
    pub fn held(&mut self, id: Id, bytes: usize) -> Vec<Id> {
        let Some(entry) = self.connections.get_mut(&id) else {
            return Vec::new();
        };
        entry.bytes += bytes;
        self.counts.body_bytes += bytes;
        let mut victims = Vec::new();
        while self.counts.body_bytes > self.limits.body_bytes
            && let Some(victim) = self.most_bytes()
        {
            self.evict(victim, Why::Bytes);
            victims.push(victim);
        }
        victims
    }

    /// Of the address that holds the most bytes, the connection that holds the most.
    fn most_bytes(&self) -> Option<Id> {
        let mut by_address = HashMap::<Address, (usize, Id)>::new();
        let holding = self.connections.iter().filter(|(_, e)| e.bytes > 0);
        for (id, entry) in holding {
            let (sum, largest) = by_address.entry(entry.address).or_insert((0, *id));
            *sum += entry.bytes;
            if self.connections.get(largest).is_none_or(|l| l.bytes < entry.bytes) {
                *largest = *id;
            }
        }
        by_address
            .into_values()
            .max_by_key(|(sum, _)| *sum)
            .map(|(_, victim)| victim)
    }

    /// Bytes of a request body are no longer held.
    pub fn released(&mut self, id: Id, bytes: usize) {
        if let Some(entry) = self.connections.get_mut(&id) {
            let bytes = bytes.min(entry.bytes);
            entry.bytes -= bytes;
            self.counts.body_bytes -= bytes;
        }
    }

    /// A connection's socket is closed, for whatever reason.
    pub fn closed(&mut self, id: Id) {
        if !self.closing.remove(&id) {
            self.remove(id);
        }
    }

    /// Gives up the connections whose time is over. Returns them: they have to be closed.
    pub fn expire(&mut self, now: Instant) -> Vec<Id> {
        let mut expired = Vec::new();
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            if self.has_no_deadline(id) {
                // It has requests under way: looked at again when these end.
                self.deadlines.remove(&(deadline, id));
                continue;
            }
            self.evict(id, Why::Timeout);
            expired.push(id);
        }
        expired
    }

    /// When [`Self::expire`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Numbers for operators.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            closing: self.closing.len(),
            ..self.counts
        }
    }

    /// The address that holds the most unauthenticated connections in one stage, and how many.
    #[must_use]
    pub fn largest(&self) -> Option<(Address, usize)> {
        let pools = [&self.open, &self.reserved];
        let all = pools.iter().flat_map(|p| [&p.silent, &p.handshake, &p.strangers]);
        let largest = all.filter_map(Pool::largest).max_by_key(|(_, n)| *n)?;
        Some((*largest.0, largest.1))
    }

    /// Whether a connection is still kept.
    #[must_use]
    pub fn stage(&self, id: Id) -> Option<&Stage> {
        self.connections.get(&id).map(|e| &e.stage)
    }

    fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    const fn unauthenticated(&self, reserved: bool) -> &Unauthenticated {
        if reserved {
            &self.limits.reserved
        } else {
            &self.limits.open
        }
    }

    /// Agents and requests with a token take as long as they take.
    fn has_no_deadline(&self, id: Id) -> bool {
        self.connections.get(&id).is_some_and(|e| match e.stage {
            Stage::Silent | Stage::Handshake | Stage::Stranger => false,
            Stage::Bearer => e.authorized > 0,
            Stage::Agent(_) => e.requests > 0,
        })
    }

    fn renew_deadline(&mut self, id: Id, now: Instant) {
        let Some(entry) = self.connections.get_mut(&id) else {
            return;
        };
        let timeout = match (&entry.stage, entry.requests) {
            (Stage::Silent | Stage::Handshake, _) => return,
            (Stage::Stranger, 0) => STRANGER_IDLE_TIMEOUT,
            (Stage::Stranger, _) if entry.downloads > 0 => DOWNLOAD_TIMEOUT,
            (Stage::Stranger, _) => STRANGER_REQUEST_TIMEOUT,
            (Stage::Bearer | Stage::Agent(_), _) => IDLE_TIMEOUT,
        };
        self.deadlines.remove(&(entry.deadline, id));
        entry.deadline = now + timeout;
        self.deadlines.insert((entry.deadline, id));
    }

    /// Moves a connection to a stage. Returns the one that has to be closed for it.
    fn enter(&mut self, id: Id, stage: Stage) -> Option<Id> {
        self.leave(id);
        let order = self.next_number();
        let entry = self.connections.get_mut(&id)?;
        entry.stage = stage;
        entry.order = order;
        self.counts.open[entry.stage.index()] += 1;
        let pools = if entry.reserved {
            &mut self.reserved
        } else {
            &mut self.open
        };
        let address = entry.address;
        let evicted = match &entry.stage {
            Stage::Silent => pools.silent.insert(address, order, id),
            Stage::Handshake => pools.handshake.insert(address, order, id),
            Stage::Stranger => pools.strangers.insert(address, order, id),
            Stage::Bearer => self.bearers.insert((), order, id),
            Stage::Agent(agent) => self.agents.insert(agent.clone(), order, id),
        };
        if let Some(evicted) = evicted {
            self.evict(evicted, Why::Displaced);
        }
        evicted
    }

    /// Takes a connection out of its pool.
    fn leave(&mut self, id: Id) {
        let Some(entry) = self.connections.get(&id) else {
            return;
        };
        // Never entered one yet.
        if entry.order == 0 {
            return;
        }
        let pools = if entry.reserved {
            &mut self.reserved
        } else {
            &mut self.open
        };
        match &entry.stage {
            Stage::Silent => pools.silent.remove(&entry.address, entry.order),
            Stage::Handshake => pools.handshake.remove(&entry.address, entry.order),
            Stage::Stranger => pools.strangers.remove(&entry.address, entry.order),
            Stage::Bearer => self.bearers.remove(&(), entry.order),
            Stage::Agent(agent) => self.agents.remove(agent, entry.order),
        }
        self.counts.open[entry.stage.index()] -= 1;
    }

    /// Makes room where the whole port is full: unauthenticated connections go first, those of addresses without agents
    /// before others.
    fn give_up_one(&mut self) -> Option<Id> {
        let pools = [&mut self.open, &mut self.reserved];
        let id = pools.into_iter().find_map(|p| {
            let silent = p.silent.take_from_largest();
            silent
                .or_else(|| p.handshake.take_from_largest())
                .or_else(|| p.strangers.take_from_largest())
        })?;
        self.evict(id, Why::Displaced);
        Some(id)
    }

    /// Forgets a connection whose socket the caller has to close.
    fn evict(&mut self, id: Id, why: Why) {
        if let Some(entry) = self.remove(id) {
            self.counts.closed[entry.stage.index()][why.index()] += 1;
            self.closing.insert(id);
        }
    }

    fn remove(&mut self, id: Id) -> Option<Entry> {
        self.leave(id);
        let entry = self.connections.remove(&id)?;
        self.deadlines.remove(&(entry.deadline, id));
        self.counts.body_bytes -= entry.bytes;
        Some(entry)
    }
}
