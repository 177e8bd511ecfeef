//! The steps that change the controller's resources to those of a manifest. Planning does no I/O; only [`Server::read`]
//! does.

use crate::client::Client;
use crate::error::Error;
use crate::manifest::compare::{counterpart, holds, merge, name, project, tidy};
use crate::manifest::error::ManifestError;
use crate::manifest::expand::DesiredResource;
use crate::manifest::order::{Rank, creation_rank, deletion_rank, update_rank};
use crate::path::{Group, last};
use dangling::refuse_dangling;
use ipnet::IpNet;
use release::Releases;
use reserve::Reservations;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::arm::Kind;

mod dangling;
mod release;
mod reserve;

/// The controller's resources in the groups of a manifest.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// Resources by their path in lower case. A peering has an entry separate from its VNet's.
    items: BTreeMap<String, (Kind, Value)>,
    groups: BTreeSet<String>,
}

/// The change that a step makes, or that it makes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The resource does not exist.
    Create,
    /// The resource differs from the manifest.
    Update,
    /// The resource equals the manifest.
    Unchanged,
    /// The manifest does not contain the resource, and pruning is on.
    Delete,
}

/// The change of one resource from the controller's state to that of the manifest.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The action that the step takes.
    pub action: Action,
    /// Kind of the resource.
    pub kind: Kind,
    /// The group of the resource.
    #[serde(skip)]
    pub group: Group,
    /// Name of the resource; `vnet/child` for children.
    pub name: String,
    /// ARM path of the resource.
    pub path: String,
    /// The reason for the step, if `before` and `after` do not show the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Present values of the properties that the manifest sets, with secrets masked. Null for a resource that does not
    /// exist.
    pub before: Value,
    /// Values after the step, with secrets masked. Null for a deletion.
    pub after: Value,
    /// Body of the PUT. Contains secrets.
    #[serde(skip)]
    pub body: Value,
    /// Whether the PUT has `syncRemoteAddressSpace=true` (P27).
    #[serde(skip)]
    pub sync: bool,
    #[serde(skip)]
    rank: Rank,
}

/// All steps, in the order in which they are carried out.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// The steps, including those of unchanged resources.
    pub steps: Vec<Step>,
}

impl Server {
    /// Reads all resources in the resource groups of `desired`, and their shared keys, which are secrets. A group that
    /// does not exist yet has no resources. Sends several requests one after the other, so if another client writes
    /// meanwhile, the result may contain only a part of that client's changes.
    ///
    /// # Errors
    /// Any [`Error`] of the first request that fails. No further request is sent then.
    pub async fn read(client: &Client, desired: &[DesiredResource]) -> Result<Self, Error> {
        let mut server = Self::default();
        let groups: BTreeSet<&Group> = desired.iter().map(|e| &e.group).collect();
        for group in groups {
            server.groups.insert(group.path().to_ascii_lowercase());
            let Some(found) = client.arm_find(&group.path()).await? else {
                continue;
            };
            server.insert(Kind::ResourceGroup, &group.path(), found);
            for kind in Kind::TOP {
                for mut item in client.arm_list(&group.collection(kind.collection())).await? {
                    let path = group.item(kind.collection(), name(&item).unwrap_or_default());
                    read_key(client, kind, &path, &mut item).await?;
                    server.insert(kind, &path, item);
                }
            }
        }
        // These lie outside of the groups, so pruning keeps those that the manifest does not contain.
        for log in desired.iter().filter(|e| e.kind == Kind::FlowLog) {
            if let Some(found) = client.arm_find(&log.path).await? {
                server.insert(Kind::FlowLog, &log.path, found);
            }
        }
        Ok(server)
    }

    /// Adds a resource in the format of its GET, or replaces the one with this path, which is compared
    /// case-insensitively. `path` must be the resource's id, and `kind` its kind; neither is checked. `body` may also
    /// have the shared key that a GET omits. The peerings of a virtual network become separate entries.
    pub fn insert(&mut self, kind: Kind, path: &str, mut body: Value) {
        if kind == Kind::ResourceGroup {
            self.groups.insert(path.to_ascii_lowercase());
        }
        if kind == Kind::VirtualNetwork {
            for subnet in body
                .pointer_mut("/properties/subnets")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                normalize_prefixes(subnet);
            }
            // Peerings are changed by separate steps, so they are removed from the VNet's body. A PUT of a VNet without
            // peerings keeps its peerings.
            let peerings = body
                .get_mut("properties")
                .and_then(|p| p.as_object_mut()?.remove("virtualNetworkPeerings"));
            for peering in peerings.iter().filter_map(Value::as_array).flatten() {
                let path = format!("{path}/virtualNetworkPeerings/{}", name(peering).unwrap_or_default());
                self.items
                    .insert(path.to_ascii_lowercase(), (Kind::Peering, peering.clone()));
            }
        }
        if kind == Kind::LoadBalancer {
            remove_interfaces_of_pools(&mut body);
        }
        self.items.insert(path.to_ascii_lowercase(), (kind, body));
    }

    fn find(&self, path: &str) -> Option<&Value> {
        self.items.get(&path.to_ascii_lowercase()).map(|(_, body)| body)
    }
}

impl Plan {
    /// Compares the desired resources, the result of [`Manifest::expand`](super::Manifest::expand), with the
    /// controller's, which [`Server::read`] has read for them, and returns the steps in the order in which the
    /// controller accepts them. With `prune`, the plan deletes all resources in the manifest's resource groups that the
    /// manifest does not contain. The groups themselves stay.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`]: the manifest refers to resources that do not exist, or that pruning deletes.
    /// Contains every problem. References into resource groups that `server` does not have are not checked.
    pub fn make(desired: &[DesiredResource], server: &Server, prune: bool) -> Result<Self, ManifestError> {
        refuse_dangling(desired, server, prune)?;
        let mut steps = Vec::new();
        let deleted = if prune {
            delete_steps(desired, server, &mut steps)
        } else {
            BTreeSet::new()
        };
        let deleted = prune.then_some(&deleted);
        let releases = Releases::of(desired, server, deleted);
        let reservations = Reservations::of(desired, server);
        for e in desired {
            let present = server.find(&e.path);
            let write = |e: &DesiredResource, current: Option<&Value>| match current {
                Some(current) => update(e, current, desired, deleted),
                None => (create(e), Vec::new()),
            };
            let mut early = Vec::new();
            early.extend(present.and_then(|present| releases.step(e, present)));
            let current = early.last().map(|step| &step.body).or(present);
            if let Some(reserved) = reservations.early(e, current) {
                let (mut step, _) = write(&reserved, current);
                Reservations::mark(&mut step);
                early.push(step);
            }
            let current = early.last().map(|step| &step.body).or(present);
            let (mut step, later) = write(e, current);
            step.rank = reservations.rank(e, step.rank);
            // If the early steps leave nothing to change, they are the only ones of their NIC.
            if early.is_empty() || step.action != Action::Unchanged {
                steps.push(step);
            }
            steps.extend(early);
            steps.extend(later);
        }
        steps.sort_by_key(|s| s.rank);
        Ok(Self { steps })
    }

    /// Whether no step changes anything, because the controller's resources match the manifest already.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes().next().is_none()
    }

    /// Returns the steps that create, update or delete a resource, in their order.
    pub fn changes(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|s| s.action != Action::Unchanged)
    }

    /// Returns the number of steps with this action.
    #[must_use]
    pub fn count(&self, action: Action) -> usize {
        self.steps.iter().filter(|s| s.action == action).count()
    }
}

/// Reads the shared key of a connection or of a circuit's peering, and adds the key to the body. A GET of the resource
/// omits it.
async fn read_key(client: &Client, kind: Kind, path: &str, item: &mut Value) -> Result<(), Error> {
    let (owner, pointer) = match kind {
        Kind::Connection => (path.to_owned(), "/properties"),
        Kind::Circuit => match item.pointer("/properties/peerings/0").and_then(name) {
            Some(peering) => (
                format!("{path}/peerings/{peering}"),
                "/properties/peerings/0/properties",
            ),
            None => return Ok(()),
        },
        _ => return Ok(()),
    };
    let key = client.arm_find(&format!("{owner}/sharedkey")).await?;
    let key = key.as_ref().and_then(|k| k.get("value")).and_then(Value::as_str);
    if let (Some(key), Some(place)) = (key.filter(|k| !k.is_empty()), item.pointer_mut(pointer)) {
        place["sharedKey"] = json!(key);
    }
    Ok(())
}

fn create(e: &DesiredResource) -> Step {
    Step {
        action: Action::Create,
        kind: e.kind,
        group: e.group.clone(),
        name: e.name.clone(),
        path: e.path.clone(),
        note: None,
        before: Value::Null,
        after: shown(&e.body, None),
        body: e.body.clone(),
        sync: false,
        rank: creation_rank(e.kind, &e.body),
    }
}

/// The lists of children that the body of a PUT contains. A child that the body lacks is deleted.
const CHILDREN: [&str; 8] = [
    "subnets",
    "routes",
    "securityRules",
    "frontendIPConfigurations",
    "backendAddressPools",
    "probes",
    "loadBalancingRules",
    "inboundNatRules",
];

/// Returns the step for an existing resource, and the steps that delete those of its subnets that can be deleted only
/// after other steps. `deleted` has the paths, in lower case, of the resources that pruning deletes; `None` without
/// pruning.
fn update(
    e: &DesiredResource,
    current: &Value,
    all: &[DesiredResource],
    deleted: Option<&BTreeSet<String>>,
) -> (Step, Vec<Step>) {
    let mut desired = e.body.clone();
    if e.kind == Kind::ResourceGroup {
        // The region of a group cannot change, and a manifest sets no other property of a group.
        desired = json!({});
    }
    let (kept, later) = keep_children(e, current, &mut desired, deleted);
    let mut note = None;
    let mut sync = false;
    if e.kind == Kind::Peering {
        let state = current.pointer("/properties/peeringState").and_then(Value::as_str);
        sync = needs_sync(current, &e.body, all);
        if state == Some("Disconnected") {
            note =
                Some("is Disconnected: returns to Initiated, so that the other half can be created (P14)".to_owned());
        } else if sync {
            note = Some("syncs the remote address space (P27)".to_owned());
        }
    }
    let changed = note.is_some() || !holds(current, &desired);
    let drop_kept = |v: &Value| {
        let mut v = v.clone();
        for list in CHILDREN {
            if let Some(items) = v
                .pointer_mut(&format!("/properties/{list}"))
                .and_then(Value::as_array_mut)
            {
                items.retain(|i| !name(i).is_some_and(|n| kept.contains(&n.to_ascii_lowercase())));
            }
        }
        v
    };
    let step = Step {
        action: if changed { Action::Update } else { Action::Unchanged },
        kind: e.kind,
        group: e.group.clone(),
        name: e.name.clone(),
        path: e.path.clone(),
        note,
        before: shown(&drop_kept(&project(current, &desired)), None),
        after: shown(&drop_kept(&desired), Some(current)),
        body: merge(current, &desired),
        sync,
        rank: update_rank(e.kind, current, &e.body),
    };
    (step, later)
}

/// Adds to the desired body the children (see [`CHILDREN`]) that the manifest does not contain and that the PUT must
/// keep. Returns their names in lower case, and the steps that delete those of these subnets that can be deleted
/// only after other steps.
fn keep_children(
    e: &DesiredResource,
    current: &Value,
    desired: &mut Value,
    deleted: Option<&BTreeSet<String>>,
) -> (BTreeSet<String>, Vec<Step>) {
    let mut later = Vec::new();
    let mut kept = BTreeSet::new();
    for list in CHILDREN {
        let pointer = format!("/properties/{list}");
        let have = current.pointer(&pointer).and_then(Value::as_array);
        let Some(want) = desired.pointer_mut(&pointer).and_then(Value::as_array_mut) else {
            continue;
        };
        for extra in have.into_iter().flatten() {
            if counterpart(want, extra).is_some() {
                continue;
            }
            // A NIC can move to a new subnet only after an update of the VNet has added the new subnet. At that time
            // the NIC is still in the old subnet, so the update keeps the old subnet, and the last steps of the plan
            // delete it.
            let busy = list == "subnets" && deleted.is_some_and(|deleted| in_use(extra, deleted));
            if deleted.is_none() || busy {
                kept.insert(name(extra).unwrap_or_default().to_ascii_lowercase());
                want.push(extra.clone());
            }
            if busy {
                later.push(delete_subnet(e, extra));
            }
        }
    }
    (kept, later)
}

/// Adds a deletion for every resource that the manifest does not contain. Returns the paths of these resources in lower
/// case.
fn delete_steps(desired: &[DesiredResource], server: &Server, steps: &mut Vec<Step>) -> BTreeSet<String> {
    let desired_paths: BTreeSet<_> = desired.iter().map(|e| e.path.to_ascii_lowercase()).collect();
    let extra = |path: &String, kind: Kind| kind != Kind::ResourceGroup && !desired_paths.contains(path);
    let deleted: BTreeSet<String> = server
        .items
        .iter()
        .filter(|(path, (kind, _))| extra(path, *kind))
        .map(|(path, _)| path.clone())
        .collect();
    for path in &deleted {
        let (kind, body) = &server.items[path];
        let parent = path.split("/virtualnetworkpeerings/").next().unwrap_or(path);
        if *kind == Kind::Peering && deleted.contains(parent) {
            continue; // The deletion of its VNet deletes it.
        }
        let id = body.get("id").and_then(Value::as_str).unwrap_or(path);
        let own = name(body).unwrap_or_else(|| last(id));
        let name = match crate::path::segment(id, "virtualNetworks") {
            Some(vnet) if *kind == Kind::Peering => format!("{vnet}/{own}"),
            _ => own.to_owned(),
        };
        let part = |s: &str| crate::path::segment(id, s).unwrap_or_default().to_owned();
        steps.push(Step {
            action: Action::Delete,
            kind: *kind,
            group: Group::new(part("subscriptions"), part("resourceGroups")),
            name,
            path: id.to_owned(),
            note: None,
            before: json!({"id": id}),
            after: Value::Null,
            body: Value::Null,
            sync: false,
            rank: deletion_rank(*kind),
        });
    }
    deleted
}

fn delete_subnet(vnet: &DesiredResource, subnet: &Value) -> Step {
    let own = name(subnet).unwrap_or_default();
    let path = format!("{}/subnets/{own}", vnet.path);
    Step {
        action: Action::Delete,
        kind: Kind::Subnet,
        group: vnet.group.clone(),
        name: format!("{}/{own}", vnet.name),
        note: None,
        before: json!({"id": &path}),
        path,
        after: Value::Null,
        body: Value::Null,
        sync: false,
        rank: deletion_rank(Kind::Subnet),
    }
}

/// Whether a resource that pruning does not delete has an address in the subnet.
fn in_use(subnet: &Value, deleted: &BTreeSet<String>) -> bool {
    let users = subnet.pointer("/properties/ipConfigurations").and_then(Value::as_array);
    users
        .into_iter()
        .flatten()
        .filter_map(|u| u.get("id")?.as_str())
        .any(|id| {
            let id = id.to_ascii_lowercase();
            let owner = ["/ipconfigurations/", "/frontendipconfigurations/"]
                .into_iter()
                .find_map(|children| id.split_once(children));
            !deleted.contains(owner.map_or(&*id, |(owner, _)| owner))
        })
}

/// Whether this peering half must be synced (P27): it is `Connected`, and after this plan the remote VNet has other
/// prefixes than those that the half has synced.
fn needs_sync(current: &Value, desired: &Value, all: &[DesiredResource]) -> bool {
    let set = |v: Option<&Value>| -> Option<BTreeSet<IpNet>> {
        Some(v?.as_array()?.iter().filter_map(|p| p.as_str()?.parse().ok()).collect())
    };
    let remote = desired
        .pointer("/properties/remoteVirtualNetwork/id")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let planned = all
        .iter()
        .find(|e| e.kind == Kind::VirtualNetwork && e.path.eq_ignore_ascii_case(remote));
    let future = match planned {
        Some(vnet) => set(vnet.body.pointer("/properties/addressSpace/addressPrefixes")),
        None => set(current.pointer("/properties/remoteVirtualNetworkAddressSpace/addressPrefixes")),
    };
    let synced = set(current.pointer("/properties/remoteAddressSpace/addressPrefixes"));
    let connected = current.pointer("/properties/peeringState").and_then(Value::as_str) == Some("Connected");
    connected && matches!((future, synced), (Some(a), Some(b)) if a != b)
}

/// Replaces `addressPrefix` by `addressPrefixes`, so that subnets in both of ARM's formats can be compared.
fn normalize_prefixes(subnet: &mut Value) {
    let Some(properties) = subnet.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    let single = properties.remove("addressPrefix").filter(Value::is_string);
    let list = properties.get("addressPrefixes").and_then(Value::as_array);
    if list.is_none_or(Vec::is_empty) {
        properties.insert("addressPrefixes".to_owned(), Value::Array(single.into_iter().collect()));
    }
}

/// Removes the network interfaces of back-end pools from the pools' addresses. The controller shows them there, but they
/// are set at the network interfaces.
fn remove_interfaces_of_pools(balancer: &mut Value) {
    let pools = balancer
        .pointer_mut("/properties/backendAddressPools")
        .and_then(Value::as_array_mut);
    for pool in pools.into_iter().flatten() {
        let addresses = pool
            .pointer_mut("/properties/loadBalancerBackendAddresses")
            .and_then(Value::as_array_mut);
        if let Some(addresses) = addresses {
            addresses.retain(|a| a.pointer("/properties/ipAddress").is_some());
        }
    }
}

/// JSON pointers to the secrets of bodies.
const SECRETS: [&str; 2] = ["/properties/sharedKey", "/properties/peerings/0/properties/sharedKey"];

/// Returns the body for display, without nulls and with secrets masked. The mask says whether the secret differs from
/// the secret in `current`.
fn shown(body: &Value, current: Option<&Value>) -> Value {
    let mut out = tidy(body);
    for secret in SECRETS {
        if let Some(key) = out.pointer_mut(secret) {
            let before = current.and_then(|c| c.pointer(secret));
            let same = current.is_none() || before == Some(&*key);
            *key = json!(if same { "(secret)" } else { "(another secret)" });
        }
    }
    out
}

#[cfg(test)]
mod golden;
