//! The limits of bandwidth and flows that an agent enforces.

use super::index::{Index, Machine, Vnet};
use crate::resource::VirtualNetworkGateway;
use tombolo_proto::config::{Limits, MAX_FLOWS_OF_NIC, NicBandwidth};

/// The limits of a machine: the bandwidth of each of its NICs (P32), and the number of flows (X16). Each NIC has its own
/// limit for all destinations, so peerings have none. `None`: there are only the default limits.
pub(super) fn of_machine(index: &Index<'_>, machine: &Machine<'_>) -> Option<Limits> {
    // A NIC without an address is not in the configuration.
    let nics = machine.nics.iter().filter(|nic| !nic.ip_configurations.is_empty());
    let of_nic = |outbound, id| NicBandwidth { nic: id, outbound };
    let flows = index.topology.settings.flows_per_nic;
    let limits = Limits {
        nics: nics
            .filter_map(|nic| Some(of_nic(nic.bandwidth()?, nic.envelope.id.clone())))
            .collect(),
        tunnels: None,
        flows_of_nic: (flows != MAX_FLOWS_OF_NIC).then_some(flows),
    };
    limits.if_any()
}

/// The limits of an instance of a VPN gateway: its part of the bandwidth of all tunnels (G5, X9). `None`: there is no
/// limit.
pub(super) fn of_gateway(index: &Index<'_>, vnet: &Vnet<'_>, gateway: &VirtualNetworkGateway) -> Option<Limits> {
    let limits = Limits {
        tunnels: gateway.bandwidth_of_instance(&index.topology.settings, vnet.instances.len()),
        ..Limits::default()
    };
    limits.if_any()
}
