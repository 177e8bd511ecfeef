//! One TCP connection from the prober to a back end.

use super::flow::Flow;
use super::status::Failure;
use super::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Largest packet that the prober sends, and what it asks back ends for: the smallest MTU of IPv6, which every link has.
const MTU: usize = 1280;

/// Bytes of received packets that wait for the next poll. The receive window is smaller.
const MAX_QUEUED_BYTES: usize = 16 * 1024;

/// Packets that one poll of a connection sends at most. A back end that offers a maximum segment size of 1 would
/// otherwise cause thousands.
const MAX_BURST: usize = 32;

/// When a connection is polled again that has more to send than [`MAX_BURST`] packets.
pub(super) const BUSY_RETRY: Duration = Duration::from_millis(1);

/// Each connection has a stack of its own: a stack with the sockets of all targets would search them linearly for each
/// packet.
pub(super) struct Connection {
    flow: Flow,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    received: VecDeque<Vec<u8>>,
    received_bytes: usize,
    /// Zero of the stack's clock, which has microseconds.
    origin: Instant,
}

/// Sizes of the buffers of a connection in bytes.
pub(super) struct Buffers {
    pub(super) receive: usize,
    pub(super) transmit: usize,
}

impl Connection {
    /// A connection that sends its SYN at the next poll. `seed` determines the initial sequence number.
    pub(super) fn open(flow: Flow, buffers: &Buffers, seed: u64, now: Instant) -> Result<Self, Failure> {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        // The stack asks this device only for its capabilities.
        let mut device = Wire {
            received: &mut VecDeque::new(),
            send: &mut |_| {},
            budget: 0,
        };
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        let source: IpAddr = match flow.endpoint {
            SocketAddr::V4(_) => PROBE_SOURCE_V4.into(),
            SocketAddr::V6(_) => PROBE_SOURCE_V6.into(),
        };
        // With a prefix of length 0 all back ends are on the link, so the stack needs no routes.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(source.into(), 0));
        });
        let buffer = |size| SocketBuffer::new(vec![0; size]);
        let mut socket = Socket::new(buffer(buffers.receive), buffer(buffers.transmit));
        // Answers are sent by the poll that processes a packet. Nagle's algorithm would delay a request.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket
            .connect(interface.context(), flow.endpoint, (source, flow.port))
            .map_err(|_| Failure::Unaddressable)?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self {
            flow,
            interface,
            sockets,
            handle,
            received: VecDeque::new(),
            received_bytes: 0,
            origin: now,
        })
    }

    pub(super) fn flow(&self) -> Flow {
        self.flow
    }

    /// Queues a packet for the next poll. Returns false if the queue is full: TCP sends it again.
    pub(super) fn receive(&mut self, packet: &[u8]) -> bool {
        if self.received_bytes.saturating_add(packet.len()) > MAX_QUEUED_BYTES {
            return false;
        }
        self.received_bytes += packet.len();
        self.received.push_back(packet.to_vec());
        true
    }

    /// Processes received packets, which the stack may answer. Calls `step` after each, because a packet can end a state
    /// that the one before has reached, and once more.
    pub(super) fn process(&mut self, now: Instant, send: &mut dyn FnMut(&[u8]), step: &mut dyn FnMut(&mut Socket<'_>)) {
        let time = self.stack_time(now);
        let mut wire = Wire {
            received: &mut self.received,
            send,
            budget: MAX_BURST,
        };
        let (interface, sockets) = (&mut self.interface, &mut self.sockets);
        while interface.poll_ingress_single(time, &mut wire, sockets) != PollIngressSingleResult::None {
            step(sockets.get_mut(self.handle));
        }
        step(sockets.get_mut(self.handle));
        self.received_bytes = self.received.iter().map(Vec::len).sum();
    }

    /// Runs the timers, and sends what the socket has to send.
    pub(super) fn transmit(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        let time = self.stack_time(now);
        let mut wire = Wire {
            received: &mut VecDeque::new(),
            send,
            budget: MAX_BURST,
        };
        while self.interface.poll_egress(time, &mut wire, &mut self.sockets) != PollResult::None {}
    }

    /// When the connection must be polled next. `None` if only a packet can change it.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        if !self.received.is_empty() {
            return Some(now);
        }
        let time = self.stack_time(now);
        let at = self.interface.poll_at(time, &self.sockets)?;
        let offset = u64::try_from(at.total_micros()).unwrap_or(0);
        Some(self.origin + Duration::from_micros(offset))
    }

    /// Whether both ends have closed, or one has reset the connection. In TIME-WAIT it is not closed.
    pub(super) fn is_closed(&self) -> bool {
        let socket = self.socket();
        socket.state() == State::Closed && socket.remote_endpoint().is_none()
    }

    /// Ends the connection now: with a reset if the back end may still believe in it.
    pub(super) fn abandon(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        // In SYN-SENT there is no connection (RFC 9293, 3.10.5). In TIME-WAIT the back end knows the end.
        if matches!(self.socket().state(), State::SynSent | State::TimeWait) {
            return;
        }
        self.sockets.get_mut::<Socket<'_>>(self.handle).abort();
        self.transmit(now, send);
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn stack_time(&self, now: Instant) -> StackInstant {
        let elapsed = now.saturating_duration_since(self.origin).as_micros();
        StackInstant::from_micros(i64::try_from(elapsed).unwrap_or(i64::MAX))
    }
}

/// The network as the stack sees it.
struct Wire<'a> {
    received: &'a mut VecDeque<Vec<u8>>,
    send: &'a mut dyn FnMut(&[u8]),
    /// Packets that may still be sent.
    budget: usize,
}

struct Received(Vec<u8>);

struct Transmit<'a> {
    send: &'a mut dyn FnMut(&[u8]),
    budget: &'a mut usize,
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Received
    where
        Self: 't;
    type TxToken<'t>
        = Transmit<'t>
    where
        Self: 't;

    fn receive(&mut self, time: StackInstant) -> Option<(Received, Transmit<'_>)> {
        // The stack may answer each packet.
        if self.budget == 0 {
            return None;
        }
        let packet = self.received.pop_front()?;
        Some((Received(packet), self.transmit(time)?))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Transmit<'_>> {
        (self.budget > 0).then_some(Transmit {
            send: &mut *self.send,
            budget: &mut self.budget,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        *self.budget = self.budget.saturating_sub(1);
        (self.send)(&packet);
        result
    }
}
