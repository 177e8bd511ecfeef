//! The format in which an agent saves the flows of its table, so that they survive a planned restart (D34).
//!
//! ```text
//! file     magic (8) · format version (4) · boot id (16) · milliseconds since boot (8) · number of flows (8) · flows…
//! flow     source (16) · destination (16) · source port (2) · destination port (2) · protocol (1) · flags (1)
//!          · NIC (1) · zero (1) · seconds without packets (4) · seconds since the first packet (4)
//!          · idle timeout in seconds (4) · choices of load balancers, 0: none (8)
//! ```
//! Numbers are little-endian. Addresses, ports and direction are those of the packet that began the flow. A flow is
//! identified by these fields and the number of the NIC (`SecuredNics::flow_nic`): the NICs of a machine keep their
//! numbers while it has the same NICs. Numbers of links are left out, because they can have another meaning in the
//! configuration of the next process.

use super::entry::{
    CHOICES, CLOSING, ESTABLISHED, FIN_BACKWARD, FIN_FORWARD, FROM_SECOND, JUDGE_AGAIN, Ordered, Origin, STATUS,
    SYN_ANSWERED, TAG_SHIFT, TIMES, Times, UNANSWERED, is_over, key_of, next_version, status_of, version_of,
};
use super::{FlowKey, FlowTable, ORIGIN, UNKNOWN_LINK, entries_for};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;
use tombolo_proto::config::{Direction, MAX_VM_NICS};

const MAGIC: [u8; 8] = *b"TmblFlow";

/// The format that this version writes, and the only one that it reads. Another layout of the bytes, or another meaning
/// of a field, needs another number.
const FORMAT: u32 = 3;

/// Length of the header and of a flow, in bytes.
const HEADER: usize = 44;
const FLOW: usize = 60;

/// Flows that were saved longer ago are discarded. After so long without an answer, many of the connections have ended
/// at the other ends (D34).
pub const MAX_SAVED_AGE: Duration = Duration::from_secs(60);

/// Longest idle timeout of a saved flow, in seconds: 100 minutes, Azure's
/// longest for load balancers. Those of virtual networks are shorter (N6).
const MAX_IDLE_TIMEOUT: u32 = 6000;

// Flags of a saved flow.
const IPV6: u8 = 1 << 0;
const INBOUND: u8 = 1 << 1;
const STATUS_SHIFT: u8 = 2;
const STATUS_BITS: u8 = 0b11 << STATUS_SHIFT;
/// Each flag of an entry's header that is saved, and its place in the flags of a saved flow.
const HEADER_FLAGS: [(u64, u8); 4] = [
    (FIN_FORWARD, 1 << 4),
    (FIN_BACKWARD, 1 << 5),
    (SYN_ANSWERED, 1 << 6),
    (JUDGE_AGAIN, 1 << 7),
];

/// The time at which flows are saved or loaded, by a clock that all processes of a host share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootTime {
    /// A random number that the kernel chooses at each boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: [u8; 16],
    /// The time since the boot (`CLOCK_BOOTTIME`). Fractions of a millisecond are ignored.
    pub since_boot: Duration,
}

/// Why saved flows are discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The bytes do not have the form that [`FlowTable::save`] writes.
    #[error("malformed at byte {0}")]
    Malformed(usize),
    /// The flows were saved in another format.
    #[error("format {0}; this version of the agent reads format {FORMAT}")]
    Format(u32),
    /// The host has booted since.
    #[error("saved before the host has booted")]
    OtherBoot,
    /// The flows were saved at a time that has not come yet.
    #[error("saved at a later time than the present one")]
    InTheFuture,
    /// The flows were saved more than [`MAX_SAVED_AGE`] ago.
    #[error("saved {0} s ago; flows older than {max} s are not used", max = MAX_SAVED_AGE.as_secs())]
    TooOld(u64),
    /// There are more flows than the table has entries.
    #[error("{flows} flows; the table has {entries} entries")]
    TooMany {
        /// The number of saved flows.
        flows: u64,
        /// The number of entries of the table.
        entries: usize,
    },
}

/// A flow without a place in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SavedFlow {
    key: FlowKey,
    /// The status and the saved flags of the entry's header.
    header: u64,
    /// Time since the last packet, in seconds.
    idle: u32,
    /// Time since the first packet, in seconds; not below `idle`.
    age: u32,
    /// Time without packets after which the flow ends, in seconds.
    idle_timeout: u32,
    /// The choices that load balancers have made for the flow; 0: none.
    choices: u64,
}

impl SavedFlow {
    fn encode(&self) -> [u8; FLOW] {
        let mut flags = match self.key.direction {
            Direction::Inbound => INBOUND,
            Direction::Outbound => 0,
        };
        if self.key.source.is_ipv6() {
            flags |= IPV6;
        }
        // The statuses of flows follow each other, and UNANSWERED is the first.
        flags |= u8::try_from((self.header & STATUS) - UNANSWERED).unwrap_or_default() << STATUS_SHIFT;
        for (in_header, saved) in HEADER_FLAGS {
            if self.header & in_header != 0 {
                flags |= saved;
            }
        }
        let (source_port, destination_port) = self.key.ports;
        let mut out = [0; FLOW];
        out[0..16].copy_from_slice(&octets(self.key.source));
        out[16..32].copy_from_slice(&octets(self.key.destination));
        out[32..34].copy_from_slice(&source_port.to_le_bytes());
        out[34..36].copy_from_slice(&destination_port.to_le_bytes());
        out[36] = self.key.protocol;
        out[37] = flags;
        out[38] = self.key.nic;
        out[40..44].copy_from_slice(&self.idle.to_le_bytes());
        out[44..48].copy_from_slice(&self.age.to_le_bytes());
        out[48..52].copy_from_slice(&self.idle_timeout.to_le_bytes());
        out[52..60].copy_from_slice(&self.choices.to_le_bytes());
        out
    }

    /// The flow that these bytes describe. `None`: [`encode`](Self::encode) writes no such bytes.
    fn decode(bytes: &[u8; FLOW]) -> Option<Self> {
        let number = |at: usize| {
            let [a, b, c, d]: [u8; 4] = std::array::from_fn(|i| bytes[at + i]);
            u32::from_le_bytes([a, b, c, d])
        };
        let port = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let flags = bytes[37];
        let address = |at: usize| -> Option<IpAddr> {
            let octets: [u8; 16] = std::array::from_fn(|i| bytes[at + i]);
            if flags & IPV6 != 0 {
                return Some(Ipv6Addr::from(octets).into());
            }
            let (unused, octets) = octets.split_first_chunk::<12>()?;
            let octets: &[u8; 4] = octets.first_chunk()?;
            (*unused == [0; 12]).then(|| Ipv4Addr::from(*octets).into())
        };
        let status = UNANSWERED + u64::from((flags & STATUS_BITS) >> STATUS_SHIFT);
        let saved_flags = HEADER_FLAGS.iter().filter(|(_, saved)| flags & saved != 0);
        let flow = Self {
            key: FlowKey {
                nic: bytes[38],
                direction: if flags & INBOUND != 0 {
                    Direction::Inbound
                } else {
                    Direction::Outbound
                },
                protocol: bytes[36],
                source: address(0)?,
                destination: address(16)?,
                ports: (port(32), port(34)),
            },
            header: saved_flags.fold(status, |header, (in_header, _)| header | in_header),
            idle: number(40),
            age: number(44),
            idle_timeout: number(48),
            choices: u64::from(number(56)) << 32 | u64::from(number(52)),
        };
        let is_valid = matches!(status, UNANSWERED | ESTABLISHED | CLOSING)
            && usize::from(bytes[38]) < MAX_VM_NICS
            && bytes[39] == 0
            && flow.idle <= flow.age
            && (1..=MAX_IDLE_TIMEOUT).contains(&flow.idle_timeout);
        is_valid.then_some(flow)
    }
}

/// The octets of an address, after twelve zeros if it is one of IPv4.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()).to_be_bytes(),
        IpAddr::V6(a) => a.octets(),
    }
}

impl FlowTable {
    /// The flows of the table as bytes, for [`load`](Self::load) of the next process: 60 bytes for each flow, and 44
    /// more. Flows that are over are left out. `now` is in seconds since the table was made. Lanes may use the table
    /// meanwhile. Flows that they add or change may be saved or not.
    #[must_use]
    pub fn save(&self, at: &BootTime, now: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.len() * FLOW);
        out.extend(MAGIC);
        out.extend(FORMAT.to_le_bytes());
        out.extend(at.boot);
        out.extend(milliseconds(at.since_boot).to_le_bytes());
        let count_at = out.len();
        out.extend(0u64.to_le_bytes());
        let mut count: u64 = 0;
        for slot in 0..self.entries() {
            if let Some(flow) = self.saved(slot, now) {
                out.extend(flow.encode());
                count += 1;
            }
        }
        out[count_at..count_at + 8].copy_from_slice(&count.to_le_bytes());
        out
    }

    /// The flow of an entry. `None`: there is none, or it is over, or another lane was changing the entry.
    fn saved(&self, slot: usize, now: u32) -> Option<SavedFlow> {
        let header = self.header(slot).load(Ordering::Acquire);
        status_of(header)?;
        let body = self.body(slot);
        fence(Ordering::Acquire);
        let again = self.header(slot).load(Ordering::Relaxed);
        let key = key_of(header, &body);
        if version_of(again) != version_of(header) || is_over(header, &body, now) {
            return None;
        }
        let times = Times::unpack(body[TIMES]);
        let idle = now.saturating_sub(times.last_seen);
        let flags = HEADER_FLAGS.iter().fold(STATUS, |all, (flag, _)| all | flag);
        Some(SavedFlow {
            key,
            header: header & flags,
            idle,
            age: now.saturating_sub(times.created).max(idle),
            idle_timeout: Origin::unpack(body[ORIGIN]).idle_timeout,
            choices: body[CHOICES],
        })
    }

    /// Adds the flows that [`save`](Self::save) has written. `at` is the present time, and `now` the same time in
    /// seconds since the table was made. The time since the flows were saved counts as time without packets. Flows that
    /// are older than the table get its age. Returns the number of flows that were added. Flows that have ended
    /// meanwhile are left out, and so are flows whose buckets are full.
    ///
    /// The flows belong to no link: those without a reply count towards the limit of the table alone (D32).
    ///
    /// # Errors
    /// The flows cannot be used. Then no flow is added.
    pub fn load(&self, bytes: &[u8], at: &BootTime, now: u32) -> Result<usize, Unusable> {
        let (flows, saved_ago) = self.check(bytes, at)?;
        let saved_ago = u32::try_from(saved_ago.as_secs()).unwrap_or(u32::MAX);
        let mut added = 0;
        for flow in flows.iter().filter_map(SavedFlow::decode) {
            added += usize::from(self.restore(&flow, saved_ago, now));
        }
        Ok(added)
    }

    /// Checks saved flows. Returns them, and the time since they were saved.
    fn check<'b>(&self, bytes: &'b [u8], at: &BootTime) -> Result<(&'b [[u8; FLOW]], Duration), Unusable> {
        let cut = Unusable::Malformed(bytes.len());
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(cut)?;
        let (format, rest) = rest.split_first_chunk::<4>().ok_or(cut)?;
        if *magic != MAGIC {
            return Err(Unusable::Malformed(0));
        }
        let format = u32::from_le_bytes(*format);
        if format != FORMAT {
            return Err(Unusable::Format(format));
        }
        let (boot, rest) = rest.split_first_chunk::<16>().ok_or(cut)?;
        let (saved_at, rest) = rest.split_first_chunk::<8>().ok_or(cut)?;
        let (count, rest) = rest.split_first_chunk::<8>().ok_or(cut)?;
        if *boot != at.boot {
            return Err(Unusable::OtherBoot);
        }
        let ago = milliseconds(at.since_boot)
            .checked_sub(u64::from_le_bytes(*saved_at))
            .ok_or(Unusable::InTheFuture)?;
        let ago = Duration::from_millis(ago);
        if ago > MAX_SAVED_AGE {
            return Err(Unusable::TooOld(ago.as_secs()));
        }
        let (flows, remainder) = rest.as_chunks::<FLOW>();
        let count = u64::from_le_bytes(*count);
        let entries = self.entries();
        if usize::try_from(count).is_ok_and(|count| count != flows.len()) || !remainder.is_empty() {
            return Err(cut);
        }
        if flows.len() > entries {
            return Err(Unusable::TooMany { flows: count, entries });
        }
        if let Some(bad) = flows.iter().position(|flow| SavedFlow::decode(flow).is_none()) {
            return Err(Unusable::Malformed(HEADER + bad * FLOW));
        }
        Ok((flows, ago))
    }

    /// Adds a saved flow. Returns whether it was added. `false`: the flow has ended meanwhile, the table has it
    /// already, or there is no empty entry for it.
    fn restore(&self, flow: &SavedFlow, saved_ago: u32, now: u32) -> bool {
        let ordered = Ordered::new(&flow.key);
        let (tag, buckets) = self.place(&ordered);
        let before = |seconds: u32| now.saturating_sub(seconds.saturating_add(saved_ago));
        let times = Times {
            last_seen: before(flow.idle),
            created: before(flow.age),
        };
        let origin = Origin {
            link: UNKNOWN_LINK,
            idle_timeout: flow.idle_timeout,
        };
        let from_second = if ordered.from_second { FROM_SECOND } else { 0 };
        let header = flow.header | from_second | u64::from(tag) << TAG_SHIFT;
        let mut body = [0; super::BODY];
        let mut key = ordered.words;
        key[CHOICES] = flow.choices;
        body[..6].copy_from_slice(&key);
        body[TIMES] = times.pack();
        body[ORIGIN] = origin.pack();
        if is_over(header, &body, now) || self.search(&ordered, tag, buckets).is_some() {
            return false;
        }
        let [first, second] = buckets.map(|bucket| self.empty_entries(bucket));
        let Some((slot, empty)) = (if second.0 > first.0 { second.1 } else { first.1 }) else {
            return false;
        };
        if !self.claim(slot, empty) {
            return false;
        }
        self.publish(slot, &key, times, origin, next_version(empty, header));
        self.total.fetch_add(1, Ordering::Relaxed);
        self.add_to_nic(flow.key.nic);
        if header & STATUS == UNANSWERED {
            self.count_unanswered(UNKNOWN_LINK, 1);
        }
        true
    }

    /// The largest length of saved flows that [`load`](Self::load) of a table with this capacity may accept, in bytes.
    #[must_use]
    pub fn longest_saved(capacity: usize) -> usize {
        HEADER + entries_for(capacity) * FLOW
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
