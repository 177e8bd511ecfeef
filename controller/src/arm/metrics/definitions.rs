//! The metrics of each type of resource, under Azure's names.

use super::question::Aggregation::{self, Average, Total};
use crate::usage::history::Gauge;
use tombolo_topology::metering::Amounts;
use tombolo_topology::path::Kind;

/// A metric of a type of resource.
pub(super) struct Metric {
    pub(super) name: &'static str,
    /// The name and the meaning for users.
    pub(super) title: &'static str,
    pub(super) meaning: &'static str,
    pub(super) unit: &'static str,
    pub(super) primary: Aggregation,
    pub(super) source: Source,
}

/// Where the figures of a metric come from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// What the resource has carried within a minute, an hour or a day.
    Volume(fn(&Amounts) -> u64),
    /// The same for each second.
    Rate(fn(&Amounts) -> u64),
    /// As `Rate`, as the mean of the connections of a gateway.
    MeanRate(fn(&Amounts) -> u64),
    Gauge(Gauge),
    /// The results of the tests of a connection monitor.
    ChecksFailed,
    RoundTrip,
}

const fn metric(
    name: &'static str,
    title: &'static str,
    meaning: &'static str,
    unit: &'static str,
    primary: Aggregation,
    source: Source,
) -> Metric {
    Metric {
        name,
        title,
        meaning,
        unit,
        primary,
        source,
    }
}

const fn bits_in(amounts: &Amounts) -> u64 {
    amounts.ingress_bytes.saturating_mul(8)
}

const fn bits_out(amounts: &Amounts) -> u64 {
    amounts.egress_bytes.saturating_mul(8)
}

const fn bytes(amounts: &Amounts) -> u64 {
    amounts.ingress_bytes.saturating_add(amounts.egress_bytes)
}

/// Of connections, and of circuits.
const LINE: [Metric; 2] = [
    metric(
        "BitsInPerSecond",
        "BitsInPerSecond",
        "Bits that come in from the other end, per second",
        "BitsPerSecond",
        Average,
        Source::Rate(bits_in),
    ),
    metric(
        "BitsOutPerSecond",
        "BitsOutPerSecond",
        "Bits that go out to the other end, per second",
        "BitsPerSecond",
        Average,
        Source::Rate(bits_out),
    ),
];

const GATEWAY: [Metric; 9] = [
    metric(
        "AverageBandwidth",
        "Gateway S2S Bandwidth",
        "Bytes that all tunnels of the gateway carry in both directions, per second",
        "BytesPerSecond",
        Average,
        Source::Rate(bytes),
    ),
    metric(
        "TunnelAverageBandwidth",
        "Tunnel Bandwidth",
        "Bytes that a tunnel of the gateway carries in both directions, per second, as the mean of its connections",
        "BytesPerSecond",
        Average,
        Source::MeanRate(bytes),
    ),
    metric(
        "TunnelIngressBytes",
        "Tunnel Ingress Bytes",
        "Bytes that come in by tunnels",
        "Bytes",
        Total,
        Source::Volume(|amounts| amounts.ingress_bytes),
    ),
    metric(
        "TunnelEgressBytes",
        "Tunnel Egress Bytes",
        "Bytes that go out by tunnels",
        "Bytes",
        Total,
        Source::Volume(|amounts| amounts.egress_bytes),
    ),
    metric(
        "TunnelIngressPackets",
        "Tunnel Ingress Packets",
        "Packets that come in by tunnels",
        "Count",
        Total,
        Source::Volume(|amounts| amounts.ingress_packets),
    ),
    metric(
        "TunnelEgressPackets",
        "Tunnel Egress Packets",
        "Packets that go out by tunnels",
        "Count",
        Total,
        Source::Volume(|amounts| amounts.egress_packets),
    ),
    metric(
        "BgpPeerStatus",
        "BGP Peer Status",
        "Share of the BGP sessions that are connected, from 0 to 1",
        "Count",
        Average,
        Source::Gauge(Gauge::BgpSessionsUp),
    ),
    metric(
        "BgpRoutesAdvertised",
        "BGP Routes Advertised",
        "Routes that the gateway announces to its BGP peers",
        "Count",
        Average,
        Source::Gauge(Gauge::BgpRoutesAdvertised),
    ),
    metric(
        "BgpRoutesLearned",
        "BGP Routes Learned",
        "Routes that BGP peers announce to the gateway",
        "Count",
        Average,
        Source::Gauge(Gauge::BgpRoutesLearned),
    ),
];

const LOAD_BALANCER: [Metric; 2] = [
    metric(
        "VipAvailability",
        "Data Path Availability",
        "Share of the rules with a back end that is up, in percent",
        "Count",
        Average,
        Source::Gauge(Gauge::RulesUp),
    ),
    metric(
        "DipAvailability",
        "Health Probe Status",
        "Share of the back ends that are up, in percent",
        "Count",
        Average,
        Source::Gauge(Gauge::BackEndsUp),
    ),
];

/// Azure has no metrics of peerings, so these have names of their own.
const PEERING: [Metric; 4] = [
    metric(
        "XIngressBytes",
        "Ingress Bytes",
        "Bytes that come in from the remote virtual network",
        "Bytes",
        Total,
        Source::Volume(|amounts| amounts.ingress_bytes),
    ),
    metric(
        "XEgressBytes",
        "Egress Bytes",
        "Bytes that go out to the remote virtual network",
        "Bytes",
        Total,
        Source::Volume(|amounts| amounts.egress_bytes),
    ),
    metric(
        "XIngressPackets",
        "Ingress Packets",
        "Packets that come in from the remote virtual network",
        "Count",
        Total,
        Source::Volume(|amounts| amounts.ingress_packets),
    ),
    metric(
        "XEgressPackets",
        "Egress Packets",
        "Packets that go out to the remote virtual network",
        "Count",
        Total,
        Source::Volume(|amounts| amounts.egress_packets),
    ),
];

const MONITOR: [Metric; 2] = [
    metric(
        "ChecksFailedPercent",
        "Checks Failed Percent",
        "Share of failed probes of the monitor's tests, in percent",
        "Percent",
        Average,
        Source::ChecksFailed,
    ),
    metric(
        "RoundTripTimeMs",
        "Round-Trip Time (ms)",
        "Mean round-trip time of the monitor's probes, in milliseconds",
        "MilliSeconds",
        Average,
        Source::RoundTrip,
    ),
];

/// The metrics of a type of resource; `None`: it has none, or is a connection monitor, which is no [`Kind`].
pub(super) const fn of(kind: Option<Kind>) -> &'static [Metric] {
    match kind {
        Some(Kind::Connection | Kind::Circuit) => &LINE,
        Some(Kind::VirtualNetworkGateway) => &GATEWAY,
        Some(Kind::LoadBalancer) => &LOAD_BALANCER,
        Some(Kind::Peering) => &PEERING,
        _ => &[],
    }
}

/// The metrics of connection monitors.
pub(super) const fn of_monitors() -> &'static [Metric] {
    &MONITOR
}
