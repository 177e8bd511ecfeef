//! Which packets a filter matches.

use std::net::IpAddr;
use tombolo_engine::buffer::Path;
use tombolo_engine::packet::{PacketInfo, TCP, UDP};
use tombolo_proto::capture::{AddressRange, CaptureFilter, CaptureProtocol};
use tombolo_proto::config::PortRange;

/// Direction of a packet, as seen from this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The packet comes to this host.
    In,
    /// This host sends the packet.
    Out,
}

/// The fields of a packet that filters look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Protocol number of the transport header.
    pub protocol: u8,
    /// Address of this host's end.
    pub local: IpAddr,
    /// Address of the other end.
    pub remote: IpAddr,
    /// Ports of this host's end and of the other end. `None`: the packet has no ports, or is a fragment.
    pub ports: Option<(u16, u16)>,
}

impl Flow {
    /// The flow of an IP packet.
    #[must_use]
    pub fn of_packet(info: &PacketInfo, direction: Direction) -> Self {
        let [a, b, c, d] = info.ports.to_be_bytes();
        let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let has_ports = matches!(info.protocol, TCP | UDP) && info.ports != 0;
        match direction {
            Direction::In => Self {
                protocol: info.protocol,
                local: info.destination,
                remote: info.source,
                ports: has_ports.then_some((to, from)),
            },
            Direction::Out => Self {
                protocol: info.protocol,
                local: info.source,
                remote: info.destination,
                ports: has_ports.then_some((from, to)),
            },
        }
    }

    /// The flow of a datagram of a link. `port`: the port of this host. If the kernel chooses the local address, it is
    /// unspecified here.
    #[must_use]
    pub fn of_datagram(path: &Path, port: u16) -> Self {
        let unspecified = match path.remote {
            std::net::SocketAddr::V4(_) => IpAddr::from([0; 4]),
            std::net::SocketAddr::V6(_) => IpAddr::from([0; 16]),
        };
        Self {
            protocol: UDP,
            local: path.local.unwrap_or(unspecified),
            remote: path.remote.ip(),
            ports: Some((port, path.remote.port())),
        }
    }
}

/// Whether one of the filters matches, or there is none. `flow` is `None` for bytes that are no IP packet, which match
/// only if there is no filter.
#[must_use]
pub fn matches(filters: &[CaptureFilter], flow: Option<&Flow>) -> bool {
    filters.is_empty() || flow.is_some_and(|flow| filters.iter().any(|filter| is_match(filter, flow)))
}

fn is_match(filter: &CaptureFilter, flow: &Flow) -> bool {
    let protocol = match filter.protocol {
        CaptureProtocol::Any => true,
        CaptureProtocol::Tcp => flow.protocol == TCP,
        CaptureProtocol::Udp => flow.protocol == UDP,
    };
    let (local, remote) = (flow.ports.map(|ports| ports.0), flow.ports.map(|ports| ports.1));
    protocol
        && has_address(&filter.local_addresses, flow.local)
        && has_address(&filter.remote_addresses, flow.remote)
        && has_port(&filter.local_ports, local)
        && has_port(&filter.remote_ports, remote)
}

fn has_address(ranges: &[AddressRange], address: IpAddr) -> bool {
    ranges.is_empty() || ranges.iter().any(|range| range.contains(address))
}

fn has_port(ranges: &[PortRange], port: Option<u16>) -> bool {
    let is_in = |port: u16| ranges.iter().any(|range| (range.first..=range.last).contains(&port));
    ranges.is_empty() || port.is_some_and(is_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: u8, local: &str, remote: &str, ports: Option<(u16, u16)>) -> Flow {
        Flow {
            protocol,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            ports,
        }
    }

    fn filter() -> CaptureFilter {
        let range = |first: &str, last: &str| AddressRange {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        };
        CaptureFilter {
            protocol: CaptureProtocol::Tcp,
            local_addresses: vec![range("10.0.0.4", "10.0.0.4")],
            local_ports: Vec::new(),
            remote_addresses: vec![range("10.1.0.0", "10.1.0.9"), range("10.1.0.20", "10.1.0.20")],
            remote_ports: vec![PortRange { first: 80, last: 90 }, PortRange { first: 443, last: 443 }],
        }
    }

    #[test]
    fn d42_a_filter_matches_protocol_addresses_and_ports() {
        let local = "10.0.0.4";
        for (expected, flow) in [
            (true, flow(TCP, local, "10.1.0.9", Some((5000, 85)))),
            (true, flow(TCP, local, "10.1.0.20", Some((5000, 443)))),
            (false, flow(UDP, local, "10.1.0.9", Some((5000, 85)))),
            (false, flow(TCP, "10.0.0.5", "10.1.0.9", Some((5000, 85)))),
            (false, flow(TCP, local, "10.1.0.10", Some((5000, 85)))),
            (false, flow(TCP, local, "10.1.0.9", Some((85, 5000)))),
            (false, flow(TCP, local, "10.1.0.9", None)),
        ] {
            assert_eq!(matches(&[filter()], Some(&flow)), expected, "{flow:?}");
            assert!(matches(&[filter(), CaptureFilter::default()], Some(&flow)));
            assert!(matches(&[], Some(&flow)));
        }
        assert!(matches(&[], None) && !matches(&[CaptureFilter::default()], None));
    }

    /// The local end is the source of a packet that goes out, and the destination of one that comes in.
    #[test]
    fn d42_the_local_end_is_this_host() {
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 4], [10, 1, 0, 9], 64)
            .udp(5000, 80)
            .write(&mut packet, b"hello")
            .unwrap();
        let info = tombolo_engine::packet::parse(&packet).unwrap();
        let out = Flow::of_packet(&info, Direction::Out);
        assert_eq!(out, flow(UDP, "10.0.0.4", "10.1.0.9", Some((5000, 80))));
        let other = Flow::of_packet(&info, Direction::In);
        assert_eq!(other, flow(UDP, "10.1.0.9", "10.0.0.4", Some((80, 5000))));
    }
}
