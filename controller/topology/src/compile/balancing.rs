//! Which front ends of load balancers an agent can reach (L10, P27, P30).

use super::front_ends::BalancedFrontEnd;
use super::index::{Index, Peer, Vnet};
use super::prefix;
use crate::resource::LoadBalancerSku;
use ipnet::IpNet;
use tombolo_proto::config;

/// The front ends that agents of `vnet` can reach: those of its own VNet, and those of peered VNets (L10). Of a peered
/// VNet in another region, only those of Standard load balancers, and none while the setting `globalLoadBalancing` is off
/// (P30). An address that is not synced yet is left out (P27).
pub(super) fn of_machine(index: &Index<'_>, vnet: &Vnet<'_>) -> Vec<config::FrontEnd> {
    let mut all = own(vnet);
    for peer in &vnet.peers {
        let remote = &index.vnets[peer.remote].front_ends;
        let reached = remote.iter().filter(|f| is_reached(index, f, peer));
        all.extend(reached.map(|f| f.config.clone()));
    }
    ordered(all)
}

/// The front ends that an instance of a gateway of `vnet` can reach: those of its own VNet, and those of the spokes that
/// use the gateway.
pub(super) fn of_gateway(index: &Index<'_>, vnet: &Vnet<'_>) -> Vec<config::FrontEnd> {
    let mut all = own(vnet);
    for client in &vnet.clients {
        let synced = &client.half.remote_address_space;
        let of_client = index.vnets[client.vnet].front_ends.iter();
        let reached = of_client.filter(|f| prefix::covered(&IpNet::from(f.config.address), synced));
        all.extend(reached.map(|f| f.config.clone()));
    }
    ordered(all)
}

fn own(vnet: &Vnet<'_>) -> Vec<config::FrontEnd> {
    vnet.front_ends.iter().map(|f| f.config.clone()).collect()
}

fn is_reached(index: &Index<'_>, front_end: &BalancedFrontEnd, peer: &Peer<'_>) -> bool {
    let is_synced = prefix::covered(&IpNet::from(front_end.config.address), &peer.half.remote_address_space);
    let is_global = index.topology.settings.global_load_balancing && front_end.sku == LoadBalancerSku::Standard;
    is_synced && (!peer.global || is_global)
}

fn ordered(mut all: Vec<config::FrontEnd>) -> Vec<config::FrontEnd> {
    all.sort_by(|a, b| (&a.vnet, a.address).cmp(&(&b.vnet, b.address)));
    all
}
