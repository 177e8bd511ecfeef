//! The operator's settings, and the eras that define their defaults (D4, "Eras" in docs/rules.md).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tombolo_proto::config::{AccessOff, BANDWIDTH, DEFAULT_MTU, MAX_FLOWS_OF_NIC, Probes, SiteTtl};

/// The operator's settings. A setting that is not given has the default of the era.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "SettingsBody")]
pub struct Settings {
    /// The era, which defines the default of every other setting.
    pub era: Era,
    /// Whether a VNet's address space can change while the VNet has peerings: `sync` (P27) or `strict` (P26).
    pub address_space_change: AddressSpaceChange,
    /// Whether peerings between regions may have `allowGatewayTransit` and `useRemoteGateways` (P30).
    pub global_gateway_transit: bool,
    /// Whether peered VNets of other regions reach the front ends of load balancers with the SKU Standard (P30).
    pub global_load_balancing: bool,
    /// The maximum number of peerings of a VNet, 1 to 1,000 (X1).
    pub peerings_per_vnet: u32,
    /// The maximum number of tunnels of a VPN gateway, 1 to 1,000 (X8).
    pub tunnels_per_gateway: u32,
    /// The MTU of packets inside links, 1280 to 9000 bytes (D20). The default is the same in every era.
    pub mtu: u16,
    /// Whether VNets that are linked to one circuit reach each other through it (E6).
    pub circuit_vnet_to_vnet: bool,
    /// What `allowVirtualNetworkAccess` off means at network interfaces with a security group (P17): `block` or `tagOnly`.
    pub vnet_access_off: AccessOff,
    /// Whether a change of security rules applies to established flows too (D34). `false`: it applies to new flows only
    /// (N6). The default is the same in every era.
    pub reevaluate: bool,
    /// How VPN gateways treat the TTL of packets from a site (T6).
    pub vpn_ttl_for_site_traffic: SiteTtl,
    /// The bandwidth of VPN gateways (G5, X9). The default, `unlimited`, is the same in every era.
    pub gateway_bandwidth: GatewayBandwidth,
    /// The maximum number of flows of a network interface, 1 to 500,000 (X16). The default, 500,000, is the same in every
    /// era.
    pub flows_per_nic: u32,
    /// The hold time of BGP sessions with sites and customer edges, in seconds, 3 to 65,535 (RFC 4271). The default is
    /// the same in every era.
    pub bgp_hold_time: u16,
    /// [`Probes::interval`] (D19). The default is the same in every era.
    pub probe_interval: u32,
    /// [`Probes::misses`] (D19). The default is the same in every era.
    pub probe_misses: u32,
    /// [`Probes::answers`] (D19). The default is the same in every era.
    pub probe_answers: u32,
    /// [`Probes::hold`] (D19). The default is the same in every era.
    pub probe_hold: u32,
}

/// The default hold time of BGP sessions, in seconds: the hold time of Azure's gateways (E4).
const BGP_HOLD_TIME: u16 = 180;

/// Some rules of Azure have changed over time. The era decides whether the default is the old or the present rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Era {
    /// Azure as its articles of 2015 to 2019 describe it.
    #[serde(rename = "azure-2017")]
    Azure2017,
    /// Azure as it is today.
    #[default]
    #[serde(rename = "azure-current")]
    AzureCurrent,
}

/// Whether a VNet's address space can change while the VNet has peerings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressSpaceChange {
    /// The change is refused (P26).
    Strict,
    /// The change is allowed. The peers' halves keep the old prefixes until they are synced (P27).
    Sync,
}

/// The bandwidth that all tunnels of a VPN gateway have together (G5). In JSON `"unlimited"`, `"azure"`, or a number of
/// Mbit/s from 1 to 100,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum GatewayBandwidth {
    /// As much as the host of the gateway can carry.
    Unlimited,
    /// What Azure publishes for the SKU of the gateway in the era (X9).
    Azure,
    /// This many Mbit/s, for each gateway.
    Mbps(u32),
}

impl TryFrom<Value> for GatewayBandwidth {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, String> {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        match (value.as_str(), number) {
            (Some("unlimited"), _) => Ok(Self::Unlimited),
            (Some("azure"), _) => Ok(Self::Azure),
            (_, Some(rate)) if BANDWIDTH.contains(&rate) => Ok(Self::Mbps(rate)),
            _ => Err(format!(
                "gatewayBandwidth: {value} is not \"unlimited\", \"azure\" or a number of Mbit/s from {} to {} (G5)",
                BANDWIDTH.start(),
                BANDWIDTH.end()
            )),
        }
    }
}

impl From<GatewayBandwidth> for Value {
    fn from(bandwidth: GatewayBandwidth) -> Self {
        match bandwidth {
            GatewayBandwidth::Unlimited => "unlimited".into(),
            GatewayBandwidth::Azure => "azure".into(),
            GatewayBandwidth::Mbps(rate) => rate.into(),
        }
    }
}

impl Settings {
    /// The settings by which agents detect peers that do not answer; [`Probes`] has the unit of each.
    #[must_use]
    pub const fn probes(&self) -> Probes {
        Probes {
            interval: self.probe_interval,
            misses: self.probe_misses,
            answers: self.probe_answers,
            hold: self.probe_hold,
        }
    }

    /// The default settings of an era ("Eras" in docs/rules.md).
    #[must_use]
    pub const fn of(era: Era) -> Self {
        match era {
            Era::Azure2017 => Self {
                era,
                address_space_change: AddressSpaceChange::Strict,
                global_gateway_transit: false,
                global_load_balancing: false,
                peerings_per_vnet: 50,
                tunnels_per_gateway: 10,
                mtu: DEFAULT_MTU,
                circuit_vnet_to_vnet: true,
                vnet_access_off: AccessOff::Block,
                vpn_ttl_for_site_traffic: SiteTtl::Transparent,
                ..Self::of(Era::AzureCurrent)
            },
            Era::AzureCurrent => Self {
                era,
                address_space_change: AddressSpaceChange::Sync,
                global_gateway_transit: true,
                global_load_balancing: true,
                peerings_per_vnet: 500,
                tunnels_per_gateway: 30,
                mtu: DEFAULT_MTU,
                circuit_vnet_to_vnet: false,
                vnet_access_off: AccessOff::TagOnly,
                reevaluate: false,
                vpn_ttl_for_site_traffic: SiteTtl::SilentHop,
                gateway_bandwidth: GatewayBandwidth::Unlimited,
                flows_per_nic: MAX_FLOWS_OF_NIC,
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

/// The settings of a request or document, in which every setting is optional.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SettingsBody {
    era: Era,
    address_space_change: Option<AddressSpaceChange>,
    global_gateway_transit: Option<bool>,
    global_load_balancing: Option<bool>,
    peerings_per_vnet: Option<u32>,
    tunnels_per_gateway: Option<u32>,
    mtu: Option<u16>,
    circuit_vnet_to_vnet: Option<bool>,
    vnet_access_off: Option<AccessOff>,
    reevaluate: Option<bool>,
    vpn_ttl_for_site_traffic: Option<SiteTtl>,
    gateway_bandwidth: Option<GatewayBandwidth>,
    flows_per_nic: Option<u32>,
    bgp_hold_time: Option<u16>,
    probe_interval: Option<u32>,
    probe_misses: Option<u32>,
    probe_answers: Option<u32>,
    probe_hold: Option<u32>,
}

impl From<SettingsBody> for Settings {
    fn from(given: SettingsBody) -> Self {
        let era = Self::of(given.era);
        Self {
            era: given.era,
            address_space_change: given.address_space_change.unwrap_or(era.address_space_change),
            global_gateway_transit: given.global_gateway_transit.unwrap_or(era.global_gateway_transit),
            global_load_balancing: given.global_load_balancing.unwrap_or(era.global_load_balancing),
            peerings_per_vnet: given.peerings_per_vnet.unwrap_or(era.peerings_per_vnet),
            tunnels_per_gateway: given.tunnels_per_gateway.unwrap_or(era.tunnels_per_gateway),
            mtu: given.mtu.unwrap_or(era.mtu),
            circuit_vnet_to_vnet: given.circuit_vnet_to_vnet.unwrap_or(era.circuit_vnet_to_vnet),
            vnet_access_off: given.vnet_access_off.unwrap_or(era.vnet_access_off),
            reevaluate: given.reevaluate.unwrap_or(era.reevaluate),
            vpn_ttl_for_site_traffic: given.vpn_ttl_for_site_traffic.unwrap_or(era.vpn_ttl_for_site_traffic),
            gateway_bandwidth: given.gateway_bandwidth.unwrap_or(era.gateway_bandwidth),
            flows_per_nic: given.flows_per_nic.unwrap_or(era.flows_per_nic),
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
        assert!(
            !Settings::of(Era::Azure2017).reevaluate && !Settings::default().reevaluate,
            "N6"
        );
        assert!(read(r#"{"reevaluate":true}"#).reevaluate, "D34");
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
        assert!(!mixed.global_gateway_transit && !mixed.global_load_balancing);
        let open = read(r#"{"era":"azure-2017","globalLoadBalancing":true}"#);
        assert!(open.global_load_balancing && !open.global_gateway_transit);
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
    fn g5_the_bandwidth_of_gateways_is_a_word_or_a_number() {
        for era in [Era::Azure2017, Era::AzureCurrent] {
            assert_eq!(Settings::of(era).gateway_bandwidth, GatewayBandwidth::Unlimited);
        }
        for (text, expected) in [
            (r#""unlimited""#, GatewayBandwidth::Unlimited),
            (r#""azure""#, GatewayBandwidth::Azure),
            ("1", GatewayBandwidth::Mbps(1)),
            ("100000", GatewayBandwidth::Mbps(100_000)),
        ] {
            let settings = read(&format!(r#"{{"gatewayBandwidth":{text}}}"#));
            assert_eq!(settings.gateway_bandwidth, expected);
            assert_eq!(read(&serde_json::to_string(&settings).unwrap()), settings);
        }
        for text in ["0", "100001", "-1", "1.5", r#""Azure""#, r#""100""#, "true", "[]"] {
            let refused = serde_json::from_str::<Settings>(&format!(r#"{{"gatewayBandwidth":{text}}}"#)).unwrap_err();
            let message = refused.to_string();
            assert!(
                message.contains("gatewayBandwidth") && message.contains("1 to 100000"),
                "{message}"
            );
        }
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
