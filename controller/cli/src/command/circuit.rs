//! ExpressRoute circuits and their private peering.

use super::connection::SharedKeyArgs;
use super::token::LinkArg;
use crate::context::Context;
use crate::failure::UsageError;
use crate::options::name;
use crate::output::{Column, at};
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;
use ipnet::IpNet;
use serde_json::{Value, json};
use tombolo_proto::arm::Kind;
use tombolo_proto::config::CircuitLink;

#[derive(Debug, Subcommand)]
pub(crate) enum Circuit {
    /// Create a circuit
    Create {
        /// Name of the circuit
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        size: Size,
        /// Region [default: the group's]
        #[arg(short, long)]
        location: Option<String>,
    },
    /// Change a circuit
    Update {
        /// Name of the circuit
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        size: Size,
    },
    /// List circuits
    List,
    /// Show a circuit with its private peering
    Show {
        /// Name of the circuit
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a circuit
    Delete {
        /// Name of the circuit
        #[arg(value_parser = name)]
        name: String,
    },
    /// Manage the private peering of a circuit, which consists of two lines to the customer edge
    #[command(subcommand)]
    Peering(Peering),
    /// Show the routes of the provider edge of one link
    Routes {
        /// Name of the circuit
        #[arg(value_parser = name)]
        name: String,
        /// Link of the circuit
        #[arg(long, value_enum, default_value_t = LinkArg::Primary)]
        link: LinkArg,
        /// Show the BGP neighbours instead of the routes
        #[arg(long)]
        summary: bool,
    },
}

/// The options for a circuit's peering location, bandwidth and SKU, on which the circuit's limits depend (X12, X13).
#[derive(Debug, Args)]
pub(crate) struct Size {
    /// Peering location, where the circuit's edges are [default: the region]
    #[arg(long)]
    peering_location: Option<String>,
    /// Bandwidth in Mbit/s; on a Premium circuit, the number of VNets that may be linked depends on it
    #[arg(long)]
    bandwidth: Option<u32>,
    /// Tier of the SKU; the number of VNets that may be linked depends on it
    #[arg(long, value_enum)]
    sku_tier: Option<Tier>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// At most ten linked VNets
    Standard,
    /// More linked VNets; the limit depends on the bandwidth
    Premium,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Peering {
    /// Create the private peering of a circuit, or change it
    Create {
        /// Name of the circuit
        #[arg(value_parser = name)]
        circuit: String,
        /// ASN of the customer (G4)
        #[arg(long)]
        peer_asn: u32,
        /// Prefix of the primary line, a /30; the first address is the customer edge's, the second one the provider
        /// edge's (E1)
        #[arg(long, value_name = "PREFIX")]
        primary_peer_subnet: IpNet,
        /// Prefix of the secondary line, a /30; the first address is the customer edge's, the second one the provider
        /// edge's (E1)
        #[arg(long, value_name = "PREFIX")]
        secondary_peer_subnet: IpNet,
        /// VLAN of both lines, 0 to 4094
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=4094))]
        vlan_id: u16,
        #[command(flatten)]
        key: SharedKeyArgs,
    },
    /// Delete the private peering of a circuit
    Delete {
        /// Name of the circuit
        #[arg(value_parser = name)]
        circuit: String,
    },
}

impl Size {
    /// Sets in the body the properties for which an option is given. The other properties stay.
    fn apply_to(&self, body: &mut Value) {
        let provider = "serviceProviderProperties";
        if let Some(location) = &self.peering_location {
            body["properties"][provider]["peeringLocation"] = json!(location);
        }
        if let Some(bandwidth) = self.bandwidth {
            body["properties"][provider]["bandwidthInMbps"] = json!(bandwidth);
        }
        if let Some(tier) = self.sku_tier {
            let tier = match tier {
                Tier::Standard => "Standard",
                Tier::Premium => "Premium",
            };
            body["sku"] = json!({"name": format!("{tier}_MeteredData"), "tier": tier, "family": "MeteredData"});
        }
    }

    /// Whether none of the options in this group is given.
    fn is_empty(&self) -> bool {
        self.peering_location.is_none() && self.bandwidth.is_none() && self.sku_tier.is_none()
    }
}

const PRIVATE: &str = "/properties/peerings/0/properties";

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Peering location", |v| {
        Cell::new(at(v, "/properties/serviceProviderProperties/peeringLocation"))
    }),
    ("Tier", |v| Cell::new(at(v, "/sku/tier"))),
    ("Peer ASN", |v| Cell::new(at(v, &format!("{PRIVATE}/peerASN")))),
    ("Primary", |v| {
        Cell::new(at(v, &format!("{PRIVATE}/primaryPeerAddressPrefix")))
    }),
    ("Secondary", |v| {
        Cell::new(at(v, &format!("{PRIVATE}/secondaryPeerAddressPrefix")))
    }),
    ("VLAN", |v| Cell::new(at(v, &format!("{PRIVATE}/vlanId")))),
];

const ROUTES: &[Column] = &[
    ("Network", |v| Cell::new(at(v, "/network"))),
    ("Next hop", |v| Cell::new(at(v, "/nextHop"))),
    ("AS path", |v| Cell::new(at(v, "/path"))),
];

const NEIGHBOURS: &[Column] = &[
    ("Neighbour", |v| Cell::new(at(v, "/neighbor"))),
    ("ASN", |v| Cell::new(at(v, "/as"))),
    ("Up since", |v| Cell::new(at(v, "/upDown"))),
    ("Routes", |v| Cell::new(at(v, "/statePfxRcd"))),
];

impl Circuit {
    /// Creates, changes or deletes a circuit or its private peering, or prints circuits or the routes of a circuit's
    /// edge. An update without an option is a [`UsageError`].
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create { name, size, location } => {
                let mut body = json!({"location": c.location(location.as_deref()).await?, "properties": {}});
                size.apply_to(&mut body);
                let message = format!(
                    "Created circuit {name}. It has no private peering yet: tombolo circuit peering create {name}"
                );
                c.put(&path(c, name)?, &body, &message).await
            }
            Self::Update { name, size } => {
                if size.is_empty() {
                    let hint = "add --peering-location, --bandwidth or --sku-tier; `tombolo circuit peering create` changes the \
                                private peering";
                    return Err(UsageError::new("nothing to change", hint).into());
                }
                c.update(Kind::Circuit, name, |body| size.apply_to(body)).await
            }
            Self::List => c.out.list(
                &c.list(Kind::Circuit).await?,
                COLUMNS,
                "No circuits. Create one: tombolo circuit create NAME",
            ),
            Self::Show { name } => c.show(Kind::Circuit, name, COLUMNS).await,
            Self::Delete { name } => c.remove(Kind::Circuit, name).await,
            Self::Peering(peering) => peering.run(c).await,
            Self::Routes { name, link, summary } => {
                let (action, columns) = if *summary {
                    ("routeTablesSummary", NEIGHBOURS)
                } else {
                    ("routeTables", ROUTES)
                };
                let link = CircuitLink::from(*link).name();
                let action = format!("{}/{action}/{link}", private(c, name)?);
                let all = c.post_list(&action, &[]).await?;
                c.out.list(
                    &all,
                    columns,
                    "No routes: no VNet is linked to the circuit, and its customer advertises none.",
                )
            }
        }
    }
}

impl Peering {
    async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create {
                circuit,
                peer_asn,
                primary_peer_subnet,
                secondary_peer_subnet,
                vlan_id,
                key,
            } => {
                let mut properties = json!({
                    "peeringType": "AzurePrivatePeering",
                    "peerASN": peer_asn,
                    "primaryPeerAddressPrefix": primary_peer_subnet,
                    "secondaryPeerAddressPrefix": secondary_peer_subnet,
                    "vlanId": vlan_id,
                });
                if let Some(key) = key.read()? {
                    properties["sharedKey"] = json!(key);
                }
                let message = format!(
                    "Set the private peering of circuit {circuit}. The agents of its edges join with: tombolo token create \
                     --circuit {circuit} --link primary|secondary"
                );
                c.put(&private(c, circuit)?, &json!({"properties": properties}), &message)
                    .await
            }
            Self::Delete { circuit } => c.delete(&private(c, circuit)?, "peering").await,
        }
    }
}

fn path(c: &Context, name: &str) -> Result<String> {
    c.item(Kind::Circuit, name)
}

fn private(c: &Context, circuit: &str) -> Result<String> {
    Ok(format!("{}/peerings/AzurePrivatePeering", path(c, circuit)?))
}
