//! What is in use: free addresses and subnets of a VNet, the numbers of resources in a region, and the service tags.

use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use http::Method;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_topology::address_use;
use tombolo_topology::path::{ArmPath, Kind};
use tombolo_topology::resource::{Envelope, VirtualNetwork};
use tombolo_topology::topology::Topology;

/// The VNet that the path of a GET names before its last segment.
///
/// # Errors
/// 405 for another method, 404 if the VNet does not exist.
fn vnet(topology: &Topology, call: &Call) -> Result<Arc<VirtualNetwork>, Failure> {
    require_get(call)?;
    let path = call.item(call.segments.len() - 1)?;
    let found = topology.vnets.get(&path.id());
    found.cloned().ok_or_else(|| missing(topology, &path))
}

/// The region in the path of a GET `locations/{l}/…`, in the form of the list of locations.
///
/// # Errors
/// 405 for another method, 400 if no resource is in the region.
fn region(topology: &Topology, call: &Call) -> Result<String, Failure> {
    require_get(call)?;
    let location = call.lower[5].replace(' ', "");
    let all = super::subscription::locations(topology);
    if all.contains(&location) {
        return Ok(location);
    }
    let names: Vec<&str> = all.iter().map(String::as_str).take(10).collect();
    let message = format!(
        "location: '{}' is not a region that has resources; choose one that GET /subscriptions/{}/locations lists, such as \
         {}",
        excerpt(&call.segments[5]),
        excerpt(&call.segments[1]),
        names.join(", ")
    );
    Err(Failure::bad("LocationNotAvailableForResourceType", message).at("location"))
}

fn require_get(call: &Call) -> Result<(), Failure> {
    match call.method {
        Method::GET => Ok(()),
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// GET `virtualNetworks/{v}/checkIPAddressAvailability?ipAddress=…`: whether an address can be given to a NIC, and if
/// not, up to five addresses of its subnet that can.
pub(super) fn free_address(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let vnet = vnet(&topology, call)?;
    let text = call.query.get("ipaddress").map(String::as_str).unwrap_or_default();
    let address: IpAddr = text.parse().map_err(|_| {
        let message = format!("ipAddress: '{}' is not an IP address", excerpt(text));
        Failure::bad("InvalidIPAddressFormat", message).at("ipAddress")
    })?;
    let found = address_use::availability(&topology, &vnet, address).ok_or_else(|| {
        let message = format!("ipAddress: no subnet of {} contains {address} (P2)", vnet.envelope.id);
        Failure::bad("PrivateIPAddressNotInAnySubnet", message).at("ipAddress")
    })?;
    Ok(ok(&json!({
        "available": found.available,
        "availableIPAddresses": found.others,
        "isPlatformReserved": found.reserved,
    })))
}

/// GET `virtualNetworks/{v}/usages`: how many addresses of each subnet are in use, and can be.
pub(super) fn of_vnet(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let vnet = vnet(&topology, call)?;
    let value: Vec<Value> = address_use::subnets(&topology, &vnet)
        .iter()
        .map(|one| {
            json!({
                "id": one.subnet,
                "name": {"value": "SubnetSpace", "localizedValue": "Subnet size and usage"},
                "currentValue": one.used,
                "limit": one.usable,
                "unit": "Count",
            })
        })
        .collect();
    Ok(ok(&json!({"value": value})))
}

/// GET `locations/{l}/usages`: the number of resources of each type in a region of a subscription. The limits are
/// Azure's; this controller does not enforce them.
pub(super) fn of_location(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let (subscription, location) = (&call.segments[1], region(&topology, call)?);
    let count = |envelopes: &mut dyn Iterator<Item = &Envelope>| {
        let here = envelopes.filter(|e| e.location == location);
        here.filter(|e| ArmPath::parse(e.id.as_str()).is_ok_and(|p| p.subscription.eq_ignore_ascii_case(subscription)))
            .count()
    };
    let t = &topology;
    let lines: [(&str, &str, usize, u64); 10] = [
        (
            "VirtualNetworks",
            "Virtual Networks",
            count(&mut t.vnets.values().map(|r| &r.envelope)),
            1_000,
        ),
        (
            "NetworkInterfaces",
            "Network Interfaces",
            count(&mut t.nics.values().map(|r| &r.envelope)),
            65_536,
        ),
        (
            "PublicIPAddresses",
            "Public IP Addresses",
            count(&mut t.public_ips.values().map(|r| &r.envelope)),
            1_000,
        ),
        (
            "RouteTables",
            "Route Tables",
            count(&mut t.route_tables.values().map(|r| &r.envelope)),
            200,
        ),
        (
            "NetworkSecurityGroups",
            "Network Security Groups",
            count(&mut t.network_security_groups.values().map(|r| &r.envelope)),
            5_000,
        ),
        (
            "ApplicationSecurityGroups",
            "Application Security Groups",
            count(&mut t.application_security_groups.values().map(|r| &r.envelope)),
            3_000,
        ),
        (
            "VirtualNetworkGateways",
            "Virtual Network Gateways",
            count(&mut t.gateways.values().map(|r| &r.envelope)),
            1_000,
        ),
        (
            "LocalNetworkGateways",
            "Local Network Gateways",
            count(&mut t.local_gateways.values().map(|r| &r.envelope)),
            1_000,
        ),
        (
            "ExpressRouteCircuits",
            "ExpressRoute Circuits",
            count(&mut t.circuits.values().map(|r| &r.envelope)),
            50,
        ),
        ("NetworkWatchers", "Network Watchers", 1, 1),
    ];
    let base = format!(
        "/subscriptions/{subscription}/providers/{}/locations/{location}",
        Kind::VirtualNetwork.provider()
    );
    let value: Vec<Value> = lines
        .iter()
        .map(|(name, title, used, limit)| {
            json!({
                "id": format!("{base}/usages/{name}"),
                "name": {"value": name, "localizedValue": title},
                "currentValue": used,
                "limit": limit,
                "unit": "Count",
            })
        })
        .collect();
    Ok(ok(&json!({"value": value})))
}

/// GET `locations/{l}/serviceTags`: the tags, which have the same addresses in every region. The addresses of `VirtualNetwork` and
/// `Internet` differ from NIC to NIC (N8); the effective security rules of a NIC show them.
pub(super) fn service_tags(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    region(&rest.app.writer.current().topology, call)?;
    let tag = |name: &str, prefixes: &[&str]| {
        json!({
            "id": name,
            "name": name,
            "properties": {
                "changeNumber": CHANGE_NUMBER,
                "region": "",
                "systemService": name,
                "addressPrefixes": prefixes,
            },
        })
    };
    let subscription = &call.segments[1];
    Ok(ok(&json!({
        "id": format!("/subscriptions/{subscription}/providers/Microsoft.Network/serviceTags/public"),
        "name": "public",
        "type": "Microsoft.Network/serviceTags",
        "changeNumber": CHANGE_NUMBER,
        "cloud": "Public",
        "values": [tag("AzureLoadBalancer", &["168.63.129.16/32"])],
    })))
}

/// The version of the list of service tags, which clients read as text.
const CHANGE_NUMBER: &str = "1";
