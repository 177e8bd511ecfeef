//! Connections of gateways to other gateways, sites and circuits.

mod device;

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{name, reference};
use crate::output::{Column, at, bytes, items, name_at, state};
use anyhow::{Context as _, Result};
use clap::{ArgAction, ArgGroup, Args, Subcommand};
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::PathBuf;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Connection {
    /// Create a connection; to join two gateways, create one connection at each of them
    Create(Create),
    /// Change a connection; `shared-key set` changes its key
    #[command(group(ArgGroup::new("change").required(true).multiple(true).args(["routing_weight", "enable_bgp", "dpd_timeout"])))]
    Update {
        /// Name of the connection
        #[arg(value_parser = name)]
        name: String,
        /// Preference among connections to the same prefixes; the connection with the largest weight is used
        #[arg(long)]
        routing_weight: Option<u32>,
        /// Exchange routes over the connection by BGP (G4)
        #[arg(long, value_name = "true|false", action = ArgAction::Set)]
        enable_bgp: Option<bool>,
        /// Seconds (9 to 3600) after which a silent VPN device of a site counts as down; 0 restores the default
        #[arg(long = "dpd-timeout-seconds", value_name = "SECONDS")]
        dpd_timeout: Option<u32>,
    },
    /// List connections with their status and the reason of a failure
    List,
    /// Show a connection with its status and the reason of a failure
    Show {
        /// Name of the connection
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a connection; the remote gateway's own connection is not deleted
    Delete {
        /// Name of the connection
        #[arg(value_parser = name)]
        name: String,
    },
    /// Print the WireGuard and BGP configuration for a site's VPN device; the output contains a secret
    DeviceConfig {
        /// Name of the connection
        #[arg(value_parser = name)]
        name: String,
    },
    /// Show or change the shared key of a connection
    #[command(subcommand)]
    SharedKey(SharedKey),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the connection
    #[arg(value_parser = name)]
    name: String,
    /// Gateway of this end, by name or id
    #[arg(long, value_parser = reference, visible_alias = "vnet-gateway1")]
    gateway1: String,
    #[command(flatten)]
    remote: RemoteEnd,
    /// Gateway's addresses of the tunnels to the primary and the secondary edge, in GatewaySubnet [default: allocated]
    #[arg(long = "tunnel-address", value_name = "ADDRESS", num_args = 2)]
    #[arg(conflicts_with_all = ["gateway2", "local_gateway"])]
    tunnel_addresses: Vec<IpAddr>,
    #[command(flatten)]
    key: SharedKeyArgs,
    /// Preference among connections to the same prefixes; the connection with the largest weight is used
    #[arg(long)]
    routing_weight: Option<u32>,
    /// Exchange routes over the connection by BGP (G4); connections to circuits always do
    #[arg(long)]
    enable_bgp: bool,
    /// Seconds (9 to 3600) after which a silent VPN device of a site counts as down
    #[arg(long = "dpd-timeout-seconds", value_name = "SECONDS")]
    dpd_timeout: Option<u32>,
    /// Region [default: the group's]
    #[arg(short, long)]
    location: Option<String>,
}

/// The remote end of a connection.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct RemoteEnd {
    /// Remote VPN gateway, by name or id
    #[arg(long, value_parser = reference, visible_alias = "vnet-gateway2")]
    gateway2: Option<String>,
    /// Local network gateway that describes the remote site, by name or id
    #[arg(long, value_parser = reference, visible_alias = "local-gateway2")]
    local_gateway: Option<String>,
    /// ExpressRoute circuit, by name or id
    #[arg(long, value_parser = reference, visible_alias = "express-route-circuit2")]
    circuit: Option<String>,
}

impl Create {
    fn properties(&self, c: &Context) -> Result<Value> {
        let group = c.group()?;
        let reference = |kind: &str, name: &str| json!({"id": group.resolve(kind, name)});
        let mut properties = json!({
            "virtualNetworkGateway1": reference("virtualNetworkGateways", &self.gateway1),
            "enableBgp": self.enable_bgp,
        });
        let ends = [
            (
                &self.remote.gateway2,
                "Vnet2Vnet",
                "virtualNetworkGateway2",
                "virtualNetworkGateways",
            ),
            (
                &self.remote.local_gateway,
                "IPsec",
                "localNetworkGateway2",
                "localNetworkGateways",
            ),
            (&self.remote.circuit, "ExpressRoute", "peer", "expressRouteCircuits"),
        ];
        for (end, kind, property, collection) in ends {
            if let Some(end) = end {
                properties["connectionType"] = json!(kind);
                properties[property] = reference(collection, end);
            }
        }
        if !self.tunnel_addresses.is_empty() {
            properties["tunnelAddresses"] = json!(self.tunnel_addresses);
        }
        if let Some(weight) = self.routing_weight {
            properties["routingWeight"] = json!(weight);
        }
        if let Some(seconds) = self.dpd_timeout {
            properties["dpdTimeoutSeconds"] = json!(seconds);
        }
        Ok(properties)
    }

    async fn run(&self, c: &Context) -> Result<()> {
        let name = &self.name;
        let mut properties = self.properties(c)?;
        let key = self.key.read()?;
        let mut hint = "";
        match (&key, &self.remote.circuit) {
            (Some(_), Some(_)) => {
                let hint = "remove --shared-key and --shared-key-file";
                return Err(UsageError::new("a connection to a circuit has no shared key", hint).into());
            }
            (Some(key), None) => properties["sharedKey"] = json!(key),
            (None, None) => hint = " It has no shared key yet: tombolo connection shared-key set",
            (None, Some(_)) => {}
        }
        let body = json!({"location": c.location(self.location.as_deref()).await?, "properties": properties});
        let mut message = format!("Created connection {name}.{hint}");
        if key.is_some() && self.remote.local_gateway.is_some() {
            message += &format!(" Configuration for the site's device: tombolo connection device-config {name}");
        }
        c.put(&path(c, name)?, &body, &message).await
    }
}

/// The options for a shared key.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct SharedKeyArgs {
    /// Shared key, the same at both ends; visible to all users of this machine, so prefer --shared-key-file (G11)
    #[arg(long, value_name = "KEY")]
    shared_key: Option<String>,
    /// File that contains the shared key
    #[arg(long, value_name = "FILE")]
    shared_key_file: Option<PathBuf>,
}

impl SharedKeyArgs {
    /// Returns the key that `--shared-key` gives, or the content of the key file without its final newline. `None` if
    /// neither option is given.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(&self) -> Result<Option<String>> {
        let Some(path) = &self.shared_key_file else {
            return Ok(self.shared_key.clone());
        };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum SharedKey {
    /// Print the shared key
    Show {
        /// Name of the connection
        #[arg(value_parser = name)]
        connection: String,
    },
    /// Set the shared key
    Set {
        /// Name of the connection
        #[arg(value_parser = name)]
        connection: String,
        #[command(flatten)]
        key: SharedKeyArgs,
    },
    /// Generate a new shared key and print it; the remote end needs the same key
    Reset {
        /// Name of the connection
        #[arg(value_parser = name)]
        connection: String,
        /// Length of the key in characters
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=128))]
        length: u32,
    },
}

impl Connection {
    /// Creates, changes or deletes a connection or its shared key, or prints connections, a key, or the configuration
    /// of a site's device.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create(create) => create.run(c).await,
            Self::Update {
                name,
                routing_weight,
                enable_bgp,
                dpd_timeout,
            } => {
                let change = |connection: &mut Value| {
                    if let Some(weight) = routing_weight {
                        connection["properties"]["routingWeight"] = json!(weight);
                    }
                    if let Some(on) = enable_bgp {
                        connection["properties"]["enableBgp"] = json!(on);
                    }
                    if let Some(seconds) = dpd_timeout {
                        connection["properties"]["dpdTimeoutSeconds"] = json!(seconds);
                    }
                };
                c.update(Kind::Connection, name, change).await
            }
            Self::List => list(c, &c.list(Kind::Connection).await?),
            Self::Show { name } => {
                let one = c.get(Kind::Connection, name).await?;
                c.out.item(&one, COLUMNS)
            }
            Self::Delete { name } => c.remove(Kind::Connection, name).await,
            Self::DeviceConfig { name } => device::run(c, &path(c, name)?).await,
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
                    return Err(
                        UsageError::new("no key is given", "add --shared-key-file FILE or --shared-key KEY").into(),
                    );
                };
                c.client
                    .arm_put(&key_path(c, connection)?, &json!({"value": key}))
                    .await?;
                let message = format!("Set the shared key of connection {connection}.");
                c.report(&json!({"set": true}), &message).await
            }
            Self::Reset { connection, length } => {
                let path = format!("{}/reset", key_path(c, connection)?);
                c.client.arm_post(&path, &json!({"keyLength": length})).await?;
                let answer = c.client.arm_get(&key_path(c, connection)?).await?;
                show_key(c, &answer)?;
                c.wait_if_requested().await
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
    ("To", |v| {
        let ends = ["virtualNetworkGateway2", "localNetworkGateway2", "peer"];
        let names = ends.map(|end| name_at(v, &format!("/properties/{end}/id")));
        Cell::new(names.concat())
    }),
    ("Type", |v| Cell::new(at(v, "/properties/connectionType"))),
    ("Status", |v| state(&at(v, "/properties/connectionStatus"))),
    ("In", |v| {
        Cell::new(bytes(number(v, "/properties/ingressBytesTransferred")))
    }),
    ("Out", |v| {
        Cell::new(bytes(number(v, "/properties/egressBytesTransferred")))
    }),
    ("Reason", |v| Cell::new(reason(v))),
];

/// Prints connections as JSON, or as a table with their status and the reasons of failures.
pub(crate) fn list(c: &Context, connections: &[Value]) -> Result<()> {
    c.out.list(
        connections,
        COLUMNS,
        "No connections. Create one: tombolo connection create NAME --gateway1 GATEWAY --gateway2 GATEWAY | --local-gateway SITE | --circuit CIRCUIT",
    )
}

fn number(connection: &Value, pointer: &str) -> u64 {
    connection.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// Returns the reasons why tunnels of the connection are down; empty if all tunnels are up.
fn reason(connection: &Value) -> String {
    let tunnels = items(connection, "/properties/tunnelConnectionStatus");
    let mut reasons: Vec<_> = tunnels.map(|t| at(t, "/reason")).filter(|r| !r.is_empty()).collect();
    reasons.dedup();
    reasons.join("; ")
}

fn path(c: &Context, name: &str) -> Result<String> {
    c.item(Kind::Connection, name)
}

fn key_path(c: &Context, name: &str) -> Result<String> {
    Ok(format!("{}/sharedkey", path(c, name)?))
}
