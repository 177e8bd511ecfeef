//! The UDP ports of a lane as one: its own, and in the first lane perhaps a second one, where QUIC alone is taken (D6).

use crate::config::Config;
use crate::outbox::Datagrams;
use crate::udp::{NoRoom, Sent, Udp};
use anyhow::Result;
use std::io;
use std::time::Instant;
use tombolo_engine::buffer::Port;

/// Both of them.
pub struct Ports {
    lane: Udp,
    quic: Option<Udp>,
    /// The one that had no room for a batch.
    full: Port,
}

impl Ports {
    /// Binds the ports of the lane with this number.
    ///
    /// # Errors
    /// A port is taken, or the process may not mark packets.
    pub fn bind(config: &Config, number: u16) -> Result<Self> {
        let bind = |of, port| Udp::bind(of, port, config.fwmark, config.receive_buffer(None));
        let second = config.quic_port.filter(|_| number == 0);
        Ok(Self {
            lane: bind(Port::Lane, config.listen_port.saturating_add(number))?,
            quic: second.map(|port| bind(Port::Quic, port)).transpose()?,
            full: Port::Lane,
        })
    }

    /// Changes the receive buffers, bytes.
    ///
    /// # Errors
    /// The process may not.
    pub fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        [Some(&self.lane), self.quic.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(|udp| udp.set_receive_buffer(bytes))
    }

    /// Those that there are.
    pub fn all(&self) -> impl Iterator<Item = Port> + use<> {
        let quic = self.quic.as_ref().map(|_| Port::Quic);
        std::iter::once(Port::Lane).chain(quic)
    }

    /// One of them; the lane's where there is no second.
    pub fn get(&mut self, port: Port) -> &mut Udp {
        match (port, &mut self.quic) {
            (Port::Quic, Some(quic)) => quic,
            (Port::Quic | Port::Lane, _) => &mut self.lane,
        }
    }

    /// Waits until something may be read.
    ///
    /// # Errors
    /// A socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.quic {
            None => self.lane.readable().await,
            Some(quic) => tokio::select! {
                ready = self.lane.readable() => ready,
                ready = quic.readable() => ready,
            },
        }
    }

    /// Waits until there may be room for the batch that found none.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn writable(&self) -> io::Result<()> {
        match (self.full, &self.quic) {
            (Port::Quic, Some(quic)) => quic.writable().await,
            (Port::Quic | Port::Lane, _) => self.lane.writable().await,
        }
    }

    /// Sends a batch by the port of its path, or says that there is no room now.
    ///
    /// # Errors
    /// The send buffer is full.
    pub fn send(&mut self, datagrams: &Datagrams<'_>) -> Result<Sent, NoRoom> {
        let port = datagrams.to.port;
        let sent = self.get(port).send(datagrams);
        if sent.is_err() {
            self.full = port;
        }
        sent
    }

    /// Tries again what was given up a while ago.
    pub fn look_again(&mut self, now: Instant) {
        for port in self.all() {
            self.get(port).look_again(now);
        }
    }

    /// Datagrams that the kernel dropped because a receive buffer was full.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.lane.overflow() + self.quic.as_ref().map_or(0, Udp::overflow)
    }

    /// Datagrams that could not be sent.
    #[must_use]
    pub fn send_errors(&self) -> u64 {
        self.lane.send_errors + self.quic.as_ref().map_or(0, |quic| quic.send_errors)
    }
}
