//! The messages that two agents exchange inside a link (D11), and their encoding.
//!
//! ```text
//! bytes 0..40  IPv6 header: next header 253, hop limit 1, fe80::746d:1 to fe80::746d:2
//!          40  kind
//!      41..43  index and count of a fragment; else 0
//!          43  0
//!      44..48  number, big-endian
//!        48..  contents of a fragment, of a message about routes or health, padding of a probe
//! ```
//!
//! A message is an IP packet, so any link that carries packets carries messages too. The engine never passes a
//! message to the TUN device. A third-party device drops such a message, because the addresses are link-local and the
//! next header is reserved for experiments (RFC 3692).

/// Length of a message without contents and padding, in bytes.
pub(super) const MESSAGE_LEN: usize = 40 + 8;

/// Length of the longest probe, in bytes: the highest MTU that a configuration may have.
pub(super) const MAX_PROBE_LEN: usize = 9000;

/// The first of the two numbers for experiments (RFC 3692).
const NEXT_HEADER: u8 = 253;

/// Source `fe80::746d:1` and destination `fe80::746d:2`, in both directions. "746d" is "tm" in ASCII.
const ADDRESSES: [u8; 32] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x74, 0x6d, 0, 1, //
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x74, 0x6d, 0, 2,
];

/// A message between two agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// A request for a reply with the same number.
    Echo(u32),
    /// The reply to the echo with this number.
    Reply(u32),
    /// A probe for the path MTU: a packet of this length in bytes, which the peer acknowledges with
    /// [`ProbeAck`](Self::ProbeAck).
    Probe(u16),
    /// Acknowledges a probe of this length, in bytes.
    ProbeAck(u16),
    /// A fragment of a packet. The fragment's bytes follow the message ([`fragment`](super::fragment)).
    Fragment {
        /// The number of the packet, equal in all of its fragments.
        packet: u32,
        /// Position of the fragment, from 0.
        index: u8,
        /// Number of fragments of the packet, 1 to 255.
        count: u8,
    },
    /// A message about routes. Its contents follow ([`table_sync`](super::table_sync)).
    Routes,
    /// The sender is about to stop. The receiver then uses another link to the same destinations, if it has one.
    Drain,
    /// A message about the health of the sender's back ends, or of the receiver's (D36). Its contents follow
    /// ([`table_sync`](super::table_sync)). Agents that do not know this kind ignore the message.
    Health,
}

impl Message {
    /// Encodes the message as a packet without contents and padding.
    pub(super) fn encode(self) -> [u8; MESSAGE_LEN] {
        let mut position = [0, 0];
        let (kind, number) = match self {
            Self::Echo(n) => (1, n),
            Self::Reply(n) => (2, n),
            Self::Probe(n) => (3, u32::from(n)),
            Self::ProbeAck(n) => (4, u32::from(n)),
            Self::Fragment { packet, index, count } => {
                position = [index, count];
                (5, packet)
            }
            Self::Routes => (6, 0),
            Self::Drain => (7, 0),
            Self::Health => (8, 0),
        };
        let mut packet = [0; MESSAGE_LEN];
        // The IPv6 header states 8 bytes of payload and a hop limit of 1, so that no router forwards a message that has
        // left the link by mistake.
        packet[0] = 0x60;
        packet[5] = 8;
        packet[6] = NEXT_HEADER;
        packet[7] = 1;
        packet[8..40].copy_from_slice(&ADDRESSES);
        packet[40] = kind;
        packet[41..43].copy_from_slice(&position);
        packet[44..48].copy_from_slice(&number.to_be_bytes());
        packet
    }

    /// Writes a probe into `buffer`, and returns it: a packet of `size` bytes, or the nearest length from
    /// [`MESSAGE_LEN`] to [`MAX_PROBE_LEN`].
    pub(super) fn probe(size: u16, buffer: &mut [u8; MAX_PROBE_LEN]) -> &[u8] {
        let size = usize::from(size).clamp(MESSAGE_LEN, MAX_PROBE_LEN);
        #[expect(clippy::cast_possible_truncation, reason = "clamped")]
        let number = size as u16;
        let packet = buffer.get_mut(..size).unwrap_or_default();
        Self::Probe(number).put(packet);
        packet
    }

    /// Writes the message over the first [`MESSAGE_LEN`] bytes of a packet, and leaves the contents after them. The
    /// length field of the IP header is set to the length of the whole packet. A shorter packet stays as it is.
    pub(super) fn put(self, packet: &mut [u8]) {
        let payload = u16::try_from(packet.len().saturating_sub(40)).unwrap_or(u16::MAX);
        if let Some(head) = packet.first_chunk_mut() {
            *head = self.encode();
            head[4..6].copy_from_slice(&payload.to_be_bytes());
        }
    }

    /// Whether a packet is a message between agents. The link handles every message itself, and ignores messages of
    /// unknown kind; it never passes one to the engine.
    pub(super) fn is_in_band(packet: &[u8]) -> bool {
        let head = packet.first_chunk::<MESSAGE_LEN>();
        head.is_some_and(|head| head[6] == NEXT_HEADER && head[0] >> 4 == 6 && head[8..40] == ADDRESSES)
    }

    /// Decodes a packet for which [`is_in_band`](Self::is_in_band) is true. `None`: the kind is unknown to this
    /// version, the length of a probe differs from the length that it states, or a number is out of range.
    pub(super) fn decode(packet: &[u8]) -> Option<Self> {
        let head = packet.first_chunk::<MESSAGE_LEN>()?;
        let number = u32::from_be_bytes([head[44], head[45], head[46], head[47]]);
        match head[40] {
            1 => Some(Self::Echo(number)),
            2 => Some(Self::Reply(number)),
            3 => Some(Self::Probe(
                number.try_into().ok().filter(|n| usize::from(*n) == packet.len())?,
            )),
            4 => Some(Self::ProbeAck(number.try_into().ok()?)),
            5 => Some(Self::Fragment {
                packet: number,
                index: head[41],
                count: head[42],
            }),
            6 => Some(Self::Routes),
            7 => Some(Self::Drain),
            8 => Some(Self::Health),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;

    #[test]
    fn a_message_is_a_packet_and_no_other_packet_is_one() {
        for message in [Message::Echo(7), Message::Reply(u32::MAX), Message::Drain] {
            let packet = message.encode();
            assert!(Message::is_in_band(&packet));
            assert_eq!(Message::decode(&packet), Some(message));
            let info = parse(&packet).unwrap();
            assert_eq!((info.len, info.ttl, info.protocol), (MESSAGE_LEN, 1, NEXT_HEADER));
        }
        let mut packet = Message::Echo(7).encode();
        packet[39] ^= 1;
        assert!(
            !Message::is_in_band(&packet)
                && !Message::is_in_band(&packet[..MESSAGE_LEN - 1])
                && !Message::is_in_band(&[])
        );
        packet[39] ^= 1;
        packet[40] = 9;
        assert!(
            Message::is_in_band(&packet) && Message::decode(&packet).is_none(),
            "of a later version"
        );
    }
}
