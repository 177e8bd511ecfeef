//! What earlier packets of a flow tell a load-balancing rule (L4, L5, R11).

use crate::packet::PacketInfo;
use crate::tables::{BalancingRule, Choice};
use std::net::IpAddr;

/// What earlier packets of a flow tell a load-balancing rule about a packet for which the rule chooses a back end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Earlier {
    /// The choice that the rule has made for an earlier packet. `None`: it is not known.
    pub(crate) choice: Option<Choice>,
    /// If the packet is the reply of a back end behind this agent: the front end's address and port, which it gets as source
    /// before it leaves (L5). The port 0 stands for the packet's own. The rule chooses by this source, as the other
    /// direction's packets have it as destination, so that both directions pass the same appliance (R11).
    pub(crate) front_end: Option<(IpAddr, u16)>,
}

impl Earlier {
    /// The packet, as the next agent gets it.
    pub(crate) fn translated(&self, packet: &PacketInfo) -> PacketInfo {
        let mut packet = *packet;
        if let Some((address, port)) = self.front_end {
            packet.source = address;
            if port != 0 && packet.ports != 0 {
                packet.ports = u32::from(port) << 16 | packet.ports & 0xffff;
            }
        }
        packet
    }
}

/// Returns what is known of the flow of a packet for which this rule chooses.
pub(crate) type Memory<'a> = &'a dyn Fn(&BalancingRule) -> Earlier;
