//! Compares the single lookup of [`Sources`] with plain loops over lists of prefixes.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use tombolo_proto::config::{ForeignSources, Transport};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};

fn link(peer: usize, gateway: bool, sources: &[IpNet]) -> Link {
    Link {
        peer: AgentId::new(format!("peer-{peer}")).unwrap(),
        public_key: PublicKey([7; 32]),
        preshared_key: None,
        quic: None,
        transport: Transport::Automatic,
        endpoint: None,
        quic_endpoint: None,
        peer_lanes: 1,
        many_routes: false,
        always_on: false,
        initiator: false,
        relation: match gateway {
            true => Relation::Gateway {},
            false => Relation::Connection {
                connection: ResourceId::new("/c"),
            },
        },
        sources: sources.to_vec(),
        foreign: ForeignSources::None,
        arrivals: Vec::new(),
        monitored: false,
        third_party: false,
        dpd_timeout: None,
    }
}

/// Prefixes within 10.0.0.0/28, of length 28 to 32, and some that contain all of them.
fn prefixes() -> impl Strategy<Value = Vec<IpNet>> {
    let near = (0_u8..16, 28_u8..=32).prop_map(|(last, length)| (last, length));
    let one = prop_oneof![6 => near, 1 => (Just(0), prop_oneof![Just(0_u8), Just(1), Just(8)])];
    let net = |(last, length): (u8, u8)| IpNet::new([10, 0, 0, last].into(), length).unwrap().trunc();
    proptest::collection::vec(one.prop_map(net), 0..6)
}

proptest! {
    #[test]
    fn one_lookup_is_the_loops(
        spaces in prefixes(),
        own in prefixes(),
        of_vnets in prefixes(),
        of_sites in prefixes(),
        others in proptest::collection::vec((any::<bool>(), prefixes()), 0..3),
        gateway: bool,
    ) {
        let link_of = |(n, (gateway, sources)): (usize, &(bool, Vec<IpNet>))| link(n + 1, *gateway, sources);
        let own_link = link(0, gateway, &own);
        let links: Vec<Link> = others.iter().enumerate().map(link_of).chain([own_link.clone()]).collect();
        let space_set = super::super::set(&spaces);
        let all = links.iter().flat_map(|l| l.sources.iter().map(move |p| (l, *p)));
        let outside = all.filter(|(_, p)| !space_set.covers(*p)).collect();
        let assigned = Assigned { spaces: space_set, others: outside };
        let of = |prefixes: &[IpNet], origin| -> Vec<Route> {
            let route = |prefix: &IpNet| Route { prefix: *prefix, via: None, as_path: vec![], weight: 0, origin };
            prefixes.iter().map(route).collect()
        };
        let learned = [of(&of_vnets, RouteOrigin::Vnet), of(&of_sites, RouteOrigin::Site)].concat();
        let sources = assigned.sources(&own_link, learned.iter());

        let longest = |set: &[IpNet], a: IpAddr| set.iter().filter(|p| p.contains(&a)).map(IpNet::prefix_len).max();
        let of_others = |same: bool| -> Vec<IpNet> {
            let found = others.iter().filter(|(g, _)| (*g == gateway) == same);
            found.flat_map(|(_, sources)| sources.clone()).collect()
        };
        let (same, foreign) = (of_others(true), of_others(false));
        // On links to gateways, routes of a site permit the same sources as routes of a VNet, because the gateways
        // replace each other. On links of connections they permit fewer.
        let (trusted, rest) = match gateway {
            true => ([&of_vnets[..], &of_sites].concat(), vec![]),
            false => (of_vnets, of_sites),
        };
        for last in 0..16_u8 {
            let a = IpAddr::from([10, 0, 0, last]);
            let is_in = |set: &[IpNet]| longest(set, a).is_some();
            // If a source lies in a learned prefix and in a configured prefix of another link of the same kind, the
            // longer prefix decides. If both are equally long, the learned prefix decides.
            let claimed = is_in(&trusted) && longest(&trusted, a) >= longest(&same, a) || is_in(&rest) && !is_in(&same);
            let allowed = is_in(&own) || claimed && !is_in(&spaces) && !is_in(&foreign);
            prop_assert_eq!(sources.contains(a), allowed, "{} of {:?}", a, sources);
        }
    }
}
