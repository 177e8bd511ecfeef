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

mod address;
mod known;
mod limits;
mod pool;
mod pools;
mod stage;
#[cfg(test)]
mod tests;

pub use address::Address;
pub use limits::{Limits, Unauthenticated};
pub use pool::{Id, Share};
pub use stage::{Counts, Stage, Why};

use known::KnownAddresses;
use limits::{DOWNLOAD_TIMEOUT, IDLE_TIMEOUT, LONGEST_WAIT, STRANGER_IDLE_TIMEOUT, STRANGER_REQUEST_TIMEOUT};
use pools::{Place, Pools};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_proto::budget::{Budgets, Rate};
use tombolo_proto::id::AgentId;

/// Connections that may be waiting to be closed while the port is full: part of [`limits::RESERVED_DESCRIPTORS`].
const CLOSING_SLACK: usize = 128;

/// What came of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// Its name from now on. None: it has to be closed at once.
    pub id: Option<Id>,
    /// Other connections that have to be closed: one because the port is full, one because its pool is.
    pub evicted: Vec<Id>,
}

#[derive(Debug)]
struct Entry {
    place: Place,
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

/// The connections of one port.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    connections: HashMap<Id, Entry>,
    /// Given up here, but their sockets are still open.
    closing: HashSet<Id>,
    pools: Pools,
    known: KnownAddresses,
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
            pools: Pools::new(&limits),
            known: KnownAddresses::default(),
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
        self.known.add(agent, address);
    }

    /// Whether connections from an address use the reserved pools.
    #[must_use]
    pub fn is_known(&self, ip: IpAddr) -> bool {
        ip.to_canonical().is_loopback() || self.known.agents_at(ip.into()) > 0
    }

    /// Key exchanges of an address; none: without limit.
    fn exchange_rate(&self, address: Address) -> Option<Rate> {
        let agents = self.known.agents_at(address);
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
            place: Place {
                stage: Stage::Silent,
                address,
                reserved,
                order: 0,
            },
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
        let address = self.connections.get(&id)?.place.address;
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
        let address = self.connections.get(&id)?.place.address;
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
        let evicted = if entry.place.stage == Stage::Bearer && stale {
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
        let evicted = match entry.place.stage {
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
            let (sum, largest) = by_address.entry(entry.place.address).or_insert((0, *id));
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
        self.pools.largest()
    }

    /// Whether a connection is still kept.
    #[must_use]
    pub fn stage(&self, id: Id) -> Option<&Stage> {
        self.connections.get(&id).map(|e| &e.place.stage)
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
        self.connections.get(&id).is_some_and(|e| match e.place.stage {
            Stage::Silent | Stage::Handshake | Stage::Stranger => false,
            Stage::Bearer => e.authorized > 0,
            Stage::Agent(_) => e.requests > 0,
        })
    }

    fn renew_deadline(&mut self, id: Id, now: Instant) {
        let Some(entry) = self.connections.get_mut(&id) else {
            return;
        };
        let timeout = match (&entry.place.stage, entry.requests) {
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
        entry.place.stage = stage;
        entry.place.order = order;
        self.counts.open[entry.place.stage.index()] += 1;
        let evicted = self.pools.insert(id, &entry.place);
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
        if entry.place.order == 0 {
            return;
        }
        self.pools.remove(&entry.place);
        self.counts.open[entry.place.stage.index()] -= 1;
    }

    /// Makes room where the whole port is full: unauthenticated connections go first, those of addresses without agents
    /// before others.
    fn give_up_one(&mut self) -> Option<Id> {
        let id = self.pools.take_unauthenticated()?;
        self.evict(id, Why::Displaced);
        Some(id)
    }

    /// Forgets a connection whose socket the caller has to close.
    fn evict(&mut self, id: Id, why: Why) {
        if let Some(entry) = self.remove(id) {
            self.counts.closed[entry.place.stage.index()][why.index()] += 1;
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
