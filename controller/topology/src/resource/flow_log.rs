//! Flow logs: which network interfaces have their flows recorded, and in which layout (N14, D38). A flow log lies below
//! the network watcher of its region. Watchers are not stored: each region has one.

use crate::arm::body::{Object, Shape, missing};
use crate::arm::view::Views;
use crate::draft::Draft;
use crate::path::{ArmPath, Kind, parent_id};
use crate::resource::frame::{Echoed, Put, Resource};
use crate::resource::{Envelope, ResourceGroup};
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// The resource group in which Azure creates network watchers.
pub const WATCHER_GROUP: &str = "NetworkWatcherRG";

/// The prefix of the names that Azure gives to network watchers; the region follows.
pub const WATCHER_PREFIX: &str = "NetworkWatcher_";

/// Longest id of a storage account, in bytes.
const MAX_STORAGE_ID: usize = 2048;

/// A flow log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowLog {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The network security group, VNet, subnet or NIC. It may have been deleted since.
    pub target: ResourceId,
    /// The id of a storage account, which is kept and shown only: agents write to their own disks.
    pub storage_id: String,
    /// Whether agents write the log.
    pub enabled: bool,
    /// `format.version`, 1 or 2. It decides the layout if the target is a group.
    pub version: u8,
    /// `retentionPolicy.days`, 0 to 365, kept and shown only.
    pub retention_days: u16,
    /// `retentionPolicy.enabled`, kept and shown only.
    pub retention_enabled: bool,
}

/// The properties that are kept and shown only.
const ECHOED: Echoed = Echoed {
    top: &[("identity", Shape::Object)],
    properties: &[
        ("flowAnalyticsConfiguration", Shape::Object),
        ("enabledFilteringCriteria", Shape::Text),
        ("recordTypes", Shape::Text),
    ],
    defaults: || json!({"flowAnalyticsConfiguration": {}}),
    ..Echoed::NOTHING
};

impl Resource for FlowLog {
    const KIND: Kind = Kind::FlowLog;
    const ECHOED: Echoed = ECHOED;

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let kept = put.echoed(&mut draft.problems);
        let envelope = put.envelope(draft, kept);
        let target = draft.flow_log_target(put);
        let (properties, problems) = (&put.properties, &mut draft.problems);
        let storage_id = properties.text("storageId", problems).unwrap_or_default();
        if storage_id.is_empty() {
            missing(problems, &properties.at("storageId"));
        } else if storage_id.len() > MAX_STORAGE_ID {
            let at = properties.at("storageId");
            let message = format!(
                "{at}: {} bytes; at most {MAX_STORAGE_ID} are possible",
                storage_id.len()
            );
            problems.add("InvalidRequestFormat", at, message);
        }
        let format = properties.object_or_empty("format", problems);
        format.choice("type", &["JSON"], problems);
        // The command line sends 0 unless the user chooses a version.
        let version = format.integer("version", 0..=2, problems).filter(|v| *v != 0);
        let retention = properties.object_or_empty("retentionPolicy", problems);
        let enabled = properties.boolean("enabled", problems).unwrap_or(true);
        let retention_days = retention.integer("days", 0..=365, problems).unwrap_or(0);
        let retention_enabled = retention.boolean("enabled", problems).unwrap_or(false);
        let new = Self {
            envelope,
            target: target?,
            storage_id: storage_id.to_owned(),
            enabled,
            version: version.and_then(|v| u8::try_from(v).ok()).unwrap_or(2),
            retention_days: u16::try_from(retention_days).unwrap_or(0),
            retention_enabled,
        };
        draft.check_flow_log_place(put.path, &new);
        draft.problems.is_empty().then_some(new)
    }

    fn check_unused(_draft: &mut Draft<'_>, _id: &ResourceId, _old: &Self) {}

    fn properties(&self, views: &Views<'_>) -> Value {
        let mut properties = json!({
            "targetResourceId": self.target,
            "storageId": self.storage_id,
            "enabled": self.enabled,
            "format": {"type": "JSON", "version": self.version},
            "retentionPolicy": {"days": self.retention_days, "enabled": self.retention_enabled},
        });
        if let Some(target) = Target::of(views.topology, &self.target) {
            properties["targetResourceGuid"] = target.guid.to_string().into();
        }
        properties
    }

    fn top_members(&self) -> Value {
        // Azure writes this type with a capital letter.
        json!({"type": "Microsoft.Network/networkWatchers/FlowLogs"})
    }
}

/// The target of a flow log.
struct Target {
    id: ResourceId,
    location: String,
    /// The GUID of the target; that of the VNet if the target is a subnet.
    guid: Uuid,
}

impl Target {
    fn of(topology: &Topology, id: &ResourceId) -> Option<Self> {
        let of = |id: &ResourceId, envelope: &Envelope| Self {
            id: id.clone(),
            location: envelope.location.clone(),
            guid: envelope.resource_guid,
        };
        let whole = |envelope: &Envelope| of(&envelope.id, envelope);
        let group = || topology.network_security_groups.get(id).map(|g| whole(&g.envelope));
        let vnet = || topology.vnets.get(id).map(|v| whole(&v.envelope));
        let nic = || topology.nics.get(id).map(|n| whole(&n.envelope));
        let subnet = || {
            let vnet = topology.vnets.get(&parent_id(id))?;
            let subnet = vnet.subnets.iter().find(|s| s.id == *id)?;
            Some(of(&subnet.id, &vnet.envelope))
        };
        group().or_else(vnet).or_else(nic).or_else(subnet)
    }
}

/// The flow logs whose target is a resource.
pub(crate) fn of_target<'t>(topology: &'t Topology, target: &'t ResourceId) -> impl Iterator<Item = &'t Arc<FlowLog>> {
    topology.flow_logs.values().filter(move |log| log.target == *target)
}

impl Draft<'_> {
    /// Creates the resource group of network watchers, if the path of a flow log is in it. Azure creates it with the first
    /// network watcher.
    pub(crate) fn create_watcher_group(&mut self, path: &ArmPath, body: &Value) {
        let id = path.group_id();
        if !path.resource_group.eq_ignore_ascii_case(WATCHER_GROUP) || self.topology.resource_groups.contains_key(&id) {
            return;
        }
        // The body is read again, with its problems, by the resource.
        let mut unused = crate::problems::Problems::default();
        let location = Object::root(body, &mut unused).text("location", &mut unused);
        let group = ResourceGroup {
            id: ResourceId::new(format!(
                "/subscriptions/{}/resourceGroups/{WATCHER_GROUP}",
                path.subscription
            )),
            location: location.unwrap_or_default().replace(' ', "").to_ascii_lowercase(),
            tags: BTreeMap::new(),
        };
        self.topology.resource_groups.insert(group.id.clone(), Arc::new(group));
    }

    /// Reads `targetResourceId`. `None`: it is absent, malformed, or names no possible target, and a problem says so. A target
    /// that was deleted may stay.
    fn flow_log_target(&mut self, put: &Put<'_, FlowLog>) -> Option<ResourceId> {
        let properties = &put.properties;
        let at = properties.at("targetResourceId");
        let Some(text) = properties.text("targetResourceId", &mut self.problems) else {
            if properties.get("targetResourceId").is_none() {
                missing(&mut self.problems, &at);
            }
            return None;
        };
        let path = match ArmPath::parse(text) {
            Ok(path) => path,
            Err(why) => {
                self.problems
                    .add("InvalidRequestFormat", at.clone(), format!("{at}: {why}"));
                return None;
            }
        };
        let kinds = [
            Kind::NetworkSecurityGroup,
            Kind::VirtualNetwork,
            Kind::Subnet,
            Kind::NetworkInterface,
        ];
        if !path.kind().is_some_and(|kind| kinds.contains(&kind)) {
            let message = format!(
                "{at}: {} cannot have a flow log. The target must be a network security group, a virtual network, a subnet \
                 or a network interface (N14).",
                path.id()
            );
            self.problems.add("InvalidRequestFormat", at, message);
            return None;
        }
        let id = path.id();
        if put.old().is_some_and(|old| old.target == id) {
            return put.old().map(|old| old.target.clone());
        }
        let found = Target::of(&self.topology, &id).map(|target| target.id);
        if found.is_none() {
            self.dangling(&put.id, &path, &at);
        }
        found
    }

    /// Checks that a flow log lies below the watcher of its target's region, and that the target has no other flow log.
    fn check_flow_log_place(&mut self, path: &ArmPath, log: &FlowLog) {
        let id = &log.envelope.id;
        let watcher = format!("{WATCHER_PREFIX}{}", log.envelope.location);
        let parent = path.parent();
        let is_below = parent.is_some_and(|parent| parent.name().eq_ignore_ascii_case(&watcher));
        if !is_below || !path.resource_group.eq_ignore_ascii_case(WATCHER_GROUP) {
            self.problems.add(
                "InvalidRequestFormat",
                id,
                format!(
                    "{id}: a flow log in region '{}' lies below the network watcher {watcher} of this region in resource group \
                     {WATCHER_GROUP} (N14). Change the location or the path.",
                    log.envelope.location
                ),
            );
        }
        if let Some(target) = Target::of(&self.topology, &log.target)
            && target.location != log.envelope.location
        {
            self.problems.add(
                "InvalidResourceReference",
                "properties.targetResourceId",
                format!(
                    "properties.targetResourceId: {0} is in region '{1}', and the flow log {id} in region '{2}' (P1). Create the \
                     flow log below the network watcher of region '{1}'.",
                    target.id, target.location, log.envelope.location
                ),
            );
        }
        let other = of_target(&self.topology, &log.target).find(|other| other.envelope.id != *id);
        if let Some(other) = other.map(|other| other.envelope.id.clone()) {
            self.problems.add(
                "XFlowLogExists",
                "properties.targetResourceId",
                format!(
                    "properties.targetResourceId: {} has the flow log {other} already. A resource can have one flow log (N14): \
                     change or delete that one.",
                    log.target
                ),
            );
        }
    }
}
