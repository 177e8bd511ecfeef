//! The TUN devices, one for each NIC (D37). The crate tokio-tun opens the devices' queues. If the kernel supports it, a
//! read or write may be a GSO packet, which stands for several packets.

use crate::{netlink, sys};
use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_tun::Tun;
use tombolo_engine::buffer::DeliverSink;
use tombolo_engine::offload::{Coalescer, MAX_PACKET, SplitError, VnetHeader, split};
use tombolo_engine::tables::NicIndex;
use tombolo_proto::config::MAX_VM_NICS;

/// Size of a read buffer in bytes: the longest packet, with its virtio-net header.
const BUFFER: usize = VnetHeader::LEN + MAX_PACKET;

/// The name of the TUN device of a NIC. The first NIC, with `number` 0, has the name `interface`, and the others
/// `interface-1` and so on. If that is longer than the kernel's limit of 15 characters, the name has the beginning of
/// `interface` and a hash of it. `number` must be below [`MAX_VM_NICS`].
#[must_use]
pub fn device_name(interface: &str, number: usize) -> String {
    /// Longest name of a network interface: `IFNAMSIZ` less the final zero byte.
    const MAX_NAME: usize = 15;
    if number == 0 {
        return interface.to_owned();
    }
    let name = format!("{interface}-{number}");
    if name.len() <= MAX_NAME {
        return name;
    }
    let hash = blake3::hash(interface.as_bytes()).to_hex();
    // `check_interface` accepts only names of ASCII characters.
    let start = interface.get(..8).unwrap_or_default();
    format!("{start}{}-{number}", &hash[..4])
}

/// A new TUN device, to which the lanes add their queues. At first the device is down and has no addresses. The kernel
/// removes the device when its last queue is closed.
pub struct Device {
    name: String,
    /// Whether reads and writes have a virtio-net header.
    offload: bool,
    /// Whether the kernel also accepts UDP GSO packets (USO) from the agent.
    udp: bool,
    /// The first queue, which sets the device's flags and offloads. Later queues inherit these. Nothing reads this
    /// queue, and the kernel would put packets into it. So it is closed as soon as lanes have queues. None: it is
    /// closed.
    primer: Mutex<Option<File>>,
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
            primer: Mutex::new(Some(primer)),
        })
    }

    /// Closes the first queue. To be called when each lane has a queue of the device. Without any queue, the kernel
    /// would remove the device. A second call does nothing.
    pub fn close_primer(&self) {
        drop(self.primer.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The name and the interface index of the device.
    ///
    /// # Errors
    /// The device was removed.
    pub fn identity(&self) -> Result<netlink::Tun> {
        Ok(netlink::Tun {
            name: self.name.clone(),
            index: if_nametoindex(self.name.as_str()).with_context(|| format!("device {}", self.name))?,
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
    write_errors: u64,
    /// Number of packets lost in refused writes, since the lane last took this counter. One write may have several
    /// packets.
    lost: u64,
}

impl TunQueue {
    /// Waits for a packet, and reads it into `buffer`. Returns its length in bytes, with the virtio-net header if there
    /// is one. A buffer of [`BUFFER`] bytes suffices for any packet. Cancel safe: no packet is lost if the future is
    /// dropped. A shorter buffer gets only the start of a longer packet, and the rest is lost. While the device is
    /// down, the call waits.
    ///
    /// # Errors
    /// The device was removed.
    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.recv(buffer).await
    }

    /// Reads one packet without waiting; see [`recv`](Self::recv).
    ///
    /// # Errors
    /// `WouldBlock`: no packet is queued, or the device is down. Other errors: the device was removed.
    fn try_recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tun.try_recv(buffer)
    }

    /// Writes one complete IP packet, without virtio-net header, to the device, without waiting. With GSO the packet is
    /// copied, and may be held back until [`flush`](Self::flush), so that it can be coalesced with later packets. The
    /// kernel refuses packets while the device is down. A refused write is counted in `write_errors`, and each of its
    /// packets in `lost`; it is not repeated.
    fn push(&mut self, packet: &[u8]) {
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
    fn flush(&mut self) {
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

/// A lane's queues of all TUN devices, each with a buffer for reads. The position of a queue is the [`NicIndex`] of its
/// device.
pub struct TunQueues {
    /// Never empty, and at most [`MAX_VM_NICS`].
    queues: Vec<Reader>,
    /// Write errors of queues that were closed.
    closed_errors: u64,
    /// Packets lost in refused writes of queues that were closed, since the lane last took the counter; and packets for
    /// devices that do not exist any more.
    closed_lost: u64,
}

struct Reader {
    queue: TunQueue,
    buffer: Vec<u8>,
}

impl Reader {
    fn of(device: &Device) -> Result<Self> {
        Ok(Self {
            queue: device.queue()?,
            buffer: vec![0; BUFFER],
        })
    }
}

impl TunQueues {
    /// Adds a queue to the first device. The conditions and errors are those of [`Device::queue`].
    ///
    /// # Errors
    /// As for [`Device::queue`].
    pub fn new(first: &Device) -> Result<Self> {
        Ok(Self {
            queues: vec![Reader::of(first)?],
            closed_errors: 0,
            closed_lost: 0,
        })
    }

    /// Adds a queue to each device that has none yet, and closes the queues of devices that are not in `devices`. The
    /// first device must be that of [`new`](Self::new); it stays. Devices beyond [`MAX_VM_NICS`] are ignored.
    ///
    /// # Errors
    /// As for [`Device::queue`]. The queues before the failed one have been added.
    pub fn set_devices(&mut self, devices: &[Arc<Device>]) -> Result<()> {
        let count = devices.len().clamp(1, MAX_VM_NICS);
        for closed in self.queues.drain(count.min(self.queues.len())..) {
            self.closed_errors += closed.queue.write_errors;
            self.closed_lost += closed.queue.lost;
        }
        for device in devices.iter().take(count).skip(self.queues.len()) {
            self.queues.push(Reader::of(device)?);
        }
        Ok(())
    }

    /// The interface index of the first device.
    #[must_use]
    pub fn first_index(&self) -> u32 {
        self.queues[0].queue.index
    }

    /// The number of devices.
    #[must_use]
    pub fn count(&self) -> usize {
        self.queues.len()
    }

    /// Whether reads and writes of the queues have a virtio-net header, and may be GSO packets.
    #[must_use]
    pub fn offload(&self) -> bool {
        self.queues[0].queue.offload
    }

    /// Waits for a packet from any device, and reads it into the device's buffer. Returns the device and the length,
    /// with the virtio-net header if there is one; see [`packets`](Self::packets). Cancel safe: no packet is lost if
    /// the future is dropped. A device that is down has no packets.
    ///
    /// # Errors
    /// A device was removed.
    pub async fn recv(&mut self) -> io::Result<(NicIndex, usize)> {
        if let [first] = &mut self.queues[..] {
            return Ok((NicIndex::FIRST, first.queue.recv(&mut first.buffer).await?));
        }
        let mut rest = self.queues.iter_mut();
        let (number, read) = tokio::select! {
            read = wait(rest.next()) => (0, read),
            read = wait(rest.next()) => (1, read),
            read = wait(rest.next()) => (2, read),
            read = wait(rest.next()) => (3, read),
            read = wait(rest.next()) => (4, read),
            read = wait(rest.next()) => (5, read),
            read = wait(rest.next()) => (6, read),
            read = wait(rest.next()) => (7, read),
        };
        Ok((NicIndex(number), read?))
    }

    /// Reads one packet of a device without waiting; see [`recv`](Self::recv).
    ///
    /// # Errors
    /// `WouldBlock`: no packet is queued, the device is down, or there is no such device. Other errors: the device was
    /// removed.
    pub fn try_recv(&mut self, nic: NicIndex) -> io::Result<usize> {
        let reader = self.queues.get_mut(nic.get()).ok_or(io::ErrorKind::WouldBlock)?;
        reader.queue.try_recv(&mut reader.buffer)
    }

    /// Calls `each` with every packet of the last read of a device, which had `len` bytes, in order. `each` may change
    /// the packet in place, and write to the devices. Returns the number of packets.
    ///
    /// # Errors
    /// The virtio-net header is incomplete, or does not fit the packet. `each` has not been called then.
    pub fn packets(
        &mut self,
        nic: NicIndex,
        len: usize,
        mut each: impl FnMut(&mut [u8], &mut Self),
    ) -> Result<usize, SplitError> {
        let Some(reader) = self.queues.get_mut(nic.get()) else {
            return Ok(0);
        };
        let offload = reader.queue.offload;
        let mut buffer = std::mem::take(&mut reader.buffer);
        let outcome = packets(offload, &mut buffer[..len], |packet| each(packet, self));
        if let Some(reader) = self.queues.get_mut(nic.get()) {
            reader.buffer = buffer;
        }
        outcome
    }

    /// Writes the packets that were held back for coalescing to their devices, without waiting.
    pub fn flush(&mut self) {
        self.queues.iter_mut().for_each(|reader| reader.queue.flush());
    }

    /// Number of writes that the kernel refused, since the start.
    #[must_use]
    pub fn write_errors(&self) -> u64 {
        let errors = self.queues.iter().map(|reader| reader.queue.write_errors);
        self.closed_errors + errors.sum::<u64>()
    }

    /// Number of packets lost in refused writes, since the last call.
    pub fn take_lost(&mut self) -> u64 {
        let lost = self
            .queues
            .iter_mut()
            .map(|reader| std::mem::take(&mut reader.queue.lost));
        std::mem::take(&mut self.closed_lost) + lost.sum::<u64>()
    }
}

/// Waits for a packet of a device. Never returns without a device.
async fn wait(reader: Option<&mut Reader>) -> io::Result<usize> {
    match reader {
        Some(reader) => reader.queue.recv(&mut reader.buffer).await,
        None => std::future::pending().await,
    }
}

impl DeliverSink for TunQueues {
    fn deliver(&mut self, nic: NicIndex, packet: &[u8]) {
        match self.queues.get_mut(nic.get()) {
            Some(reader) => reader.queue.push(packet),
            // The tables have a NIC whose device is not there. The lane gets new devices before such tables, so this
            // does not happen; the packet would be lost and counted.
            None => self.closed_lost += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check_interface;

    #[test]
    fn d37_devices_of_further_nics_have_valid_names_that_differ() {
        assert_eq!(device_name("tl-nva", 0), "tl-nva");
        assert_eq!(device_name("tl-nva", 1), "tl-nva-1");
        let interfaces = ["tl-abcdefghijkl", "tl-abcdefghijkm", "tl-abcdefghijk"];
        let names: Vec<_> = interfaces
            .iter()
            .flat_map(|interface| (0..MAX_VM_NICS).map(|number| device_name(interface, number)))
            .collect();
        for name in &names {
            check_interface(name).unwrap();
        }
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len(), "{names:?}");
    }
}
