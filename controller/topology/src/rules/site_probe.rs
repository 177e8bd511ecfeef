//! The rules of site probes: which sites and addresses a probe can be bound to (M10).

use crate::draft::Draft;
use crate::lookup::vnet_of;
use crate::net::{listed, special_use};
use crate::path::shown;
use crate::resource::Binding;
use crate::topology::Topology;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::fabric::MAX_ATTACHMENTS;
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// Checks the binding of a site probe: the attachments exist and differ, the address can be one of the site, and no
    /// other probe of the site has it, except revoked ones. Returns the binding with ids in the stored casing.
    pub(super) fn check_site_probe(&mut self, attachments: &[ResourceId], address: IpAddr) -> Binding {
        let mut found = Vec::new();
        if attachments.is_empty() || attachments.len() > MAX_ATTACHMENTS {
            let message = format!(
                "binding.attachments: {} of them, 1 to {MAX_ATTACHMENTS} are allowed (M10)",
                attachments.len()
            );
            self.problems
                .add("InvalidRequestFormat", "binding.attachments", message);
        } else {
            found = self.check_attachments(attachments);
        }
        self.check_site_address(&found, address);
        let taken = |binding: &Binding| {
            matches!(binding, Binding::Site { attachments, address: a }
                if *a == address && attachments.iter().any(|id| found.contains(id)))
        };
        let mut agents = self.topology.agents.values().filter(|a| !a.revoked);
        if let Some(agent) = agents.find(|a| taken(&a.binding)).map(|a| a.id.clone()) {
            self.bound_elsewhere(&format!("{address} of this site"), &agent);
        }
        Binding::Site {
            attachments: found,
            address,
        }
    }

    /// Checks that each attachment is a local network gateway or a circuit, and that none is listed twice. Returns the
    /// stored ids.
    fn check_attachments(&mut self, attachments: &[ResourceId]) -> Vec<ResourceId> {
        let mut found = Vec::new();
        for (i, id) in attachments.iter().enumerate() {
            let at = format!("binding.attachments[{i}]");
            let site = self.topology.local_gateways.get(id).map(|s| s.envelope.id.clone());
            let circuit = || self.topology.circuits.get(id).map(|c| c.envelope.id.clone());
            match site.or_else(circuit) {
                None => {
                    let message = format!(
                        "{at}: {} is neither a local network gateway nor a circuit (M10)",
                        shown(id.as_str())
                    );
                    self.problems.add("InvalidResourceReference", at, message);
                }
                Some(_) if attachments[..i].contains(id) => self.listed_twice(id, &at),
                Some(stored) => found.push(stored),
            }
        }
        found
    }

    /// Checks that an address can be one of the site with these attachments.
    fn check_site_address(&mut self, attachments: &[ResourceId], address: IpAddr) {
        const AT: &str = "binding.address";
        if let Some(block) = special_use(&IpNet::from(address)) {
            let message = format!("{AT}: {address} is in {block}, which no site can have (M10)");
            self.problems.add("XAddressPrefixNotAllowed", AT, message);
            return;
        }
        if let Some(vnet) = attached_vnet_with(&self.topology, attachments, address) {
            let message = format!(
                "{AT}: {address} is in the address space of {vnet}, which the site is attached to; give the address that the \
                 host has inside the site (M10)"
            );
            self.problems.add("XAddressOutsideOfSite", AT, message);
            return;
        }
        // The prefixes of sites with BGP are announced, so they are known only while the site's router is connected.
        let configured = configured_prefixes(&self.topology, attachments);
        if let Some(prefixes) = configured.filter(|all| !all.iter().any(|p| p.contains(&address))) {
            let names: Vec<&str> = attachments.iter().map(ResourceId::name).collect();
            let message = format!(
                "{AT}: {address} is outside of the prefixes of {}, which are {}; give an address inside them, or add its \
                 prefix to localNetworkAddressSpace (M10)",
                names.join(", "),
                if prefixes.is_empty() {
                    "none".to_owned()
                } else {
                    listed(&prefixes)
                },
            );
            self.problems.add("XAddressOutsideOfSite", AT, message);
        }
    }
}

/// The configured prefixes of a site. `None`: the site uses BGP at one of its attachments, so it can have others.
fn configured_prefixes(topology: &Topology, attachments: &[ResourceId]) -> Option<Vec<IpNet>> {
    let mut prefixes = Vec::new();
    for id in attachments {
        let site = topology.local_gateways.get(id).filter(|site| site.bgp.is_none())?;
        prefixes.extend(&site.address_space);
    }
    (!attachments.is_empty()).then_some(prefixes)
}

/// The VNet of a gateway to which a site is attached, if it has this address.
fn attached_vnet_with(topology: &Topology, attachments: &[ResourceId], address: IpAddr) -> Option<ResourceId> {
    let leads_there = topology
        .connections
        .values()
        .filter(|c| attachments.contains(&c.gateway2));
    let mut vnets = leads_there.filter_map(|c| {
        let gateway = topology.gateways.get(&c.gateway1)?;
        topology.vnets.get(&vnet_of(gateway)?)
    });
    let has = |prefixes: &[IpNet]| prefixes.iter().any(|p| p.contains(&address));
    vnets
        .find(|vnet| has(&vnet.address_space))
        .map(|vnet| vnet.envelope.id.clone())
}
