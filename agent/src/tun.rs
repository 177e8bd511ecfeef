//! The TUN device: queues by tokio-tun, with GSO packets where the kernel supports them.

use crate::sys;
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use std::fs::File;
use std::io;
use tokio_tun::Tun;
use tombolo_engine::buffer::DeliverSink;
use tombolo_engine::offload::{Coalescer, MAX_PACKET, SplitError, VnetHeader, split};

/// Bytes of a read buffer: the longest packet with its virtio-net header.
pub const BUFFER: usize = VnetHeader::LEN + MAX_PACKET;

/// The device while queues are added. It is down and has no addresses. The kernel removes it with its last queue.
pub struct Device {
    name: String,
    /// Whether reads and writes have a virtio-net header.
    offload: bool,
    /// Whether the device also accepts UDP GSO packets (USO).
    udp: bool,
    /// The first queue, which sets the device's flags and offloads. Later queues inherit them. It is never read, and
    /// closes with this value.
    _primer: File,
}

impl Device {
    /// Creates the TUN device. Falls back to single packets with a warning if the kernel refuses offloads.
    ///
    /// # Errors
    /// A device of that name exists, or the kernel refuses to create one.
    pub fn create(name: &str, want_offload: bool) -> Result<Self> {
        if if_nametoindex(name).is_ok() {
            bail!("interface: a device {name} exists: another agent or program has it");
        }
        let plain = || sys::prime(name, false).with_context(|| format!("creating device {name}"));
        let (offload, (primer, udp)) = if want_offload {
            match sys::prime(name, true) {
                Ok(primer) => (true, primer),
                Err(e) => {
                    tracing::warn!(
                        error = %format!("{e:#}"),
                        "TUN offload unavailable; falling back to single packets"
                    );
                    (false, plain()?)
                }
            }
        } else {
            (false, plain()?)
        };
        Ok(Self {
            name: name.to_owned(),
            offload,
            udp,
            _primer: primer,
        })
    }

    /// Adds a queue, registered with the current tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn queue(&self) -> Result<TunQueue> {
        // Two queues, because tokio-tun requests a single one without IFF_MULTI_QUEUE, which does not match the device.
        // The second closes at once.
        let tuns = Tun::builder()
            .name(&self.name)
            .queues(2)
            .build()
            .with_context(|| format!("joining device {}", self.name))?;
        let tun = tuns.into_iter().next().context("the device has no queue")?;
        if sys::has_header(&tun)? != self.offload {
            bail!(
                "device {}: the new queue has other flags than the device: another program may have replaced it",
                self.name
            );
        }
        let index = tun.index().with_context(|| format!("device {}", self.name))?;
        Ok(TunQueue {
            tun,
            index,
            offload: self.offload,
            coalescer: Coalescer::new(self.udp),
            write_errors: 0,
            lost: 0,
        })
    }
}

/// One queue of the TUN device.
pub struct TunQueue {
    tun: Tun,
    index: u32,
    /// Whether reads and writes have a virtio-net header.
    offload: bool,
    coalescer: Coalescer,
    /// Writes that the kernel refused.
    pub write_errors: u64,
    /// Packets lost in refused writes since the owner last reset this counter.
    pub lost: u64,
}

impl TunQueue {
    /// The interface index of the device.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether reads and writes may be GSO packets.
    #[must_use]
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// Reads one packet, waiting for it. Cancel safe: no packet is lost if the future is dropped.
    ///
    /// # Errors
    /// The device is down or was removed.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.recv(buffer).await
    }

    /// Reads one packet without waiting.
    ///
    /// # Errors
    /// `WouldBlock` if no packet is queued; otherwise the device is down or was removed.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.try_recv(buffer)
    }

    /// Writes a packet to the device. With GSO it may be held back until [`flush`](Self::flush), to be coalesced with
    /// later packets.
    pub fn push(&mut self, packet: &[u8]) {
        let mut out = Out {
            tun: &self.tun,
            errors: &mut self.write_errors,
            lost: &mut self.lost,
        };
        if self.offload {
            self.coalescer.push(packet, &mut |bytes, count| out.write(bytes, count));
        } else {
            out.write(packet, 1);
        }
    }

    /// Writes the packets that [`push`](Self::push) held back.
    pub fn flush(&mut self) {
        let mut out = Out {
            tun: &self.tun,
            errors: &mut self.write_errors,
            lost: &mut self.lost,
        };
        self.coalescer.flush(&mut |bytes, count| out.write(bytes, count));
    }
}

/// Destination and counters of writes.
struct Out<'a> {
    tun: &'a Tun,
    errors: &'a mut u64,
    lost: &'a mut u64,
}

impl Out<'_> {
    /// Writes one buffer that represents `count` packets.
    fn write(&mut self, bytes: &[u8], count: usize) {
        if let Err(e) = self.tun.try_send(bytes) {
            *self.errors += 1;
            *self.lost += count as u64;
            tracing::debug!(error = %e, len = bytes.len(), count, "device write refused");
        }
    }
}

/// Calls `each` with every packet of one read, and returns their number. `offload`: whether the read has a virtio-net
/// header.
///
/// # Errors
/// The read is malformed.
pub fn packets(offload: bool, read: &mut [u8], mut each: impl FnMut(&mut [u8])) -> Result<usize, SplitError> {
    if !offload {
        each(read);
        return Ok(1);
    }
    let (header, packet) = read
        .split_first_chunk_mut::<{ VnetHeader::LEN }>()
        .ok_or(SplitError::Short)?;
    split(&VnetHeader::decode(header), packet, each)
}

impl DeliverSink for TunQueue {
    fn deliver(&mut self, packet: &[u8]) {
        self.push(packet);
    }
}
