//! One probe in flight.

use super::Target;
use super::connection::Connection;
use super::dialogue::Dialogue;
use super::flow::Flow;
use super::status::Failure;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Instant;

/// A probe from its SYN until its connection is closed, which can be after the result. The deadline bounds both.
pub(super) struct Probe {
    connection: Connection,
    dialogue: Dialogue,
    deadline: Instant,
    is_reported: bool,
    is_finished: bool,
}

impl Probe {
    /// Starts a probe from source port `port`. A probe of HTTPS needs `tls`.
    ///
    /// # Errors
    /// The address or the port of the target is 0.
    pub(super) fn start(
        target: &Target,
        port: u16,
        tls: Option<&mut Arc<ClientConfig>>,
        seed: u64,
        now: Instant,
        deadline: Instant,
    ) -> Result<Self, Failure> {
        let dialogue = Dialogue::new(target, tls.as_deref());
        let flow = Flow {
            endpoint: target.endpoint(),
            port,
        };
        Ok(Self {
            connection: Connection::open(flow, &dialogue.buffers(), seed, now)?,
            dialogue,
            deadline,
            is_reported: false,
            is_finished: false,
        })
    }

    pub(super) fn flow(&self) -> Flow {
        self.connection.flow()
    }

    /// Queues a packet for the next poll. Returns false if the packet is dropped.
    pub(super) fn receive(&mut self, packet: &[u8]) -> bool {
        self.connection.receive(packet)
    }

    /// Runs the probe, and returns its result once.
    pub(super) fn poll(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) -> Option<Result<(), Failure>> {
        let dialogue = &mut self.dialogue;
        self.connection.process(now, send, &mut |socket| dialogue.step(socket));
        if now < self.deadline {
            self.connection.transmit(now, send);
        } else {
            self.dialogue.conclude(Err(Failure::Timeout));
            self.connection.abandon(now, send);
            self.is_finished = true;
        }
        self.is_finished |= self.connection.is_closed();
        let result = self.dialogue.result().filter(|_| !self.is_reported);
        self.is_reported |= result.is_some();
        result
    }

    /// When the probe must be polled next.
    pub(super) fn due(&mut self, now: Instant) -> Instant {
        let due = self.connection.due(now);
        due.map_or(self.deadline, |due| due.min(self.deadline))
    }

    /// Whether the probe is over. Its result has been returned then.
    pub(super) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// Ends the probe without a result.
    pub(super) fn abandon(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        self.connection.abandon(now, send);
    }
}
