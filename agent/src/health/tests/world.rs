//! A prober, back ends, and the network between them.

use super::super::{Prober, Target};
use super::backend::{Backend, Behaviour};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub(super) struct World {
    pub(super) prober: Prober,
    pub(super) backends: BTreeMap<IpAddr, Backend>,
    start: Instant,
    pub(super) now: Instant,
    /// Packets of the prober.
    pub(super) sent: Vec<Sent>,
    /// Packets of back ends.
    pub(super) received: Vec<Vec<u8>>,
}

/// A packet of the prober.
pub(super) struct Sent {
    /// Time since the start.
    pub(super) at: Duration,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) flags: Flags,
    pub(super) size: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Flags {
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) payload: usize,
}

impl World {
    pub(super) fn new(targets: &[Target]) -> Self {
        let now = Instant::now();
        let mut prober = Prober::new(7);
        prober.set_targets(targets, now);
        Self {
            prober,
            backends: BTreeMap::new(),
            start: now,
            now,
            sent: Vec::new(),
            received: Vec::new(),
        }
    }

    pub(super) fn serve(&mut self, address: &str, services: &[(u16, Behaviour)]) {
        let address = address.parse().unwrap();
        self.backends.insert(address, Backend::new(address, services));
    }

    /// From now on the address is silent.
    pub(super) fn silence(&mut self, address: &str) {
        self.backends.remove(&address.parse().unwrap()).unwrap();
    }

    pub(super) fn set_targets(&mut self, targets: &[Target]) {
        self.prober.set_targets(targets, self.now);
    }

    pub(super) fn health(&self) -> Vec<bool> {
        self.prober.health().map(|(_, up)| up).collect()
    }

    /// Whether the first target is up.
    pub(super) fn is_up(&self) -> bool {
        self.health()[0]
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(super) fn backend(&self, address: &str) -> &Backend {
        &self.backends[&address.parse().unwrap()]
    }

    /// Runs for a time.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.exchange();
            let stack_now = self.stack_now();
            let backends = self.backends.values_mut().filter_map(|b| b.next(stack_now));
            let backends = backends.map(|at| self.start + Duration::from_micros(at.total_micros().max(0) as u64));
            let next = backends.chain(self.prober.next_due()).min().unwrap_or(end);
            if next >= end {
                self.now = end;
                return self.exchange();
            }
            self.now = next.max(self.now + Duration::from_micros(1));
        }
    }

    /// Runs until the health is read as `expected`, and returns the time that it took.
    pub(super) fn run_until(&mut self, expected: &[bool]) -> Duration {
        let begin = self.now;
        while self.health() != expected {
            assert!(
                self.now - begin < Duration::from_secs(120),
                "health stays {:?}",
                self.health()
            );
            self.run(Duration::from_millis(10));
        }
        self.now - begin
    }

    /// Polls the prober alone.
    pub(super) fn poll(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        self.prober.poll(self.now, &mut |p| packets.push(p.to_vec()));
        let at = self.elapsed();
        self.sent.extend(packets.iter().map(|p| Sent::parse(at, p)));
        let due = self.prober.next_due();
        assert!(due.is_none_or(|due| due > self.now), "all that was due is done");
        packets
    }

    fn exchange(&mut self) {
        loop {
            let packets = self.poll();
            let mut busy = !packets.is_empty();
            for packet in packets {
                let destination = Sent::parse(Duration::ZERO, &packet).destination.ip();
                if let Some(backend) = self.backends.get_mut(&destination) {
                    backend.device.received.push_back(packet);
                }
            }
            let stack_now = self.stack_now();
            for backend in self.backends.values_mut() {
                busy |= backend.poll(stack_now);
                for packet in std::mem::take(&mut backend.device.sent) {
                    busy = true;
                    self.prober.receive(&packet, self.now);
                    self.received.push(packet);
                }
            }
            if !busy {
                return;
            }
        }
    }

    fn stack_now(&self) -> StackInstant {
        StackInstant::from_micros(self.elapsed().as_micros() as i64)
    }

    /// The times of the first packets of connections to an endpoint, with their source ports.
    pub(super) fn starts(&self, endpoint: &str) -> Vec<(Duration, u16)> {
        let endpoint: SocketAddr = endpoint.parse().unwrap();
        let mut starts: Vec<(Duration, u16)> = Vec::new();
        for sent in self.sent.iter().filter(|s| s.flags.syn && s.destination == endpoint) {
            let port = sent.source.port();
            // The others are retransmissions.
            if starts.last().is_none_or(|(_, last)| *last != port) {
                starts.push((sent.at, port));
            }
        }
        starts
    }

    /// Number of packets of the prober that satisfy a condition.
    pub(super) fn count(&self, condition: impl Fn(&Sent) -> bool) -> usize {
        self.sent.iter().filter(|s| condition(s)).count()
    }
}

impl Sent {
    fn parse(at: Duration, packet: &[u8]) -> Self {
        let (source, destination, segment): (IpAddr, IpAddr, Vec<u8>) = match IpVersion::of_packet(packet).unwrap() {
            IpVersion::Ipv4 => {
                let p = Ipv4Packet::new_checked(packet).unwrap();
                assert!(p.verify_checksum());
                (p.src_addr().into(), p.dst_addr().into(), p.payload().to_vec())
            }
            IpVersion::Ipv6 => {
                let p = Ipv6Packet::new_checked(packet).unwrap();
                (p.src_addr().into(), p.dst_addr().into(), p.payload().to_vec())
            }
        };
        let segment = TcpPacket::new_checked(&segment[..]).unwrap();
        assert!(segment.verify_checksum(&source.into(), &destination.into()));
        Self {
            at,
            source: SocketAddr::new(source, segment.src_port()),
            destination: SocketAddr::new(destination, segment.dst_port()),
            flags: Flags {
                syn: segment.syn(),
                fin: segment.fin(),
                rst: segment.rst(),
                payload: segment.payload().len(),
            },
            size: packet.len(),
        }
    }
}
