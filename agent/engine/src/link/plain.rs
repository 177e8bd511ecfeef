//! Unencrypted links for tests and simulations. A datagram consists of the sender's name and the packet. The product
//! has no way to use such links.

use super::{Event, LinkSet, Opened, Sealed};
use crate::buffer::{Outer, Path, Transmit, TransmitSink};
use crate::tables::LinkIndex;
use crate::verdict::DropReason;
use std::time::Instant;
use tombolo_proto::config::Link;
use tombolo_proto::id::AgentId;

/// Links without encryption and authentication. A datagram belongs to the link with the agent whose name it contains.
#[derive(Debug)]
pub struct PlainLinks {
    own: AgentId,
    links: Vec<Link>,
}

impl PlainLinks {
    /// Creates a set without links, for the agent of this name. The peers must have a link with this name.
    #[must_use]
    pub const fn new(own: AgentId) -> Self {
        Self { own, links: Vec::new() }
    }
}

impl LinkSet for PlainLinks {
    fn update(&mut self, links: &[Link], _now: Instant) {
        self.links = links.to_vec();
    }

    fn seal(&mut self, link: LinkIndex, packet: &[u8], ecn: u8, _now: Instant, tx: &mut impl TransmitSink) -> Sealed {
        let Some(to) = self.links.get(link.get()).and_then(|link| link.endpoint) else {
            return Sealed::Dropped(DropReason::LinkDown);
        };
        let name = self.own.as_str().as_bytes();
        let transmit = Transmit {
            path: to.into(),
            outer: Outer {
                ecn,
                dont_fragment: false,
            },
        };
        let slot = tx.reserve(&transmit, 1 + name.len() + packet.len());
        #[expect(clippy::cast_possible_truncation, reason = "names have at most 63 characters")]
        {
            slot[0] = name.len() as u8;
        }
        slot[1..=name.len()].copy_from_slice(name);
        slot[1 + name.len()..1 + name.len() + packet.len()].copy_from_slice(packet);
        tx.commit(1 + name.len() + packet.len());
        Sealed::Sent
    }

    fn open(
        &mut self,
        datagram: &[u8],
        _from: Path,
        _now: Instant,
        buffer: &mut [u8],
        _tx: &mut impl TransmitSink,
    ) -> Opened {
        let name = datagram.first().and_then(|len| datagram.get(1..=usize::from(*len)));
        let name = name.and_then(|n| std::str::from_utf8(n).ok());
        let position = name.and_then(|n| self.links.iter().position(|l| l.peer.as_str() == n));
        let (Some(name), Some(position)) = (name, position.and_then(|p| u32::try_from(p).ok())) else {
            return Opened::Refused(DropReason::BadDatagram);
        };
        let packet = &datagram[1 + name.len()..];
        buffer[..packet.len()].copy_from_slice(packet);
        Opened::Packet(LinkIndex(position), 0..packet.len())
    }

    fn handle_timeout(&mut self, _now: Instant, _tx: &mut impl TransmitSink) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn poll_event(&mut self) -> Option<Event> {
        None
    }

    fn take_lost(&mut self) -> u64 {
        0
    }
}
