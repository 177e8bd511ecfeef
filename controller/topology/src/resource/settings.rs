//! The operator's switches, and the eras that give their defaults (D4, "Eras" in docs/rules.md).

use serde::{Deserialize, Serialize};
use tombolo_proto::config::{DEFAULT_MTU, Probes, SiteTtl};

/// Switches that the operator sets. One that is not given has the value of the era.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "Given")]
pub struct Settings {
    /// Which era's values stand for what is not given.
    pub era: Era,
    /// `sync` (P27) or `strict` (P26).
    pub address_space_change: AddressSpaceChange,
    /// Gateway transit over global peering (P30).
    pub global_gateway_transit: bool,
    /// Most peerings of a VNet (X1).
    pub peerings_per_vnet: u32,
    /// Most tunnels of a gateway (X8).
    pub tunnels_per_gateway: u32,
    /// Inner MTU, bytes (D20). The same in every era.
    pub mtu: u16,
    /// VNets linked to one circuit reach each other through it (E6).
    pub circuit_vnet_to_vnet: bool,
    /// What VPN gateways do with the TTL of packets that come from a site (T6).
    pub vpn_ttl_for_site_traffic: SiteTtl,
    /// Seconds without a word after which a BGP session with a site is over, 3 to 65,535 (RFC 4271). The same in every era.
    pub bgp_hold_time: u16,
    /// [`Probes::interval`], and so on (D19). The same in every era.
    pub probe_interval: u32,
    /// See there.
    pub probe_misses: u32,
    /// See there.
    pub probe_answers: u32,
    /// See there.
    pub probe_hold: u32,
}

/// As Azure's gateways have it.
const BGP_HOLD_TIME: u16 = 180;

/// Whose rules hold where they have changed over the years.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Era {
    /// As the articles of 2015 to 2019 have it.
    #[serde(rename = "azure-2017")]
    Azure2017,
    /// As the service is today.
    #[default]
    #[serde(rename = "azure-current")]
    AzureCurrent,
}

/// What happens to an address-space change while peered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressSpaceChange {
    /// Refused (P26).
    Strict,
    /// Allowed, then synced (P27).
    Sync,
}

impl Settings {
    /// How agents notice silence.
    #[must_use]
    pub const fn probes(&self) -> Probes {
        Probes {
            interval: self.probe_interval,
            misses: self.probe_misses,
            answers: self.probe_answers,
            hold: self.probe_hold,
        }
    }

    /// The switches as an era has them ("Eras" in docs/rules.md).
    #[must_use]
    pub const fn of(era: Era) -> Self {
        match era {
            Era::Azure2017 => Self {
                era,
                address_space_change: AddressSpaceChange::Strict,
                global_gateway_transit: false,
                peerings_per_vnet: 50,
                tunnels_per_gateway: 10,
                mtu: DEFAULT_MTU,
                circuit_vnet_to_vnet: true,
                vpn_ttl_for_site_traffic: SiteTtl::Transparent,
                ..Self::of(Era::AzureCurrent)
            },
            Era::AzureCurrent => Self {
                era,
                address_space_change: AddressSpaceChange::Sync,
                global_gateway_transit: true,
                peerings_per_vnet: 500,
                tunnels_per_gateway: 30,
                mtu: DEFAULT_MTU,
                circuit_vnet_to_vnet: false,
                vpn_ttl_for_site_traffic: SiteTtl::SilentHop,
                bgp_hold_time: BGP_HOLD_TIME,
                probe_interval: 100,
                probe_misses: 3,
                probe_answers: 10,
                probe_hold: 3000,
            },
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(Era::default())
    }
}

/// Settings as they are written: what is left out comes from the era.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Given {
    era: Era,
    address_space_change: Option<AddressSpaceChange>,
    global_gateway_transit: Option<bool>,
    peerings_per_vnet: Option<u32>,
    tunnels_per_gateway: Option<u32>,
    mtu: Option<u16>,
    circuit_vnet_to_vnet: Option<bool>,
    vpn_ttl_for_site_traffic: Option<SiteTtl>,
    bgp_hold_time: Option<u16>,
    probe_interval: Option<u32>,
    probe_misses: Option<u32>,
    probe_answers: Option<u32>,
    probe_hold: Option<u32>,
}

impl From<Given> for Settings {
    fn from(given: Given) -> Self {
        let era = Self::of(given.era);
        Self {
            era: given.era,
            address_space_change: given.address_space_change.unwrap_or(era.address_space_change),
            global_gateway_transit: given.global_gateway_transit.unwrap_or(era.global_gateway_transit),
            peerings_per_vnet: given.peerings_per_vnet.unwrap_or(era.peerings_per_vnet),
            tunnels_per_gateway: given.tunnels_per_gateway.unwrap_or(era.tunnels_per_gateway),
            mtu: given.mtu.unwrap_or(era.mtu),
            circuit_vnet_to_vnet: given.circuit_vnet_to_vnet.unwrap_or(era.circuit_vnet_to_vnet),
            vpn_ttl_for_site_traffic: given.vpn_ttl_for_site_traffic.unwrap_or(era.vpn_ttl_for_site_traffic),
            bgp_hold_time: given.bgp_hold_time.unwrap_or(era.bgp_hold_time),
            probe_interval: given.probe_interval.unwrap_or(era.probe_interval),
            probe_misses: given.probe_misses.unwrap_or(era.probe_misses),
            probe_answers: given.probe_answers.unwrap_or(era.probe_answers),
            probe_hold: given.probe_hold.unwrap_or(era.probe_hold),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Settings {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn d4_an_era_gives_defaults_and_each_switch_can_be_set_alone() {
        assert_eq!(read("{}"), Settings::default());
        assert_eq!(read(r#"{"era":"azure-2017"}"#), Settings::of(Era::Azure2017));
        let lab = read(r#"{"circuitVnetToVnet":true,"vpnTtlForSiteTraffic":"transparent"}"#);
        assert_eq!(
            lab,
            Settings {
                circuit_vnet_to_vnet: true,
                vpn_ttl_for_site_traffic: SiteTtl::Transparent,
                ..Settings::default()
            }
        );
        let mixed = read(r#"{"era":"azure-2017","addressSpaceChange":"sync"}"#);
        assert_eq!(mixed.address_space_change, AddressSpaceChange::Sync);
        assert!(!mixed.global_gateway_transit);
        assert_eq!(
            read(&serde_json::to_string(&mixed).unwrap()),
            mixed,
            "what is stored is what was meant"
        );
    }

    #[test]
    fn d19_agents_are_told_what_they_would_take_anyway() {
        assert_eq!(Settings::default().probes(), Probes::default());
        assert_eq!(Settings::default().bgp_hold_time, 180, "E4");
        let slow = read(r#"{"probeInterval":500,"bgpHoldTime":9}"#);
        assert_eq!(
            (slow.probes().interval, slow.probes().misses, slow.bgp_hold_time),
            (500, 3, 9)
        );
    }

    #[test]
    fn settings_that_were_stored_before_there_were_eras_are_read() {
        let old = read(
            r#"{"addressSpaceChange":"strict","globalGatewayTransit":false,"peeringsPerVnet":100,"tunnelsPerGateway":10,"mtu":1400}"#,
        );
        let expected = Settings {
            address_space_change: AddressSpaceChange::Strict,
            global_gateway_transit: false,
            peerings_per_vnet: 100,
            tunnels_per_gateway: 10,
            mtu: 1400,
            ..Settings::default()
        };
        assert_eq!(old, expected);
    }

    #[test]
    fn d3_unknown_switches_are_refused() {
        assert!(serde_json::from_str::<Settings>(r#"{"eras":"azure-2017"}"#).is_err());
        assert!(serde_json::from_str::<Settings>(r#"{"era":"azure-2016"}"#).is_err());
    }
}
