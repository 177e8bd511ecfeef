//! The TUN device. The crate tokio-tun opens the device's queues. If the kernel supports it, a read or write may be a
//! GSO packet, which stands for several packets.

use crate::sys;
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use std::fs::File;
use std::io;
use tokio_tun::Tun;
use tombolo_engine::buffer::DeliverSink;
use tombolo_engine::offload::{Coalescer, MAX_PACKET, SplitError, VnetHeader, split};

/// Size of a read buffer in bytes: the longest packet, with its virtio-net header.
pub const BUFFER: usize = VnetHeader::LEN + MAX_PACKET;

/// A new TUN device, to which the lanes add their queues. At first the device is down and has no addresses. The kernel
/// removes the device when its last queue is closed; dropping this value closes the first queue.
pub struct Device {
    name: String,
    /// Whether reads and writes have a virtio-net header.
    offload: bool,
    /// Whether the kernel also accepts UDP GSO packets (USO) from the agent.
    udp: bool,
    /// The first queue, which sets the device's flags and offloads. Later queues inherit these. Nothing reads this
    /// queue.
    _primer: File,
}

impl Device {
    /// Creates the TUN device, in the network namespace of the calling thread. With `want_offload` the device uses GSO
    /// packets. If the kernel refuses GSO, a warning is logged, and the device uses single packets. `name` must satisfy
    /// [`check_interface`](crate::config::check_interface), which is not checked here.
    ///
    /// # Errors
    /// A device with this name exists, the name is too long, CAP_NET_ADMIN is missing, or the kernel refuses to create
    /// a device.
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

    /// Adds a queue to the device, and registers it with the current Tokio runtime. Must be called in the network
    /// namespace in which the device was created. Until the result is dropped, the device has one queue more.
    ///
    /// # Errors
    /// The kernel refuses the queue, or another program has replaced the device.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn queue(&self) -> Result<TunQueue> {
        // Two queues are requested, because tokio-tun requests a single one without IFF_MULTI_QUEUE, and the kernel
        // refuses that for this device. The second queue is closed at once.
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

/// One queue of the TUN device. Dropping it closes the queue.
pub struct TunQueue {
    tun: Tun,
    index: u32,
    /// Whether reads and writes of the queue have a virtio-net header.
    offload: bool,
    coalescer: Coalescer,
    /// Number of writes that the kernel refused, since the start.
    pub write_errors: u64,
    /// Number of packets lost in refused writes, since the lane last set this counter to zero. One write may have
    /// several packets.
    pub lost: u64,
}

impl TunQueue {
    /// The interface index of the device.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether reads and writes of this queue have a virtio-net header, and may be GSO packets.
    #[must_use]
    pub fn offload(&self) -> bool {
        self.offload
    }

    /// Waits for a packet, and reads it. Returns its length in bytes, with the virtio-net header if there is one. A
    /// buffer of [`BUFFER`] bytes suffices for any packet. Cancel safe: no packet is lost if the future is dropped. A
    /// shorter buffer gets only the start of a longer packet, and the rest is lost. While the device is down, the call
    /// waits.
    ///
    /// # Errors
    /// The device was removed.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.recv(buffer).await
    }

    /// Reads one packet without waiting; see [`recv`](Self::recv).
    ///
    /// # Errors
    /// `WouldBlock`: no packet is queued, or the device is down. Other errors: the device was removed.
    pub fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.try_recv(buffer)
    }

    /// Writes one complete IP packet, without virtio-net header, to the device, without waiting. With GSO the packet is
    /// copied, and may be held back until [`flush`](Self::flush), so that it can be coalesced with later packets. The
    /// kernel refuses packets while the device is down. A refused write is counted in `write_errors`, and each of its
    /// packets in `lost`; it is not repeated.
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

    /// Writes the packets that [`push`](Self::push) has held back, without waiting. Refused writes are counted as for
    /// `push`.
    pub fn flush(&mut self) {
        let mut out = Out {
            tun: &self.tun,
            errors: &mut self.write_errors,
            lost: &mut self.lost,
        };
        self.coalescer.flush(&mut |bytes, count| out.write(bytes, count));
    }
}

/// The destination of writes, and the counters of failed ones.
struct Out<'a> {
    tun: &'a Tun,
    errors: &'a mut u64,
    lost: &'a mut u64,
}

impl Out<'_> {
    /// Writes one buffer that stands for `count` packets.
    fn write(&mut self, bytes: &[u8], count: usize) {
        if let Err(e) = self.tun.try_send(bytes) {
            *self.errors += 1;
            *self.lost += count as u64;
            tracing::debug!(error = %e, len = bytes.len(), count, "device write refused");
        }
    }
}

/// Calls `each` with every packet of one read, in order. Returns their number. `offload`: whether the read has a
/// virtio-net header. `each` may change the packet in place. The packet is valid only during the call, and the contents
/// of `read` do not matter afterwards. Without a header, `read` is one packet and is not checked.
///
/// # Errors
/// The header is incomplete, or does not fit the packet. `each` has not been called then, and `read` is unchanged.
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
