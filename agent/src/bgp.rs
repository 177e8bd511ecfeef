//! BGP sessions with site devices and customer edges (D17). BIRD speaks the protocol, as a child process or as a
//! separate service ([`Bird`]). The agent tells BIRD which routes to announce, and reads the routes that neighbours
//! announce. [`tombolo_engine::routing`] decides which of these routes the agent accepts. BIRD installs no routes in
//! the kernel.
//!
//! ```text
//! neighbour ◀── eBGP ──▶ BIRD ── iBGP on loopback, one session for each neighbour ──▶ feed ──▶ Bgp::learned
//!                         ▲
//!                         └── bird.conf, `configure` on the control socket ◀── conf ◀── Bgp::configure
//! ```
//!
//! * When a neighbour withdraws a route, [`Bgp::learned`] shows this milliseconds after BIRD has received the
//!   withdrawal. On a single-hop session, such as the one on the line to a customer edge, BIRD also withdraws the
//!   routes when the interface loses its carrier.
//! * BIRD runs only while a neighbour is configured. If BIRD dies, the agent or the service manager restarts it. Until
//!   BIRD runs again, the neighbours (by graceful restart, RFC 4724) and the agent keep the routes that they have
//!   received, for [`GRACE`] at most.
//! * When the agent ends, even by `kill -9`, BIRD gets SIGTERM: a child gets it from the kernel, a service from the
//!   service manager. BIRD then closes its sessions with a Cease (RFC 4486), so neighbours switch to another path at
//!   once.
//! * Several agents may run on one host. Each agent has its own directory, its own local addresses towards neighbours
//!   and its own random loopback network 127.x.y.0/24.
//! * Neighbours are untrusted, and only BIRD parses their messages. Where the agent may change users, BIRD runs as its
//!   own user with two capabilities: to bind port 179 and to send raw packets. The agent reads BIRD's output with
//!   [`message`], which decodes only AS paths and prefixes. A malformed message from a neighbour, or too many prefixes
//!   of one family, ends the session of this neighbour and no other session.
//!
//! The agent decodes BGP with code of its own (D17), because tests in 2026 found no suitable codec crate. The crates
//! netgauze-bgp-pkt 0.13 and zettabgp 0.6 decode all attributes. A test fed netgauze 2 million UPDATEs, each with noise
//! in one optional attribute. BIRD forwards such an attribute unchanged. If the attribute's type was 25, 29 or 40,
//! netgauze refused nine in ten UPDATEs, or lost the AS path and with it loop detection. The crate routecore 0.7
//! decodes an attribute only when it is used, but adds a dozen crates. The agent's decoder has two hundred lines.

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

/// Longest time for which the neighbours (by the Restart Time of RFC 4724) and the agent keep routes while BIRD
/// restarts. The time is twice the longest restart backoff (30 s), so that a restart after the longest backoff is still
/// graceful.
pub const GRACE: Duration = Duration::from_secs(60);

/// The routes that each configured neighbour announces, by [`Neighbour::id`](tombolo_proto::config::Neighbour::id). The
/// routes of a neighbour are in ascending order. AS paths are as received, with the neighbour's ASN first. A neighbour
/// without a session has an entry too: an empty one, or one with the routes of the last session, for [`GRACE`] at most.
pub type Learned = BTreeMap<ResourceId, Arc<Vec<Route>>>;

/// The complete BGP configuration: speaker, neighbours and announcements.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BgpSpec {
    /// The local speaker and its neighbours. None: no BGP, and BIRD does not run.
    pub speaker: Option<Speaker>,
    /// The routes to announce to each neighbour. BIRD prepends the local ASN to a route's path and sets the local
    /// address as next hop. The fields `via`, `weight` and `origin` are ignored. If several routes have the same
    /// prefix, only the first one is announced. A route whose path has more than 255 ASNs, or contains ASN 0, is not
    /// announced.
    pub announce: BTreeMap<ResourceId, Vec<Route>>,
    /// Local next hops, at most one of each family. A session over IPv4 takes the next hop of IPv6 routes from this
    /// list, and a session over IPv6 takes the next hop of IPv4 routes from it. If the list has no address of the
    /// route's family, BIRD takes an address of the interface. If the interface has none either, the routes of this
    /// family are not announced.
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
    /// The directory into which the agent writes `bird.conf`. The service manager must start the service whenever that
    /// file exists, and end the service with the agent. The agent must be a member of the group of BIRD's user.
    pub config_dir: PathBuf,
    /// BIRD's own directory, with its control socket.
    pub run_dir: PathBuf,
    /// The name of BIRD's user. The agent accepts requests to start BIRD, and a control socket, only from processes of
    /// this user.
    pub user: String,
}

/// A BGP speaker. Dropping the value ends BIRD in the background. [`stop`](Self::stop) ends BIRD too, and waits until
/// it has ended.
#[derive(Debug)]
pub struct Bgp {
    /// The requested configuration. None asks the supervisor to stop.
    spec: watch::Sender<Option<BgpSpec>>,
    learned: watch::Receiver<Learned>,
    status: watch::Receiver<Vec<BgpPeerStatus>>,
}

impl Bgp {
    /// Creates the agent's directory for BIRD, ends a BIRD that an earlier agent left (for up to 2 s), and spawns the
    /// supervisor task on the present Tokio runtime. BIRD itself starts with the first neighbour that
    /// [`configure`](Self::configure) names.
    ///
    /// # Errors
    /// A directory cannot be created or given to BIRD's group, a directory belongs to another user or has too long a
    /// path for a socket in it, or BIRD's user does not exist. If the program BIRD is missing, that is no error here:
    /// [`status`](Self::status) reports it.
    pub async fn start(bird: &Bird) -> Result<Self> {
        let (spec, spec_receiver) = watch::channel(Some(BgpSpec::default()));
        let (learned_sender, learned) = watch::channel(Learned::new());
        let (status_sender, status) = watch::channel(Vec::new());
        let supervisor = supervisor::Supervisor::new(bird, spec_receiver, learned_sender, status_sender).await?;
        tokio::spawn(supervisor.run());
        Ok(Self { spec, learned, status })
    }

    /// Replaces the whole configuration, and returns at once. BIRD gets the configuration about 50 ms later. After a
    /// slow reload there is a longer pause before the next reload. If there are several calls before that, only the
    /// last one has an effect. BIRD resets a session only if the parameters of that session have changed. A neighbour
    /// with invalid parameters is left out, and [`status`](Self::status) says why. Has no effect after
    /// [`stop`](Self::stop).
    pub fn configure(&self, spec: BgpSpec) {
        self.spec.send_if_modified(|old| {
            let is_new = old.as_ref().is_some_and(|old| *old != spec);
            if is_new {
                *old = Some(spec);
            }
            is_new
        });
    }

    /// Watches the routes that neighbours announce. The receiver's present value has the routes of this moment. The
    /// channel closes when the supervisor has ended.
    #[must_use]
    pub fn learned(&self) -> watch::Receiver<Learned> {
        self.learned.clone()
    }

    /// The sessions in the order of the configuration, refused neighbours included. The states are at most about one
    /// second old. If BIRD does not answer within 5 s, the states are unknown until it answers. The list is empty
    /// without neighbours and after [`stop`](Self::stop).
    #[must_use]
    pub fn status(&self) -> Vec<BgpPeerStatus> {
        self.status.borrow().clone()
    }

    /// Closes all sessions, and waits until BIRD has ended. Gives up when BIRD's shutdown timeouts have passed, after
    /// about 5 s for a child and 8 s for a service. Later calls of [`configure`](Self::configure) have no effect; a
    /// call after BIRD has ended returns at once. If the future is dropped, BIRD still ends in the background.
    pub async fn stop(&self) {
        self.spec.send_replace(None);
        let mut learned = self.learned.clone();
        // The channel closes when its last sender is dropped. The supervisor drops it when it ends.
        while learned.changed().await.is_ok() {}
    }
}
