//! BGP sessions with site devices and customer edges (D17). BIRD speaks the protocol, as a child process or as a separate
//! service ([`Bird`]). The agent configures the announcements and reads the routes that neighbours announce.
//! [`tombolo_engine::routing`] decides which of these routes to accept. BIRD installs no routes in the kernel.
//!
//! ```text
//! neighbour ◀── eBGP ──▶ BIRD ── iBGP on loopback, one session for each neighbour ──▶ feed ──▶ Bgp::learned
//!                         ▲
//!                         └── bird.conf, `configure` on the control socket ◀── conf ◀── Bgp::configure
//! ```
//!
//! * [`Bgp::learned`] shows a withdrawal milliseconds after BIRD received it. On the line to a customer edge BIRD also
//!   follows the carrier state.
//! * BIRD runs only while a neighbour is configured. If it dies, the agent or the service manager restarts it. Meanwhile
//!   the neighbours (RFC 4724) and the agent keep their routes, for [`GRACE`] at most.
//! * BIRD ends with the agent, even after `kill -9`: the kernel (child) or the service manager (service) sends SIGTERM.
//!   BIRD then closes its sessions with a Cease (RFC 4486), so neighbours switch to another path at once.
//! * Several agents may run on one host. Each has its own directory, its own local addresses towards neighbours and its
//!   own random loopback network 127.x.y.0/24.
//! * Neighbours are untrusted. Only BIRD parses their messages. Where the agent may change users, BIRD runs as its own user
//!   with two capabilities: to bind port 179 and to send raw packets. The agent reads BIRD's output with [`message`],
//!   which decodes AS paths and prefixes only. Malformed messages, or too many prefixes of one family, end that
//!   neighbour's session and no other.
//!
//! The agent decodes BGP itself (D17). Of the codec crates available in 2026, netgauze-bgp-pkt 0.13 and zettabgp 0.6
//! decode all attributes. A test fed netgauze 2 million UPDATEs with noise in one optional attribute, which BIRD forwards
//! unchanged. Of those with attribute 25, 29 or 40 it refused nine in ten, or lost the AS path and with it loop detection.
//! routecore 0.7 decodes lazily, but adds a dozen crates. The agent's decoder has two hundred lines.

mod bird_socket;
mod child;
mod conf;
mod export_hold;
mod feed;
mod home;
mod log;
pub mod message;
mod process;
mod program;
pub mod service;
mod supervisor;
pub mod table;

use anyhow::Result;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tombolo_proto::config::Speaker;
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::Route;
use tombolo_proto::status::BgpPeerStatus;

/// How long neighbours (the Restart Time of RFC 4724) and the agent keep routes while BIRD restarts. Twice the longest
/// restart backoff (30 s), so that a restart after the longest wait is still graceful.
pub const GRACE: Duration = Duration::from_secs(60);

/// The routes that each configured neighbour announces, by
/// [`Neighbour::id`](tombolo_proto::config::Neighbour::id), in ascending order. AS paths are as received, with the
/// neighbour's ASN first. A neighbour without a session has an entry with no or stale routes.
pub type Learned = BTreeMap<ResourceId, Arc<Vec<Route>>>;

/// The complete BGP configuration: speaker, neighbours and announcements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BgpSpec {
    /// The local speaker and its neighbours. None: no BGP, and BIRD does not run.
    pub speaker: Option<Speaker>,
    /// The routes to announce to each neighbour. BIRD prepends the local ASN to a route's path and sets the local address
    /// as next hop. `via`, `weight` and `origin` are ignored. Of several routes to one prefix the first is announced.
    /// Routes whose path has more than 255 ASNs or ASN 0 are not announced.
    pub announce: BTreeMap<ResourceId, Vec<Route>>,
    /// Local next hops, at most one of each family. A session over IPv4 takes the next hop of IPv6 routes from here, and
    /// the reverse. Without one BIRD takes an address of the interface. Without that, such routes are not announced.
    pub addresses: Vec<IpAddr>,
}

/// Who starts BIRD, and where its files are.
#[derive(Debug, Clone)]
pub enum Bird {
    /// The agent starts BIRD as a child process with its files in this directory.
    Child(PathBuf),
    /// A service manager starts a service that [becomes BIRD](service::become_bird).
    Service(BirdService),
}

/// The directories and the user of a BIRD that a service manager starts.
#[derive(Debug, Clone)]
pub struct BirdService {
    /// The agent writes `bird.conf` here. The service manager must start the service whenever that file exists, and end it
    /// with the agent. The agent must be a member of the group of BIRD's user.
    pub config_dir: PathBuf,
    /// BIRD's own directory, with its control socket.
    pub run_dir: PathBuf,
    /// The name of BIRD's user. The agent accepts start requests and control sockets of this user only.
    pub user: String,
}

/// A BGP speaker. Dropping it ends BIRD in the background; [`stop`](Self::stop) also waits until BIRD has ended.
#[derive(Debug)]
pub struct Bgp {
    /// None asks the supervisor to stop.
    spec: watch::Sender<Option<BgpSpec>>,
    learned: watch::Receiver<Learned>,
    status: watch::Receiver<Vec<BgpPeerStatus>>,
}

impl Bgp {
    /// Creates the agent's directory for BIRD and starts the supervisor task. BIRD itself starts with the first neighbour
    /// that [`configure`](Self::configure) names.
    ///
    /// # Errors
    /// A directory cannot be created or given to BIRD's group, its path is too long for a socket in it, or BIRD's user does
    /// not exist.
    pub async fn start(bird: &Bird) -> Result<Self> {
        let (spec, spec_receiver) = watch::channel(Some(BgpSpec::default()));
        let (learned_sender, learned) = watch::channel(Learned::new());
        let (status_sender, status) = watch::channel(Vec::new());
        let supervisor = supervisor::Supervisor::new(bird, spec_receiver, learned_sender, status_sender).await?;
        tokio::spawn(supervisor.run());
        Ok(Self { spec, learned, status })
    }

    /// Replaces the whole configuration. BIRD gets it about 50 ms later, or after the pause that
    /// follows a slow reload. A session is reset only if its own parameters
    /// changed. A neighbour with invalid parameters is left out, and [`status`](Self::status) says why.
    pub fn configure(&self, spec: BgpSpec) {
        self.spec.send_if_modified(|old| {
            let is_new = old.as_ref().is_some_and(|old| *old != spec);
            if is_new {
                *old = Some(spec);
            }
            is_new
        });
    }

    /// The routes that neighbours announce, now and after each change. The channel closes when BIRD has ended.
    #[must_use]
    pub fn learned(&self) -> watch::Receiver<Learned> {
        self.learned.clone()
    }

    /// The sessions in the order of the configuration, normally at most a second old.
    #[must_use]
    pub fn status(&self) -> Vec<BgpPeerStatus> {
        self.status.borrow().clone()
    }

    /// Closes all sessions and waits until BIRD has ended, or until its shutdown timeouts have passed. Later calls of
    /// [`configure`](Self::configure) have no effect.
    pub async fn stop(&self) {
        self.spec.send_replace(None);
        let mut learned = self.learned.clone();
        // The channel closes when the supervisor, its last sender, has ended.
        while learned.changed().await.is_ok() {}
    }
}
