//! The statement of an agent about the health of its back ends, as it is sent inside links.
//!
//! ```text
//! byte  0      format: 1
//! bytes 1..9   start of the sender, in milliseconds of Unix time
//!       9..17  number of the change since then
//! for each back end, in ascending order of the numbers:
//!       8      number of the back end
//!       1      0: down, 1: up
//! ```
//! Numbers are big-endian. The number of a back end is a hash of the probe's id and the address. So a statement is short, and
//! tells a peer nothing about back ends that the peer does not know.

use super::Probed;
use crate::tables::{hash_address, hash_text, mix};
use std::collections::BTreeMap;
use tombolo_proto::status::HealthVersion;

/// First byte of the encoding. It must change with the format, because receivers refuse formats that they do not know.
const FORMAT: u8 = 1;

const HEADER_LEN: usize = 1 + 8 + 8;
const ENTRY_LEN: usize = 8 + 1;

/// Largest number of back ends in a statement: as many as an agent probes.
pub const MAX_BACK_ENDS: usize = 4096;

/// Length of the longest statement, in bytes.
pub const MAX_STATEMENT_LEN: usize = HEADER_LEN + MAX_BACK_ENDS * ENTRY_LEN;

/// The number of a back end in statements. It must not change, because agents of different versions exchange it.
pub(super) fn number((probe, address): &Probed) -> u64 {
    mix(hash_text(&probe.key()) ^ hash_address(*address))
}

/// The bytes are no statement about the health of back ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a statement about the health of back ends that this version reads")]
pub struct MalformedStatement;

/// The health of the back ends of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) version: HealthVersion,
    /// Whether each back end is up, by its number; in ascending order.
    back_ends: Vec<(u64, bool)>,
}

impl Statement {
    /// The statement about these back ends. Of those after the first [`MAX_BACK_ENDS`], which are not probed, it has none.
    pub(super) fn new(version: HealthVersion, back_ends: &BTreeMap<Probed, bool>) -> Self {
        let numbered = back_ends.iter().map(|(probed, up)| (number(probed), *up));
        let numbered: BTreeMap<u64, bool> = numbered.collect();
        Self {
            version,
            back_ends: numbered.into_iter().take(MAX_BACK_ENDS).collect(),
        }
    }

    /// Whether the back end with this number is up. `None`: the statement is not about it.
    pub(super) fn is_up(&self, number: u64) -> Option<bool> {
        let found = self
            .back_ends
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        self.back_ends.get(found).map(|(_, up)| *up)
    }

    /// The numbers of the back ends.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.back_ends.iter().map(|(number, _)| *number)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.back_ends.len() * ENTRY_LEN);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.version.start.to_be_bytes());
        bytes.extend_from_slice(&self.version.change.to_be_bytes());
        for (number, up) in &self.back_ends {
            bytes.extend_from_slice(&number.to_be_bytes());
            bytes.push(u8::from(*up));
        }
        bytes
    }

    /// Decodes bytes that another agent sent as the result of [`encode`](Self::encode). The bytes are untrusted.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, MalformedStatement> {
        if bytes.len() > MAX_STATEMENT_LEN {
            return Err(MalformedStatement);
        }
        Self::read(bytes).ok_or(MalformedStatement)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (format, rest) = bytes.split_first()?;
        let (start, rest) = rest.split_first_chunk()?;
        let (change, entries) = rest.split_first_chunk()?;
        let (entries, []) = entries.as_chunks::<ENTRY_LEN>() else {
            return None;
        };
        let back_ends = entries.iter().map(|[number @ .., state]| {
            let up = match state {
                0 => false,
                1 => true,
                _ => return None,
            };
            Some((u64::from_be_bytes(*number), up))
        });
        let back_ends = back_ends.collect::<Option<Vec<_>>>()?;
        let is_ordered = back_ends.is_sorted_by(|(one, _), (next, _)| one < next);
        (*format == FORMAT && is_ordered).then(|| Self {
            version: HealthVersion {
                start: u64::from_be_bytes(*start),
                change: u64::from_be_bytes(*change),
            },
            back_ends,
        })
    }
}
