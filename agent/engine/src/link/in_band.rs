//! What the two ends of a link say to each other inside it (D11): an echo, by which each knows that the way is open,
//! how long it takes and how much is lost; and probes of how long a packet may be ([`path_mtu`](super::path_mtu)).
//!
//! A message is an IPv6 packet with a next header for experiments (RFC 3692) between two link-local addresses, so that it
//! travels through any link that carries packets. It never leaves the engine, and a stock device drops it.

/// Bytes of a message, but for a probe's padding.
pub(super) const MESSAGE_LEN: usize = 40 + 8;

/// Longest probe, bytes: the longest MTU that a configuration may have.
pub(super) const MAX_PROBE_LEN: usize = 9000;

/// RFC 3692: for experiments.
const NEXT_HEADER: u8 = 253;

/// `fe80::746d:1` to `fe80::746d:2`, whichever end speaks.
const ADDRESSES: [u8; 32] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x74, 0x6d, 0, 1, //
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x74, 0x6d, 0, 2,
];

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// Answer this.
    Echo(u32),
    /// The answer.
    Reply(u32),
    /// A packet of so many bytes: say that it arrived.
    Probe(u16),
    /// It arrived.
    ProbeAck(u16),
    /// A part of a packet: the bytes after the message ([`parts`](super::parts)).
    Fragment {
        /// Which packet's.
        packet: u32,
        /// Its place, from 0.
        index: u8,
        /// How many there are.
        count: u8,
    },
    /// Of routes: the bytes after the message ([`exchange`](super::exchange)).
    Routes,
    /// This end is about to stop: whoever has another way takes it now.
    Drain,
}

impl Message {
    /// As a packet.
    pub(super) fn encode(self) -> [u8; MESSAGE_LEN] {
        let mut places = [0, 0];
        let (kind, number) = match self {
            Self::Echo(n) => (1, n),
            Self::Reply(n) => (2, n),
            Self::Probe(n) => (3, u32::from(n)),
            Self::ProbeAck(n) => (4, u32::from(n)),
            Self::Fragment { packet, index, count } => {
                places = [index, count];
                (5, packet)
            }
            Self::Routes => (6, 0),
            Self::Drain => (7, 0),
        };
        let mut packet = [0; MESSAGE_LEN];
        packet[0] = 0x60;
        packet[5] = 8;
        packet[6] = NEXT_HEADER;
        packet[7] = 1;
        packet[8..40].copy_from_slice(&ADDRESSES);
        packet[40] = kind;
        packet[41..43].copy_from_slice(&places);
        packet[44..48].copy_from_slice(&number.to_be_bytes());
        packet
    }

    /// A probe, in a packet of its size. Sizes are from [`MESSAGE_LEN`] to [`MAX_PROBE_LEN`].
    pub(super) fn probe(size: u16, buffer: &mut [u8; MAX_PROBE_LEN]) -> &[u8] {
        let size = usize::from(size).clamp(MESSAGE_LEN, MAX_PROBE_LEN);
        #[expect(clippy::cast_possible_truncation, reason = "clamped")]
        let said = size as u16;
        let packet = buffer.get_mut(..size).unwrap_or_default();
        Self::Probe(said).put(packet);
        packet
    }

    /// Writes it to the front of a packet, whose other bytes are its own; at least [`MESSAGE_LEN`] bytes.
    pub(super) fn put(self, packet: &mut [u8]) {
        let payload = u16::try_from(packet.len().saturating_sub(40)).unwrap_or(u16::MAX);
        if let Some(head) = packet.first_chunk_mut() {
            *head = self.encode();
            head[4..6].copy_from_slice(&payload.to_be_bytes());
        }
    }

    /// Whether a packet is one: then it goes no further, understood or not.
    pub(super) fn is_in_band(packet: &[u8]) -> bool {
        let head = packet.first_chunk::<MESSAGE_LEN>();
        head.is_some_and(|head| head[6] == NEXT_HEADER && head[0] >> 4 == 6 && head[8..40] == ADDRESSES)
    }

    /// Reads a packet that [`is_in_band`](Self::is_in_band).
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
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;

    #[test]
    fn a_message_is_a_packet_and_no_other_packet_is_in_band() {
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
