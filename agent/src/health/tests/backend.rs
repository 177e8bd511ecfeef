//! A back end: a TCP stack with services.

use rustls::{ServerConfig, ServerConnection};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Connections to one service at a time.
const BACKLOG: usize = 8;

/// What a service does with a connection.
#[derive(Clone)]
pub(super) enum Behaviour {
    /// Closes when the client has closed.
    Accept,
    /// Accepts, and never closes.
    Hang,
    /// Answers a request after a time, and then closes.
    Answer(Vec<u8>, Duration),
    /// Answers a request, and closes only when the client does.
    AnswerAndStay(Vec<u8>),
    /// Answers a request over TLS, and then closes.
    Tls(Arc<ServerConfig>, Vec<u8>),
    /// Sends before it receives anything, and then closes.
    Banner(Vec<u8>),
}

pub(super) struct Backend {
    interface: Interface,
    sockets: SocketSet<'static>,
    pub(super) device: Pipe,
    connections: Vec<Connection>,
    /// What clients have sent to services without TLS, and the plaintext of the others.
    pub(super) requests: Vec<Vec<u8>>,
}

struct Connection {
    handle: SocketHandle,
    port: u16,
    behaviour: Behaviour,
    input: Vec<u8>,
    output: Vec<u8>,
    answer_at: Option<Instant>,
    answered: bool,
    tls: Option<ServerConnection>,
}

impl Backend {
    pub(super) fn new(address: IpAddr, services: &[(u16, Behaviour)]) -> Self {
        let mut device = Pipe::default();
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut device, Instant::ZERO);
        interface.update_ip_addrs(|a| a.push(IpCidr::new(address.into(), 0)).unwrap());
        let mut sockets = SocketSet::new(Vec::new());
        let mut connections = Vec::new();
        for (port, behaviour) in services {
            for _ in 0..BACKLOG {
                let buffer = || SocketBuffer::new(vec![0; 16 * 1024]);
                let mut socket = Socket::new(buffer(), buffer());
                socket.set_ack_delay(None);
                connections.push(Connection {
                    handle: sockets.add(socket),
                    port: *port,
                    behaviour: behaviour.clone(),
                    input: Vec::new(),
                    output: Vec::new(),
                    answer_at: None,
                    answered: false,
                    tls: None,
                });
            }
        }
        let requests = Vec::new();
        Self {
            interface,
            sockets,
            device,
            connections,
            requests,
        }
    }

    /// Processes packets and timers. Returns whether anything was done.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        for connection in &mut self.connections {
            connection.listen(self.sockets.get_mut(connection.handle));
        }
        let mut busy = false;
        while self.interface.poll(now, &mut self.device, &mut self.sockets) != PollResult::None {
            busy = true;
            for connection in &mut self.connections {
                connection.run(self.sockets.get_mut(connection.handle), now, &mut self.requests);
            }
        }
        for connection in &mut self.connections {
            busy |= connection.run(self.sockets.get_mut(connection.handle), now, &mut self.requests);
        }
        busy
    }

    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        let stack = self.interface.poll_at(now, &self.sockets);
        let answers = self
            .connections
            .iter()
            .filter(|c| !c.answered)
            .filter_map(|c| c.answer_at);
        answers.chain(stack).min()
    }

    /// States of the connections that are not waiting for a client.
    pub(super) fn states(&self) -> Vec<State> {
        let states = self
            .connections
            .iter()
            .map(|c| self.sockets.get::<Socket<'_>>(c.handle).state());
        states.filter(|s| *s != State::Listen && *s != State::Closed).collect()
    }
}

impl Connection {
    fn listen(&mut self, socket: &mut Socket<'_>) {
        if matches!(socket.state(), State::Closed | State::TimeWait) {
            socket.abort();
            socket.listen(self.port).unwrap();
            (self.input, self.output) = (Vec::new(), Vec::new());
            (self.answer_at, self.answered, self.tls) = (None, false, None);
        }
    }

    /// Returns whether there is something to send.
    fn run(&mut self, socket: &mut Socket<'_>, now: Instant, requests: &mut Vec<Vec<u8>>) -> bool {
        if matches!(socket.state(), State::Listen | State::SynReceived | State::Closed) {
            return false;
        }
        let mut received = Vec::new();
        while let Ok(bytes) = socket.recv(|b| (b.len(), b.to_vec())) {
            if bytes.is_empty() {
                break;
            }
            received.extend(bytes);
        }
        if let Behaviour::Tls(config, _) = &self.behaviour {
            let tls = self.tls.get_or_insert_with(|| {
                let mut tls = ServerConnection::new(config.clone()).unwrap();
                tls.set_buffer_limit(None);
                tls
            });
            let mut bytes = &received[..];
            while !bytes.is_empty() && tls.read_tls(&mut bytes).unwrap_or(0) > 0 {
                let _ = tls.process_new_packets();
            }
            let _ = tls.reader().read_to_end(&mut self.input);
        } else {
            self.input.extend(received);
        }
        let asked = self.input.windows(4).any(|w| w == b"\r\n\r\n");
        let (answer, delay) = match &self.behaviour {
            Behaviour::Accept | Behaviour::Hang => (None, Duration::ZERO),
            Behaviour::Answer(answer, delay) => (asked.then_some(answer), *delay),
            Behaviour::AnswerAndStay(answer) | Behaviour::Tls(_, answer) => (asked.then_some(answer), Duration::ZERO),
            Behaviour::Banner(answer) => (Some(answer), Duration::ZERO),
        };
        if let Some(answer) = answer {
            let at = *self.answer_at.get_or_insert(now + delay.into());
            if now >= at && !self.answered {
                self.answered = true;
                requests.push(std::mem::take(&mut self.input));
                match &mut self.tls {
                    Some(tls) => {
                        tls.writer().write_all(answer).unwrap();
                        tls.send_close_notify();
                    }
                    None => self.output.extend(answer),
                }
            }
        }
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.output).unwrap();
            }
        }
        let sent = socket.send_slice(&self.output).unwrap_or(0);
        self.output.drain(..sent);
        let closes_first = !matches!(self.behaviour, Behaviour::AnswerAndStay(_) | Behaviour::Hang);
        let client_closed = !socket.may_recv() && !matches!(self.behaviour, Behaviour::Hang);
        if self.output.is_empty() && socket.may_send() && (client_closed || (self.answered && closes_first)) {
            socket.close();
            return true;
        }
        sent > 0
    }
}

#[derive(Default)]
pub(super) struct Pipe {
    pub(super) received: VecDeque<Vec<u8>>,
    pub(super) sent: Vec<Vec<u8>>,
}

pub(super) struct Incoming(Vec<u8>);

pub(super) struct Outgoing<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Pipe {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.received.pop_front()?;
        Some((Incoming(packet), Outgoing(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}
