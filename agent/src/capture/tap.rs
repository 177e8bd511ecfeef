//! The captures of one lane: decide which packets are captured, and put copies into the rings.

use super::flow::{Direction, Flow, matches};
use super::outer::{self, MAX_HEAD};
use super::ring::{Record, RingWriter};
use crate::outbox::Datagrams;
use crate::tun::TunQueues;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tombolo_engine::buffer::{DeliverSink, Outcome, Path, Port};
use tombolo_engine::decide::Ingress;
use tombolo_engine::packet;
use tombolo_engine::tables::NicIndex;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::capture::{CaptureFilter, CaptureLayer};
use tombolo_proto::config::{AgentConfig, MAX_VM_NICS, Role};
use tombolo_proto::id::ResourceId;

/// Room for the copy of a packet while the engine decides about it: the longest packet.
const MAX_PACKET: usize = 65_536;

/// What a capture records. All lanes share it.
#[derive(Debug)]
pub struct TapSpec {
    /// Where packets are captured.
    pub layer: CaptureLayer,
    /// Which packets are captured.
    pub filters: Vec<CaptureFilter>,
    /// Number of bytes that are kept of each packet.
    pub most: usize,
    /// The NICs of the interfaces in the file, in their order. Empty: there is one interface for all packets.
    pub nics: Vec<ResourceId>,
}

/// A capture in one lane.
pub struct Tap {
    spec: Arc<TapSpec>,
    ring: RingWriter,
    /// The interface of each device. `None`: the NIC is not captured.
    interfaces: [Option<u8>; MAX_VM_NICS],
}

impl Tap {
    /// A capture that puts copies into `ring`.
    #[must_use]
    pub fn new(spec: Arc<TapSpec>, ring: RingWriter) -> Self {
        Self {
            spec,
            ring,
            interfaces: [None; MAX_VM_NICS],
        }
    }

    fn configure(&mut self, nics: &[ResourceId]) {
        if self.spec.nics.is_empty() {
            self.interfaces = [Some(0); MAX_VM_NICS];
            return;
        }
        self.interfaces = [None; MAX_VM_NICS];
        for (interface, id) in self.interfaces.iter_mut().zip(nics) {
            let position = self.spec.nics.iter().position(|nic| nic == id);
            *interface = position.and_then(|at| u8::try_from(at).ok());
        }
    }
}

/// The packet about which the engine decides now.
struct Pending {
    /// The packet as it arrived. Empty: there is none, or it is in the rings already.
    packet: Vec<u8>,
    ingress: Ingress,
    at: u64,
}

/// All captures of a lane.
pub struct Taps {
    taps: Vec<Tap>,
    pending: Pending,
    /// The NICs of the configuration in force.
    nics: Vec<ResourceId>,
    /// The device of each address of a NIC.
    addresses: Vec<(IpAddr, NicIndex)>,
    /// The lane's port, and the second port of lane 0.
    ports: (u16, u16),
}

impl Taps {
    /// No captures, in a lane with these UDP ports.
    #[must_use]
    pub fn new(port: u16, quic_port: Option<u16>) -> Self {
        Self {
            taps: Vec::new(),
            pending: Pending {
                packet: Vec::new(),
                ingress: Ingress::Tun(NicIndex::FIRST),
                at: 0,
            },
            nics: Vec::new(),
            addresses: Vec::new(),
            ports: (port, quic_port.unwrap_or_default()),
        }
    }

    /// Whether nothing is captured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taps.is_empty()
    }

    /// Whether datagrams of the underlay are captured.
    #[must_use]
    pub fn wants_datagrams(&self) -> bool {
        self.taps.iter().any(|tap| tap.spec.layer == CaptureLayer::Datagrams)
    }

    /// Begins a capture.
    pub fn add(&mut self, mut tap: Tap) {
        tap.configure(&self.nics);
        self.pending.packet.reserve(MAX_PACKET);
        self.taps.push(tap);
    }

    /// Takes the NICs of a configuration, whose positions may differ from those before.
    pub fn configure(&mut self, config: &AgentConfig) {
        let Role::Vm { nics, .. } = &config.role else {
            (self.nics, self.addresses) = (Vec::new(), Vec::new());
            return;
        };
        self.nics = nics.iter().map(|nic| nic.id.clone()).collect();
        let numbered = (0..).map(NicIndex).zip(nics);
        self.addresses = numbered
            .flat_map(|(at, nic)| nic.addresses.iter().map(move |address| (address.addr(), at)))
            .collect();
        self.taps.iter_mut().for_each(|tap| tap.configure(&self.nics));
    }

    /// Removes the captures that have ended. Returns whether some are left.
    pub fn prune(&mut self) -> bool {
        self.taps.retain(|tap| !tap.ring.is_abandoned());
        if self.taps.is_empty() {
            self.pending.packet = Vec::new();
        }
        !self.taps.is_empty()
    }

    pub(super) fn arrived(&mut self, ingress: Ingress, bytes: &[u8]) {
        self.pending.packet.clear();
        self.pending.packet.extend_from_slice(bytes);
        self.pending.ingress = ingress;
        self.pending.at = now();
    }

    pub(super) fn delivered(&mut self, nic: NicIndex, bytes: &[u8]) {
        match self.pending.ingress {
            // The packet of the host is followed by the answer to it.
            Ingress::Tun(_) => self.finished(Outcome::Done),
            // What is delivered is the packet itself, perhaps translated.
            Ingress::Link(_) => self.pending.packet.clear(),
        }
        push(&mut self.taps, nic, Direction::In, bytes, (now(), None));
    }

    pub(super) fn finished(&mut self, outcome: Outcome) {
        let bytes = &self.pending.packet[..];
        // Lane 0 gets a redirected packet unchanged, and captures it.
        if !bytes.is_empty() && outcome != Outcome::Redirected {
            let dropped = match outcome {
                Outcome::Dropped(reason) => Some(reason),
                Outcome::Redirected | Outcome::Done => None,
            };
            let (nic, direction) = match self.pending.ingress {
                Ingress::Tun(nic) => (nic, Direction::Out),
                Ingress::Link(_) => (self.nic_of(bytes), Direction::In),
            };
            push(&mut self.taps, nic, direction, bytes, (self.pending.at, dropped));
        }
        self.pending.packet.clear();
    }

    /// The NIC to which a packet goes; the first one if its destination is no address of a NIC.
    fn nic_of(&self, bytes: &[u8]) -> NicIndex {
        let destination = packet::parse(bytes).map(|info| info.destination);
        let found = self.addresses.iter().find(|(address, _)| Some(*address) == destination);
        found.map_or(NicIndex::FIRST, |(_, nic)| *nic)
    }

    /// Captures a datagram that was received. `refused`: why the engine has refused it.
    pub fn received(&mut self, path: &Path, bytes: &[u8], refused: Option<DropReason>) {
        self.datagram(path, Direction::In, bytes, refused);
    }

    /// Captures datagrams that were sent.
    pub fn sent(&mut self, datagrams: &Datagrams<'_>) {
        for bytes in datagrams.bytes.chunks(datagrams.segment.max(1)) {
            self.datagram(&datagrams.transmit.path, Direction::Out, bytes, None);
        }
    }

    fn datagram(&mut self, path: &Path, direction: Direction, bytes: &[u8], dropped: Option<DropReason>) {
        let port = match path.port {
            Port::Lane => self.ports.0,
            Port::Quic => self.ports.1,
        };
        let flow = Flow::of_datagram(path, port);
        let local = SocketAddr::new(flow.local, port);
        let mut head = [0; MAX_HEAD];
        let length = match direction {
            Direction::In => outer::write(&mut head, path.remote, local, bytes.len()),
            Direction::Out => outer::write(&mut head, local, path.remote, bytes.len()),
        };
        let record = Record {
            at: now(),
            length: u32::try_from(length + bytes.len()).unwrap_or(u32::MAX),
            interface: 0,
            direction,
            dropped,
        };
        for tap in &mut self.taps {
            if tap.spec.layer == CaptureLayer::Datagrams && matches(&tap.spec.filters, Some(&flow)) {
                tap.ring.push(&record, [&head[..length], bytes], tap.spec.most);
            }
        }
    }
}

/// Captures a packet of a NIC, at a time and with the reason why it was dropped.
fn push(taps: &mut [Tap], nic: NicIndex, direction: Direction, bytes: &[u8], (at, dropped): (u64, Option<DropReason>)) {
    let info = packet::parse(bytes);
    let flow = info.map(|info| Flow::of_packet(&info, direction));
    // What follows after the packet is padding.
    let bytes = info.map_or(bytes, |info| &bytes[..info.len]);
    for tap in taps.iter_mut().filter(|tap| tap.spec.layer == CaptureLayer::Packets) {
        let Some(interface) = tap.interfaces.get(nic.get()).copied().flatten() else {
            continue;
        };
        if !matches(&tap.spec.filters, flow.as_ref()) {
            continue;
        }
        let record = Record {
            at,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            interface,
            direction,
            dropped,
        };
        tap.ring.push(&record, [&[], bytes], tap.spec.most);
    }
}

/// The time in nanoseconds of Unix time.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The devices, with captures of what passes.
pub struct Tapped<'a> {
    /// The devices.
    pub tun: &'a mut TunQueues,
    /// The captures.
    pub taps: &'a mut Taps,
}

impl DeliverSink for Tapped<'_> {
    fn deliver(&mut self, nic: NicIndex, packet: &[u8]) {
        self.taps.delivered(nic, packet);
        self.tun.deliver(nic, packet);
    }

    fn arrived(&mut self, ingress: Ingress, packet: &[u8]) {
        self.taps.arrived(ingress, packet);
    }

    fn finished(&mut self, outcome: Outcome) {
        self.taps.finished(outcome);
    }
}
