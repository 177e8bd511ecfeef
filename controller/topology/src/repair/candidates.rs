//! The changes that could help a packet on, from where it stops.

use super::stopped::{Candidate, Stopped};
use super::{balancing, gateways, peerings, routes, security};
use crate::explain::Explanation;
use crate::topology::Topology;

/// The changes that could help the packet of an explanation, or its reply. `port`: the destination port of the packet.
pub(super) fn of(topology: &Topology, explanation: &Explanation, port: Option<u16>) -> Vec<Candidate> {
    let Some(stopped) = Stopped::of(topology, explanation, port) else {
        return Vec::new();
    };
    let mut all = security::candidates(&stopped);
    all.extend(routes::candidates(&stopped));
    all.extend(peerings::candidates(&stopped));
    all.extend(gateways::candidates(&stopped));
    all.extend(balancing::candidates(&stopped));
    all
}
