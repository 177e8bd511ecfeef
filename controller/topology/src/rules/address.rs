//! Allocates addresses in subnets (P2): for NICs, gateways, front ends of load balancers, and tunnels to circuits.

use crate::arm::body::{Object, missing};
use crate::draft::Draft;
use crate::lookup::is_gateway_subnet;
use crate::net::{first_free, is_reserved, listed};
use crate::path::{child_id, is_child_of, parent_id};
use crate::resource::Subnet;
use crate::rules::place::Place;
use crate::rules::unsupported;
use crate::topology::Topology;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// An ip configuration as a body requests it.
pub(crate) struct AddressRequest {
    /// The id of the ip configuration. Its name is empty if the body has no valid name; then a problem says so.
    pub(crate) id: ResourceId,
    /// The subnet to which the body refers.
    pub(crate) subnet: Subnet,
    /// `privateIPAddress`. `None`: the body has none.
    pub(crate) address: Option<IpAddr>,
    /// Whether the allocation method is `Static`. If the body has no method, whether it has an address.
    pub(crate) is_static: bool,
    /// Whether `privateIPAddressVersion` is IPv6. `None`: the body has no version.
    pub(crate) ipv6: Option<bool>,
    /// The field `privateIPAddress`, for messages.
    pub(crate) at: String,
    /// `primary`, false by default.
    pub(crate) primary: bool,
    /// The stored id of the public address to which the body refers.
    pub(crate) public_ip_address: Option<ResourceId>,
    /// The application security groups that the address belongs to.
    pub(crate) application_security_groups: Vec<ResourceId>,
    /// The back-end pools that the address belongs to.
    pub(crate) load_balancer_pools: Vec<ResourceId>,
    /// The inbound NAT rules whose target is the address.
    pub(crate) inbound_nat_rules: Vec<ResourceId>,
}

impl Draft<'_> {
    /// Reads `ipConfigurations` of the NIC or gateway at `place`, in the order of the body: at least one and at most
    /// `max`. An ip configuration that cannot be read adds a problem and is left out. No address is allocated yet.
    pub(crate) fn read_ip_configurations(
        &mut self,
        place: &Place<'_>,
        properties: &Object<'_>,
        max: usize,
    ) -> Vec<AddressRequest> {
        let owner = place.id;
        let before = self.problems.len();
        let items = properties
            .list("ipConfigurations", max, &mut self.problems)
            .unwrap_or_default();
        if items.is_empty() && self.problems.len() == before {
            missing(&mut self.problems, &properties.at("ipConfigurations"));
        }
        let mut requested = Vec::new();
        let mut names = Vec::new();
        let mut publics: BTreeSet<ResourceId> = BTreeSet::new();
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let name = self.child_name(&object);
            let inner = object.object_or_empty("properties", &mut self.problems);
            names.extend(name.clone());
            let Some(one) = self.read_ip_configuration(place, name.unwrap_or_default(), &inner) else {
                continue;
            };
            if let Some(public) = one.public_ip_address.clone()
                && !publics.insert(public.clone())
            {
                let at = inner.at("publicIPAddress.id");
                let message = format!("{at}: {public} is used by another ip configuration of the same resource");
                self.problems.add("PublicIPAddressInUse", at, message);
            }
            requested.push(one);
        }
        self.check_unique_names(owner, "ip configuration", names.iter().map(String::as_str));
        requested
    }

    /// Reads one ip configuration. `None`: the body names no subnet for it, or a subnet that does not exist. Both add a
    /// problem.
    fn read_ip_configuration(&mut self, place: &Place<'_>, name: String, inner: &Object<'_>) -> Option<AddressRequest> {
        let owner = place.id;
        let primary = inner.boolean("primary", &mut self.problems).unwrap_or(false);
        self.check_supported(inner, unsupported::IP_CONFIGURATION);
        let application_security_groups = self.resolve_application_groups(inner, "applicationSecurityGroups", place);
        let (load_balancer_pools, inbound_nat_rules) = self.resolve_load_balancing(inner, place);
        let public_ip_address = self.resolve_public_ip(inner, place, &name);
        let request = self.read_address_request(place, child_id(owner, "ipConfigurations", &name), inner)?;
        Some(AddressRequest {
            primary,
            public_ip_address,
            application_security_groups,
            load_balancer_pools,
            inbound_nat_rules,
            ..request
        })
    }

    /// Reads the members with which the ip configuration or front end `id` requests an address: the subnet, and the
    /// address with its method and version. The other members of the result are empty. `None`: the body names no
    /// subnet, or one that does not exist. Both add a problem.
    pub(crate) fn read_address_request(
        &mut self,
        place: &Place<'_>,
        id: ResourceId,
        inner: &Object<'_>,
    ) -> Option<AddressRequest> {
        let method = inner.choice("privateIPAllocationMethod", &["Dynamic", "Static"], &mut self.problems);
        let version = inner.choice("privateIPAddressVersion", &["IPv4", "IPv6"], &mut self.problems);
        let address = inner.address("privateIPAddress", &mut self.problems);
        let at = inner.at("privateIPAddress");
        let is_static = match method {
            Some(method) => method == "Static",
            None => address.is_some(),
        };
        if is_static && inner.get("privateIPAddress").is_none_or(|v| v.as_str() == Some("")) {
            missing(&mut self.problems, &at);
        }
        if let (Some(version), Some(address)) = (version, address.filter(|_| is_static))
            && address.is_ipv6() != (version == "IPv6")
        {
            self.problems.add(
                "InvalidRequestFormat",
                at.clone(),
                format!("{at}: {address} is not an {version} address, as privateIPAddressVersion says"),
            );
        }
        if inner.get("subnet").is_none() {
            missing(&mut self.problems, &inner.at("subnet"));
        }
        let subnet = self.resolve(inner, "subnet", place.id, find_subnet)?;
        self.check_beside_vnet(&subnet, place, &inner.at("subnet.id"));
        Some(AddressRequest {
            id,
            subnet,
            address,
            is_static,
            ipv6: version.map(|v| v == "IPv6"),
            at,
            primary: false,
            public_ip_address: None,
            application_security_groups: Vec::new(),
            load_balancer_pools: Vec::new(),
            inbound_nat_rules: Vec::new(),
        })
    }

    /// Checks that no ip configuration or front end is in a `GatewaySubnet` (G1) or, unless `stays` is true for it, in a
    /// delegated subnet. `owner`: the resource that requests the addresses, as the beginning of the messages.
    pub(crate) fn check_subnets_free_for(
        &mut self,
        owner: &str,
        id: &ResourceId,
        requested: &[AddressRequest],
        stays: impl Fn(&AddressRequest) -> bool,
    ) {
        if let Some(gateway) = requested.iter().find(|w| is_gateway_subnet(&w.subnet.id)) {
            self.problems.add(
                "GatewaySubnet",
                id,
                format!(
                    "{owner} cannot be in subnet {}: it is for virtual network gateways only (G1).",
                    gateway.subnet.id
                ),
            );
        }
        let delegated = requested
            .iter()
            .find(|w| !w.subnet.delegated_to().is_empty() && !stays(w));
        if let Some(delegated) = delegated {
            self.problems.add(
                "XSubnetIsDelegated",
                id,
                format!(
                    "{owner} cannot be in subnet {}: it is delegated to {}, and only resources of this service can be in it. \
                     Choose another subnet, or remove the delegation.",
                    delegated.subnet.id,
                    delegated.subnet.delegated_to().into_iter().collect::<Vec<_>>().join(", ")
                ),
            );
        }
    }

    /// Chooses an address for each requested ip configuration, and returns the addresses in the order of `requested`.
    /// Nothing is written to the draft. Static addresses are checked first, so that no dynamic ip configuration gets
    /// one of them. Then existing dynamic ip configurations keep their present addresses. Then each of the others gets
    /// the lowest free address.
    ///
    /// `current`: the present address of each ip configuration, used for dynamic ones. `avoid`: addresses that are not
    /// chosen as free addresses, such as the BGP address of `owner`. An item of the result is `None` if the ip
    /// configuration got no address; then a problem gives the reason.
    pub(crate) fn allocate(
        &mut self,
        owner: &ResourceId,
        requested: &[AddressRequest],
        current: &[Option<IpAddr>],
        avoid: impl IntoIterator<Item = IpAddr>,
    ) -> Vec<Option<IpAddr>> {
        let mut used = BTreeSet::new();
        let vnets: BTreeSet<ResourceId> = requested.iter().map(|w| parent_id(&w.subnet.id)).collect();
        for vnet in &vnets {
            let of_vnet = used_addresses(&self.topology, vnet, owner);
            let here = requested.iter().filter(|w| parent_id(&w.subnet.id) == *vnet);
            self.check_address_count(owner, vnet, of_vnet.len(), here.count());
            used.extend(of_vnet);
        }
        let mut result: Vec<Option<IpAddr>> = vec![None; requested.len()];
        for (slot, w) in result.iter_mut().zip(requested).filter(|(_, w)| w.is_static) {
            let Some(address) = w.address else { continue };
            if self.check_static(owner, w, address, &used) {
                used.insert(address);
                *slot = Some(address);
            }
        }
        // All present addresses are kept before new ones are chosen. Otherwise a new ip configuration could get the
        // present address of another one.
        let fits = |w: &AddressRequest, address: IpAddr| {
            let family = w.ipv6.is_none_or(|v6| v6 == address.is_ipv6());
            family && w.subnet.prefixes.iter().any(|p| p.contains(&address))
        };
        for ((slot, w), kept) in result
            .iter_mut()
            .zip(requested)
            .zip(current)
            .filter(|((_, w), _)| !w.is_static)
        {
            if let Some(kept) = kept.filter(|k| fits(w, *k) && !used.contains(k)) {
                used.insert(kept);
                *slot = Some(kept);
            }
        }
        used.extend(avoid);
        for (slot, w) in result.iter_mut().zip(requested) {
            if w.is_static || slot.is_some() {
                continue;
            }
            let ipv6 = w
                .ipv6
                .unwrap_or_else(|| !w.subnet.prefixes.iter().any(|p| p.addr().is_ipv4()));
            let family = w.subnet.prefixes.iter().filter(|p| p.addr().is_ipv6() == ipv6);
            *slot = family.filter_map(|p| first_free(p, &used)).next();
            match *slot {
                Some(address) => {
                    used.insert(address);
                }
                None => self.subnet_is_full(owner, &w.subnet, ipv6),
            }
        }
        result
    }

    /// Checks the address of a static ip configuration; see [`Self::check_given`].
    fn check_static(
        &mut self,
        owner: &ResourceId,
        w: &AddressRequest,
        address: IpAddr,
        used: &BTreeSet<IpAddr>,
    ) -> bool {
        let asker = format!("IP configuration {}", w.id);
        self.check_given(owner, &asker, &w.at, &w.subnet, address, used)
    }

    /// Checks an address that a body requests: it is in the subnet, not reserved (P2), and not in `used`. False: the
    /// address is not usable, and a problem says so. `asker`: who requests the address, as the beginning of the
    /// message. `at`: the field.
    pub(crate) fn check_given(
        &mut self,
        owner: &ResourceId,
        asker: &str,
        at: &str,
        subnet: &Subnet,
        address: IpAddr,
        used: &BTreeSet<IpAddr>,
    ) -> bool {
        let (code, message) = match subnet.prefixes.iter().find(|p| p.contains(&address)) {
            None => (
                "PrivateIPAddressNotInSubnet",
                format!(
                    "Private static IP address {address} does not belong to the range of subnet prefix {} ({}).",
                    listed(&subnet.prefixes),
                    subnet.id
                ),
            ),
            Some(prefix) if is_reserved(prefix, address) => (
                "PrivateIPAddressInReservedRange",
                format!(
                    "Private static IP address {address} falls within reserved IP range of subnet prefix {prefix}: the \
                     first four addresses and the last (P2)."
                ),
            ),
            Some(_) if used.contains(&address) => {
                let user = address_user(&self.topology, &parent_id(&subnet.id), address, owner);
                (
                    "PrivateIPAddressInUse",
                    format!(
                        "{asker} is using the private IP address {address} which is already allocated to resource {}.",
                        user.unwrap_or_else(|| owner.to_string())
                    ),
                )
            }
            Some(_) => return true,
        };
        self.problems.add(code, at, message);
        false
    }

    /// Adds the problem that a subnet has no free address of a family.
    pub(crate) fn subnet_is_full(&mut self, owner: &ResourceId, subnet: &Subnet, ipv6: bool) {
        self.problems.add(
            "SubnetIsFull",
            owner,
            format!(
                "Subnet {} with address prefix {} does not have enough capacity for 1 {} address (P2).",
                subnet.id,
                listed(&subnet.prefixes),
                if ipv6 { "IPv6" } else { "IPv4" }
            ),
        );
    }
}

/// A copy of the subnet with an id. `None`: the subnet or its VNet does not exist.
pub(crate) fn find_subnet(topology: &Topology, id: &ResourceId) -> Option<Subnet> {
    let vnet = topology.vnets.get(&parent_id(id))?;
    vnet.subnets.iter().find(|s| s.id == *id).cloned()
}

/// The addresses in a VNet that resources other than `owner` use, each with the resource: the addresses of NICs, of
/// gateways (also BGP addresses, G4), of front ends (L1), and of the tunnels of connections (T4).
fn taken<'t>(
    topology: &'t Topology,
    vnet: &'t ResourceId,
    owner: &'t ResourceId,
) -> impl Iterator<Item = (IpAddr, &'t ResourceId)> + 't {
    let inside = move |subnet: &ResourceId| is_child_of(subnet, vnet);
    let nics = topology.nics.values().filter(move |n| n.envelope.id != *owner);
    let nics = nics.flat_map(move |n| {
        let configs = n.ip_configurations.iter().filter(move |c| inside(&c.subnet));
        configs.map(move |c| (c.address, &n.envelope.id))
    });
    let here = topology
        .gateways
        .values()
        .filter(move |g| g.ip_configurations.first().is_some_and(|c| inside(&c.subnet)));
    let gateways = here.filter(move |g| g.envelope.id != *owner).flat_map(|g| {
        let addresses = g.ip_configurations.iter().map(|c| c.address);
        addresses.chain([g.bgp_peering_address]).map(|a| (a, &g.envelope.id))
    });
    let tunnels = topology.connections.values().filter(move |c| {
        let gateway = topology.gateways.get(&c.gateway1);
        let place = gateway.and_then(|g| g.ip_configurations.first());
        !c.tunnel_addresses.is_empty() && c.envelope.id != *owner && place.is_some_and(|p| inside(&p.subnet))
    });
    let tunnels = tunnels.flat_map(|c| c.tunnel_addresses.iter().map(|a| (*a, &c.envelope.id)));
    let balancers = topology
        .load_balancers
        .values()
        .filter(move |b| b.envelope.id != *owner);
    let front_ends = balancers.flat_map(move |b| {
        let own = b.front_ends.iter().filter(move |f| inside(&f.subnet));
        own.map(move |f| (f.address, &b.envelope.id))
    });
    nics.chain(gateways).chain(tunnels).chain(front_ends)
}

/// The addresses in a VNet that NICs, gateways, connections and front ends other than those of `owner` use. Addresses that Azure reserves in
/// each subnet (P2) are not among them.
pub(crate) fn used_addresses(topology: &Topology, vnet: &ResourceId, owner: &ResourceId) -> BTreeSet<IpAddr> {
    taken(topology, vnet, owner).map(|(address, _)| address).collect()
}

/// The id of the resource other than `owner` that uses an address in a VNet. `None`: no resource does.
fn address_user(topology: &Topology, vnet: &ResourceId, address: IpAddr, owner: &ResourceId) -> Option<String> {
    let mut all = taken(topology, vnet, owner);
    all.find(|(a, _)| *a == address).map(|(_, id)| id.to_string())
}
