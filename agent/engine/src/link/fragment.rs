//! Fragmentation inside a link, for packets that are too long for the path although their senders need not send shorter
//! ones: IPv6 packets up to 1,280 bytes, and IPv4 packets without don't-fragment (D20).
//!
//! IP fragmentation of the outer datagram would not work everywhere: the kernel would need to know the path MTU, and
//! many firewalls drop IP fragments.

use super::in_band::{MESSAGE_LEN, Message};

/// Length of the longest packet that is reassembled, in bytes: the highest MTU that a configuration may have.
const MAX_PACKET_LEN: usize = 9000;

/// Splits a packet into messages of at most `limit` bytes each, and passes them to `each` in order. `number` identifies
/// the packet, and should differ from the number of the packet that was split before. Returns `false`, and passes no
/// message, if `limit` leaves no room for contents, or more than 255 messages would be needed.
pub(super) fn split(packet: &[u8], limit: usize, number: u32, mut each: impl FnMut(&[u8])) -> bool {
    let room = limit.min(MAX_PACKET_LEN).saturating_sub(MESSAGE_LEN);
    let Some(count) = packet.len().checked_div(room).map(|_| packet.len().div_ceil(room)) else {
        return false;
    };
    let Ok(count) = u8::try_from(count) else {
        return false;
    };
    let mut message = [0; MAX_PACKET_LEN];
    // All fragments have about the same length, so that a path carries either all of them or none.
    let size = packet.len().div_ceil(usize::from(count.max(1)));
    for (index, bytes) in (0..count).zip(packet.chunks(size)) {
        let Some(message) = message.get_mut(..MESSAGE_LEN + bytes.len()) else {
            return false;
        };
        if let Some(contents) = message.get_mut(MESSAGE_LEN..) {
            contents.copy_from_slice(bytes);
        }
        Message::Fragment {
            packet: number,
            index,
            count,
        }
        .put(message);
        each(message);
    }
    true
}

/// The fragments of one link that have arrived. Fragments are put together only if they arrive in order: a packet with
/// a missing or late fragment is lost. So one buffer of bounded size is enough for each link, whatever its peer sends.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    packet: u32,
    next: u8,
    bytes: Vec<u8>,
}

impl Reassembly {
    /// Takes the fragment at position `index` of `count` of the packet with this number. Returns the packet if the
    /// fragment is the last one. `None`: either the packet is not complete yet, or it is lost because the fragment is
    /// out of order or makes the packet longer than 9,000 bytes.
    pub(super) fn take(&mut self, packet: u32, (index, count): (u8, u8), bytes: &[u8]) -> Option<&[u8]> {
        if index == 0 {
            self.bytes.clear();
        } else if packet != self.packet || index != self.next {
            self.next = 0;
            return None;
        }
        (self.packet, self.next) = (packet, index.checked_add(1)?);
        if self.bytes.len() + bytes.len() > MAX_PACKET_LEN {
            self.next = 0;
            return None;
        }
        self.bytes.extend_from_slice(bytes);
        if self.next < count {
            return None;
        }
        self.next = 0;
        Some(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(reassembly: &mut Reassembly, message: &[u8]) -> Option<Vec<u8>> {
        assert!(Message::is_in_band(message));
        match Message::decode(message) {
            Some(Message::Fragment { packet, index, count }) => reassembly
                .take(packet, (index, count), &message[MESSAGE_LEN..])
                .map(<[u8]>::to_vec),
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn what_is_split_is_put_together(
            packet in proptest::collection::vec(any::<u8>(), 1..4000),
            limit in 100usize..1500,
            lost in any::<prop::sample::Index>(),
        ) {
            let mut fragments = Vec::new();
            prop_assert!(split(&packet, limit, 7, |fragment| fragments.push(fragment.to_vec())));
            prop_assert!(fragments.iter().all(|p| p.len() <= limit));
            let mut reassembly = Reassembly::default();
            // If one fragment of a packet is lost, only this packet is lost: the next packet is reassembled.
            let lost = lost.index(fragments.len());
            for (n, fragment) in fragments.iter().enumerate() {
                if n != lost {
                    prop_assert_eq!(take(&mut reassembly, fragment), None);
                }
            }
            let mut reassembled = None;
            for fragment in &fragments {
                prop_assert!(reassembled.is_none());
                reassembled = take(&mut reassembly, fragment);
            }
            prop_assert_eq!(reassembled, Some(packet));
        }
    }

    #[test]
    fn absurd_limits_and_sizes_are_refused() {
        assert!(!split(&[0; 100], MESSAGE_LEN, 1, |_| panic!(
            "a fragment without bytes"
        )));
        assert!(!split(&[0; 60_000], MESSAGE_LEN + 10, 1, |_| panic!(
            "too many fragments"
        )));
        let mut reassembly = Reassembly::default();
        for index in 0..=255 {
            assert_eq!(reassembly.take(1, (index, 255), &[0; 1000]), None);
        }
    }
}
