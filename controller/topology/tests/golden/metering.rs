//! Golden files of sums, prices and charges.

use tombolo_golden::{every_variant, golden};
use tombolo_topology::metering::{Amounts, Charge, Kind, Prices};

#[test]
fn sums_and_prices() {
    let amounts = Amounts {
        ingress_bytes: 1,
        egress_bytes: 2,
        ingress_packets: 3,
        egress_packets: 4,
    };
    golden!().cases("usage_amounts", &[("full", amounts), ("minimal", Amounts::default())]);
    let charge = Charge {
        ingress: 0.5,
        egress: 0.25,
    };
    golden!().cases("usage_charge", &[("full", charge)]);
    let prices = Prices {
        zones: [("region2".to_owned(), "2".to_owned())].into(),
        ..Prices::default()
    };
    golden!().cases("usage_prices", &[("full", prices), ("minimal", Prices::default())]);
    let kinds = [
        Kind::Peering,
        Kind::VnetToVnet,
        Kind::Site,
        Kind::ExpressRoute,
        Kind::Circuit,
    ];
    let named: Vec<_> = kinds.iter().map(|kind| (format!("{kind:?}"), *kind)).collect();
    let named: Vec<_> = named.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
    golden!().cases("usage_kind", &named);
    every_variant!(
        Kind {
            Peering,
            VnetToVnet,
            Site,
            ExpressRoute,
            Circuit
        },
        kinds.iter()
    );
}
