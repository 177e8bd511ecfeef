//! The limits of private addresses in use (X4).

use super::address::used_addresses;
use crate::draft::Draft;
use crate::resource::VirtualNetwork;
use tombolo_proto::id::ResourceId;

/// The maximum number of private addresses in use in a VNet.
const MAX_IN_VNET: usize = 65_536;

/// The maximum number of private addresses in use in a VNet together with all VNets that it is peered with.
const MAX_IN_PEERED: usize = 128_000;

impl Draft<'_> {
    /// Checks the number of addresses of a VNet, of which others than `owner` use `used`, and for which `owner` requests
    /// `requested`.
    pub(super) fn check_address_count(&mut self, owner: &ResourceId, vnet: &ResourceId, used: usize, requested: usize) {
        let count = used + requested;
        if count > MAX_IN_VNET {
            let message = format!(
                "{owner} needs {requested} private addresses in virtual network {vnet}, which would then have {count} in use. At most \
                 {MAX_IN_VNET} are allowed (X4)."
            );
            self.problems.add("XPrivateAddressLimitReached", owner, message);
        } else {
            self.check_peered_addresses(owner, vnet, count);
        }
    }

    /// Checks the number of addresses in two VNets between which the half `id` of a peering is created, and in those that the
    /// half's VNet is peered with already.
    pub(crate) fn check_addresses_of_new_peering(
        &mut self,
        id: &ResourceId,
        vnet: &VirtualNetwork,
        remote: &VirtualNetwork,
    ) {
        if self.may_exceed(0) {
            let ends = [vnet, remote].map(|vnet| &vnet.envelope.id);
            let used = ends.map(|vnet| used_addresses(&self.topology, vnet, id).len());
            self.check_peered_addresses(id, ends[0], used.iter().sum());
        }
    }

    /// Whether the whole network has so many addresses that peered VNets may have too many. `more`: requested ones.
    fn may_exceed(&self, more: usize) -> bool {
        let nics = self.topology.nics.values();
        let all: usize = nics.map(|nic| nic.ip_configurations.len()).sum();
        all + more > MAX_IN_PEERED
    }

    /// Checks the number of addresses in a VNet, of which `count` are in use, and in the VNets that it is peered with.
    fn check_peered_addresses(&mut self, owner: &ResourceId, vnet: &ResourceId, count: usize) {
        if !self.may_exceed(count) {
            return;
        }
        let Some(found) = self.topology.vnets.get(vnet).cloned() else {
            return;
        };
        let peered = found.peerings.iter().map(|half| &half.remote_vnet);
        let of_peers: usize = peered
            .map(|peer| used_addresses(&self.topology, peer, owner).len())
            .sum();
        let total = count + of_peers;
        if total > MAX_IN_PEERED {
            let message = format!(
                "Virtual network {vnet} and the virtual networks that it is peered with would have {total} private addresses in use. At \
                 most {MAX_IN_PEERED} are allowed (X4)."
            );
            self.problems.add("XPrivateAddressLimitReached", owner, message);
        }
    }
}
