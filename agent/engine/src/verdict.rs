//! The outcomes of the packet decision.

use crate::tables::{BackEndIndex, LinkIndex, NicIndex};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The decision about one packet, which the engine then carries out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Write the packet to the TUN device of a NIC: it is for this host, or for the host's kernel to forward (D23).
    Deliver(NicIndex),
    /// Replace the destination of the packet, which is the front end of a load balancer, by a back end that this agent
    /// owns, and write the packet to the TUN device of the back end's NIC (L5, D35).
    Translate(BackEndIndex),
    /// Send the packet into a link.
    Forward {
        /// The link to the next agent.
        link: LinkIndex,
        /// Decrement the TTL before sending, because this agent is a router on the path.
        decrement_ttl: bool,
    },
    /// Drop the packet, and send the ICMP error "time exceeded" from the gateway's own address (T5).
    TimeExceeded,
    /// Drop the packet, and count it under this reason.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The reason why a packet or datagram was dropped. Metrics and reports use its stable name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All reasons, in the order of the variants.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name in metrics and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// The bytes are not an IP packet, or are shorter than their headers say.
    Malformed = "malformed",
    /// The link from which the packet came, or this host if it sent the packet, may not use the packet's source (D10).
    SpoofedSource = "spoofed_source",
    /// No active route contains the destination (T8).
    NoRoute = "no_route",
    /// The route's next hop is `None` (R13).
    RouteNone = "route_none",
    /// The route's next hop is `Internet`, which the overlay does not carry.
    RouteInternet = "route_internet",
    /// A known VNet contains the destination, or the address of the route's virtual appliance, but no agent owns this
    /// address (D8).
    NoOwner = "no_owner",
    /// The virtual appliance's address is neither in this VNet nor in a directly peered one (R11).
    ApplianceUnreachable = "appliance_unreachable",
    /// The packet comes from or goes to a peered VNet, and this VNet's half of the peering has
    /// `allowVirtualNetworkAccess` off (P17).
    AccessDenied = "access_denied",
    /// The route leads to a gateway, or over a connection, and this agent has no link with any instance of the gateway
    /// or of the connection's remote end.
    NoGateway = "no_gateway",
    /// The destination is the front end of a load balancer, and none of its rules applies to the packet's protocol and
    /// port (L3).
    NoBalancingRule = "no_balancing_rule",
    /// The destination is the front end of a load balancer, and the packet is neither TCP nor UDP, nor an ICMP error about
    /// a known flow.
    BalancerProtocol = "balancer_protocol",
    /// The load balancer's rule has no back end to which the packet could go (L8).
    NoBackEnd = "no_back_end",
    /// The chosen back end of the load balancer is the sender of the packet (L11).
    BackEndItself = "back_end_itself",
    /// The back end of the packet's TCP connection is gone: the link with its agent has been down for too long (D36). A
    /// reset was due, but the packet has RST itself, or the reset's rate is exceeded.
    BackEndGone = "back_end_gone",
    /// The packet belongs to a TCP connection through a load balancer that has ended, because there were no packets for the
    /// idle timeout of the rule (L3).
    FlowEnded = "flow_ended",
    /// The destination is no address of this host or of its served subnets, and none of the host's NICs has
    /// `enableIPForwarding` (R12).
    NotForwarding = "not_forwarding",
    /// The gateway does not forward between these two networks (D9, P24).
    TransitNotAllowed = "transit_not_allowed",
    /// A rule of a network security group denies the packet (N3, N7). The rule's own counter names it.
    SecurityRule = "security_rule",
    /// The packet is a later fragment, and the security groups have not admitted the first fragment of its datagram. This
    /// happens if fragments arrive out of order.
    UnknownFragment = "unknown_fragment",
    /// The security groups allow the packet, and the table of flows has no room for its flow (D32).
    FlowTableFull = "flow_table_full",
    /// The security groups allow the packet, and its NIC has as many flows as it may have (X16).
    NicFlowLimit = "nic_flow_limit",
    /// The NIC that sends the packet has used its bandwidth (P32), or the tunnels of the gateway have used theirs (G5).
    BandwidthExceeded = "bandwidth_exceeded",
    /// The next hop is the link from which the packet came, or the packet comes from this host and is for this host. Or a
    /// client and its back end are behind this agent, and the packet is a fragment or no source port is free for its flow.
    Hairpin = "hairpin",
    /// The TTL expired at a gateway that sends no ICMP error to this source (T5).
    TtlExceededSilent = "ttl_exceeded_silent",
    /// The TTL expired. An ICMP error was due, but could not be sent, e.g. because of the rate limit.
    TtlExceeded = "ttl_exceeded",
    /// This agent has no link with the next agent, or a link index belongs to another configuration.
    NoLink = "no_link",
    /// The link has no session, and no packet can wait for one: its queue is full, no endpoint is known, or its
    /// handshake failed.
    LinkDown = "link_down",
    /// The packet exceeds the MTU of the link and may not be fragmented; or a received datagram is longer than UDP
    /// allows.
    TooBig = "too_big",
    /// The datagram comes from an unknown sender, or does not verify.
    BadDatagram = "bad_datagram",
    /// The datagram was received before, or is so old that the link does not know any more whether it was.
    Replayed = "replayed",
    /// The socket's buffer and the queue of datagrams for the socket are full, or the queue of packets for lane 0 is
    /// full.
    QueueFull = "queue_full",
    /// The packet's sender does not support ECN, and either a router in the underlay set CE in the datagram (RFC 6040),
    /// or the queue of received datagrams has not been empty for too long (in the style of RFC 8289).
    Congestion = "congestion",
    /// The kernel refused to send the datagram.
    SendRefused = "send_refused",
    /// The TUN device refused the packet.
    DeviceRefused = "device_refused",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
