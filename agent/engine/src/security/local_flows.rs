//! Flows whose client and back end are behind the same agent (L5, D35). The host's kernel would send the replies of the
//! back end to the client directly, with the back end's own address. So the back end gets the packets with the front
//! end's address as source, and its replies come to the agent. The flow is then told by the source port: the client's
//! own one, or another one if a second client uses the same port for this back end.

use super::flow_memory::Part;
use super::flows::Flows;
use crate::packet::PacketInfo;
use crate::tables::Choice;
use std::net::IpAddr;
use std::time::Instant;

/// Number of words with which the memory keeps a [`LocalFlow`].
pub(super) const WORDS: usize = 4;

/// Number of local flows for each lane of the agent. Their memory takes 0.8 MB.
pub(super) const FLOWS_OF_LANE: usize = 16_384;

/// Number of source ports that are tried for a flow.
const ATTEMPTS: u16 = 8;

/// A flow whose client and back end are behind this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalFlow {
    /// Address and port of the client.
    pub(crate) client: (IpAddr, u16),
    /// The rule and the back end.
    pub(crate) choice: Choice,
}

impl LocalFlow {
    fn words(self) -> [u64; WORDS] {
        let (address, port) = self.client;
        let bits = match address {
            IpAddr::V4(a) => u128::from(a.to_bits()),
            IpAddr::V6(a) => a.to_bits(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "each half of the address has its word")]
        let halves = ((bits >> 64) as u64, bits as u64);
        let rest = u64::from(port) << 1 | u64::from(address.is_ipv6());
        [halves.0, halves.1, rest, self.choice.0]
    }

    #[expect(clippy::cast_possible_truncation, reason = "each value has its place in the words")]
    fn of(words: [u64; WORDS]) -> Self {
        let [high, low, rest, choice] = words;
        let address = match rest & 1 {
            0 => IpAddr::from((low as u32).to_be_bytes()),
            _ => IpAddr::from((u128::from(high) << 64 | u128::from(low)).to_be_bytes()),
        };
        Self {
            client: (address, (rest >> 1) as u16),
            choice: Choice(choice),
        }
    }
}

/// The source port with which the back end knows a flow. `packet` is a packet of the flow from the client to the back
/// end's own address and port, and `front` the address of the front end. Remembers the flow if `remember` says for how
/// many seconds it lasts without packets. `None`: the flow is not known and is not remembered, because all ports that were
/// tried belong to other flows.
pub(super) fn source_port(
    flows: &Flows,
    (packet, part): (&PacketInfo, Part),
    front: IpAddr,
    choice: Choice,
    remember: Option<u32>,
    now: Instant,
) -> Option<u16> {
    let memory = flows.local_flows(now);
    let [source, to] = ports(packet);
    let flow = LocalFlow {
        client: (packet.source, source),
        choice,
    };
    let key = |port: u16| PacketInfo {
        source: front,
        ports: u32::from(port) << 16 | u32::from(to),
        ..*packet
    };
    let found = |port: u16| memory.find(&key(port), Part::Middle, now).map(LocalFlow::of);
    // The port must stay the same for all packets of a flow. So a port that has become free is used only if no other
    // port is the flow's.
    let known = candidates(flow.client).find(|port| found(*port) == Some(flow));
    let port = known.or_else(|| candidates(flow.client).find(|port| found(*port).is_none()))?;
    if let Some(timeout) = remember {
        memory.note(&key(port), part, flow.words(), timeout, now);
    }
    // Another lane may have used the port for another flow at the same moment.
    (found(port) == Some(flow)).then_some(port)
}

/// The flow to which a packet from a back end to a front end is a reply. `None`: the packet belongs to no local flow.
pub(super) fn client_of(flows: &Flows, (packet, part): (&PacketInfo, Part), now: Instant) -> Option<LocalFlow> {
    if part == Part::Begin || packet.ports == 0 {
        return None;
    }
    let memory = flows.known_local_flows()?;
    memory.find(packet, part, now).map(LocalFlow::of)
}

/// Notes a reply of a local flow.
pub(super) fn note_reply(
    flows: &Flows,
    (packet, part): (&PacketInfo, Part),
    flow: LocalFlow,
    timeout: u32,
    now: Instant,
) {
    flows.local_flows(now).note(packet, part, flow.words(), timeout, now);
}

/// The source ports that are tried for the flows of a client, in this order.
fn candidates((address, port): (IpAddr, u16)) -> impl Iterator<Item = u16> {
    /// Ports from here on are not those of well-known services.
    const FIRST: u32 = 1024;
    let last = match address {
        IpAddr::V4(a) => u32::from(a.octets()[3]),
        IpAddr::V6(a) => u32::from(a.octets()[15]),
    };
    (0..ATTEMPTS).map(move |attempt| match attempt {
        0 => port,
        // The factors are odd, so that clients with the same port try different ports.
        _ => {
            let tried = u32::from(port) + u32::from(attempt) * 8_191 + last * 257;
            #[expect(clippy::cast_possible_truncation, reason = "below 65,536")]
            {
                (FIRST + tried % (0x1_0000 - FIRST)) as u16
            }
        }
    })
}

/// Source and destination port of a packet.
const fn ports(packet: &PacketInfo) -> [u16; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "each half is one port")]
    [(packet.ports >> 16) as u16, packet.ports as u16]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::TCP;
    use std::collections::BTreeSet;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the clock is the test's")]
    fn l5_flows_of_several_clients_with_one_port_have_different_ports() {
        let (flows, now) = (Flows::new(1024, 5), Instant::now());
        let front = IpAddr::from([10, 0, 255, 36]);
        let packet = |client: u8| PacketInfo {
            source: [10, 0, 0, client].into(),
            destination: [10, 0, 0, 200].into(),
            ttl: 64,
            protocol: TCP,
            transport: Some(20),
            ports: 40_000 << 16 | 8080,
            len: 60,
        };
        let port = |client, remember| {
            let packet = (&packet(client), Part::Middle);
            source_port(&flows, packet, front, Choice(9), remember, now)
        };
        assert_eq!(port(0, None), None, "not known");
        let ports: Vec<u16> = (0..20).map(|client| port(client, Some(240)).unwrap()).collect();
        assert_eq!(ports[0], 40_000, "the client's own one");
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 20);
        for (client, used) in (0..).zip(&ports) {
            assert_eq!(port(client, Some(240)), Some(*used), "it stays");
            let reply = PacketInfo {
                source: packet(client).destination,
                destination: front,
                ports: 8080 << 16 | u32::from(*used),
                ..packet(client)
            };
            let known = client_of(&flows, (&reply, Part::Middle), now).unwrap();
            assert_eq!(known.client, (packet(client).source, 40_000));
            assert_eq!(
                client_of(&flows, (&reply, Part::Begin), now),
                None,
                "a connection of the back end itself"
            );
        }
    }

    #[test]
    fn a_flow_is_kept_as_words() {
        for client in [[10, 0, 0, 1].into(), "fd00:1:2:3:4:5:6:7".parse().unwrap()] {
            let flow = LocalFlow {
                client: (client, 65_535),
                choice: Choice(u64::MAX),
            };
            assert_eq!(LocalFlow::of(flow.words()), flow);
        }
    }
}
