//! The rules of the operator's settings: their ranges, and changes that are refused because of present resources (D4,
//! P30).

use crate::draft::Draft;
use crate::resource::Settings;
use std::sync::Arc;
use tombolo_proto::config::MAX_FLOWS_OF_NIC;
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// Checks and replaces the settings. A limit can be set below the present number of peerings or tunnels: present
    /// ones stay, and only the creation of another one is refused. Always false, because nothing is created.
    pub(crate) fn set_settings(&mut self, settings: &Settings) -> bool {
        // 1280 is the minimum MTU of IPv6 (RFC 8200, section 5), 9000 the usual size of jumbo frames.
        if !(1280..=9000).contains(&settings.mtu) {
            self.problems.add(
                "InvalidRequestFormat",
                "mtu",
                format!("mtu: {} is not within 1280 to 9000 (D20)", settings.mtu),
            );
        }
        // The first two maximums bound the size of configurations. 1,000 is at least twice Azure's present limits of 500
        // peerings and 30 tunnels (X1, X8), so both of Azure's limits can be set.
        for (name, value, most) in [
            ("peeringsPerVnet", settings.peerings_per_vnet, 1_000),
            ("tunnelsPerGateway", settings.tunnels_per_gateway, 1_000),
            ("flowsPerNic", settings.flows_per_nic, MAX_FLOWS_OF_NIC),
        ] {
            if !(1..=most).contains(&value) {
                self.problems.add(
                    "InvalidRequestFormat",
                    name,
                    format!("{name}: {value} is not within 1 to {most}"),
                );
            }
        }
        if settings.bgp_hold_time < 3 {
            self.problems.add(
                "InvalidRequestFormat",
                "bgpHoldTime",
                format!(
                    "bgpHoldTime: {} is not within 3 to 65535 (RFC 4271)",
                    settings.bgp_hold_time
                ),
            );
        }
        if let Some((name, value, range)) = settings.probes().out_of_range() {
            let (least, most) = range.into_inner();
            let message = format!("{name}: {value} is not within {least} to {most} (D19)");
            self.problems.add("InvalidRequestFormat", name, message);
        }
        if !settings.global_gateway_transit {
            self.check_no_global_transit();
        }
        if *self.topology.settings != *settings {
            self.topology.settings = Arc::new(settings.clone());
        }
        false
    }

    /// Adds a problem for each peering between regions that has `allowGatewayTransit` or `useRemoteGateways`:
    /// `globalGatewayTransit` cannot be switched off while such a peering exists (P30).
    fn check_no_global_transit(&mut self) {
        let topology = &self.topology;
        let crosses = |here: &str, to: &ResourceId| topology.vnets.get(to).is_some_and(|r| r.envelope.location != here);
        let users: Vec<ResourceId> = topology
            .vnets
            .values()
            .flat_map(|v| v.peerings.iter().map(move |p| (v.envelope.location.as_str(), p)))
            .filter(|(here, p)| (p.use_remote_gateways || p.allow_gateway_transit) && crosses(here, &p.remote_vnet))
            .map(|(_, p)| p.id.clone())
            .collect();
        for id in users {
            self.problems.add(
                "XGlobalPeeringFeatureNotAllowed",
                "globalGatewayTransit",
                format!("globalGatewayTransit: cannot be switched off while peering {id} uses it across regions (P30)"),
            );
        }
    }
}
