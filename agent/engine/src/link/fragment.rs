//! Packets that are too long for a path and may not be refused: IPv6 up to 1,280 bytes, and IPv4 whose sender allows
//! fragments (D20). They travel through the link in parts.
//!
//! Cut outer datagrams would do the same where the kernel knows the path's MTU and nobody on the way drops fragments;
//! this needs neither.

use super::in_band::{MESSAGE_LEN, Message};

/// Longest packet that is put together, bytes.
const LONGEST: usize = 9000;

/// Hands out the parts of a packet, each a message of at most `limit` bytes; none if it would be too many.
pub(super) fn split(packet: &[u8], limit: usize, number: u32, mut each: impl FnMut(&[u8])) -> bool {
    let room = limit.min(LONGEST).saturating_sub(MESSAGE_LEN);
    let Some(count) = packet.len().checked_div(room).map(|_| packet.len().div_ceil(room)) else {
        return false;
    };
    let Ok(count) = u8::try_from(count) else {
        return false;
    };
    let mut message = [0; LONGEST];
    // Parts of one length: the last is as likely to fit as the first.
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

/// Parts of one link that arrived. They come one after the other; a packet of which one is missing or late is lost.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    packet: u32,
    next: u8,
    bytes: Vec<u8>,
}

impl Reassembly {
    /// Takes a part; the packet, when it was the last.
    pub(super) fn take(&mut self, packet: u32, (index, count): (u8, u8), bytes: &[u8]) -> Option<&[u8]> {
        if index == 0 {
            self.bytes.clear();
        } else if packet != self.packet || index != self.next {
            self.next = 0;
            return None;
        }
        (self.packet, self.next) = (packet, index.checked_add(1)?);
        if self.bytes.len() + bytes.len() > LONGEST {
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

    fn take(assembly: &mut Reassembly, message: &[u8]) -> Option<Vec<u8>> {
        assert!(Message::is_in_band(message));
        match Message::decode(message) {
            Some(Message::Fragment { packet, index, count }) => assembly
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
            let mut parts = Vec::new();
            prop_assert!(split(&packet, limit, 7, |part| parts.push(part.to_vec())));
            prop_assert!(parts.iter().all(|p| p.len() <= limit));
            let mut assembly = Reassembly::default();
            // Without one of them there is no packet, and the next one is not harmed.
            let lost = lost.index(parts.len());
            for (n, part) in parts.iter().enumerate() {
                if n != lost {
                    prop_assert_eq!(take(&mut assembly, part), None);
                }
            }
            let mut whole = None;
            for part in &parts {
                prop_assert!(whole.is_none());
                whole = take(&mut assembly, part);
            }
            prop_assert_eq!(whole, Some(packet));
        }
    }

    #[test]
    fn absurd_limits_and_sizes_are_refused() {
        assert!(!split(&[0; 100], MESSAGE_LEN, 1, |_| panic!("a part without bytes")));
        assert!(!split(&[0; 60_000], MESSAGE_LEN + 10, 1, |_| panic!("too many parts")));
        let mut assembly = Reassembly::default();
        for index in 0..=255 {
            assert_eq!(assembly.take(1, (index, 255), &[0; 1000]), None);
        }
    }
}
