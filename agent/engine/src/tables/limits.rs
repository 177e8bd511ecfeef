//! The token buckets of an agent: one for each NIC with a bandwidth, or one for all tunnels of a gateway (P32, G5).

use super::{LinkIndex, LinkPolicy, NicIndex, PeerRole, Tables};
use crate::bandwidth::Bucket;
use crate::decide::Ingress;
use crate::verdict::Verdict;
use tombolo_proto::config::{AgentConfig, MAX_FLOWS_OF_NIC, MAX_VM_NICS, Role};
use tombolo_proto::id::ResourceId;

/// Largest number of buckets of one agent.
pub(crate) const MAX_BUCKETS: usize = MAX_VM_NICS;

/// The buckets of one agent. Their levels are the only part of the tables that packets change.
#[derive(Debug, Clone)]
pub(crate) struct Buckets {
    /// By NIC. `None`: the NIC has no bandwidth.
    nics: Vec<Option<OfNic>>,
    /// That of all tunnels.
    tunnels: Option<Bucket>,
}

/// The bucket of a NIC. The NIC's position may differ between configurations, so its id tells which bucket continues.
#[derive(Debug, Clone)]
struct OfNic {
    nic: ResourceId,
    bucket: Bucket,
}

impl Buckets {
    /// The buckets of a configuration. A bucket continues with the level that it has in `before`. `None`: the agent has
    /// no limit of bandwidth.
    pub(super) fn new(config: &AgentConfig, before: Option<&Self>) -> Option<Self> {
        let limits = config.limits.as_ref()?;
        let continued = |bucket: Option<&Bucket>, rate| match bucket {
            Some(bucket) => bucket.with_rate(rate),
            None => Bucket::new(rate),
        };
        let of_nic = |nic: &ResourceId| {
            let limit = limits.nics.iter().find(|limit| limit.nic == *nic)?;
            let known = before.into_iter().flat_map(|before| before.nics.iter().flatten());
            let known = known.into_iter().find(|known| known.nic == *nic);
            Some(OfNic {
                nic: nic.clone(),
                bucket: continued(known.map(|known| &known.bucket), limit.outbound),
            })
        };
        let nics = match &config.role {
            Role::Vm { nics, .. } => nics.as_slice(),
            Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => &[],
        };
        let buckets = Self {
            nics: nics.iter().map(|nic| of_nic(&nic.id)).collect(),
            tunnels: limits
                .tunnels
                .map(|rate| continued(before.and_then(|before| before.tunnels.as_ref()), rate)),
        };
        (buckets.tunnels.is_some() || buckets.nics.iter().any(Option::is_some)).then_some(buckets)
    }

    /// The bucket of a NIC. `None`: the NIC has no bandwidth.
    pub(crate) fn of_nic(&self, nic: NicIndex) -> Option<&Bucket> {
        let of_nic = self.nics.get(nic.get())?.as_ref()?;
        Some(&of_nic.bucket)
    }

    /// The bucket for which a packet counts that arrived at `ingress` and about which the engine has decided `verdict`.
    /// `None`: for none.
    ///
    /// * P32: at a VM, a packet of the host counts for the NIC whose device it comes from, whatever its destination.
    ///   What comes to a NIC does not count, as in Azure.
    /// * G5: at a gateway, a packet counts for each tunnel that it passes, in both directions, so a packet from one
    ///   tunnel into another one counts twice. The gateway's own packets do not count: otherwise a full gateway would
    ///   lose its BGP sessions.
    pub(crate) fn charge(&self, links: &[LinkPolicy], ingress: Ingress, verdict: Verdict) -> Option<Charge<'_>> {
        let Verdict::Forward { link: to, .. } = verdict else {
            return None;
        };
        match ingress {
            Ingress::Tun(nic) => {
                let of_nic = self.nics.get(nic.get())?.as_ref()?;
                Some(Charge {
                    number: nic.get(),
                    bucket: &of_nic.bucket,
                    times: 1,
                    nic: Some(&of_nic.nic),
                })
            }
            Ingress::Link(from) => {
                let is_tunnel = |link: &LinkIndex| {
                    let link = links.get(link.get());
                    link.is_some_and(|link| link.relation == PeerRole::Connection)
                };
                let times = [from, to].iter().filter(|link| is_tunnel(link)).count();
                // A gateway has no NIC, so the number is free.
                let charge = |bucket| Charge {
                    number: 0,
                    bucket,
                    times,
                    nic: None,
                };
                self.tunnels.as_ref().filter(|_| times > 0).map(charge)
            }
        }
    }
}

/// The bucket for which a packet counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Charge<'t> {
    /// The number of the bucket, below [`MAX_BUCKETS`].
    pub(crate) number: usize,
    pub(crate) bucket: &'t Bucket,
    /// How often the packet counts.
    pub(crate) times: usize,
    /// The NIC. `None`: the bucket is that of all tunnels.
    nic: Option<&'t ResourceId>,
}

/// The limit of bandwidth to which a packet is subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BandwidthLimit<'t> {
    /// The NIC that sends the packet. `None`: the limit is that of all tunnels of the gateway together.
    pub nic: Option<&'t ResourceId>,
    /// In Mbit/s.
    pub rate: u64,
}

impl Tables {
    /// The limit of bandwidth to which a packet is subject that arrived at `ingress` and about which the engine has
    /// decided `verdict` (P32, G5). `None`: there is none.
    #[must_use]
    pub fn bandwidth_limit(&self, ingress: Ingress, verdict: Verdict) -> Option<BandwidthLimit<'_>> {
        let charge = self.buckets.as_ref()?.charge(&self.links, ingress, verdict)?;
        Some(BandwidthLimit {
            nic: charge.nic,
            rate: charge.bucket.rate(),
        })
    }
}

/// Largest number of flows of each NIC (X16).
pub(super) fn flows_of_nic(config: &AgentConfig) -> u32 {
    let limits = config.limits.as_ref();
    limits
        .and_then(|limits| limits.flows_of_nic)
        .unwrap_or(MAX_FLOWS_OF_NIC)
}
