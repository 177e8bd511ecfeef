//! What a person must do where no change that the controller can propose lets a packet arrive, and why it proposes none.

use super::stopped::vnets_with;
use crate::explain::{Explanation, Stop, explain};
use crate::learned_routes::LearnedReports;
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::fabric::ExplainRequest;

/// Something that only a person can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ByHand {
    /// What to do: an imperative sentence without a full stop.
    pub text: String,
    /// What stops the packet: a sentence without a full stop.
    pub cause: String,
    /// Why the controller proposes no change that does it: a sentence without a full stop.
    pub why: String,
    /// The changes of the configuration after which this is what stops the packet, in words. Often none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

/// The state at the beginning, or one in which no change helps the packet on.
pub(super) struct Stuck {
    /// The changes that have led there, in words.
    pub(super) after: Vec<String>,
    pub(super) explanation: Explanation,
}

/// Largest number of entries in an answer.
const MAX_ENTRIES: usize = 3;

/// What stops the packet in the network as the agents report it, although it arrives by the design. `None`: nothing.
pub(super) fn in_the_network(
    topology: &Topology,
    reports: &LearnedReports,
    question: &ExplainRequest,
) -> Option<ByHand> {
    let why = PRESENT_STATE.to_owned();
    let explanation = match explain(topology, reports, question) {
        Ok(explanation) => explanation,
        Err(cause) => {
            let text = match cause.contains("no agent") {
                true => "create a join token for the source's machine (tombolo token create), and join an agent there",
                false => "name the source and the destination by their full ids",
            };
            return Some(ByHand {
                text: text.to_owned(),
                cause,
                why,
                after: Vec::new(),
            });
        }
    };
    let stop = stop_of(&explanation)?;
    Some(ByHand {
        text: stop.remedy.clone(),
        cause: stop.cause.clone(),
        why: match stop.reason == DropReason::TtlExceeded.name() {
            true => "the TTL is in the question, not in the configuration".to_owned(),
            false => why,
        },
        after: Vec::new(),
    })
}

/// What a person must do about states in which no change helps, of which the first one is the present state: each cause once,
/// and only those that no change can mend. If there are none of these: what stops the packet now. `is_cut_off`: not all sets of
/// changes were tried.
pub(super) fn in_the_design(topology: &Topology, stuck: Vec<Stuck>, is_cut_off: bool) -> Vec<ByHand> {
    let mut seen = BTreeSet::new();
    let entry = |Stuck { after, explanation }: Stuck| {
        let stop = stop_of(&explanation)?;
        Some(ByHand {
            text: stop.remedy.clone(),
            cause: stop.cause.clone(),
            why: why(topology, &explanation, stop).to_owned(),
            after,
        })
    };
    let mut all: Vec<ByHand> = stuck.into_iter().filter_map(entry).collect();
    let first = all
        .first()
        .cloned()
        .map(|first| match first.why == NONE_HELPS && is_cut_off {
            true => ByHand {
                why: CUT_OFF.to_owned(),
                ..first
            },
            false => first,
        });
    all.retain(|entry| entry.why != NONE_HELPS && seen.insert(entry.cause.clone()));
    match (all.first(), first) {
        (Some(one), Some(first)) if *one == first => vec![first],
        (Some(_), _) => {
            all.truncate(MAX_ENTRIES);
            all
        }
        (None, first) => first.into_iter().collect(),
    }
}

/// The stop of the packet, or of its reply.
fn stop_of(explanation: &Explanation) -> Option<&Stop> {
    let reply = explanation.reply.as_ref().and_then(|reply| reply.stop.as_ref());
    explanation.request.stop.as_ref().or(reply)
}

const NONE_HELPS: &str = "no set of at most five changes of peerings, routes, IP forwarding, security rules, connections and load \
                          balancers lets the packet pass here";
const CUT_OFF: &str = "there are more sets of changes than the controller tries";
const KEY: &str = "a tunnel needs a key that its far end has too, and only the site knows it";
const PRESENT_STATE: &str =
    "the configuration lets the packet arrive; this is the present state of the machines and links";
const OF_STATE: &str = "this depends on the traffic and the machines at that time, not on the configuration";

/// Why the controller proposes no change against a stop.
fn why(topology: &Topology, explanation: &Explanation, stop: &Stop) -> &'static str {
    let reason = DropReason::ALL.iter().find(|reason| reason.name() == stop.reason);
    let Some(reason) = reason else {
        return match stop.reason.as_str() {
            "no_configuration" => "only a machine itself can join as an agent",
            "unusable_configuration" => {
                "the agent would refuse its configuration, and which change has made it so is not known"
            }
            _ => NONE_HELPS,
        };
    };
    let rule = stop.rule.as_deref().unwrap_or_default();
    match reason {
        DropReason::SpoofedSource => match rule {
            "D10" | "D16" => {
                "the source address is not one of the place that the packet comes from; its sender or its router must change that"
            }
            _ => NONE_HELPS,
        },
        DropReason::NoRoute | DropReason::RouteNone | DropReason::RouteInternet => match rule {
            "R1" => "no network is known to have the address, so there is nothing to which a route could lead",
            "R6" | "M10" => {
                "the state of a site's tunnels and lines, and what its routers announce, is decided in the site"
            }
            "G9" | "D16" | "G11" => KEY,
            "E6" => "the setting is for all circuits at once, and no peering can join these networks",
            "E8" => "VPN gateways and ExpressRoute gateways never relay to each other",
            "D7" => "only a machine itself can join as an agent",
            "P24" if spaces_overlap(topology, explanation) => {
                "the address spaces of the two networks overlap, so neither a peering nor a connection can join them"
            }
            _ => NONE_HELPS,
        },
        DropReason::NoOwner => match rule {
            "P21" => "a gateway answers its own virtual network only, whatever the configuration is",
            "P30" => "the SKU of a load balancer cannot change, and the setting is for all networks at once",
            "D7" => "only a machine itself can join as an agent",
            _ => "only you know which machine is to have the address",
        },
        DropReason::NoGateway => match rule {
            "R14" => "a gateway needs a subnet and addresses that only you can choose",
            "G11" | "D16" => KEY,
            _ => NONE_HELPS,
        },
        DropReason::BalancerProtocol => "no rule of a load balancer takes other protocols than TCP and UDP",
        DropReason::NoBackEnd => "only you know which machines are to answer behind this front end",
        DropReason::BackEndItself => {
            "the hash of the flow chooses the back end, and a back end never reaches itself through its own load balancer"
        }
        DropReason::TransitNotAllowed => match rule {
            "E6" => "the setting is for all circuits at once, and no peering can join these networks",
            "E8" => "VPN gateways and ExpressRoute gateways never relay to each other",
            _ => NONE_HELPS,
        },
        DropReason::LinkDown | DropReason::NoLink => match rule {
            "G11" | "D14" => KEY,
            _ => NONE_HELPS,
        },
        DropReason::ApplianceUnreachable
        | DropReason::AccessDenied
        | DropReason::NoBalancingRule
        | DropReason::NotForwarding
        | DropReason::SecurityRule
        | DropReason::Hairpin => NONE_HELPS,
        DropReason::Malformed
        | DropReason::BackEndGone
        | DropReason::FlowEnded
        | DropReason::UnknownFragment
        | DropReason::FlowTableFull
        | DropReason::NicFlowLimit
        | DropReason::BandwidthExceeded
        | DropReason::TtlExceeded
        | DropReason::TtlExceededSilent
        | DropReason::TooBig
        | DropReason::BadDatagram
        | DropReason::Replayed
        | DropReason::QueueFull
        | DropReason::Congestion
        | DropReason::SendRefused
        | DropReason::DeviceRefused => OF_STATE,
    }
}

/// Whether a virtual network with the source and one with the destination have addresses in common, so that nothing can join
/// them.
fn spaces_overlap(topology: &Topology, explanation: &Explanation) -> bool {
    let of = |address| vnets_with(topology, address).collect::<Vec<_>>();
    let (from, to) = (of(explanation.source), of(explanation.destination));
    let mut pairs = from.iter().flat_map(|one| to.iter().map(move |other| (one, other)));
    pairs.any(|(one, other)| {
        let ids = (&one.envelope.id, &other.envelope.id);
        let mut prefixes = one.address_space.iter();
        let overlaps = |a: &ipnet::IpNet| other.address_space.iter().any(|b| a.contains(b) || b.contains(a));
        ids.0 != ids.1 && prefixes.any(overlaps)
    })
}
