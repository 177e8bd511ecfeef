//! VPN gateways.

use crate::args::{name, reference};
use crate::context::Context;
use crate::failure::Usage;
use crate::output::{Column, at, items, text};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_client::manifest::GATEWAY_IP_CONFIGURATION;
use tombolo_client::path::segment;

#[derive(Debug, Subcommand)]
pub(crate) enum Gateway {
    /// Create a VPN gateway in a VNet's GatewaySubnet
    Create {
        #[arg(value_parser = name)]
        name: String,
        /// The virtual network
        #[arg(long, value_parser = reference)]
        vnet: String,
        /// A public address resource
        #[arg(long = "public-ip-address", value_parser = reference)]
        public: Option<String>,
        /// Its address in GatewaySubnet, which traceroute shows; allocated unless given
        #[arg(short = 'a', long = "private-ip-address")]
        address: Option<IpAddr>,
        /// G4
        #[arg(long)]
        asn: Option<u32>,
        /// The size, as Azure names it
        #[arg(long, default_value = "VpnGw1")]
        sku: String,
        /// The region; the group's unless given
        #[arg(short, long)]
        location: Option<String>,
    },
    /// Change a VPN gateway
    Update {
        #[arg(value_parser = name)]
        name: String,
        /// G4
        #[arg(long)]
        asn: Option<u32>,
        /// The size, as Azure names it
        #[arg(long)]
        sku: Option<String>,
    },
    /// List VPN gateways
    List,
    /// Show a VPN gateway
    Show {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a VPN gateway
    Delete {
        #[arg(value_parser = name)]
        name: String,
    },
}

pub(crate) const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Group", |v| {
        Cell::new(segment(&at(v, "/id"), "resourceGroups").unwrap_or_default())
    }),
    ("VNet", |v| {
        let id = text(
            items(v, CONFIGURATIONS)
                .next()
                .and_then(|c| c.pointer("/properties/subnet/id")),
        );
        Cell::new(segment(&id, "virtualNetworks").unwrap_or_default())
    }),
    ("Instances", |v| {
        let one = |c| format!("{} {}", at(c, "/name"), at(c, "/properties/privateIPAddress"));
        Cell::new(items(v, CONFIGURATIONS).map(one).collect::<Vec<_>>().join(", "))
    }),
    ("ASN", |v| Cell::new(at(v, "/properties/bgpSettings/asn"))),
    ("SKU", |v| Cell::new(at(v, "/properties/sku/name"))),
];

pub(crate) const CONFIGURATIONS: &str = "/properties/ipConfigurations";

impl Gateway {
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let path = |name: &str| Ok::<_, anyhow::Error>(c.group()?.item("virtualNetworkGateways", name));
        match self {
            Self::Create {
                name,
                vnet,
                public,
                address,
                asn,
                sku,
                location,
            } => {
                let group = c.group()?;
                let mut instance = json!({
                    "subnet": {"id": format!("{}/subnets/GatewaySubnet", group.resolve("virtualNetworks", vnet))},
                    "privateIPAllocationMethod": if address.is_some() { "Static" } else { "Dynamic" },
                    "privateIPAddress": address,
                });
                if let Some(public) = public {
                    instance["publicIPAddress"] = json!({"id": group.resolve("publicIPAddresses", public)});
                }
                let mut body = json!({"location": c.location(location.as_deref()).await?, "properties": {
                    "gatewayType": "Vpn",
                    "vpnType": "RouteBased",
                    "sku": {"name": sku, "tier": sku},
                    "ipConfigurations": [{"name": GATEWAY_IP_CONFIGURATION, "properties": instance}],
                }});
                if let Some(asn) = asn {
                    body["properties"]["bgpSettings"] = json!({"asn": asn});
                }
                let what =
                    format!("Created gateway {name}. Its agent joins with: tombolo token create --gateway {name}");
                c.put(&path(name)?, &body, &what).await
            }
            Self::Update { name, asn, sku } => {
                if asn.is_none() && sku.is_none() {
                    return Err(Usage::new("nothing to change", "--asn or --sku").into());
                }
                let change = |gateway: &mut Value| {
                    if let Some(asn) = asn {
                        gateway["properties"]["bgpSettings"]["asn"] = json!(asn);
                    }
                    if let Some(sku) = sku {
                        gateway["properties"]["sku"] = json!({"name": sku, "tier": sku});
                    }
                };
                c.edit(&path(name)?, &format!("Updated gateway {name}."), change).await
            }
            Self::List => {
                let all = c.list("virtualNetworkGateways").await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No gateways. Create one: tombolo gateway create NAME --vnet VNET",
                )
            }
            Self::Show { name } => c.out.item(&c.client.arm_get(&path(name)?).await?, COLUMNS),
            Self::Delete { name } => c.delete(&path(name)?, "gateway").await,
        }
    }
}
