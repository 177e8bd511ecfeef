//! The TUN device: queues on tokio-tun, with super-packets where the kernel has them.

use crate::sys;
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use std::fs::File;
use std::io;
use tokio_tun::Tun;
use tombolo_engine::buffer::DeliverSink;
use tombolo_engine::offload::{Coalescer, MAX_PACKET, SplitError, VnetHeader, split};

/// Bytes to read into: the longest packet with its virtio header.
pub const BUFFER: usize = VnetHeader::LEN + MAX_PACKET;

/// The device while its queues are being made. It is down and bare, and vanishes with its last queue.
pub struct Device {
    name: String,
    /// Reads and writes carry a virtio header.
    offload: bool,
    /// Super-packets of UDP too.
    udp: bool,
    /// The first queue. What a queue is like belongs to the device, and those that join inherit it; this one is nobody's,
    /// and goes when the others are there.
    _primer: File,
}

impl Device {
    /// Creates the device.
    ///
    /// # Errors
    /// A device of that name exists, or the kernel refuses to make one.
    pub fn create(name: &str, want_offload: bool) -> Result<Self> {
        if if_nametoindex(name).is_ok() {
            bail!("interface: a device {name} exists: another agent or program has it");
        }
        let plain = || sys::prime(name, false).with_context(|| format!("creating device {name}"));
        let (offload, (primer, udp)) = if want_offload {
            match sys::prime(name, true) {
                Ok(primer) => (true, primer),
                Err(e) => {
                    tracing::warn!(error = %format!("{e:#}"), "no super-packets on the device: packet by packet");
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

    /// Adds a queue, for the runtime that this is called in.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn queue(&self) -> Result<TunQueue> {
        // Two, because one would be asked for without IFF_MULTI_QUEUE, which does not match the device.
        let tuns = Tun::builder()
            .name(&self.name)
            .queues(2)
            .build()
            .with_context(|| format!("joining device {}", self.name))?;
        let tun = tuns.into_iter().next().context("the device has no queue")?;
        if sys::has_header(&tun)? != self.offload {
            bail!("device {}: a queue is not like the device", self.name);
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

/// One queue of the device.
pub struct TunQueue {
    tun: Tun,
    index: u32,
    /// Reads and writes carry a virtio header.
    offload: bool,
    coalescer: Coalescer,
    /// Writes that the kernel refused.
    pub write_errors: u64,
    /// Packets in them that the owner has not counted yet.
    pub lost: u64,
}

impl TunQueue {
    /// The device's index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether super-packets are in use.
    #[must_use]
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// Waits for something to read and reads it. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// The device is gone or down.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.recv(buffer).await
    }

    /// Reads what is there, `WouldBlock` if nothing is.
    ///
    /// # Errors
    /// The device is gone or down, or nothing is there.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.try_recv(buffer)
    }

    /// Takes a packet for the kernel; with super-packets it may wait for [`flush`](Self::flush).
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

    /// Writes what waits.
    pub fn flush(&mut self) {
        let mut out = Out {
            tun: &self.tun,
            errors: &mut self.write_errors,
            lost: &mut self.lost,
        };
        self.coalescer.flush(&mut |bytes, count| out.write(bytes, count));
    }
}

/// Where writes go, and what is counted of them.
struct Out<'a> {
    tun: &'a Tun,
    errors: &'a mut u64,
    lost: &'a mut u64,
}

impl Out<'_> {
    /// Writes what stands for `count` packets.
    fn write(&mut self, bytes: &[u8], count: usize) {
        if let Err(e) = self.tun.try_send(bytes) {
            *self.errors += 1;
            *self.lost += count as u64;
            tracing::debug!(error = %e, len = bytes.len(), count, "device write refused");
        }
    }
}

/// Calls `each` with every packet that one read stands for; `offload` as the queue has it.
///
/// # Errors
/// The read was not a packet.
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
