//! Route tables and user-defined routes (R10, R14 to R17, X6).

use super::{Draft, changed, echoed};
use crate::arm::body::{Object, missing, prefix};
use crate::path::{ArmPath, child_id, parent_id, shown};
use crate::resource::{ResourceGroup, Route, RouteTable, UserNextHop};
use crate::rules::subnet::is_gateway_subnet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// X6.
const MAX_ROUTES: usize = 400;
/// X6, per subscription.
const MAX_TABLES: usize = 200;

impl Draft<'_> {
    pub(crate) fn put_route_table(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.route_tables.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |t| t.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|t| t.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let kept = echoed(&root, &[], &[], &mut self.problems);
        let envelope = self.envelope(&root, id.clone(), old.as_deref().map(|t| &t.envelope), kept);
        if old.is_none() {
            self.check_table_count(path, &id);
        }
        let mut new = RouteTable {
            envelope,
            disable_bgp_route_propagation: properties
                .boolean("disableBgpRoutePropagation", &mut self.problems)
                .unwrap_or(false),
            routes: old.as_deref().map_or_else(Vec::new, |t| t.routes.clone()),
        };
        if let Some(items) = properties.list("routes", MAX_ROUTES, &mut self.problems) {
            let mut routes = Vec::new();
            for item in items {
                let Some(object) = item.object(&mut self.problems) else {
                    continue;
                };
                let Some(name) = self.child_name(&object) else { continue };
                let properties = object.object_or_empty("properties", &mut self.problems);
                let before = old.as_deref().and_then(|t| find(t, &name));
                routes.extend(self.read_route(&id, &name, &properties, before));
            }
            self.check_unique_names(&id, "route", routes.iter().map(|r| r.id.name()));
            new.routes = routes;
        }
        self.check_table(&new);
        self.commit_route_table(new);
        old.is_none()
    }

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

    pub(crate) fn put_route(&mut self, path: &ArmPath, body: &Value, if_match: Option<&str>) -> bool {
        let Some(table) = path
            .parent()
            .and_then(|p| self.topology.route_tables.get(&p.id()).cloned())
        else {
            self.parent_not_found(path);
            return false;
        };
        let old = find(&table, path.name());
        self.check_if_match(if_match, old.map(|r| r.etag), &path.id());
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
        self.commit_route_table(new);
        old.is_none()
    }

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

    /// R10.
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

    /// One route a prefix; and what the `GatewaySubnet`s that it serves allow (R15, R16).
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

    fn subnets_with_table(&self, table: &ResourceId) -> Vec<ResourceId> {
        let subnets = self.topology.vnets.values().flat_map(|v| &v.subnets);
        subnets
            .filter(|s| s.route_table.as_ref() == Some(table))
            .map(|s| s.id.clone())
            .collect()
    }

    pub(crate) fn delete_route_table(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.route_tables.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        let users = self.subnets_with_table(id);
        if !users.is_empty() {
            let names: Vec<String> = users.iter().take(10).map(ToString::to_string).collect();
            self.problems.add(
                "InUseRouteTableCannotBeDeleted",
                id,
                format!(
                    "Route table {} is in use and cannot be deleted. It is used by: {} (R17).",
                    id.name(),
                    names.join(", ")
                ),
            );
        }
        self.topology.route_tables.remove(id);
        true
    }

    pub(crate) fn delete_route(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(table) = self.topology.route_tables.get(&parent_id(id)).cloned() else {
            return false;
        };
        let Some(old) = table.routes.iter().find(|r| r.id == *id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        let mut new = (*table).clone();
        new.routes.retain(|r| r.id != *id);
        self.commit_route_table(new);
        true
    }

    /// Puts a route table into the draft, with new etags for what differs.
    pub(crate) fn commit_route_table(&mut self, mut new: RouteTable) {
        let old = self.topology.route_tables.get(&new.envelope.id).cloned();
        for route in &mut new.routes {
            let before = old.as_deref().and_then(|t| find(t, route.id.name()));
            route.etag = changed(before, route, self.fresh).unwrap_or(route.etag);
        }
        if let Some(etag) = changed(old.as_deref(), &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology
                .route_tables
                .insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}

fn find<'t>(table: &'t RouteTable, name: &str) -> Option<&'t Route> {
    table.routes.iter().find(|r| r.id.name().eq_ignore_ascii_case(name))
}
