//! The bandwidth of a gateway's tunnels: what Azure publishes for its SKU, and what is enforced (G5, X9).

use super::VirtualNetworkGateway;
use crate::arm::status::instances;
use crate::arm::view::Views;
use crate::resource::{Era, GatewayBandwidth, Settings};
use serde_json::{Value, json};
use tombolo_proto::config::GatewayKind;

/// A row of [`VPN`]: the SKU without `AZ`, its figure in the first generation of gateways, and in the second one. `None`:
/// there is no such gateway.
type Figures = (&'static str, Option<u32>, Option<u32>);

/// What Azure publishes as the aggregate throughput of VPN gateways, in Mbit/s (X9).
const VPN: [Figures; 8] = [
    ("Basic", Some(100), None),
    ("Standard", Some(100), None),
    ("HighPerformance", Some(200), None),
    ("VpnGw1", Some(650), None),
    ("VpnGw2", Some(1_000), Some(1_250)),
    ("VpnGw3", Some(1_250), Some(2_500)),
    ("VpnGw4", None, Some(5_000)),
    ("VpnGw5", None, Some(10_000)),
];

/// What Azure publishes as the throughput of ExpressRoute gateways, in Mbit/s.
const EXPRESS_ROUTE: [(&str, u32); 6] = [
    ("Standard", 1_000),
    ("ErGw1", 1_000),
    ("HighPerformance", 2_000),
    ("ErGw2", 2_000),
    ("UltraPerformance", 10_000),
    ("ErGw3", 10_000),
];

impl VirtualNetworkGateway {
    /// What Azure publishes as the throughput of the gateway's SKU, in Mbit/s (X9). The second generation of VPN gateways
    /// does not exist in the era `azure-2017`. `None`: there is no figure for the SKU.
    #[must_use]
    pub fn published_bandwidth(&self, era: Era) -> Option<u32> {
        let sku = self.sku.as_str();
        // A gateway in several availability zones has the figure of the same SKU without zones.
        let plain = match sku.len().checked_sub(2).and_then(|at| sku.split_at_checked(at)) {
            Some((plain, zones)) if zones.eq_ignore_ascii_case("AZ") => plain,
            _ => sku,
        };
        if self.gateway_type == GatewayKind::ExpressRoute {
            let found = EXPRESS_ROUTE.iter().find(|(name, _)| name.eq_ignore_ascii_case(plain));
            return found.map(|(_, figure)| *figure);
        }
        let (_, first, second) = VPN.iter().find(|(name, ..)| name.eq_ignore_ascii_case(plain))?;
        match era {
            Era::Azure2017 => *first,
            Era::AzureCurrent if self.is_second_generation() => second.or(*first),
            Era::AzureCurrent => first.or(*second),
        }
    }

    fn is_second_generation(&self) -> bool {
        let properties = self.envelope.echoed.get("properties");
        let generation = properties.and_then(|p| p.get("vpnGatewayGeneration"));
        generation.and_then(Value::as_str) == Some("Generation2")
    }

    /// The limit that applies to all tunnels of the gateway together, in Mbit/s (G5). `None`: none applies, because of the
    /// setting `gatewayBandwidth`, because Azure publishes no figure for the SKU, or because an ExpressRoute gateway has no
    /// tunnels.
    #[must_use]
    pub fn tunnel_bandwidth(&self, settings: &Settings) -> Option<u32> {
        if self.gateway_type == GatewayKind::ExpressRoute {
            return None;
        }
        match settings.gateway_bandwidth {
            GatewayBandwidth::Unlimited => None,
            GatewayBandwidth::Azure => self.published_bandwidth(settings.era),
            GatewayBandwidth::Mbps(limit) => Some(limit),
        }
    }

    /// The part of [`tunnel_bandwidth`](Self::tunnel_bandwidth) that each instance enforces. The instances of an
    /// active-active gateway have equal parts, because both carry traffic and neither knows what the other one carries.
    /// Otherwise one instance carries all traffic, and each enforces the whole limit. `instances`: the number of
    /// instances that have an agent.
    #[must_use]
    pub fn bandwidth_of_instance(&self, settings: &Settings, instances: usize) -> Option<u32> {
        let sharing = match u32::try_from(instances) {
            Ok(instances) if self.active_active => instances.max(1),
            _ => 1,
        };
        let limit = self.tunnel_bandwidth(settings)?;
        Some((limit / sharing).max(1))
    }

    /// The bandwidth in the gateway's ARM body, a property that Azure does not have: the figure of the SKU, the limit that
    /// applies, what has passed the tunnels in the last minute, in both directions, and the packets that were dropped
    /// because of the limit. The last two are sums of the agents' reports, and null without a report.
    pub(super) fn bandwidth_view(&self, views: &Views<'_>) -> Value {
        let settings = &views.topology.settings;
        let agents = instances(views.topology, &self.envelope.id);
        let statuses = agents.iter().filter_map(|agent| views.statuses.agents.get(agent));
        let reports: Vec<_> = statuses.filter_map(|status| Some((status, status.tunnels?))).collect();
        let sum = |of: &dyn Fn(usize) -> u64| (!reports.is_empty()).then(|| (0..reports.len()).map(of).sum::<u64>());
        json!({
            "publishedMbps": self.published_bandwidth(settings.era),
            "limitMbps": self.tunnel_bandwidth(settings),
            "lastMinuteBytes": sum(&|n| reports[n].1.last_minute_bytes),
            "droppedPackets": sum(&|n| reports[n].0.drops.get("bandwidth_exceeded").copied().unwrap_or_default()),
        })
    }
}
