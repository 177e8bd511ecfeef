//! The agent's metrics as Prometheus text. `docs/operations.md` describes each metric.

use crate::agent::AgentView;
use tombolo_engine::link::AdvertisementStats;
use tombolo_proto::config::Direction;
use tombolo_proto::exposition::{Kind, Text};
use tombolo_proto::status::{BgpPeerState, Carrier, LinkState, LinkStatus};

/// Reads the value of a gauge from a link's status. None: the metric has no sample for this link.
type Gauge = fn(&LinkStatus) -> Option<f64>;

/// All metrics of the agent in Prometheus' text format, with values from `view`.
#[must_use]
pub fn text(view: &AgentView) -> String {
    let mut out = Text::default();
    out.metric("tombolo_build_info", Kind::Gauge, "1, with the program's version.")
        .add(&[("program", "agent"), ("version", env!("CARGO_PKG_VERSION"))], 1);
    configuration(&mut out, view);
    packets(&mut out, view);
    links(&mut out, view);
    routes(&mut out, view);
    out.finish()
}

fn configuration(out: &mut Text, view: &AgentView) {
    out.metric(
        "tombolo_controller_connected",
        Kind::Gauge,
        "1: the stream to the controller is up.",
    )
    .add(&[], u8::from(view.connected));
    out.metric(
        "tombolo_revision_applied",
        Kind::Gauge,
        "The revision that is in force here.",
    )
    .add(&[], view.status.applied);
    let help = "Time from the arrival of the last configuration until it was in force.";
    out.metric("tombolo_apply_seconds", Kind::Gauge, help)
        .add(&[], view.last_apply_seconds);
    let help = "Expiry of the certificate, Unix time; it is renewed after two thirds of its lifetime.";
    let mut samples = out.metric("tombolo_certificate_expiry_timestamp_seconds", Kind::Gauge, help);
    if let Some(expiry) = view.certificate_expiry {
        samples.add(&[], expiry);
    }
    let help = "1: the packet filter that confines translated packets with overlay addresses is loaded.";
    out.metric("tombolo_filter_loaded", Kind::Gauge, help)
        .add(&[], u8::from(view.filter_problem.is_none()));
    out.metric("tombolo_offload", Kind::Gauge, "1: the TUN device uses GSO packets.")
        .add(&[], u8::from(view.offload));
}

fn packets(out: &mut Text, view: &AgentView) {
    let totals = &view.status.totals;
    let mut samples = out.metric("tombolo_packets_total", Kind::Counter, "Packets by direction.");
    for (direction, n) in [
        ("tun_in", totals.tun_in),
        ("tun_out", totals.tun_out),
        ("link_in", totals.link_in),
        ("link_out", totals.link_out),
        ("replied", totals.replied),
    ] {
        samples.add(&[("direction", direction)], n);
    }
    let mut samples = out.metric(
        "tombolo_lane_packets_total",
        Kind::Counter,
        "Packets of each lane over links.",
    );
    for (lane, totals) in view.lanes.iter().enumerate() {
        let lane = lane.to_string();
        for (direction, n) in [("link_in", totals.link_in), ("link_out", totals.link_out)] {
            samples.add(&[("lane", &lane), ("direction", direction)], n);
        }
    }
    let mut samples = out.metric(
        "tombolo_drops_total",
        Kind::Counter,
        "Packets that were dropped, by reason.",
    );
    for (reason, n) in &view.status.drops {
        samples.add(&[("reason", reason)], n);
    }
    let mut samples = out.metric(
        "tombolo_security_rule_packets_total",
        Kind::Counter,
        "Packets about which a security rule decided: the first of each flow, and those of no flow.",
    );
    for hits in &view.status.rule_hits {
        let direction = match hits.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        samples.add(
            &[
                ("nic", hits.nic.as_str()),
                ("group", hits.group.as_str()),
                ("direction", direction),
                ("rule", &hits.rule),
            ],
            hits.packets,
        );
    }
    let help = "TCP connections in progress that security groups have adopted.";
    out.metric("tombolo_security_adopted_connections_total", Kind::Counter, help)
        .add(&[], view.adopted_connections);
    let help = "Choices of load balancers that a gateway has forgotten while their flows were in use.";
    out.metric("tombolo_balancer_choices_replaced_total", Kind::Counter, help)
        .add(&[], view.replaced_choices);
    let help =
        "Tuples of flow logs, by outcome. Lost: the writer was too slow. Not written: the files could not be written.";
    out.metric("tombolo_flow_log_tuples_total", Kind::Counter, help)
        .add(&[("outcome", "written")], view.flow_log.tuples)
        .add(&[("outcome", "lost")], view.flow_log.lost)
        .add(&[("outcome", "not_written")], view.flow_log.not_written);
    let help = "Length of all files of flow logs.";
    out.metric("tombolo_flow_log_bytes", Kind::Gauge, help)
        .add(&[], view.flow_log.bytes);
    out.metric(
        "tombolo_socket_errors_total",
        Kind::Counter,
        "Writes that the kernel refused.",
    )
    .add(&[("socket", "tun")], view.tun_errors)
    .add(&[("socket", "udp")], view.udp_errors);
    let help = "Datagrams dropped because the receive buffer was full.";
    out.metric("tombolo_receive_overflow_total", Kind::Counter, help)
        .add(&[], view.udp_overflow);
}

fn links(out: &mut Text, view: &AgentView) {
    let links = &view.status.links;
    let help = "1: the link has a session. Links that are neither used nor kept up are not listed.";
    let mut samples = out.metric("tombolo_link_up", Kind::Gauge, help);
    for link in links {
        samples.add(&[("peer", link.peer.as_str())], u8::from(link.state == LinkState::Up));
    }
    let mut samples = out.metric(
        "tombolo_link_bytes_total",
        Kind::Counter,
        "Bytes of inner packets of each link.",
    );
    for link in links {
        for (direction, n) in [("rx", link.rx_bytes), ("tx", link.tx_bytes)] {
            samples.add(&[("peer", link.peer.as_str()), ("direction", direction)], n);
        }
    }
    // A link without traffic has no values for some of these gauges; the metric then has no sample for the link.
    let gauges: [(&'static str, &str, Gauge); 5] = [
        (
            "tombolo_link_mtu_bytes",
            "Longest inner packet that the path carries whole.",
            |l| l.mtu.map(f64::from),
        ),
        (
            "tombolo_link_handshake_age_seconds",
            "Time since the last handshake.",
            |l| l.handshake_age,
        ),
        (
            "tombolo_link_rtt_seconds",
            "Round-trip time of the link's probes.",
            |l| l.rtt_ms.map(|ms| ms / 1000.0),
        ),
        (
            "tombolo_link_loss_ratio",
            "Share of the link's probes that got no answer.",
            |l| l.loss,
        ),
        (
            "tombolo_link_quic",
            "1: the link is carried by QUIC, not by WireGuard.",
            |l| Some(f64::from(u8::from(l.transport == Carrier::Quic))),
        ),
    ];
    for (name, help, value) in gauges {
        let mut samples = out.metric(name, Kind::Gauge, help);
        for link in links {
            if let Some(value) = value(link) {
                samples.add(&[("peer", link.peer.as_str())], value);
            }
        }
    }
}

fn routes(out: &mut Text, view: &AgentView) {
    let help = "1: the session with the BGP neighbour is established.";
    let mut samples = out.metric("tombolo_bgp_session_up", Kind::Gauge, help);
    for peer in &view.status.bgp {
        let is_up = u8::from(peer.state == BgpPeerState::Connected);
        samples.add(&[("neighbour", &peer.neighbour.to_string())], is_up);
    }
    let help = "Routes of a BGP neighbour: received from it, and sent to it.";
    let mut samples = out.metric("tombolo_bgp_routes", Kind::Gauge, help);
    for peer in &view.status.bgp {
        let neighbour = peer.neighbour.to_string();
        for (direction, n) in [("received", peer.received), ("sent", peer.sent)] {
            samples.add(&[("neighbour", &neighbour), ("direction", direction)], n);
        }
    }
    let help = "Routes that peers advertise and that are not used, by sender and reason.";
    let mut samples = out.metric("tombolo_routes_refused", Kind::Gauge, help);
    for refused in &view.status.refused_routes {
        let sender = refused.sender.as_deref().unwrap_or_default();
        samples.add(&[("sender", sender), ("reason", &refused.reason)], refused.count);
    }
    let help = "Route advertisements of other agents, by outcome.";
    let mut samples = out.metric("tombolo_route_advertisements_total", Kind::Counter, help);
    for (outcome, n) in outcomes(view.route_advertisements) {
        samples.add(&[("outcome", outcome)], n);
    }
    let help = "Statements of other agents about the health of their back ends, by outcome.";
    let mut samples = out.metric("tombolo_health_statements_total", Kind::Counter, help);
    for (outcome, n) in outcomes(view.health_statements) {
        samples.add(&[("outcome", outcome)], n);
    }
    let help = "Entries in these statements that do not count, because they are about no back end of the sender.";
    out.metric("tombolo_health_entries_ignored_total", Kind::Counter, help)
        .add(&[], view.health_entries_ignored);
    let help = "Tables that were built because links or routes changed, without a new configuration.";
    out.metric("tombolo_table_rebuilds_total", Kind::Counter, help)
        .add(&[], view.table_rebuilds);
}

/// The counters of the tables of one kind that other agents have sent, by outcome.
const fn outcomes(stats: AdvertisementStats) -> [(&'static str, u64); 5] {
    [
        ("received", stats.received),
        ("applied", stats.applied),
        ("superseded", stats.superseded),
        ("refused", stats.refused),
        ("malformed", stats.malformed),
    ]
}
