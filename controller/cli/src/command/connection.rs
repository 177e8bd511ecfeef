//! VNet-to-VNet connections: each gateway has its own side.

use crate::args::{name, reference};
use crate::context::Context;
use crate::failure::Usage;
use crate::output::{Column, at, bytes, items, name_at, state};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use comfy_table::Cell;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Connection {
    /// Create one side
    Create {
        #[arg(value_parser = name)]
        name: String,
        /// This side's gateway
        #[arg(long, value_parser = reference, visible_alias = "vnet-gateway1")]
        gateway1: String,
        /// The other side's gateway
        #[arg(long, value_parser = reference, visible_alias = "vnet-gateway2")]
        gateway2: String,
        #[command(flatten)]
        key: Key,
        /// The region; the group's unless given
        #[arg(short, long)]
        location: Option<String>,
    },
    /// Change one side; its key: `shared-key set`
    Update {
        #[arg(value_parser = name)]
        name: String,
        /// Of several connections to the same networks, the larger weight wins
        #[arg(long)]
        routing_weight: u32,
    },
    /// List connections with their status and why it is so
    List,
    /// Show a connection with its status and why it is so
    Show {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete one side
    Delete {
        #[arg(value_parser = name)]
        name: String,
    },
    /// The shared key
    #[command(subcommand)]
    SharedKey(SharedKey),
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Key {
    /// The key, the same on both sides (G11); better in a file
    #[arg(long, value_name = "KEY")]
    shared_key: Option<String>,
    /// A file with the key
    #[arg(long, value_name = "FILE")]
    shared_key_file: Option<PathBuf>,
}

impl Key {
    fn read(&self) -> Result<Option<String>> {
        let Some(path) = &self.shared_key_file else {
            return Ok(self.shared_key.clone());
        };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum SharedKey {
    /// Print the key
    Show {
        #[arg(value_parser = name)]
        connection: String,
    },
    /// Set the key
    Set {
        #[arg(value_parser = name)]
        connection: String,
        #[command(flatten)]
        key: Key,
    },
    /// Let the controller make a new key and print it; set it on the other side too
    Reset {
        #[arg(value_parser = name)]
        connection: String,
        /// How long, characters
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=128))]
        length: u32,
    },
}

impl Connection {
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create {
                name,
                gateway1,
                gateway2,
                key,
                location,
            } => {
                let group = c.group()?;
                let gateway = |name: &str| json!({"id": group.resolve("virtualNetworkGateways", name)});
                let mut properties = json!({
                    "connectionType": "Vnet2Vnet",
                    "virtualNetworkGateway1": gateway(gateway1),
                    "virtualNetworkGateway2": gateway(gateway2),
                });
                let key = key.read()?;
                if let Some(key) = &key {
                    properties["sharedKey"] = json!(key);
                }
                let body = json!({"location": c.location(location.as_deref()).await?, "properties": properties});
                let hint = if key.is_some() {
                    ""
                } else {
                    " It has no shared key yet: tombolo connection shared-key set"
                };
                c.put(&path(c, name)?, &body, &format!("Created connection {name}.{hint}"))
                    .await
            }
            Self::Update { name, routing_weight } => {
                let change = |connection: &mut Value| {
                    connection["properties"]["routingWeight"] = json!(routing_weight);
                };
                c.edit(&path(c, name)?, &format!("Updated connection {name}."), change)
                    .await
            }
            Self::List => list(c, &c.list("connections").await?),
            Self::Show { name } => {
                let one = c.client.arm_get(&path(c, name)?).await?;
                c.out.item(&one, COLUMNS)
            }
            Self::Delete { name } => c.delete(&path(c, name)?, "connection").await,
            Self::SharedKey(key) => key.run(c).await,
        }
    }
}

impl SharedKey {
    async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Show { connection } => {
                let answer = c.client.arm_get(&key_path(c, connection)?).await?;
                show_key(c, &answer)
            }
            Self::Set { connection, key } => {
                let Some(key) = key.read()? else {
                    return Err(Usage::new("no key is given", "--shared-key-file FILE or --shared-key KEY").into());
                };
                c.client
                    .arm_put(&key_path(c, connection)?, &json!({"value": key}))
                    .await?;
                let what = format!("Set the shared key of connection {connection}.");
                c.done(&json!({"set": true}), &what).await
            }
            Self::Reset { connection, length } => {
                let path = format!("{}/reset", key_path(c, connection)?);
                c.client.arm_post(&path, &json!({"keyLength": length})).await?;
                let answer = c.client.arm_get(&key_path(c, connection)?).await?;
                show_key(c, &answer)?;
                c.settle().await
            }
        }
    }
}

fn show_key(c: &Context, answer: &Value) -> Result<()> {
    if c.out.is_json() {
        c.out.json(answer)
    } else {
        c.out.line(&at(answer, "/value"));
        Ok(())
    }
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Gateway", |v| {
        Cell::new(name_at(v, "/properties/virtualNetworkGateway1/id"))
    }),
    ("To", |v| Cell::new(name_at(v, "/properties/virtualNetworkGateway2/id"))),
    ("Status", |v| state(&at(v, "/properties/connectionStatus"))),
    ("In", |v| {
        Cell::new(bytes(number(v, "/properties/ingressBytesTransferred")))
    }),
    ("Out", |v| {
        Cell::new(bytes(number(v, "/properties/egressBytesTransferred")))
    }),
    ("Reason", |v| Cell::new(reason(v))),
];

/// The connections with their status and why it is so.
pub(crate) fn list(c: &Context, connections: &[Value]) -> Result<()> {
    c.out.list(
        connections,
        COLUMNS,
        "No connections. Create one: tombolo connection create NAME --gateway1 GATEWAY --gateway2 GATEWAY",
    )
}

fn number(connection: &Value, pointer: &str) -> u64 {
    connection.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// Why its tunnels are as they are; nothing for tunnels that are up.
fn reason(connection: &Value) -> String {
    let tunnels = items(connection, "/properties/tunnelConnectionStatus");
    let mut reasons: Vec<_> = tunnels.map(|t| at(t, "/reason")).filter(|r| !r.is_empty()).collect();
    reasons.dedup();
    reasons.join("; ")
}

fn path(c: &Context, name: &str) -> Result<String> {
    Ok(c.group()?.item("connections", name))
}

fn key_path(c: &Context, name: &str) -> Result<String> {
    Ok(format!("{}/sharedkey", path(c, name)?))
}
