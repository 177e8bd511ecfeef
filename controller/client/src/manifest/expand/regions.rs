//! The region of a resource for which its document names none: Azure requires that the resources that use each other are
//! in one region (P1).

use crate::manifest::schema::{
    Connection, Document, NetworkInterface, NicIpConfiguration, PublicIpAddress, VirtualNetworkGateway,
};
use std::collections::BTreeMap;

/// The regions of a document's resources, by name. A resource in the document's region is missing.
#[derive(Default)]
pub(super) struct Regions<'a> {
    vnets: BTreeMap<&'a str, &'a String>,
    gateways: BTreeMap<&'a str, &'a String>,
    /// The region of the gateway or network interface that uses the public address.
    public_addresses: BTreeMap<&'a str, &'a String>,
}

impl<'a> Regions<'a> {
    /// The regions that this document names, and those that follow from them.
    pub(super) fn of(document: &'a Document) -> Self {
        let mut all = Self::default();
        let vnets = document.virtual_networks.iter();
        all.vnets = vnets
            .filter_map(|(name, vnet)| Some((name, vnet.location.as_ref()?)))
            .collect();
        for (name, gateway) in document.virtual_network_gateways.iter() {
            let Some(region) = all.gateway(gateway) else {
                continue;
            };
            all.gateways.insert(name, region);
            let configurations = gateway.ip_configurations.iter();
            let publics = configurations.filter_map(|(_, c)| c.public_ip_address.as_ref());
            for public in publics.chain(&gateway.public_ip_address) {
                all.public_addresses.insert(public, region);
            }
        }
        for (_, nic) in document.network_interfaces.iter() {
            let Some(region) = all.network_interface(nic) else {
                continue;
            };
            let configurations = nic.ip_configurations.iter();
            let publics = configurations.filter_map(|(_, c)| c.public_ip_address.as_ref());
            for public in publics.chain(&nic.public_ip_address) {
                all.public_addresses.insert(public, region);
            }
        }
        all
    }

    /// The region of a resource with an address in `subnet`, `virtual-network/subnet`: `given`, or the region of the
    /// virtual network. `None`, as with the other functions: the document's region.
    pub(super) fn with_address<'b>(&self, given: Option<&'b String>, subnet: Option<&str>) -> Option<&'b String>
    where
        'a: 'b,
    {
        let vnet = subnet.and_then(|subnet| subnet.split('/').next()).unwrap_or_default();
        given.or_else(|| self.vnets.get(vnet).copied())
    }

    /// The region of a network interface: its own, or that of the virtual network of its first address.
    pub(super) fn network_interface<'b>(&self, nic: &'b NetworkInterface) -> Option<&'b String>
    where
        'a: 'b,
    {
        let first = nic.ip_configurations.iter().next();
        let subnet = nic
            .subnet
            .as_ref()
            .or(first.map(|(_, c): (_, &NicIpConfiguration)| &c.subnet));
        self.with_address(nic.location.as_ref(), subnet.map(String::as_str))
    }

    /// The region of a gateway: its own, or that of its virtual network.
    pub(super) fn gateway<'b>(&self, gateway: &'b VirtualNetworkGateway) -> Option<&'b String>
    where
        'a: 'b,
    {
        self.with_address(gateway.location.as_ref(), Some(&gateway.virtual_network))
    }

    /// The region of a connection: its own, or that of its first gateway.
    pub(super) fn connection<'b>(&self, connection: &'b Connection) -> Option<&'b String>
    where
        'a: 'b,
    {
        let gateway = connection.virtual_network_gateway1.as_str();
        let given = connection.location.as_ref();
        given.or_else(|| self.gateways.get(gateway).copied())
    }

    /// The region of a public address: its own, or that of the gateway or network interface that uses it.
    pub(super) fn public_address<'b>(&self, name: &str, address: &'b PublicIpAddress) -> Option<&'b String>
    where
        'a: 'b,
    {
        let given = address.location.as_ref();
        given.or_else(|| self.public_addresses.get(name).copied())
    }
}
