//! Route tables and user-defined routes (R10, R14 to R17, X6).

use crate::arm::body::{Object, missing, prefix};
use crate::arm::view::{Views, child, reference};
use crate::draft::{Draft, changed};
use crate::lookup::is_gateway_subnet;
use crate::path::{ArmPath, Kind, child_id, parent_id, shown};
use crate::resource::Envelope;
use crate::resource::frame::{Child, ChildWrites, Put, Request, Resource};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A route table: user-defined routes for all subnets that refer to it (R17).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTable {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// `disableBgpRoutePropagation`: whether the subnets of this table get no gateway routes (R15).
    pub disable_bgp_route_propagation: bool,
    /// The routes, in order of creation.
    pub routes: Vec<Route>,
}

/// A user-defined route (R10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the route.
    pub etag: Uuid,
    /// `addressPrefix`: the destination, without host bits.
    pub prefix: IpNet,
    /// `nextHopType`, with its address.
    pub next_hop: UserNextHop,
}

/// The next hop types that a user may configure (R10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum UserNextHop {
    /// The appliance with this address.
    VirtualAppliance {
        /// `nextHopIpAddress`: the address of the appliance.
        address: IpAddr,
    },
    /// The VPN gateway of the VNet or of its hub (R14).
    VirtualNetworkGateway,
    /// The packet is delivered inside the VNet.
    VnetLocal,
    /// The Internet. The overlay does not carry the packet: the agent drops it.
    Internet,
    /// The packet is dropped.
    None,
}

/// Azure's maximum number of routes in a route table (X6).
const MAX_ROUTES: usize = 400;
/// Azure's maximum number of route tables in a subscription (X6).
const MAX_TABLES: usize = 200;

impl Resource for RouteTable {
    const KIND: Kind = Kind::RouteTable;
    const CHILDREN: &'static [Child] = &[ROUTES];

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let (id, properties) = (&put.id, &put.properties);
        let kept = put.echoed(&mut draft.problems);
        let envelope = put.envelope(draft, kept);
        if put.old().is_none() {
            draft.check_table_count(put.path, id);
        }
        let mut new = Self {
            envelope,
            disable_bgp_route_propagation: properties
                .boolean("disableBgpRoutePropagation", &mut draft.problems)
                .unwrap_or(false),
            routes: put.old().map_or_else(Vec::new, |t| t.routes.clone()),
        };
        if let Some(items) = properties.list("routes", MAX_ROUTES, &mut draft.problems) {
            let mut routes = Vec::new();
            for item in items {
                let Some(object) = item.object(&mut draft.problems) else {
                    continue;
                };
                let Some(name) = draft.child_name(&object) else {
                    continue;
                };
                let properties = object.object_or_empty("properties", &mut draft.problems);
                let before = put.old().and_then(|t| find(t, &name));
                routes.extend(draft.read_route(id, &name, &properties, before));
            }
            draft.check_unique_names(id, "route", routes.iter().map(|r| r.id.name()));
            new.routes = routes;
        }
        draft.check_table(&new);
        Some(new)
    }

    fn renew_children(&mut self, old: Option<&Self>, new_guid: &mut dyn FnMut() -> Uuid) {
        for route in &mut self.routes {
            let before = old.and_then(|t| find(t, route.id.name()));
            route.etag = changed(before, route, new_guid).unwrap_or(route.etag);
        }
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, _old: &Self) {
        let users = draft.subnets_with_table(id);
        if !users.is_empty() {
            // Thousands of subnets can use a table. The message names ten of them, which is enough to see what blocks
            // the deletion.
            let names: Vec<String> = users.iter().take(10).map(ToString::to_string).collect();
            draft.problems.add(
                "InUseRouteTableCannotBeDeleted",
                id,
                format!(
                    "Route table {} is in use and cannot be deleted. It is used by: {} (R17).",
                    id.name(),
                    names.join(", ")
                ),
            );
        }
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let routes: Vec<Value> = self.routes.iter().map(Route::view).collect();
        let subnets = views.topology.vnets.values().flat_map(|v| &v.subnets);
        let subnets: Vec<Value> = subnets
            .filter(|s| s.route_table.as_ref() == Some(&self.envelope.id))
            .map(|s| reference(&s.id))
            .collect();
        let mut properties = json!({
            "disableBgpRoutePropagation": self.disable_bgp_route_propagation,
            "routes": routes,
        });
        if !subnets.is_empty() {
            properties["subnets"] = subnets.into();
        }
        properties
    }
}

/// The routes of a route table as child items.
const ROUTES: Child = Child {
    name: "routes",
    kind: Some(Kind::Route),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_route(request),
        delete: |draft, id, if_match| draft.delete_route(id, if_match),
    }),
    item: |views, path| {
        let table = views.topology.route_tables.get(&path.parent()?.id())?;
        find(table, path.name()).map(Route::view)
    },
    list: |views, parent| {
        let table = views.topology.route_tables.get(parent)?;
        Some(table.routes.iter().map(Route::view).collect())
    },
};

impl Route {
    /// The ARM body of the route.
    fn view(&self) -> Value {
        let (hop, address) = match &self.next_hop {
            UserNextHop::VirtualAppliance { address } => ("VirtualAppliance", Some(*address)),
            UserNextHop::VirtualNetworkGateway => ("VirtualNetworkGateway", None),
            UserNextHop::VnetLocal => ("VnetLocal", None),
            UserNextHop::Internet => ("Internet", None),
            UserNextHop::None => ("None", None),
        };
        let mut properties = json!({
            "addressPrefix": self.prefix,
            "nextHopType": hop,
            "hasBgpOverride": false,
        });
        if let Some(address) = address {
            properties["nextHopIpAddress"] = address.to_string().into();
        }
        child(&self.id, Kind::Route, self.etag, properties)
    }
}

impl Draft<'_> {
    /// Refuses a new route table if its subscription has [`MAX_TABLES`] already (X6).
    fn check_table_count(&mut self, path: &ArmPath, id: &ResourceId) {
        let mine = |t: &ResourceId| {
            ArmPath::parse(t.as_str()).is_ok_and(|p| p.subscription.eq_ignore_ascii_case(&path.subscription))
        };
        if self.topology.route_tables.keys().filter(|t| mine(t)).count() >= MAX_TABLES {
            self.problems.add(
                "XRouteTableLimitReached",
                id,
                format!(
                    "Subscription {} has {MAX_TABLES} route tables, the most it may have (X6).",
                    path.subscription
                ),
            );
        }
    }

    /// PUT of a route. True: the route is new.
    fn put_route(&mut self, request: &Request<'_>) -> bool {
        let (path, body) = (request.path, request.body);
        let Some(table) = path
            .parent()
            .and_then(|p| self.topology.route_tables.get(&p.id()).cloned())
        else {
            self.parent_not_found(path);
            return false;
        };
        let old = find(&table, path.name());
        self.check_if_match(request.if_match, old.map(|r| r.etag), &path.id());
        if old.is_none() {
            self.check_name(path.name(), &path.id());
            if table.routes.len() >= MAX_ROUTES {
                self.problems.add(
                    "XTooManyItems",
                    &path.id(),
                    format!(
                        "Route table {} has {MAX_ROUTES} routes, the most it may have (X6).",
                        table.envelope.id
                    ),
                );
            }
        }
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let Some(route) = self.read_route(&table.envelope.id, path.name(), &properties, old) else {
            return false;
        };
        let mut new = (*table).clone();
        match new.routes.iter_mut().find(|r| r.id == route.id) {
            Some(slot) => *slot = route,
            None => new.routes.push(route),
        }
        self.check_table(&new);
        self.commit(new);
        old.is_none()
    }

    /// Reads the properties of the route `name` of `table`. `None`: the prefix or the next hop is missing or cannot be
    /// read, and a problem says so.
    fn read_route(
        &mut self,
        table: &ResourceId,
        name: &str,
        properties: &Object<'_>,
        old: Option<&Route>,
    ) -> Option<Route> {
        let at = properties.at("addressPrefix");
        let net = match properties.text("addressPrefix", &mut self.problems) {
            Some(text) => prefix(text, &at, &mut self.problems),
            None => {
                if properties.get("addressPrefix").is_none() {
                    missing(&mut self.problems, &at);
                }
                None
            }
        };
        let next_hop = self.read_next_hop(properties);
        let (net, next_hop) = (net?, next_hop?);
        if let UserNextHop::VirtualAppliance { address } = next_hop
            && address.is_ipv4() != net.addr().is_ipv4()
        {
            let at = properties.at("nextHopIpAddress");
            self.problems.add(
                "XInvalidNextHopAddress",
                at.clone(),
                format!("{at}: {address} is not of the same address family as {net}"),
            );
        }
        Some(Route {
            id: old.map_or_else(|| child_id(table, "routes", name), |r| r.id.clone()),
            etag: old.map_or(Uuid::nil(), |r| r.etag),
            prefix: net,
            next_hop,
        })
    }

    /// Reads `nextHopType` and `nextHopIpAddress` (R10). `None`: the type is missing or unknown, or the address of an
    /// appliance is missing or wrong. A problem gives the reason.
    fn read_next_hop(&mut self, properties: &Object<'_>) -> Option<UserNextHop> {
        let at = properties.at("nextHopType");
        let text = properties.text("nextHopType", &mut self.problems);
        let address = properties.address("nextHopIpAddress", &mut self.problems);
        let Some(text) = text else {
            if properties.get("nextHopType").is_none() {
                missing(&mut self.problems, &at);
            }
            return None;
        };
        let address_at = properties.at("nextHopIpAddress");
        let hop = match text.to_ascii_lowercase().as_str() {
            "virtualappliance" => {
                let absent = properties
                    .get("nextHopIpAddress")
                    .is_none_or(|v| v.as_str() == Some(""));
                if absent {
                    self.problems.add(
                        "XInvalidNextHopAddress",
                        address_at.clone(),
                        format!("{address_at}: required for next hop type VirtualAppliance (R10)"),
                    );
                }
                return address.map(|address| UserNextHop::VirtualAppliance { address });
            }
            "virtualnetworkgateway" => UserNextHop::VirtualNetworkGateway,
            "vnetlocal" => UserNextHop::VnetLocal,
            "internet" => UserNextHop::Internet,
            "none" => UserNextHop::None,
            _ => {
                self.problems.add(
                    "XInvalidNextHopType",
                    at.clone(),
                    format!(
                        "{at}: '{}' cannot be configured; use VirtualAppliance, VirtualNetworkGateway, VnetLocal, \
                         Internet or None (R10)",
                        shown(text)
                    ),
                );
                return None;
            }
        };
        if let Some(address) = address {
            self.problems.add(
                "XInvalidNextHopAddress",
                address_at.clone(),
                format!("{address_at}: {address} is given, but only VirtualAppliance has a next hop address (R10)"),
            );
        }
        Some(hop)
    }

    /// Checks a route table: no two routes have the same prefix, and the table satisfies the rules of each
    /// `GatewaySubnet` that uses it (R15, R16).
    fn check_table(&mut self, new: &RouteTable) {
        let mut seen = BTreeMap::new();
        for route in &new.routes {
            if let Some(first) = seen.insert(route.prefix, &route.id) {
                self.problems.add(
                    "XDuplicateRoutePrefix",
                    &route.id,
                    format!(
                        "Routes '{}' and '{}' of {} have the same prefix {}.",
                        first.name(),
                        route.id.name(),
                        new.envelope.id,
                        route.prefix
                    ),
                );
            }
        }
        for subnet in self.subnets_with_table(&new.envelope.id) {
            if is_gateway_subnet(&subnet) {
                self.check_table_for_gateway(new, &subnet);
            }
        }
    }

    /// The ids of the subnets that use a route table (R17).
    fn subnets_with_table(&self, table: &ResourceId) -> Vec<ResourceId> {
        let subnets = self.topology.vnets.values().flat_map(|v| &v.subnets);
        subnets
            .filter(|s| s.route_table.as_ref() == Some(table))
            .map(|s| s.id.clone())
            .collect()
    }

    /// DELETE of a route. True: the route existed.
    fn delete_route(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(table) = self.topology.route_tables.get(&parent_id(id)).cloned() else {
            return false;
        };
        let Some(old) = table.routes.iter().find(|r| r.id == *id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        let mut new = (*table).clone();
        new.routes.retain(|r| r.id != *id);
        self.commit(new);
        true
    }
}

/// The route with a name, ignoring case.
fn find<'t>(table: &'t RouteTable, name: &str) -> Option<&'t Route> {
    table.routes.iter().find(|r| r.id.name().eq_ignore_ascii_case(name))
}
