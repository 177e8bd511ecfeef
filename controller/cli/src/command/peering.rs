//! Peerings. Each of the two VNets has a half of the peering. Packets pass only if both halves are Connected.

use crate::context::Context;
use crate::failure::NotFound;
use crate::options::{Child, child, name, reference};
use crate::output::{Column, at, items, name_at, state};
use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Peering {
    /// Create one half of a peering
    Create {
        /// Name of the half, as VNET/PEERING
        #[arg(value_parser = child)]
        name: Child,
        /// Remote VNet, by name or id
        #[arg(short, long, value_name = "VNET", value_parser = reference, visible_alias = "remote-vnet")]
        remote: String,
        #[command(flatten)]
        flags: Flags,
    },
    /// List the peering halves of one VNet or of all VNets
    List {
        /// Virtual network [default: all]
        #[arg(value_parser = name)]
        vnet: Option<String>,
    },
    /// Show a peering half
    Show {
        /// Name of the half, as VNET/PEERING
        #[arg(value_parser = child)]
        name: Child,
    },
    /// Change the flags of a peering half; a Disconnected half also returns to Initiated, even if no flag is given
    /// (P14)
    Update {
        /// Name of the half, as VNET/PEERING
        #[arg(value_parser = child)]
        name: Child,
        #[command(flatten)]
        flags: Flags,
    },
    /// Use the present address space of the remote VNet (P27)
    Sync {
        /// Name of the half, as VNET/PEERING
        #[arg(value_parser = child)]
        name: Child,
    },
    /// Delete a peering half; the other half becomes Disconnected
    Delete {
        /// Name of the half, as VNET/PEERING
        #[arg(value_parser = child)]
        name: Child,
        /// Also delete the half of the remote VNet
        #[arg(long)]
        both: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Packets may pass between the two VNets [default: true] (P17)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_vnet_access: Option<bool>,
    /// Packets whose source is outside of the remote VNet, and which the remote VNet forwards, may enter this VNet
    /// (P18)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_forwarded_traffic: Option<bool>,
    /// The remote VNet may use this VNet's gateways (P19)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_gateway_transit: Option<bool>,
    /// This VNet uses the remote VNet's gateways (P20)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    use_remote_gateways: Option<bool>,
    /// Protocol of the links between the two VNets: WireGuard, Quic, or Automatic for QUIC where WireGuard fails
    /// [default: Automatic]
    #[arg(long, value_name = "TRANSPORT")]
    transport: Option<String>,
}

impl Flags {
    /// Sets the properties of the half for which an option is given. The other properties stay.
    fn apply_to(&self, properties: &mut Value) {
        let flags = [
            ("allowVirtualNetworkAccess", self.allow_vnet_access),
            ("allowForwardedTraffic", self.allow_forwarded_traffic),
            ("allowGatewayTransit", self.allow_gateway_transit),
            ("useRemoteGateways", self.use_remote_gateways),
        ];
        for (name, value) in flags {
            if let Some(value) = value {
                properties[name] = json!(value);
            }
        }
        if let Some(transport) = &self.transport {
            properties["transport"] = json!(transport);
        }
    }
}

/// The columns of lists of peering halves.
pub(crate) const COLUMNS: &[Column] = &[
    ("VNet", |v| {
        Cell::new(segment(&at(v, "/id"), "virtualNetworks").unwrap_or_default())
    }),
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Remote", |v| {
        Cell::new(name_at(v, "/properties/remoteVirtualNetwork/id"))
    }),
    ("State", |v| state(&at(v, "/properties/peeringState"))),
    ("Sync", |v| state(&at(v, "/properties/peeringSyncLevel"))),
    ("Access", |v| Cell::new(at(v, "/properties/allowVirtualNetworkAccess"))),
    ("Forwarded", |v| Cell::new(at(v, "/properties/allowForwardedTraffic"))),
    ("Transit", |v| Cell::new(at(v, "/properties/allowGatewayTransit"))),
    ("Transport", |v| Cell::new(at(v, "/properties/transport"))),
    ("Remote gateways", |v| Cell::new(at(v, "/properties/useRemoteGateways"))),
];

impl Peering {
    /// Creates, changes, syncs or deletes one half of a peering, or prints halves. [`Context::report_write`] prints the
    /// result of a write. To change a half, reads it and writes it back. Never creates the other half.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create { name, remote, flags } => {
                let mut properties = json!({
                    "remoteVirtualNetwork": {"id": c.group()?.resolve("virtualNetworks", remote)},
                    "allowVirtualNetworkAccess": true,
                });
                flags.apply_to(&mut properties);
                let answer = c
                    .client
                    .arm_put(&path(c, name)?, &json!({"properties": properties}))
                    .await?;
                c.report_write(&answer, &message("Created", name, &answer)).await
            }
            Self::List { vnet: Some(vnet) } => {
                let vnet = c.group()?.item("virtualNetworks", vnet);
                let all = c.client.arm_list(&format!("{vnet}/virtualNetworkPeerings")).await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No peerings. Create one: tombolo peering create VNET/NAME --remote VNET",
                )
            }
            Self::List { vnet: None } => {
                let vnets = c.list(Kind::VirtualNetwork).await?;
                let all: Vec<_> = vnets
                    .iter()
                    .flat_map(|v| items(v, "/properties/virtualNetworkPeerings"))
                    .cloned()
                    .collect();
                c.out.list(
                    &all,
                    COLUMNS,
                    "No peerings. Create one: tombolo peering create VNET/NAME --remote VNET",
                )
            }
            Self::Show { name } => {
                let mut columns = COLUMNS.to_vec();
                columns.extend_from_slice(&[
                    ("Remote space", |v| {
                        Cell::new(at(v, "/properties/remoteAddressSpace/addressPrefixes"))
                    }),
                    ("Remote space now", |v| {
                        Cell::new(at(v, "/properties/remoteVirtualNetworkAddressSpace/addressPrefixes"))
                    }),
                ]);
                c.out.item(&c.client.arm_get(&path(c, name)?).await?, &columns)
            }
            Self::Update { name, flags } => {
                let path = path(c, name)?;
                let mut body = c.client.arm_get(&path).await?;
                flags.apply_to(&mut body["properties"]);
                let answer = c.client.arm_put(&path, &body).await?;
                c.report_write(&answer, &message("Updated", name, &answer)).await
            }
            Self::Sync { name } => {
                let path = path(c, name)?;
                let body = c.client.arm_get(&path).await?;
                let answer = c
                    .client
                    .arm_put_with(&path, &[("syncRemoteAddressSpace", "true")], &body)
                    .await?;
                c.report_write(&answer, &message("Synced", name, &answer)).await
            }
            Self::Delete { name, both } => delete(c, name, *both).await,
        }
    }
}

/// Deletes a half of a peering and, with `both`, the remote VNet's half too. A half that does not exist is an error
/// only with `both`.
async fn delete(c: &Context, name: &Child, both: bool) -> Result<()> {
    let path = path(c, name)?;
    let other = if both { counterpart(c, &path).await? } else { None };
    let Some(other) = other else {
        return c.delete(&path, "peering").await;
    };
    let existed = c.client.arm_delete(&path).await?;
    let other_existed = c.client.arm_delete(&other).await?;
    let message = format!("Deleted peering {}/{} and its other half.", name.parent, name.name);
    c.report(&json!({"deleted": existed, "otherDeleted": other_existed}), &message)
        .await
}

/// Returns the id of the remote VNet's half of the peering whose local half is at `path`; `None` if the remote VNet
/// does not exist or has no such half. Reads the halves of both VNets from the controller.
///
/// # Errors
/// [`NotFound`]: the half at `path` does not exist, so its remote VNet is unknown.
async fn counterpart(c: &Context, path: &str) -> Result<Option<String>> {
    let Some(half) = c.client.arm_find(path).await? else {
        return Err(NotFound(format!("there is no peering {path}, so its other half is not known")).into());
    };
    let remote = at(&half, "/properties/remoteVirtualNetwork/id");
    let Some(remote) = c.client.arm_find(&remote).await? else {
        return Ok(None);
    };
    let own = path.split("/virtualNetworkPeerings/").next().unwrap_or_default();
    Ok(items(&remote, "/properties/virtualNetworkPeerings")
        .find(|p| at(p, "/properties/remoteVirtualNetwork/id").eq_ignore_ascii_case(own))
        .map(|p| at(p, "/id")))
}

/// Returns a message for the user: what was done, the state of the half (`peeringState`), and the reason for this
/// state.
fn message(verb: &str, name: &Child, answer: &Value) -> String {
    let state = at(answer, "/properties/peeringState");
    let more = match state.as_str() {
        "Initiated" => ": the other half is missing",
        "Disconnected" => ": the other half was deleted",
        _ => "",
    };
    format!("{verb} peering {}/{}: {state}{more}.", name.parent, name.name)
}

fn path(c: &Context, name: &Child) -> Result<String> {
    let vnet = c.group()?.item("virtualNetworks", &name.parent);
    Ok(format!("{vnet}/virtualNetworkPeerings/{}", name.name))
}
