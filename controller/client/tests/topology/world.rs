//! A controller's state without a controller, and plans that are carried out on it.

use serde_json::{Value, json};
use tombolo_client::manifest::{Action, DesiredResource, Kind, Manifest, Plan, Server};
use tombolo_client::path::{DEFAULT_SUBSCRIPTION, Group};
use tombolo_topology::change::{Change, Rejection};
use tombolo_topology::path::ArmPath;
use tombolo_topology::topology::{AgentStatuses, Topology};
use uuid::Uuid;

/// The state of a controller, which changes only as the controller's rules allow.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) now: Topology,
    guids: u128,
}

pub(crate) fn group() -> Group {
    Group::new(DEFAULT_SUBSCRIPTION, "unused")
}

pub(crate) fn expanded(text: &str) -> Vec<DesiredResource> {
    let mut manifest = Manifest::default();
    manifest.parse("test.yaml", text).unwrap();
    manifest.expand(&group()).unwrap()
}

impl World {
    pub(crate) fn change(&mut self, change: &Change) -> Result<(), Rejection> {
        let guids = &mut self.guids;
        let mut new_guid = || {
            *guids += 1;
            Uuid::from_u128(*guids)
        };
        self.now = self.now.apply(change, &mut new_guid)?.topology;
        Ok(())
    }

    /// Returns the value that `Server::read` would read from a controller with this state.
    pub(crate) fn read(&self, desired: &[DesiredResource]) -> Server {
        let live = AgentStatuses::default();
        let mut server = Server::default();
        let groups: std::collections::BTreeSet<_> = desired.iter().map(|e| &e.group).collect();
        for group in groups {
            let Some(found) = self.now.view(&ArmPath::parse(&group.path()).unwrap(), &live) else {
                continue;
            };
            server.insert(Kind::ResourceGroup, &group.path(), found);
            for kind in Kind::TOP {
                for mut item in self.now.list(&group.collection(kind.collection()), &live).unwrap() {
                    let path = item["id"].as_str().unwrap().to_owned();
                    if kind == Kind::Connection {
                        let id = tombolo_proto::id::ResourceId::new(&path);
                        item["properties"]["sharedKey"] = json!(self.now.connections[&id].shared_key);
                    }
                    if kind == Kind::Circuit && item.pointer("/properties/peerings/0").is_some() {
                        let id = tombolo_proto::id::ResourceId::new(&path);
                        let peering = self.now.circuits[&id].private_peering.as_ref().unwrap();
                        item["properties"]["peerings"][0]["properties"]["sharedKey"] = json!(peering.shared_key);
                    }
                    server.insert(kind, &path, item);
                }
            }
        }
        server
    }

    pub(crate) fn plan(&self, text: &str, prune: bool) -> Plan {
        let desired = expanded(text);
        Plan::make(&desired, &self.read(&desired), prune).unwrap()
    }

    /// Plans a manifest and carries out the plan, then checks that a second plan is empty. Returns the names of the
    /// changed resources. Panics if a step is refused.
    pub(crate) fn apply(&mut self, text: &str, prune: bool) -> Vec<String> {
        let plan = self.plan(text, prune);
        let mut changed = Vec::new();
        for step in plan.changes() {
            let path = ArmPath::parse(&step.path).unwrap();
            let change = match step.action {
                Action::Delete => Change::Delete { path, if_match: None },
                _ => Change::Put {
                    path,
                    body: step.body.clone(),
                    if_match: None,
                    sync_remote_address_space: step.sync,
                },
            };
            if let Err(e) = self.change(&change) {
                panic!("{} {}: {:?}\n{}", step.kind, step.name, e.problems, step.body);
            }
            changed.push(step.name.clone());
        }
        let again = self.plan(text, prune);
        let left: Vec<_> = again
            .changes()
            .map(|s| format!("{} {}: {} → {}", s.kind, s.name, s.before, s.after))
            .collect();
        assert!(left.is_empty(), "applying again would change: {left:#?}");
        changed
    }

    pub(crate) fn peering(&self, vnet: &str, name: &str) -> Value {
        let path = Group::new(DEFAULT_SUBSCRIPTION, "lab").item("virtualNetworks", vnet);
        let path = format!("{path}/virtualNetworkPeerings/{name}");
        self.now
            .view(&ArmPath::parse(&path).unwrap(), &AgentStatuses::default())
            .unwrap()
    }

    pub(crate) fn delete(&mut self, tail: &str) {
        let path = format!(
            "{}/providers/Microsoft.Network/{tail}",
            Group::new(DEFAULT_SUBSCRIPTION, "lab").path()
        );
        self.change(&Change::Delete {
            path: ArmPath::parse(&path).unwrap(),
            if_match: None,
        })
        .unwrap();
    }
}

/// For each change, applies the changed file and then the unchanged one again. Panics if one of these two applications
/// changes nothing.
pub(crate) fn change_and_revert(file: &str, changes: &[(&str, &str)]) {
    let mut world = World::default();
    world.apply(file, false);
    for (from, to) in changes {
        let changed = file.replace(from, to);
        assert_ne!(changed, file, "{from} is not in the file");
        assert!(!world.apply(&changed, true).is_empty(), "{from} → {to}");
        assert!(!world.apply(file, true).is_empty(), "{to} → {from}");
    }
}
