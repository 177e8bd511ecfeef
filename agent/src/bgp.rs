//! BGP with the devices of sites and with customer edges (D17). BIRD speaks it, as a child process or as a service of its own
//! ([`Bird`]); the agent says what is to be announced and hears what neighbours announce. What is taken of that is decided elsewhere
//! ([`tombolo_engine::routing`]), and BIRD sets no routes in the kernel.
//!
//! ```text
//! neighbour ◀── eBGP ──▶ BIRD ── iBGP on loopback, one session for each neighbour ──▶ feed ──▶ Bgp::learned
//!                         ▲
//!                         └── bird.conf, `configure` on the control socket ◀── conf ◀── Bgp::want
//! ```
//!
//! * A withdrawal reaches [`Bgp::learned`] within milliseconds of BIRD's hearing of it. On a line to a customer edge BIRD also
//!   follows the carrier.
//! * BIRD runs while there are neighbours. When it dies it is started again, and both the neighbours (RFC 4724) and the agent
//!   keep what they had meanwhile, for [`GRACE`] at most.
//! * When the agent ends, in whatever way, BIRD (by the kernel or by its service manager) closes its sessions with a Cease and ends: neighbours turn to another way at
//!   once.
//! * Several may run on a host: each has a directory, the own addresses of its neighbours, and addresses 127.x.y.0/24 that it
//!   draws by lot.
//! * A neighbour is hostile until proven otherwise. What it says is read by BIRD, which runs as its own user where the agent
//!   can see to that, with the rights to open port 179 and to send raw packets and no others; what BIRD passes on is read by [`message`], which looks at paths and prefixes alone. Too
//!   many prefixes of one family, or nonsense, cost the neighbour its own session.
//!
//! Decoding is the agent's own, against D17: of the codec crates at hand (2026) netgauze-bgp-pkt 0.13 and zettabgp 0.6 decode all
//! attributes. Of 2 million UPDATEs in which one optional attribute held noise, netgauze gave up nine in ten of those with
//! attribute 25, 29 or 40, or lost the AS path and with it the check for loops; BIRD passes these on as they are.
//! routecore 0.7 decodes when asked, for a dozen more crates. What is needed here takes two hundred lines.

mod child;
mod conf;
mod bird_socket;
mod feed;
mod export_hold;
mod home;
mod log;
mod process;
mod program;
mod supervisor;
pub mod service;
pub mod table;
pub mod message;

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

/// For how long neighbours are asked to keep routes while BIRD is being restarted, and the agent keeps theirs.
pub const GRACE: Duration = Duration::from_secs(60);

/// What neighbours announce, all of it, by [`Neighbour::id`](tombolo_proto::config::Neighbour::id); each ordered. AS paths are
/// as they came: the neighbour's ASN first. Every neighbour that is spoken with is in it.
pub type Learned = BTreeMap<ResourceId, Arc<Vec<Route>>>;

/// All that is wanted of BGP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Who speaks with whom; none: nobody.
    pub speaker: Option<Speaker>,
    /// What is announced, by neighbour: the own ASN, then the route's path; the next hop is the own address. `via`, `weight`
    /// and `origin` are not BGP's. Of several routes of one prefix the first one is; paths of more than 255 ASNs are not.
    pub announce: BTreeMap<ResourceId, Vec<Route>>,
    /// Own addresses, at most one of each family needed: the next hop of IPv6 routes in a session over IPv4, and the other way
    /// round. Without one it is an address of the interface, and without that such routes are not announced.
    pub addresses: Vec<IpAddr>,
}

/// Who starts BIRD, and where its files are.
#[derive(Debug, Clone)]
pub enum Bird {
    /// The agent, as a child with its files in this directory.
    Child(PathBuf),
    /// A service manager, as a service that [becomes BIRD](service::become_bird).
    Service(BirdService),
}

/// BIRD as a service.
#[derive(Debug, Clone)]
pub struct BirdService {
    /// The directory that gets its configuration. The service is to start whenever `bird.conf` exists there, and to end with
    /// the agent. The agent must have the group of BIRD's user.
    pub config_dir: PathBuf,
    /// BIRD's own directory, with its control socket.
    pub run_dir: PathBuf,
    /// The user that it runs as.
    pub user: String,
}

/// The speaker. Dropping it ends BIRD; [`stop`](Self::stop) also waits for that.
#[derive(Debug)]
pub struct Bgp {
    /// None: the end.
    wanted: watch::Sender<Option<Wanted>>,
    learned: watch::Receiver<Learned>,
    status: watch::Receiver<Vec<BgpPeerStatus>>,
}

impl Bgp {
    /// Takes BIRD's directories and gets ready. BIRD is started when there is somebody to speak with.
    ///
    /// # Errors
    /// A directory cannot be made or given to BIRD's group, its path is too long for a socket in it, or BIRD's user does not
    /// exist.
    pub async fn start(bird: &Bird) -> Result<Self> {
        let (wanted, to_want) = watch::channel(Some(Wanted::default()));
        let (learned, to_learn) = watch::channel(Learned::new());
        let (status, to_see) = watch::channel(Vec::new());
        tokio::spawn(supervisor::Supervisor::new(bird, to_want, learned, status).await?.run());
        Ok(Self {
            wanted,
            learned: to_learn,
            status: to_see,
        })
    }

    /// Says all that is wanted from now on. It is in force some 50 ms later; a session is disturbed only if what it is made of
    /// changed. A neighbour that cannot be spoken with is left out, and [`status`](Self::status) says why.
    pub fn want(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|old| {
            let is_new = old.as_ref().is_some_and(|old| *old != wanted);
            if is_new {
                *old = Some(wanted);
            }
            is_new
        });
    }

    /// What neighbours announce, now and from now on.
    #[must_use]
    pub fn learned(&self) -> watch::Receiver<Learned> {
        self.learned.clone()
    }

    /// The sessions, ordered as they are wanted; at most a second old.
    #[must_use]
    pub fn status(&self) -> Vec<BgpPeerStatus> {
        self.status.borrow().clone()
    }

    /// Closes all sessions and waits until BIRD has ended. Nothing is wanted after that.
    pub async fn stop(&self) {
        self.wanted.send_replace(None);
        let mut learned = self.learned.clone();
        // Until those who could still say something are gone.
        while learned.changed().await.is_ok() {}
    }
}
