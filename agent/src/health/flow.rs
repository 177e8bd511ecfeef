//! The connection that a packet belongs to.

use super::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};
use std::net::{IpAddr, SocketAddr};

/// A TCP connection from the prober.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// Address and port of the back end.
    pub(super) endpoint: SocketAddr,
    /// Source port of the prober.
    pub(super) port: u16,
}

/// The connection of a packet that the prober has received. `None` if the packet is not a whole TCP segment for a source
/// address of the prober. Checksums are not checked here.
pub(super) fn of_received(packet: &[u8]) -> Option<Flow> {
    // `IpVersion::of_packet` panics if there are no bytes.
    match packet.first()? >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            let is_fragment = packet.more_frags() || packet.frag_offset() != 0;
            if is_fragment || packet.next_header() != IpProtocol::Tcp || packet.dst_addr() != PROBE_SOURCE_V4 {
                return None;
            }
            of_segment(packet.src_addr().into(), packet.payload())
        }
        // An extension header before the TCP header is not expected from a back end.
        6 => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            if packet.next_header() != IpProtocol::Tcp || packet.dst_addr() != PROBE_SOURCE_V6 {
                return None;
            }
            of_segment(packet.src_addr().into(), packet.payload())
        }
        _ => None,
    }
}

fn of_segment(source: IpAddr, segment: &[u8]) -> Option<Flow> {
    let segment = TcpPacket::new_checked(segment).ok()?;
    Some(Flow {
        endpoint: SocketAddr::new(source, segment.src_port()),
        port: segment.dst_port(),
    })
}
