//! Network interfaces.

use crate::args::{name, reference, subnet};
use crate::context::Context;
use crate::failure::Usage;
use crate::output::{Column, at, items, name_at, text};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_client::manifest::NIC_IP_CONFIGURATION;
use tombolo_client::path::{last, segment};

#[derive(Debug, Subcommand)]
pub(crate) enum Nic {
    /// Create a network interface
    Create {
        #[arg(value_parser = name)]
        name: String,
        /// VNET/SUBNET
        #[arg(short, long, value_parser = subnet)]
        subnet: String,
        /// A static address; allocated unless given
        #[arg(short = 'a', long = "private-ip-address")]
        address: Option<IpAddr>,
        /// A public address resource
        #[arg(long = "public-ip-address", value_parser = reference)]
        public: Option<String>,
        /// May take and send packets of others (R12)
        #[arg(long)]
        ip_forwarding: bool,
        /// The region; the group's unless given
        #[arg(short, long)]
        location: Option<String>,
    },
    /// List network interfaces
    List,
    /// Show a network interface
    Show {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Change a network interface
    Update {
        #[arg(value_parser = name)]
        name: String,
        /// May take and send packets of others (R12)
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        ip_forwarding: Option<bool>,
        /// A static address for the primary configuration
        #[arg(short = 'a', long = "private-ip-address")]
        address: Option<IpAddr>,
    },
    /// Delete a network interface
    Delete {
        #[arg(value_parser = name)]
        name: String,
    },
}

const CONFIGURATIONS: &str = "/properties/ipConfigurations";

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Group", |v| {
        Cell::new(segment(&at(v, "/id"), "resourceGroups").unwrap_or_default())
    }),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Addresses", |v| {
        let all: Vec<_> = items(v, CONFIGURATIONS)
            .map(|c| at(c, "/properties/privateIPAddress"))
            .collect();
        Cell::new(all.join(", "))
    }),
    ("Subnet", |v| {
        let id = text(
            items(v, CONFIGURATIONS)
                .next()
                .and_then(|c| c.pointer("/properties/subnet/id")),
        );
        Cell::new(format!(
            "{}/{}",
            segment(&id, "virtualNetworks").unwrap_or_default(),
            last(&id)
        ))
    }),
    ("IP forwarding", |v| Cell::new(at(v, "/properties/enableIPForwarding"))),
    ("VM", |v| Cell::new(name_at(v, "/properties/virtualMachine/id"))),
];

impl Nic {
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let path = |name: &str| Ok::<_, anyhow::Error>(c.group()?.item("networkInterfaces", name));
        match self {
            Self::Create {
                name,
                subnet,
                address,
                public,
                ip_forwarding,
                location,
            } => {
                let group = c.group()?;
                let mut properties = json!({
                    "subnet": {"id": group.resolve_subnet(subnet).map_err(anyhow::Error::msg)?},
                    "privateIPAllocationMethod": if address.is_some() { "Static" } else { "Dynamic" },
                    "privateIPAddress": address,
                    "primary": true,
                });
                if address.is_some_and(|a| a.is_ipv6()) {
                    properties["privateIPAddressVersion"] = json!("IPv6");
                }
                if let Some(public) = public {
                    properties["publicIPAddress"] = json!({"id": group.resolve("publicIPAddresses", public)});
                }
                let body = json!({"location": c.location(location.as_deref()).await?, "properties": {
                    "enableIPForwarding": ip_forwarding,
                    "ipConfigurations": [{"name": NIC_IP_CONFIGURATION, "properties": properties}],
                }});
                let answer = c.client.arm_put(&path(name)?, &body).await?;
                let given = at(&answer, &format!("{CONFIGURATIONS}/0/properties/privateIPAddress"));
                c.written(&answer, &format!("Created network interface {name}: {given}."))
                    .await
            }
            Self::List => {
                let all = c.list("networkInterfaces").await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No network interfaces. Create one: tombolo nic create NAME -s VNET/SUBNET",
                )
            }
            Self::Show { name } => c.out.item(&c.client.arm_get(&path(name)?).await?, COLUMNS),
            Self::Update {
                name,
                ip_forwarding,
                address,
            } => {
                if ip_forwarding.is_none() && address.is_none() {
                    return Err(Usage::new("nothing to change", "--ip-forwarding or --private-ip-address").into());
                }
                let change = |nic: &mut Value| {
                    if let Some(on) = ip_forwarding {
                        nic["properties"]["enableIPForwarding"] = json!(on);
                    }
                    let first = nic.pointer_mut(&format!("{CONFIGURATIONS}/0/properties"));
                    if let (Some(address), Some(properties)) = (address, first) {
                        properties["privateIPAllocationMethod"] = json!("Static");
                        properties["privateIPAddress"] = json!(address);
                    }
                };
                c.edit(&path(name)?, &format!("Updated network interface {name}."), change)
                    .await
            }
            Self::Delete { name } => c.delete(&path(name)?, "network interface").await,
        }
    }
}
