//! Encodes a configuration as a change of the one that the agent has in force (D27); `tombolo_proto::delta` decodes it.
//!
//! Both texts are cut into chunks at places that their contents determine (content-defined chunking). So a chunk that
//! occurs in both is found even if its position differs.

use fastcdc::v2020::FastCDC;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::ops::Range;
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream::{self, piece};
use tombolo_proto::delta::Piece;

/// Least, average and largest length of a chunk in bytes. An entry of a configuration, such as a link or a rule, has a
/// few hundred bytes.
const CHUNK: (u32, u32, u32) = (128, 512, 4096);

/// A configuration that was sent to an agent, and its digest.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// The digest of `bytes`.
    pub digest: &'a str,
    /// The configuration in canonical JSON.
    pub bytes: &'a [u8],
}

impl<'a> Sent<'a> {
    /// A configuration from its digest and its bytes.
    #[must_use]
    pub const fn of((digest, bytes): (&'a str, &'a [u8])) -> Self {
        Self { digest, bytes }
    }
}

/// The message that gives `new` to an agent with these features. If the difference to `base`, which the agent has in
/// force, is shorter than half of the configuration, the message has only the difference.
#[must_use]
pub fn message(
    revision: u64,
    new: Sent<'_>,
    base: Option<Sent<'_>>,
    features: &BTreeSet<Feature>,
) -> control_stream::Config {
    let mut message = control_stream::Config {
        revision,
        digest: new.digest.to_owned(),
        ..control_stream::Config::default()
    };
    let base = base.filter(|_| features.contains(&Feature::ConfigDelta));
    let encoded = base.map(|base| (base, encode(base.bytes, new.bytes)));
    match encoded.filter(|(_, pieces)| weight(pieces) < new.bytes.len() / 2) {
        Some((base, pieces)) => {
            message.base = base.digest.to_owned();
            message.pieces = pieces.into_iter().map(to_message).collect();
        }
        None => message.config = new.bytes.to_vec(),
    }
    message
}

/// A piece as a message. A configuration is limited to a message of 64 MiB, so its positions fit into 32 bits. If they
/// did not, the agent would notice the wrong digest, and ask for whole configurations.
fn to_message(piece: Piece<'_>) -> control_stream::Piece {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let content = match piece {
        Piece::Data(data) => piece::Content::Data(data.to_vec()),
        Piece::Base(part) => piece::Content::Part(control_stream::Part {
            offset: number(part.start),
            len: number(part.len()),
        }),
    };
    control_stream::Piece { content: Some(content) }
}

/// The pieces of `new` for a receiver that has `base`. The time is linear in the length of both texts.
fn encode<'n>(base: &[u8], new: &'n [u8]) -> Vec<Piece<'n>> {
    let mut known = HashMap::new();
    for chunk in chunks(base) {
        known.entry(&base[chunk.clone()]).or_insert(chunk.start);
    }
    let mut pieces: Vec<Piece<'n>> = Vec::new();
    // The part of `new` since the last piece of the base.
    let mut fresh = 0..0;
    for chunk in chunks(new) {
        let Some(at) = known.get(&new[chunk.clone()]) else {
            fresh.end = chunk.end;
            continue;
        };
        if !fresh.is_empty() {
            pieces.push(Piece::Data(&new[fresh]));
        }
        fresh = chunk.end..chunk.end;
        let part = *at..*at + chunk.len();
        match pieces.last_mut() {
            Some(Piece::Base(last)) if last.end == part.start => last.end = part.end,
            _ => pieces.push(Piece::Base(part)),
        }
    }
    if !fresh.is_empty() {
        pieces.push(Piece::Data(&new[fresh]));
    }
    pieces
}

/// The number of bytes that the pieces take in a message, approximately: new bytes, and eight bytes for each piece.
fn weight(pieces: &[Piece<'_>]) -> usize {
    let of = |piece: &Piece<'_>| match piece {
        Piece::Data(data) => data.len(),
        Piece::Base(_) => 0,
    };
    pieces.iter().map(|piece| of(piece) + 8).sum()
}

/// The chunks of a text, one after the other without gaps.
fn chunks(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let (least, average, most) = CHUNK;
    FastCDC::new(text, least, average, most).map(|chunk| chunk.offset..chunk.offset + chunk.length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tombolo_proto::delta::decode;

    /// A text of many different entries, like a configuration's.
    fn entries(count: usize) -> Vec<String> {
        let entry = |n: usize| format!("{{\"peer\":\"vm-{n}\",\"key\":\"{:064x}\"}},", n * n + 7);
        (0..count).map(entry).collect()
    }

    fn rebuilt(base: &[u8], new: &[u8]) -> (Vec<u8>, usize) {
        let pieces = encode(base, new);
        let weight = weight(&pieces);
        (decode(base, pieces, new.len()).unwrap(), weight)
    }

    #[test]
    fn a_small_change_is_a_small_message() {
        let before = entries(5000);
        let mut after = before.clone();
        after[2500].push_str("new");
        after.remove(4000);
        after.insert(10, "something else".into());
        let (base, new) = (before.concat(), after.concat());
        let (text, weight) = rebuilt(base.as_bytes(), new.as_bytes());
        assert_eq!(text, new.as_bytes());
        assert!(weight < new.len() / 20, "{weight} of {} bytes", new.len());
    }

    #[test]
    fn texts_that_share_nothing_are_sent_whole() {
        let (text, weight) = rebuilt(b"", b"abc");
        assert_eq!((text.as_slice(), weight), (&b"abc"[..], 11));
        assert_eq!(rebuilt(b"abc", b"").0, b"");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            base in proptest::collection::vec(any::<u8>(), 0..20_000),
            cuts in proptest::collection::vec((0usize..20_000, 0usize..300, any::<u8>()), 0..6),
        ) {
            let mut new = base.clone();
            for (at, length, byte) in cuts {
                let at = at.min(new.len());
                let end = (at + length).min(new.len());
                new.splice(at..end, std::iter::repeat_n(byte, length / 2));
            }
            prop_assert_eq!(rebuilt(&base, &new).0, new);
        }
    }
}
