//! The BGP speakers of VPN gateways towards sites, and the router ids of all speakers.

use super::index::Vnet;
use std::net::{IpAddr, Ipv4Addr};
use tombolo_proto::config::{MAX_PREFIXES, Neighbour, Speaker};

/// The BGP speaker of a VPN gateway's instance, with a neighbour for each site with BGP. `address`: the instance's BGP
/// address. `hold_time`: in seconds. `None`: no site uses BGP.
pub(super) fn speaker(vnet: &Vnet<'_>, asn: u32, address: IpAddr, hold_time: u16) -> Option<Speaker> {
    let sites = vnet.sites.iter().filter(|site| site.exchange);
    let neighbours: Vec<Neighbour> = sites
        .filter_map(|site| {
            Some(Neighbour {
                id: site.connection.envelope.id.clone(),
                address: site.local.bgp?.address,
                local_address: address,
                asn: site.local.bgp?.asn,
                multihop: true,
                // The session runs inside a WireGuard link, whose handshake already detects a dead device. So it needs
                // no BFD.
                bfd: false,
                password: None,
                max_prefixes: MAX_PREFIXES,
                hold_time,
            })
        })
        .collect();
    let router_id = router_id(address, asn);
    (!neighbours.is_empty()).then_some(Speaker {
        asn,
        router_id,
        neighbours,
    })
}

/// A BGP router id for a speaker. Speakers with the same neighbour must have different router ids, so the id is made
/// from the speaker's address. An IPv4 address is itself the id. For an IPv6 address, the id is the address's last 32
/// bits XOR the ASN, with the last bit set, because an id must not be zero (RFC 6286).
pub(super) fn router_id(address: IpAddr, asn: u32) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            Ipv4Addr::from(u32::from_be_bytes([a, b, c, d]) ^ asn | 1)
        }
    }
}
