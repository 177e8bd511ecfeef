//! Flow logs, which lie below the network watcher of their region.

mod named;
mod tail;

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{name, reference, subnet};
use crate::output::{Column, at};
use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use named::{REST, all, find};
use serde_json::json;
use tail::Tail;
use tombolo_proto::arm::{ArmPath, Kind, parent_id};
use tombolo_proto::id::ResourceId;

#[derive(Debug, Subcommand)]
pub(crate) enum FlowLog {
    /// Create a flow log, or change one that exists; the agents of the target's network interfaces write it to their disks
    Create {
        /// Name of the flow log
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        target: Target,
        /// Layout of a group's records: 1 has the beginnings of flows, 2 has packets and bytes too [default: 2]
        #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u8).range(1..=2))]
        format_version: Option<u8>,
        /// Whether agents write the log [default: true]
        #[arg(long, value_name = "BOOL")]
        enabled: Option<bool>,
        /// Id of a storage account, which is kept and shown only
        #[arg(long, value_name = "ID")]
        storage_account: Option<String>,
    },
    /// List the flow logs of all regions
    List,
    /// Show a flow log
    Show {
        /// Name of the flow log
        #[arg(value_parser = name)]
        name: String,
    },
    /// Follow the records of flow logs as agents make them
    Tail(Tail),
    /// Delete a flow log; files that agents have written stay
    Delete {
        /// Name of the flow log
        #[arg(value_parser = name)]
        name: String,
    },
}

/// The resource whose flows are recorded.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Target {
    /// Network security group: the flows about which its rules decide
    #[arg(long, value_name = "GROUP", value_parser = reference)]
    nsg: Option<String>,
    /// Virtual network: the flows of all its network interfaces
    #[arg(long, value_name = "VNET", value_parser = reference)]
    vnet: Option<String>,
    /// Subnet: the flows of all its network interfaces
    #[arg(long, value_name = "VNET/SUBNET", value_parser = subnet)]
    subnet: Option<String>,
    /// Network interface
    #[arg(long, value_name = "NIC", value_parser = reference)]
    nic: Option<String>,
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Target", |v| {
        let target = at(v, "/properties/targetResourceId");
        let path = ArmPath::parse(&target).ok();
        Cell::new(match path.as_ref().and_then(|path| Some((path.kind()?, path))) {
            Some((Kind::Subnet, path)) => {
                let vnet = path.parent().map(|vnet| vnet.name().to_owned()).unwrap_or_default();
                format!("subnet {vnet}/{}", path.name())
            }
            Some((kind, path)) => format!("{kind} {}", path.name()),
            None => target,
        })
    }),
    ("Enabled", |v| Cell::new(at(v, "/properties/enabled"))),
    ("Version", |v| Cell::new(at(v, "/properties/format/version"))),
];

impl Target {
    /// The id of the target, and the path of the resource that has the target's region.
    fn resolve(&self, c: &Context) -> Result<(String, String)> {
        let group = c.group()?;
        let whole =
            |kind: Kind, name: &Option<String>| name.as_ref().map(|name| group.resolve(kind.collection(), name));
        let found = whole(Kind::NetworkSecurityGroup, &self.nsg)
            .or_else(|| whole(Kind::VirtualNetwork, &self.vnet))
            .or_else(|| whole(Kind::NetworkInterface, &self.nic));
        if let Some(id) = found {
            return Ok((id.clone(), id));
        }
        let subnet = self.subnet.as_deref().unwrap_or_default();
        let id = group
            .resolve_subnet(subnet)
            .map_err(|why| UsageError::new(why, "--subnet VNET/SUBNET"))?;
        let vnet = parent_id(&ResourceId::new(id.as_str())).to_string();
        Ok((id, vnet))
    }
}

impl FlowLog {
    /// Creates, changes, deletes or prints flow logs.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create {
                name,
                target,
                format_version,
                enabled,
                storage_account,
            } => {
                let (id, located) = target.resolve(c)?;
                let location = c.client.arm_get(&located).await?["location"].clone();
                let region = location.as_str().unwrap_or_default();
                let path = format!(
                    "{}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_{region}/\
                     flowLogs/{name}",
                    c.subscription()
                );
                let old = c.client.arm_find(&path).await?;
                let verb = if old.is_some() { "Updated" } else { "Created" };
                let mut body = old.unwrap_or_else(|| json!({"location": location, "properties": {}}));
                let properties = &mut body["properties"];
                properties["targetResourceId"] = json!(id);
                if let Some(version) = format_version {
                    properties["format"] = json!({"type": "JSON", "version": version});
                }
                if let Some(enabled) = enabled {
                    properties["enabled"] = json!(enabled);
                }
                if let Some(account) = storage_account {
                    properties["storageId"] = json!(account);
                } else if properties.get("storageId").is_none() {
                    // Azure requires an account. None is used here.
                    let none = c.group()?.path() + "/providers/Microsoft.Storage/storageAccounts/none";
                    properties["storageId"] = json!(none);
                }
                c.put(&path, &body, &format!("{verb} flow log {name}.")).await
            }
            Self::List => {
                let empty = "No flow logs. Create one: tombolo flow-log create NAME --vnet VNET";
                c.out.list(&all(c).await?, COLUMNS, empty)
            }
            Self::Show { name } => c.out.item(find(&all(c).await?, name, REST)?, COLUMNS),
            Self::Tail(tail) => tail.run(c).await,
            Self::Delete { name } => {
                let logs = all(c).await?;
                let found = find(&logs, name, REST)?;
                // The answer to a DELETE below a watcher does not say whether there was something.
                c.client.arm_delete(&at(found, "/id")).await?;
                c.report(&json!({"deleted": true}), &format!("Deleted flow log {name}."))
                    .await
            }
        }
    }
}
