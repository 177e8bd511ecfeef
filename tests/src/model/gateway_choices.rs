//! The choices of load balancers that gateways remember (L4, D35).

use super::balancing::Choice;
use crate::operation::Packet;

/// The choices that gateways have made. Choices that hold no longer may still be here.
#[derive(Debug, Clone, Default)]
pub struct GatewayChoices(Vec<Remembered>);

/// A flow that passes a gateway, with the choice that the gateway has made for it (D35).
#[derive(Debug, Clone)]
struct Remembered {
    gateway: String,
    packet: Packet,
    choice: Choice,
    /// The time of the last packet.
    seen: u64,
    /// The idle timeout in seconds.
    timeout: u64,
}

impl Remembered {
    fn is_of(&self, gateway: &str, packet: &Packet) -> bool {
        let key = |p: &Packet| (p.protocol, p.source, p.destination, p.ports);
        self.gateway == gateway && key(&self.packet) == key(packet)
    }
}

impl GatewayChoices {
    /// The choice that a gateway remembers for the flow of a packet. `now`: the present time, in seconds.
    pub(super) fn find(&self, gateway: &str, packet: &Packet, now: u64) -> Option<Choice> {
        let mut all = self.0.iter().filter(|r| r.is_of(gateway, packet));
        let known = all.find(|r| now - r.seen <= r.timeout)?;
        Some(known.choice.clone())
    }

    /// Lets a gateway remember its choice for a packet. `timeout`: the idle timeout in minutes.
    pub(super) fn remember(&mut self, gateway: &str, packet: &Packet, (choice, timeout): (&Choice, u8), now: u64) {
        self.0.retain(|r| !r.is_of(gateway, packet));
        self.0.push(Remembered {
            gateway: gateway.to_owned(),
            packet: packet.clone(),
            choice: choice.clone(),
            seen: now,
            timeout: u64::from(timeout) * 60,
        });
    }

    /// Forgets all choices.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}
