//! The NICs of a VM, and the NIC at which a packet from a link arrives (D37).

use super::lpm::Lpm;
use super::{BuildError, LinkPolicy, NicIndex};
use crate::packet::PacketInfo;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::config::{Arrival, Nic, Subnet};

/// The NICs of a VM, with the addresses that the VM owns.
#[derive(Debug, Clone)]
pub(crate) struct VmNics {
    /// Maps each address of a NIC, and each served prefix, to its subnet. Packets to these addresses are delivered to a
    /// TUN device. `None`: the address of a front end within a served prefix, which no machine has (L1).
    owned: Lpm<Option<Place>>,
    /// The NICs, by [`NicIndex`].
    nics: Vec<VmNic>,
    /// The first NIC with IP forwarding.
    first_forwarding: Option<NicIndex>,
}

/// The subnet of an address that the VM owns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The position of the subnet in [`Tables::subnets`](super::Tables::subnets).
    pub(crate) subnet: usize,
    /// The NIC that has the address. `None`: the address belongs to a served subnet, whose packets may leave by any NIC.
    pub(crate) nic: Option<NicIndex>,
}

#[derive(Debug, Clone, Copy)]
struct VmNic {
    subnet: usize,
    ip_forwarding: bool,
}

impl VmNics {
    /// Prepares the NICs and the served prefixes of a VM. `front_ends`: the front ends in the VM's VNet.
    ///
    /// # Errors
    /// A NIC or a served prefix is in none of `subnets`.
    pub(crate) fn new(
        nics: &[Nic],
        served: &[IpNet],
        subnets: &[Subnet],
        front_ends: impl Iterator<Item = IpAddr>,
    ) -> Result<Self, BuildError> {
        let mut all = Self {
            owned: Lpm::default(),
            nics: Vec::with_capacity(nics.len()),
            first_forwarding: None,
        };
        for prefix in served {
            let contains = |s: &Subnet| s.prefixes.iter().any(|p| p.contains(prefix));
            let subnet = subnets.iter().position(contains);
            let subnet =
                subnet.ok_or_else(|| BuildError(format!("served: {prefix} is within no prefix of a subnet")))?;
            all.owned.insert(*prefix, Some(Place { subnet, nic: None }));
        }
        for address in front_ends {
            all.owned.insert(address.into(), None);
        }
        for (nic, number) in nics.iter().zip(0..) {
            let subnet = subnets.iter().position(|s| s.id == nic.subnet);
            let subnet = subnet.ok_or_else(|| {
                BuildError(format!(
                    "nics: {} is in {}, which is not in subnets",
                    nic.id, nic.subnet
                ))
            })?;
            let index = NicIndex(number);
            for address in &nic.addresses {
                let place = Place {
                    subnet,
                    nic: Some(index),
                };
                all.owned.insert(address.addr().into(), Some(place));
            }
            if nic.ip_forwarding {
                all.first_forwarding.get_or_insert(index);
            }
            all.nics.push(VmNic {
                subnet,
                ip_forwarding: nic.ip_forwarding,
            });
        }
        Ok(all)
    }

    /// The subnet and the NIC of an address that the VM owns. `None`: the VM does not own the address.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<Place> {
        self.owned.get(address).copied().flatten()
    }

    /// Whether a NIC has the address. Addresses in served subnets do not count.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.owner(address).is_some_and(|place| place.nic.is_some())
    }

    /// The subnet of a NIC with IP forwarding. Its routes apply to packets that the NIC sends with foreign sources.
    /// `None`: the NIC has no IP forwarding, or there is no such NIC.
    pub(crate) fn forwarding_subnet(&self, nic: NicIndex) -> Option<usize> {
        let nic = self.nics.get(nic.get())?;
        nic.ip_forwarding.then_some(nic.subnet)
    }

    /// The NIC at which a packet from `link` arrives. It is the NIC that the peer's route names as virtual appliance.
    /// Without such a route, it is the NIC that has the destination, or the first NIC if the destination is in a served
    /// subnet. Packets for other hosts arrive at the first NIC with IP forwarding, or at the first NIC if none has it.
    pub(crate) fn arrival(&self, link: &LinkPolicy, packet: &PacketInfo) -> NicIndex {
        link.arrivals
            .get(packet)
            .or_else(|| match self.owner(packet.destination) {
                Some(place) => Some(place.nic.unwrap_or(NicIndex::FIRST)),
                None => self.first_forwarding,
            })
            .unwrap_or(NicIndex::FIRST)
    }
}

/// The NICs that the routes of a peer name as virtual appliances: by source, and then by destination.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals(Lpm<Lpm<NicIndex>>);

impl Arrivals {
    /// Prepares the entries of [`Link::arrivals`](tombolo_proto::config::Link::arrivals).
    pub(crate) fn new(arrivals: &[Arrival]) -> Self {
        let mut all = Lpm::default();
        for of_source in arrivals.chunk_by(|a, b| a.source == b.source) {
            let mut by_destination = Lpm::default();
            for arrival in of_source {
                by_destination.insert(arrival.destination, NicIndex(arrival.nic));
            }
            all.insert(of_source[0].source, by_destination);
        }
        Self(all)
    }

    /// The NIC for the longest matching source, and within it the longest matching destination.
    fn get(&self, packet: &PacketInfo) -> Option<NicIndex> {
        self.0.get(packet.source)?.get(packet.destination).copied()
    }
}
