//! What happens to a packet, and why.

use crate::tables::LinkIndex;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What happens to one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the TUN device: it is for this host, or for its kernel to forward (D23).
    Deliver,
    /// Into a link.
    Forward {
        /// Which.
        link: LinkIndex,
        /// This engine is a router on the way and takes one TTL.
        take_ttl: bool,
    },
    /// Dropped, and answered with an ICMP error from the gateway's own address (T5).
    TimeExceeded,
    /// Dropped silently and counted.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a packet was dropped: a closed list, each counted by its name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All reasons, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name, as counters and reports have it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// Not an IP packet, or shorter than its headers say.
    Malformed = "malformed",
    /// The source is not one that the link, or this host, may speak for (D10).
    SpoofedSource = "spoofed_source",
    /// No active route covers the destination (T8).
    NoRoute = "no_route",
    /// The route's next hop is `None` (R13).
    RouteNone = "route_none",
    /// The route's next hop is `Internet`, which the overlay does not carry.
    RouteInternet = "route_internet",
    /// The VNet has the address, but nobody owns it (D8).
    NoOwner = "no_owner",
    /// The virtual appliance's address is neither in this VNet nor in a directly peered one (R11).
    ApplianceUnreachable = "appliance_unreachable",
    /// `allowVirtualNetworkAccess` is off on this side of the peering (P17).
    AccessDenied = "access_denied",
    /// The route leads to a gateway, and no instance of it is there.
    NoGateway = "no_gateway",
    /// Not for this host, and none of its NICs has `enableIPForwarding` (R12).
    NotForwarding = "not_forwarding",
    /// A gateway does not relay between these two (D9, P24).
    TransitNotAllowed = "transit_not_allowed",
    /// The next hop is where the packet came from, or this host itself.
    Hairpin = "hairpin",
    /// TTL ran out at a gateway that keeps silent towards this source (T5).
    TtlExceededSilent = "ttl_exceeded_silent",
    /// TTL ran out; answered, or the answer was held back by the limiter.
    TtlExceeded = "ttl_exceeded",
    /// The route leads to an agent that there is no link to.
    NoLink = "no_link",
    /// The link has no session, and its queue is full.
    LinkDown = "link_down",
    /// Too big for the link.
    TooBig = "too_big",
    /// A datagram from nobody we know, or one that does not verify.
    BadDatagram = "bad_datagram",
    /// A datagram that repeats an earlier one.
    Replayed = "replayed",
    /// The socket has no room, and enough waits for it already.
    QueueFull = "queue_full",
    /// The queue in front of the agent stood for too long (RFC 8289): the sender is to slow down.
    Congestion = "congestion",
    /// The kernel refused to send it.
    SendRefused = "send_refused",
    /// The kernel refused to take it from the device.
    DeviceRefused = "device_refused",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
