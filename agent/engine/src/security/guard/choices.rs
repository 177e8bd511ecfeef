//! The choices of load balancers for earlier packets of a flow, and the flows whose client and back end are both behind
//! this agent (L4, L5, D35).

use super::Guard;
use crate::decide::{Earlier, Ingress};
use crate::packet::quoted::flow_of_error;
use crate::packet::{PacketInfo, TCP};
use crate::security::flow_key::{Belongs, belongs_to};
use crate::security::flow_memory::{HALF_OPEN_TIMEOUT, Part};
use crate::security::local_flows::{self, LocalFlow};
use crate::tables::{Among, BackEnd, BalancingRule, Choice, KeptChoices, NicIndex, Tables};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_proto::config::Direction;

/// Time after which a connection of which only SYNs have come ends.
const HALF_OPEN: Duration = Duration::from_secs(HALF_OPEN_TIMEOUT as u64);

/// A flow of the flow table, as a packet belongs to it.
struct Known {
    choices: KeptChoices,
    /// Whether the packet goes in the direction of the packet that began the flow.
    is_forward: bool,
}

impl Guard {
    /// What is known of the flow of a packet for which `rule` chooses. Nothing is known of a packet that asks for a new
    /// connection, which may not go to the back end of an earlier one.
    pub(crate) fn earlier(
        &self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        rule: &BalancingRule,
        now: Instant,
    ) -> Earlier {
        let part = Part::of(packet, info);
        let error = flow_of_error(packet, info);
        let flow = error.as_ref().unwrap_or(info);
        let earlier = match ingress {
            Ingress::Link(_) if tables.chooses_for_others() => {
                let known = self.flows.choices().and_then(|choices| choices.find(flow, part, now));
                let known = known.map(|[choice]| Choice(choice));
                // D35: the packet may belong to a flow from before the last change of the rule.
                let known = known.or_else(|| rule.choose_as_before(flow, now).filter(|_| part != Part::Begin));
                Earlier {
                    choice: known,
                    front_end: None,
                }
            }
            Ingress::Link(_) => self.known_to_own(tables, (packet, info), (flow, part), rule, now),
            Ingress::Tun(nic) => self.known_from(tables, nic, (packet, info), flow, rule, now),
        };
        // L7, D36: a back end that is down, or whose agent is not reached, gets no new connection, also if its SYN is
        // repeated.
        let stays = |choice: &Choice| part != Part::Begin || rule.takes_new_flows(*choice);
        Earlier {
            choice: earlier.choice.filter(stays),
            ..earlier
        }
    }

    /// What is known of a packet that leaves a NIC of this agent. See [`Self::earlier`].
    fn known_from(
        &self,
        tables: &Tables,
        nic: NicIndex,
        (packet, info): (&[u8], &PacketInfo),
        flow: &PacketInfo,
        rule: &BalancingRule,
        now: Instant,
    ) -> Earlier {
        let leaves = Direction::Outbound;
        let known = self.known(tables, (packet, info), (info.source, nic, leaves), None, now);
        let known = known.or_else(|| {
            // Another lane has translated the reply already, and redirected it.
            let front = (flow.source, (flow.ports >> 16) as u16);
            tables.front_ends.own_back_ends_behind(front).find_map(|back_end| {
                let at = (back_end.back.0, nic, leaves);
                let known = self.known(tables, (packet, info), at, Some(back_end.back), now);
                known.filter(|known| !known.is_forward && known.choices.forward() == Some(back_end.choice))
            })
        });
        let Some(Known { choices, is_forward }) = known else {
            return Earlier::default();
        };
        if is_forward {
            return Earlier {
                choice: choices.forward(),
                front_end: None,
            };
        }
        let back_end = choices
            .forward()
            .and_then(|choice| tables.front_ends.back_end_of(choice));
        let translated = Earlier {
            choice: None,
            front_end: back_end.filter(|b| !b.floating_ip).map(|b| b.front),
        };
        Earlier {
            choice: rule.choice_for_replies(choices, &translated.translated(flow)),
            ..translated
        }
    }

    /// What is known of a packet from a link that goes to a back end of this agent. See [`Self::earlier`].
    fn known_to_own(
        &self,
        tables: &Tables,
        (packet, info): (&[u8], &PacketInfo),
        (flow, part): (&PacketInfo, Part),
        rule: &BalancingRule,
        now: Instant,
    ) -> Earlier {
        // The flow table knows a flow to a back end by the back end's own address and port, while this packet still has
        // those of the front end.
        let choice_at = |back_end: &BackEnd| {
            let to = (!back_end.floating_ip).then_some(back_end.back);
            let address = to.map_or(info.destination, |(address, _)| address);
            let at = (address, back_end.nic, Direction::Inbound);
            let known = self.known(tables, (packet, info), at, to, now)?;
            let choice = match known.is_forward {
                true => known.choices.forward(),
                false => rule.choice_for_replies(known.choices, flow),
            };
            choice.filter(|choice| *choice == back_end.choice)
        };
        // Nearly every flow is at the back end that the rule chooses now, so this one is asked first. An agent can own many
        // back ends, and each question is a lookup in the flow table.
        let chosen = rule.choose(flow, Among::Own);
        let chosen = chosen.and_then(|member| tables.front_ends.back_end(member.own?));
        let mut choice = chosen.and_then(choice_at);
        if choice.is_none() && self.may_be_elsewhere(flow, part, rule, now) {
            let mut all = tables.front_ends.own_back_ends_of(rule);
            choice = all.find_map(choice_at);
        }
        Earlier {
            choice,
            front_end: None,
        }
    }

    /// Whether the flow of a packet may be at another back end than the one that the rule chooses now. It can be if the back
    /// ends have changed since the flow began.
    fn may_be_elsewhere(&self, flow: &PacketInfo, part: Part, rule: &BalancingRule, now: Instant) -> bool {
        match part {
            // The packet may repeat the SYN of a connection that has begun before the change.
            Part::Begin => rule.has_changed_within(HALF_OPEN, now) || !self.flows.have_balanced_for(HALF_OPEN, now),
            // A connection that is not known is rare, so its packets may cost more.
            Part::Middle | Part::End if flow.protocol == TCP => true,
            Part::Middle | Part::End => self.flows.are_loaded() || rule.has_changed_within(Duration::MAX, now),
        }
    }

    /// The flow in the flow table to which a packet belongs, or about which it reports as an ICMP error. The packet passes
    /// the NIC `nic`, which has the address `address` or serves its subnet. `own`: the table knows the flow with this address
    /// and port in place of the packet's own ones at the NIC; the port 0 stands for that of the packet.
    fn known(
        &self,
        tables: &Tables,
        (packet, info): (&[u8], &PacketInfo),
        (address, nic, direction): (IpAddr, NicIndex, Direction),
        own: Option<(IpAddr, u16)>,
        now: Instant,
    ) -> Option<Known> {
        let (table, seconds) = self.flows.present(now)?;
        let nic = flow_nic(tables, address, nic);
        let (mut key, opens, is_quoted) = match belongs_to(packet, info, nic, direction) {
            Belongs::Flow { key, tcp } => (key, tcp.opens, false),
            Belongs::Error { quoted } => (quoted, false, true),
            Belongs::Fragment { .. } | Belongs::Malformed => return None,
        };
        if let Some((address, port)) = own {
            // The quoted packet has the opposite direction.
            let (of_key, port_of_key) = match (direction == Direction::Outbound) != is_quoted {
                true => (&mut key.source, &mut key.ports.0),
                false => (&mut key.destination, &mut key.ports.1),
            };
            *of_key = address;
            *port_of_key = if port == 0 { *port_of_key } else { port };
        }
        let flow = table.find(&key, seconds)?;
        (!opens || flow.is_repeated_syn()).then_some(Known {
            choices: KeptChoices(flow.choices),
            // An error goes to the end that has sent the quoted packet.
            is_forward: flow.forward != is_quoted,
        })
    }

    /// The source port with which a back end behind this agent knows the flow of a client behind this agent. `packet` is
    /// already for the back end's own address and port, and still has the client's. `None`: no port is free, or the
    /// packet is a fragment, whose ports are not known; or it is an ICMP error about no such flow.
    pub(crate) fn local_port(
        &self,
        tables: &Tables,
        (packet, info): (&[u8], &PacketInfo),
        front: IpAddr,
        choice: Choice,
        now: Instant,
    ) -> Option<u16> {
        let error = flow_of_error(packet, info);
        let flow = error.as_ref().unwrap_or(info);
        if flow.ports == 0 {
            return None;
        }
        let remember = tables.front_ends.idle_timeout(choice).filter(|_| error.is_none());
        let packet = (flow, Part::of(packet, info));
        local_flows::source_port(&self.flows, packet, front, choice, remember, now)
    }

    /// Whether there was a flow between a client and a back end behind this agent since the agent started.
    pub(crate) fn has_local_flows(&self) -> bool {
        self.flows.known_local_flows().is_some()
    }

    /// The flow between a client and a back end behind this agent to which a packet from the back end to the front end
    /// belongs, or about which it reports as an ICMP error. `None`: there is no such flow.
    pub(crate) fn local_client(
        &self,
        tables: &Tables,
        (packet, info): (&[u8], &PacketInfo),
        now: Instant,
    ) -> Option<LocalFlow> {
        let error = flow_of_error(packet, info);
        let part = Part::of(packet, info);
        let flow = local_flows::client_of(&self.flows, (error.as_ref().unwrap_or(info), part), now)?;
        if error.is_none()
            && let Some(timeout) = tables.front_ends.idle_timeout(flow.choice)
        {
            local_flows::note_reply(&self.flows, (info, part), flow, timeout, now);
        }
        Some(flow)
    }

    /// Remembers the choice for a packet that passes none of the agent's NICs.
    pub(super) fn note_choice(
        &self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        choice: Option<Choice>,
        now: Instant,
    ) {
        if let (Ingress::Link(_), Some(choice), Some(choices)) = (ingress, choice, self.flows.choices())
            && let Some(timeout) = tables.front_ends.idle_timeout(choice)
            && flow_of_error(packet, info).is_none()
        {
            choices.note(info, Part::of(packet, info), [choice.0], timeout, now);
        }
    }
}

/// The number that the flow table keeps for the NIC of a flow; see `SecuredNics::flow_nic`.
fn flow_nic(tables: &Tables, address: IpAddr, nic: NicIndex) -> u8 {
    match &tables.security {
        Some(nics) => nics.flow_nic(nics.number_of(address, nic)),
        None => nic.0,
    }
}
