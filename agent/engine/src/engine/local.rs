//! Packets of flows whose client and back end are behind this agent (L5, D35). The agent delivers them itself, in both
//! directions, and the security groups of both NICs apply (D25).

use super::PacketContext;
use crate::buffer::{DeliverSink, RedirectSink};
use crate::decide::Ingress;
use crate::link::LinkSet;
use crate::packet::quoted::translate;
use crate::packet::rewrite::End;
use crate::packet::{self, PacketInfo};
use crate::security::{FROM_HOST, LocalFlow};
use crate::tables::{BackEndIndex, Choice, LinkIndex, NicIndex, Tables};
use crate::verdict::{DropReason, Verdict};

/// For security groups: the packet leaves the NIC from whose device it came.
const LEAVES: Verdict = Verdict::Forward {
    link: LinkIndex(FROM_HOST),
    decrement_ttl: false,
};

/// For security groups: the packet comes to a NIC, and from this host.
const COMES: Ingress = Ingress::Link(LinkIndex(FROM_HOST));

impl<L: LinkSet, R: RedirectSink> PacketContext<'_, L, R> {
    /// Delivers a packet of this host to a back end behind this agent. The packet's destination is the front end. `choice` is
    /// the choice of the load balancer for it. Returns the reason if the packet is dropped.
    pub(super) fn turn_to_back_end(
        &mut self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&mut [u8], &mut PacketInfo),
        (index, choice): (BackEndIndex, Option<Choice>),
        rx: &mut impl DeliverSink,
    ) -> Result<(), DropReason> {
        let back_end = tables.front_ends.back_end(index).ok_or(DropReason::NoBackEnd)?;
        // N12: the rules at the client see the front end.
        self.guard
            .check(tables, ingress, (packet, info), (LEAVES, choice), self.now)?;
        let arrives = (Verdict::Deliver(back_end.nic), choice);
        if back_end.floating_ip {
            self.guard.check(tables, COMES, (packet, info), arrives, self.now)?;
            return self.deliver_locally(tables, back_end.nic, (packet, info), rx);
        }
        let (client, front) = (info.source, info.destination);
        let translated = translate(packet, info, End::Destination, front, back_end.back);
        // N12: the rules at the back end see the client and the back end's own port.
        self.guard.check(tables, COMES, (packet, info), arrives, self.now)?;
        let port = self
            .guard
            .local_port(tables, (packet, info), front, back_end.choice, self.now)
            .filter(|_| translated)
            .ok_or(DropReason::Hairpin)?;
        translate(packet, info, End::Source, client, (front, port));
        self.deliver_locally(tables, back_end.nic, (packet, info), rx)
    }

    /// Delivers the reply of a back end behind this agent to its client behind this agent. `Ok(false)`: the packet is no
    /// such reply, and unchanged. Returns the reason if the packet is dropped.
    pub(super) fn turn_to_client(
        &mut self,
        tables: &Tables,
        nic: NicIndex,
        (packet, info): (&mut [u8], &mut PacketInfo),
        rx: &mut impl DeliverSink,
    ) -> Result<bool, DropReason> {
        let Some(LocalFlow { client, choice }) = self.guard.local_client(tables, (packet, info), self.now) else {
            return Ok(false);
        };
        let Some(back_end) = tables.front_ends.back_end_of(choice) else {
            // The client must not get a packet from an address that it does not know.
            return Err(DropReason::NoBalancingRule);
        };
        // R12: the packet comes from the NIC that has its source.
        match tables.nic_of(info.source) {
            Some(own) if own.is_none_or(|own| own == nic) => {}
            Some(_) | None => return Err(DropReason::SpoofedSource),
        }
        let client_nic = tables.nic_of(client.0).ok_or(DropReason::NoOwner)?;
        let client_nic = client_nic.unwrap_or(NicIndex::FIRST);
        let front = info.destination;
        translate(packet, info, End::Destination, front, client);
        self.guard
            .check(tables, Ingress::Tun(nic), (packet, info), (LEAVES, None), self.now)?;
        translate(packet, info, End::Source, back_end.back.0, (front, back_end.front.1));
        let arrives = (Verdict::Deliver(client_nic), None);
        self.guard.check(tables, COMES, (packet, info), arrives, self.now)?;
        self.deliver_locally(tables, client_nic, (packet, info), rx)?;
        Ok(true)
    }

    fn deliver_locally(
        &mut self,
        tables: &Tables,
        nic: NicIndex,
        (packet, info): (&mut [u8], &PacketInfo),
        rx: &mut impl DeliverSink,
    ) -> Result<(), DropReason> {
        packet::clamp_mss(packet, info, tables.mtu);
        rx.deliver(nic, packet);
        self.stats.totals.tun_out += 1;
        Ok(())
    }
}
