//! The prices of traffic, and charges (Meter-1 to Meter-3).

use super::payers::{Kind, Payer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes and packets that a resource is charged for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Amounts {
    /// Bytes that came in.
    pub ingress_bytes: u64,
    /// Bytes that went out.
    pub egress_bytes: u64,
    /// Packets that came in.
    pub ingress_packets: u64,
    /// Packets that went out.
    pub egress_packets: u64,
}

impl Amounts {
    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            ingress_bytes: self.ingress_bytes.saturating_add(other.ingress_bytes),
            egress_bytes: self.egress_bytes.saturating_add(other.egress_bytes),
            ingress_packets: self.ingress_packets.saturating_add(other.ingress_packets),
            egress_packets: self.egress_packets.saturating_add(other.egress_packets),
        }
    }
}

/// Prices in US dollars for a gigabyte (10⁹ bytes). The defaults are Azure's published prices as far as they are known; they
/// are not verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Prices {
    /// A peering inside a region, for each direction and end (Meter-1).
    pub peering: f64,
    /// A peering between regions, for each direction and end, by the zone of the end's own region (Meter-2).
    pub global_peering: BTreeMap<String, f64>,
    /// Egress of a connection to a gateway in another region, by the zone of the sender's region (Meter-3).
    pub vnet_to_vnet: BTreeMap<String, f64>,
    /// The zone of each region; regions that are not named are in zone 1.
    pub zones: BTreeMap<String, String>,
}

/// The zone of a region that the table does not name.
const DEFAULT_ZONE: &str = "1";

impl Default for Prices {
    fn default() -> Self {
        let zones = || [("1", 0.035), ("2", 0.09), ("3", 0.16)].map(|(zone, price)| (zone.to_owned(), price));
        Self {
            peering: 0.01,
            global_peering: zones().into(),
            vnet_to_vnet: zones().into(),
            zones: BTreeMap::new(),
        }
    }
}

/// What traffic costs, in US dollars.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Charge {
    /// For what came in.
    pub ingress: f64,
    /// For what went out.
    pub egress: f64,
}

impl Prices {
    /// What the traffic of a resource costs. `None`: the table has no price for it, because it is no traffic between virtual
    /// networks, or its zone has none.
    #[must_use]
    pub fn charge(&self, payer: &Payer, amounts: &Amounts) -> Option<Charge> {
        let is_local = payer
            .remote_region
            .as_ref()
            .is_none_or(|remote| *remote == payer.region);
        let zone = self.zones.get(&payer.region).map_or(DEFAULT_ZONE, String::as_str);
        let (ingress, egress) = match payer.kind {
            Kind::Peering if is_local => (self.peering, self.peering),
            Kind::Peering => {
                let price = *self.global_peering.get(zone)?;
                (price, price)
            }
            Kind::VnetToVnet if is_local => (0.0, 0.0),
            Kind::VnetToVnet => (0.0, *self.vnet_to_vnet.get(zone)?),
            Kind::Site | Kind::ExpressRoute | Kind::Circuit => return None,
        };
        Some(Charge {
            ingress: ingress * gigabytes(amounts.ingress_bytes),
            egress: egress * gigabytes(amounts.egress_bytes),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a charge needs no more than 15 digits")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_proto::id::ResourceId;

    fn payer(kind: Kind, region: &str, remote: &str) -> Payer {
        Payer {
            resource: ResourceId::new("/r"),
            kind,
            region: region.to_owned(),
            remote_region: (!remote.is_empty()).then(|| remote.to_owned()),
        }
    }

    /// 1 GB in and 2 GB out.
    const AMOUNTS: Amounts = Amounts {
        ingress_bytes: 1_000_000_000,
        egress_bytes: 2_000_000_000,
        ingress_packets: 0,
        egress_packets: 0,
    };

    fn close(charge: Option<Charge>, ingress: f64, egress: f64) {
        let charge = charge.unwrap();
        assert!(
            (charge.ingress - ingress).abs() < 1e-12 && (charge.egress - egress).abs() < 1e-12,
            "{charge:?}"
        );
    }

    #[test]
    fn meter_1_a_peering_in_a_region_costs_both_directions() {
        let prices = Prices::default();
        close(prices.charge(&payer(Kind::Peering, "a", "a"), &AMOUNTS), 0.01, 0.02);
        close(prices.charge(&payer(Kind::Peering, "a", ""), &AMOUNTS), 0.01, 0.02);
    }

    #[test]
    fn meter_2_a_global_peering_costs_by_the_zone_of_its_own_region() {
        let prices = Prices {
            zones: [("b".to_owned(), "2".to_owned()), ("c".to_owned(), "9".to_owned())].into(),
            ..Prices::default()
        };
        close(prices.charge(&payer(Kind::Peering, "a", "b"), &AMOUNTS), 0.035, 0.07);
        close(prices.charge(&payer(Kind::Peering, "b", "a"), &AMOUNTS), 0.09, 0.18);
        assert_eq!(
            prices.charge(&payer(Kind::Peering, "c", "a"), &AMOUNTS),
            None,
            "the zone has no price"
        );
    }

    #[test]
    fn meter_3_a_connection_is_free_in_a_region_and_costs_egress_between_regions() {
        let prices = Prices::default();
        close(prices.charge(&payer(Kind::VnetToVnet, "a", "a"), &AMOUNTS), 0.0, 0.0);
        close(prices.charge(&payer(Kind::VnetToVnet, "a", "b"), &AMOUNTS), 0.0, 0.07);
        assert_eq!(prices.charge(&payer(Kind::Site, "a", ""), &AMOUNTS), None);
    }
}
