//! Connections: gateway to gateway (each has its own side), to a site, to a circuit.

mod device;

use crate::context::Context;
use crate::failure::Usage;
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
    /// Create a connection; between two gateways: one side
    Create(Create),
    /// Change a connection; its key: `shared-key set`
    #[command(group(ArgGroup::new("change").required(true).multiple(true).args(["routing_weight", "enable_bgp", "dpd_timeout"])))]
    Update {
        #[arg(value_parser = name)]
        name: String,
        /// Of several connections to the same networks, the larger weight wins
        #[arg(long)]
        routing_weight: Option<u32>,
        /// Exchange routes over it (G4)
        #[arg(long, value_name = "true|false", action = ArgAction::Set)]
        enable_bgp: Option<bool>,
        /// Silence after which a site's device is given up, 9 to 3600; 0: the default
        #[arg(long = "dpd-timeout-seconds", value_name = "SECONDS")]
        dpd_timeout: Option<u32>,
    },
    /// List connections with their status and why it is so
    List,
    /// Show a connection with its status and why it is so
    Show {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a connection; between two gateways: one side
    Delete {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Print what the device of a site needs: WireGuard's files, and its BGP session. Holds a secret
    DeviceConfig {
        #[arg(value_parser = name)]
        name: String,
    },
    /// The shared key
    #[command(subcommand)]
    SharedKey(SharedKey),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[arg(value_parser = name)]
    name: String,
    /// This side's gateway
    #[arg(long, value_parser = reference, visible_alias = "vnet-gateway1")]
    gateway1: String,
    #[command(flatten)]
    far: Far,
    /// The end of the tunnel to the primary edge, then that to the secondary: in GatewaySubnet; allocated unless given
    #[arg(long = "tunnel-address", value_name = "ADDRESS", num_args = 2)]
    #[arg(conflicts_with_all = ["gateway2", "local_gateway"])]
    tunnel_addresses: Vec<IpAddr>,
    #[command(flatten)]
    key: Key,
    /// Of several connections to the same networks, the larger weight wins
    #[arg(long)]
    routing_weight: Option<u32>,
    /// Exchange routes over it (G4); with a circuit that is always so
    #[arg(long)]
    enable_bgp: bool,
    /// Silence after which a site's device is given up, 9 to 3600
    #[arg(long = "dpd-timeout-seconds", value_name = "SECONDS")]
    dpd_timeout: Option<u32>,
    /// The region; the group's unless given
    #[arg(short, long)]
    location: Option<String>,
}

/// The far end.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Far {
    /// The other side's gateway
    #[arg(long, value_parser = reference, visible_alias = "vnet-gateway2")]
    gateway2: Option<String>,
    /// The local network gateway that describes a site
    #[arg(long, value_parser = reference, visible_alias = "local-gateway2")]
    local_gateway: Option<String>,
    /// A circuit
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
                &self.far.gateway2,
                "Vnet2Vnet",
                "virtualNetworkGateway2",
                "virtualNetworkGateways",
            ),
            (
                &self.far.local_gateway,
                "IPsec",
                "localNetworkGateway2",
                "localNetworkGateways",
            ),
            (&self.far.circuit, "ExpressRoute", "peer", "expressRouteCircuits"),
        ];
        for (end, kind, word, collection) in ends {
            if let Some(end) = end {
                properties["connectionType"] = json!(kind);
                properties[word] = reference(collection, end);
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
        match (&key, &self.far.circuit) {
            (Some(_), Some(_)) => {
                return Err(Usage::new("a connection to a circuit has no shared key", "leave the key out").into());
            }
            (Some(key), None) => properties["sharedKey"] = json!(key),
            (None, None) => hint = " It has no shared key yet: tombolo connection shared-key set",
            (None, Some(_)) => {}
        }
        let body = json!({"location": c.location(self.location.as_deref()).await?, "properties": properties});
        let mut what = format!("Created connection {name}.{hint}");
        if key.is_some() && self.far.local_gateway.is_some() {
            what += &format!(" What the site's device needs: tombolo connection device-config {name}");
        }
        c.put(&path(c, name)?, &body, &what).await
    }
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Key {
    /// The key, the same at both ends (G11); better in a file
    #[arg(long, value_name = "KEY")]
    shared_key: Option<String>,
    /// A file with the key
    #[arg(long, value_name = "FILE")]
    shared_key_file: Option<PathBuf>,
}

impl Key {
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
    /// Let the controller make a new key and print it; set it at the other end too
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

/// The connections with their status and why it is so.
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

/// Why its tunnels are as they are; nothing for tunnels that are up.
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
