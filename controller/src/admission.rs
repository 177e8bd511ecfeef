//! Decides which connections of the port stay open: a state machine without IO or clock.
//!
//! ```text
//! accept ─▶ Silent ──ClientHello──▶ Handshake ──TLS up──▶ Stranger ──bearer token──▶ Bearer
//!                                       │                    ▲                          │
//!                                       │                    └─ no token for 60 s ──────┘
//!                                       └── an agent's certificate ─▶ Agent
//! ```
//!
//! In this module, a stranger is a client that has completed the TLS handshake and has shown neither an agent's
//! certificate nor, within the last minute, a token. A new connection is almost never refused: if a limit is reached,
//! it displaces an older connection. Each unauthenticated stage is a pool with a limit for each address and a limit for
//! all addresses together. A connection whose address is at its limit displaces the oldest connection of this address.
//! If all addresses together are at their limit, it displaces the oldest connection of the address that has the most
//! connections. An honest client passes each stage within a few round trips, so its connection is seldom the oldest
//! one.
//!
//! A flood of connections in one stage displaces connections in no other stage while the port is not full, and most of
//! the displaced connections belong to the flood. Idle TCP connections do not displace connections in the handshake.
//! Handshakes, which cost the attacker computing time, do not displace connections that send requests.
//!
//! Unauthenticated connections from addresses of known agents have separate pools. So while the port is not full,
//! clients at other addresses cannot displace the connections of agents that reconnect. All connections that have shown
//! a token share one pool, and the number of connections of each agent is limited. If a pool is full, or the pool's
//! limit for one address or agent is reached, a new connection displaces an older connection of the same pool. If the
//! whole port is full, a new connection displaces an unauthenticated connection; connections from addresses of known
//! agents are displaced last.

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
pub use stage::{CloseReason, Counts, Stage};

use known::KnownAddresses;
use limits::{DOWNLOAD_TIMEOUT, IDLE_TIMEOUT, MAX_KEY_EXCHANGE_WAIT, STRANGER_IDLE_TIMEOUT, STRANGER_REQUEST_TIMEOUT};
use pools::{Place, Pools};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_proto::budget::{Budgets, Rate};
use tombolo_proto::id::AgentId;

/// Maximum number of evicted connections whose sockets may still be open while the port is full.
/// [`limits::RESERVED_DESCRIPTORS`] includes file descriptors for them.
const MAX_CLOSING: usize = 128;

/// The result of accepting a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The id of the connection. `None`: the connection is refused, and the caller must close its socket at once.
    pub id: Option<Id>,
    /// Other connections that the caller must close, also if `id` is `None`: at most one because the port is full, and
    /// at most one because the pool of the new connection is full.
    pub evicted: Vec<Id>,
}

#[derive(Debug)]
struct Entry {
    place: Place,
    deadline: Instant,
    /// Requests whose response is not complete.
    requests: usize,
    /// The number of requests that carry a valid token and whose response is not complete.
    authorized: usize,
    /// The number of requests whose response is a package that has not been sent completely.
    downloads: usize,
    /// When the last request with a valid token began.
    last_authorized: Option<Instant>,
    /// Bytes of request bodies in memory.
    bytes: usize,
}

/// The admission state of one port. The caller passes the present time as `now`; it must not go back. Ids of
/// connections that were evicted or closed are accepted and ignored.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    connections: HashMap<Id, Entry>,
    /// Evicted connections whose sockets are still open.
    closing: HashSet<Id>,
    pools: Pools,
    known: KnownAddresses,
    /// The rate limiter of key exchanges for each address.
    key_exchanges: Budgets<Address>,
    deadlines: BTreeSet<(Instant, Id)>,
    /// The last number that was given out, either as the id of a connection or as its order in a pool.
    next: u64,
    counts: Counts,
}

impl Admission {
    /// A state without connections and without addresses of agents. All counters are 0.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            connections: HashMap::new(),
            closing: HashSet::new(),
            pools: Pools::new(&limits),
            known: KnownAddresses::default(),
            key_exchanges: Budgets::default(),
            deadlines: BTreeSet::new(),
            next: 0,
            counts: Counts::default(),
            limits,
        }
    }

    /// Notes that an agent may connect from an address. New connections from this address use the reserved pools, and
    /// may begin more key exchanges a second than those from other addresses. The last four addresses of each agent are
    /// kept: a further one replaces the one that was noted least recently. Connections that are already open stay in
    /// their pools. The addresses of a deleted agent stay noted.
    pub fn add_agent_address(&mut self, agent: &AgentId, address: Address) {
        self.known.add(agent, address);
    }

    /// Whether new connections from an address use the reserved pools: the address is known as that of an agent, or is
    /// a loopback address of this host.
    #[must_use]
    pub fn is_reserved(&self, ip: IpAddr) -> bool {
        ip.to_canonical().is_loopback() || self.known.agents_at(ip.into()) > 0
    }

    /// The limit on how many key exchanges an address may begin a second; `None` for addresses of this host, which have
    /// no limit.
    fn key_exchange_rate(&self, address: Address) -> Option<Rate> {
        let agents = self.known.agents_at(address);
        let rate = self
            .limits
            .key_exchanges
            .and(self.limits.key_exchanges_per_agent, agents);
        (!address.is_loopback()).then_some(rate)
    }

    /// Admits a connection from `ip` that `accept(2)` has returned, or refuses it. A connection is refused if its
    /// address has begun too many key exchanges, if the port is full of authenticated connections, or if the sockets of
    /// too many evicted connections are still open. An admitted connection enters [`Stage::Silent`] and must complete
    /// its TLS handshake within `handshake_timeout`. The caller must call [`Self::closed`] once for an admitted
    /// connection, and must not call it for a refused one. The connections in [`Admitted::evicted`] must be closed in
    /// both cases.
    pub fn accept(&mut self, ip: IpAddr, now: Instant) -> Admitted {
        self.counts.accepted += 1;
        let address = Address::from(ip);
        let rate = self.key_exchange_rate(address);
        // The rate limit would refuse the key exchange of this connection later, so the connection is refused now.
        if rate.is_some_and(|rate| self.key_exchanges.wait(&address, rate, now) > MAX_KEY_EXCHANGE_WAIT) {
            self.counts.closed[Stage::Silent.index()][CloseReason::Rate.index()] += 1;
            return Admitted {
                id: None,
                evicted: Vec::new(),
            };
        }
        let full = self.connections.len() >= self.limits.total;
        let mut evicted = Vec::new();
        if full {
            evicted.extend(self.evict_unauthenticated());
        }
        // An evicted connection occupies a file descriptor until its socket is closed.
        let sockets = self.connections.len() + self.closing.len();
        if full && evicted.is_empty() || sockets >= self.limits.total + MAX_CLOSING {
            self.counts.closed[Stage::Silent.index()][CloseReason::Refused.index()] += 1;
            return Admitted { id: None, evicted };
        }
        let id = Id(self.next_number());
        let reserved = self.is_reserved(ip);
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
        evicted.extend(self.enter_stage(id, Stage::Silent));
        Admitted { id: Some(id), evicted }
    }

    /// The ClientHello of a connection is complete. Returns the connection that this one displaces in the pool of
    /// handshakes, for the caller to close. `None`: this connection displaces none, or it was evicted before. Call it
    /// once for each connection, in [`Stage::Silent`].
    pub fn client_hello_received(&mut self, id: Id) -> Option<Id> {
        self.enter_stage(id, Stage::Handshake)
    }

    /// Counts a key exchange of a connection against the rate limit of its address. Returns at once, with the time that
    /// the caller must wait before it computes the key exchange: from 0 to [`MAX_KEY_EXCHANGE_WAIT`]. `None`: the
    /// connection was evicted before, or this call evicts it because the wait would be longer. The caller must close it
    /// in both cases. Call it once for each connection, in [`Stage::Handshake`].
    pub fn begin_key_exchange(&mut self, id: Id, now: Instant) -> Option<Duration> {
        let address = self.connections.get(&id)?.place.address;
        let Some(rate) = self.key_exchange_rate(address) else {
            return Some(Duration::ZERO);
        };
        if self.key_exchanges.wait(&address, rate, now) > MAX_KEY_EXCHANGE_WAIT {
            self.evict(id, CloseReason::Rate);
            return None;
        }
        Some(self.key_exchanges.take(address, rate, now))
    }

    /// The TLS handshake of a connection is complete, with the certificate of `agent` or without one. The caller has
    /// verified the certificate, and that the agent is not revoked. If there is a certificate, the address of the
    /// connection is noted as an address of the agent. Returns the connection that this one displaces in its new stage,
    /// for the caller to close. `None`: this connection displaces none, or it was evicted before. Call it once for each
    /// connection.
    pub fn handshake_completed(&mut self, id: Id, agent: Option<&AgentId>, now: Instant) -> Option<Id> {
        let address = self.connections.get(&id)?.place.address;
        let evicted = match agent {
            Some(agent) => {
                self.add_agent_address(agent, address);
                self.enter_stage(id, Stage::Agent(agent.clone()))
            }
            None => self.enter_stage(id, Stage::Stranger),
        };
        self.renew_deadline(id, now);
        evicted
    }

    /// A request has begun, and [`Self::request_ended`] must be called once for it. A connection of the stage
    /// [`Stage::Bearer`] that has shown no token for [`IDLE_TIMEOUT`] returns to [`Stage::Stranger`]. Returns the
    /// connection that it then displaces, for the caller to close. `None`: this connection displaces none, or it was
    /// evicted before.
    pub fn request_started(&mut self, id: Id, now: Instant) -> Option<Id> {
        let entry = self.connections.get_mut(&id)?;
        entry.requests += 1;
        let stale = entry.authorized == 0
            && entry
                .last_authorized
                .is_none_or(|at| now.saturating_duration_since(at) > IDLE_TIMEOUT);
        let evicted = if entry.place.stage == Stage::Bearer && stale {
            self.enter_stage(id, Stage::Stranger)
        } else {
            None
        };
        self.renew_deadline(id, now);
        evicted
    }

    /// A request of the connection carries a valid token. The caller calls this once for each such request. A
    /// connection of a stranger enters [`Stage::Bearer`]. If there are then too many connections in that stage, returns
    /// the one whose last valid token came the longest time ago, for the caller to close. `None`: this connection
    /// displaces none, or it was evicted before. The connection of an agent keeps its stage.
    pub fn authorized(&mut self, id: Id, now: Instant) -> Option<Id> {
        let entry = self.connections.get_mut(&id)?;
        entry.authorized += 1;
        entry.last_authorized = Some(now);
        let evicted = match entry.place.stage {
            Stage::Stranger | Stage::Bearer => self.enter_stage(id, Stage::Bearer),
            Stage::Silent | Stage::Handshake | Stage::Agent(_) => None,
        };
        self.renew_deadline(id, now);
        evicted
    }

    /// The response to a request is a package: a stranger's connection may take [`DOWNLOAD_TIMEOUT`] from now to
    /// receive it. Call it at most once for a request, between [`Self::request_started`] and [`Self::request_ended`];
    /// [`Self::download_ended`] must follow once.
    pub fn download_started(&mut self, id: Id, now: Instant) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.downloads += 1;
            self.renew_deadline(id, now);
        }
    }

    /// The package of a response was sent or dropped. The caller calls [`Self::request_ended`] next.
    pub fn download_ended(&mut self, id: Id) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.downloads = entry.downloads.saturating_sub(1);
        }
    }

    /// The response to a request was sent or dropped. `authorized`: [`Self::authorized`] was called for the request.
    /// Call it once for each call of [`Self::request_started`]. The deadline of the connection is counted from `now`.
    pub fn request_ended(&mut self, id: Id, authorized: bool, now: Instant) {
        if let Some(entry) = self.connections.get_mut(&id) {
            entry.requests = entry.requests.saturating_sub(1);
            entry.authorized = entry.authorized.saturating_sub(usize::from(authorized));
            self.renew_deadline(id, now);
        }
    }

    /// Further `bytes` of a stranger's request body are in memory. The caller does not report the bodies of requests
    /// with a token. While the bodies of all strangers together exceed the limit, finds the address whose connections
    /// hold the most bytes, and evicts the connection of this address that holds the most. Returns the evicted
    /// connections, for the caller to close; `id` may be one of them. The bytes count until the caller passes them to
    /// [`Self::body_released`], or the connection is evicted or closed.
    pub fn body_received(&mut self, id: Id, bytes: usize) -> Vec<Id> {
        let Some(entry) = self.connections.get_mut(&id) else {
            return Vec::new();
        };
        entry.bytes += bytes;
        self.counts.body_bytes += bytes;
        let mut victims = Vec::new();
        while self.counts.body_bytes > self.limits.body_bytes
            && let Some(victim) = self.largest_body_holder()
        {
            self.evict(victim, CloseReason::Bytes);
            victims.push(victim);
        }
        victims
    }

    /// Among the connections of the address that holds the most bytes of request bodies, the one that holds the most.
    fn largest_body_holder(&self) -> Option<Id> {
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

    /// `bytes` of a request body are no longer in memory, or their request has shown a token. Does nothing for an
    /// evicted connection, because its eviction has subtracted its bytes already.
    pub fn body_released(&mut self, id: Id, bytes: usize) {
        if let Some(entry) = self.connections.get_mut(&id) {
            let bytes = bytes.min(entry.bytes);
            entry.bytes -= bytes;
            self.counts.body_bytes -= bytes;
        }
    }

    /// The socket of a connection is closed. Must be called once for each admitted connection, evicted or not.
    pub fn closed(&mut self, id: Id) {
        if !self.closing.remove(&id) {
            self.remove(id);
        }
    }

    /// Evicts the connections whose deadline is `now` or earlier. Returns them by deadline, the earliest first, for the
    /// caller to close.
    pub fn expire(&mut self, now: Instant) -> Vec<Id> {
        let mut expired = Vec::new();
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                break;
            }
            if self.has_no_deadline(id) {
                // `request_ended` sets the next deadline.
                self.deadlines.remove(&(deadline, id));
                continue;
            }
            self.evict(id, CloseReason::Timeout);
            expired.push(id);
        }
        expired
    }

    /// When [`Self::expire`] must be called next. `None`: no connection has a deadline. Every other method that takes
    /// `&mut self` may set an earlier deadline. [`Self::expire`] may then evict nothing, because the connection with this
    /// deadline may have lost it meanwhile.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The present numbers of connections and the counters since the start, for metrics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            closing: self.closing.len(),
            ..self.counts
        }
    }

    /// The address that has the most unauthenticated connections in one stage, and their number there. `None`: there
    /// are none.
    #[must_use]
    pub fn largest(&self) -> Option<(Address, usize)> {
        self.pools.largest()
    }

    /// The stage of a connection; `None` if it was evicted or closed.
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

    /// Whether a connection has no deadline now: requests of agents (control streams) and requests with a token may
    /// take any time. False for an unknown connection.
    fn has_no_deadline(&self, id: Id) -> bool {
        self.connections.get(&id).is_some_and(|e| match e.place.stage {
            Stage::Silent | Stage::Handshake | Stage::Stranger => false,
            Stage::Bearer => e.authorized > 0,
            Stage::Agent(_) => e.requests > 0,
        })
    }

    /// Sets the deadline of a connection by its stage and its requests, counted from `now`. Until the handshake is
    /// complete, a connection keeps the deadline that it got when it was accepted.
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

    /// Moves a connection to a stage, where it becomes the newest of its pool. Evicts and returns the connection that
    /// it displaces.
    fn enter_stage(&mut self, id: Id, stage: Stage) -> Option<Id> {
        self.leave_pool(id);
        let order = self.next_number();
        let entry = self.connections.get_mut(&id)?;
        entry.place.stage = stage;
        entry.place.order = order;
        self.counts.open[entry.place.stage.index()] += 1;
        let evicted = self.pools.insert(id, &entry.place);
        if let Some(evicted) = evicted {
            self.evict(evicted, CloseReason::Displaced);
        }
        evicted
    }

    /// Removes a connection from its pool.
    fn leave_pool(&mut self, id: Id) {
        let Some(entry) = self.connections.get(&id) else {
            return;
        };
        // A new connection is in no pool yet: its order is 0, and orders in pools count from 1.
        if entry.place.order == 0 {
            return;
        }
        self.pools.remove(&entry.place);
        self.counts.open[entry.place.stage.index()] -= 1;
    }

    /// Evicts one unauthenticated connection because the whole port is full. Connections from addresses of known agents
    /// are evicted only if there is no other.
    fn evict_unauthenticated(&mut self) -> Option<Id> {
        let id = self.pools.pop_unauthenticated()?;
        self.evict(id, CloseReason::Displaced);
        Some(id)
    }

    /// Removes a connection and counts the reason. The caller must close its socket.
    fn evict(&mut self, id: Id, why: CloseReason) {
        if let Some(entry) = self.remove(id) {
            self.counts.closed[entry.place.stage.index()][why.index()] += 1;
            self.closing.insert(id);
        }
    }

    fn remove(&mut self, id: Id) -> Option<Entry> {
        self.leave_pool(id);
        let entry = self.connections.remove(&id)?;
        self.deadlines.remove(&(entry.deadline, id));
        self.counts.body_bytes -= entry.bytes;
        Some(entry)
    }
}
