//! VPN and ExpressRoute gateways.

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{name, reference};
use crate::output::{Column, at, items, state, text};
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_client::manifest::GATEWAY_IP_CONFIGURATION;
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Gateway {
    /// Create a gateway in a VNet's GatewaySubnet, at most one of each type
    Create(Create),
    /// Change a gateway
    Update {
        /// Name of the gateway
        #[arg(value_parser = name)]
        name: String,
        /// New ASN of the gateway (G4)
        #[arg(long)]
        asn: Option<u32>,
        /// New BGP address of a VPN gateway, in GatewaySubnet (G4)
        #[arg(long)]
        bgp_peering_address: Option<IpAddr>,
        /// Azure's name of the new size
        #[arg(long)]
        sku: Option<String>,
    },
    /// List gateways
    List,
    /// Show a gateway
    Show {
        /// Name of the gateway
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a gateway
    Delete {
        /// Name of the gateway
        #[arg(value_parser = name)]
        name: String,
    },
    /// Show the routes that a gateway has learned, and its own
    LearnedRoutes {
        /// Name of the gateway
        #[arg(value_parser = name)]
        name: String,
    },
    /// Show the routes that a gateway advertises to a BGP peer
    AdvertisedRoutes {
        /// Name of the gateway
        #[arg(value_parser = name)]
        name: String,
        /// Address of the BGP peer, as `bgp-peers` shows it
        #[arg(long)]
        peer: IpAddr,
    },
    /// Show the BGP sessions of a gateway
    BgpPeers {
        /// Name of the gateway
        #[arg(value_parser = name)]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the gateway
    #[arg(value_parser = name)]
    name: String,
    /// Virtual network of the gateway, by name or id; the network must have a subnet named GatewaySubnet
    #[arg(long, value_parser = reference)]
    vnet: String,
    /// Type of the gateway
    #[arg(long = "gateway-type", value_enum, default_value_t = Type::Vpn)]
    kind: Type,
    /// Public address resource, by name or id
    #[arg(long = "public-ip-address", value_parser = reference)]
    public: Option<String>,
    /// Address of the gateway in GatewaySubnet; traceroute shows it as the hop [default: allocated]
    #[arg(short = 'a', long = "private-ip-address")]
    address: Option<IpAddr>,
    /// ASN of the gateway [default: 65515] (G4)
    #[arg(long)]
    asn: Option<u32>,
    /// BGP address of a VPN gateway [default: the last free address of GatewaySubnet] (G4)
    #[arg(long)]
    bgp_peering_address: Option<IpAddr>,
    /// Azure's name of the size [default: VpnGw1; Standard for ExpressRoute]
    #[arg(long)]
    sku: Option<String>,
    /// Region [default: the group's]
    #[arg(short, long)]
    location: Option<String>,
}

impl Create {
    async fn run(&self, c: &Context) -> Result<()> {
        let (group, name) = (c.group()?, &self.name);
        let (kind, default_sku) = self.kind.words();
        let sku = self.sku.as_deref().unwrap_or(default_sku);
        let mut instance = json!({
            "subnet": {"id": format!("{}/subnets/GatewaySubnet", group.resolve("virtualNetworks", &self.vnet))},
            "privateIPAllocationMethod": if self.address.is_some() { "Static" } else { "Dynamic" },
            "privateIPAddress": self.address,
        });
        if let Some(public) = &self.public {
            instance["publicIPAddress"] = json!({"id": group.resolve("publicIPAddresses", public)});
        }
        let mut body = json!({"location": c.location(self.location.as_deref()).await?, "properties": {
            "gatewayType": kind,
            "vpnType": "RouteBased",
            "sku": {"name": sku, "tier": sku},
            "ipConfigurations": [{"name": GATEWAY_IP_CONFIGURATION, "properties": instance}],
        }});
        set_bgp(&mut body, self.asn, self.bgp_peering_address);
        let message = format!("Created gateway {name}. Its agent joins with: tombolo token create --gateway {name}");
        c.put(&path(c, name)?, &body, &message).await
    }
}

/// The type of a gateway (G2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Type {
    /// Connects the VNet to other VNets and sites by encrypted tunnels
    Vpn,
    /// Connects the VNet to ExpressRoute circuits
    ExpressRoute,
}

impl Type {
    /// Returns Azure's name of the gateway type, and the SKU that a gateway of this type gets if the user does not name
    /// one.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Vpn => ("Vpn", "VpnGw1"),
            Self::ExpressRoute => ("ExpressRoute", "Standard"),
        }
    }
}

/// The columns of lists of gateways.
pub(crate) const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Group", |v| {
        Cell::new(segment(&at(v, "/id"), "resourceGroups").unwrap_or_default())
    }),
    ("Type", |v| Cell::new(at(v, "/properties/gatewayType"))),
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
    ("Bandwidth", |v| {
        Cell::new(bandwidth(v.pointer("/properties/tunnelBandwidth")))
    }),
];

/// The limit that applies to the tunnels of a gateway, the figure of its SKU, and the mean of the last minute, as in
/// `limit 100 Mbit/s (SKU: 650), last minute 98.2 Mbit/s, 12 packets dropped`. Empty if the controller does not state it.
fn bandwidth(stated: Option<&Value>) -> String {
    let number = |name: &str| stated?.get(name)?.as_u64();
    if stated.is_none() {
        return String::new();
    }
    let mut shown = match number("limitMbps") {
        Some(limit) => format!("limit {limit} Mbit/s"),
        None => "no limit".to_owned(),
    };
    if let Some(figure) = number("publishedMbps") {
        shown += &format!(" (SKU: {figure} Mbit/s)");
    }
    if let Some(bytes) = number("lastMinuteBytes") {
        // In tenths of Mbit/s.
        let mean = bytes.saturating_mul(8) / 60 / 100_000;
        shown += &format!(", last minute {}.{} Mbit/s", mean / 10, mean % 10);
    }
    if let Some(dropped) = number("droppedPackets").filter(|dropped| *dropped > 0) {
        shown += &format!(", {dropped} packets dropped");
    }
    shown
}

/// The JSON pointer to the `ipConfigurations` of a gateway. A gateway has one `ipConfiguration` for each instance.
pub(crate) const CONFIGURATIONS: &str = "/properties/ipConfigurations";

impl Gateway {
    /// Creates, changes or deletes a gateway, or prints gateways, or the routes and BGP sessions of a gateway. An
    /// update without an option is a [`UsageError`].
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create(create) => create.run(c).await,
            Self::Update {
                name,
                asn,
                bgp_peering_address,
                sku,
            } => {
                if asn.is_none() && bgp_peering_address.is_none() && sku.is_none() {
                    return Err(
                        UsageError::new("nothing to change", "add --asn, --bgp-peering-address or --sku").into(),
                    );
                }
                let change = |gateway: &mut Value| {
                    set_bgp(gateway, *asn, *bgp_peering_address);
                    if let Some(sku) = sku {
                        gateway["properties"]["sku"] = json!({"name": sku, "tier": sku});
                    }
                };
                c.update(Kind::VirtualNetworkGateway, name, change).await
            }
            Self::List => {
                let all = c.list(Kind::VirtualNetworkGateway).await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No gateways. Create one: tombolo gateway create NAME --vnet VNET",
                )
            }
            Self::Show { name } => c.show(Kind::VirtualNetworkGateway, name, COLUMNS).await,
            Self::Delete { name } => c.remove(Kind::VirtualNetworkGateway, name).await,
            Self::LearnedRoutes { name } => {
                let all = c
                    .post_list(&format!("{}/getLearnedRoutes", path(c, name)?), &[])
                    .await?;
                c.out
                    .list(&all, ROUTES, "No routes: none of its agents has reported any.")
            }
            Self::AdvertisedRoutes { name, peer } => {
                let query = [("peer", &*peer.to_string())];
                let all = c
                    .post_list(&format!("{}/getAdvertisedRoutes", path(c, name)?), &query)
                    .await?;
                c.out.list(&all, ROUTES, "No routes are advertised to this peer.")
            }
            Self::BgpPeers { name } => {
                let all = c
                    .post_list(&format!("{}/getBgpPeerStatus", path(c, name)?), &[])
                    .await?;
                c.out.list(
                    &all,
                    PEERS,
                    "No sessions: no connection of this gateway exchanges routes.",
                )
            }
        }
    }
}

const ROUTES: &[Column] = &[
    ("Network", |v| Cell::new(at(v, "/network"))),
    ("Next hop", |v| Cell::new(at(v, "/nextHop"))),
    ("From", |v| Cell::new(at(v, "/sourcePeer"))),
    ("Origin", |v| Cell::new(at(v, "/origin"))),
    ("AS path", |v| Cell::new(at(v, "/asPath"))),
    ("Weight", |v| Cell::new(at(v, "/weight"))),
];

const PEERS: &[Column] = &[
    ("Peer", |v| Cell::new(at(v, "/neighbor"))),
    ("ASN", |v| Cell::new(at(v, "/asn"))),
    ("State", |v| state(&at(v, "/state"))),
    ("Since", |v| Cell::new(at(v, "/connectedDuration"))),
    ("Routes", |v| Cell::new(at(v, "/routesReceived"))),
    ("Own address", |v| Cell::new(at(v, "/localAddress"))),
];

fn path(c: &Context, name: &str) -> Result<String> {
    c.item(Kind::VirtualNetworkGateway, name)
}

/// Sets the BGP properties in the body that are given. The other properties stay.
fn set_bgp(gateway: &mut Value, asn: Option<u32>, address: Option<IpAddr>) {
    let properties = &mut gateway["properties"];
    if let Some(asn) = asn {
        properties["bgpSettings"]["asn"] = json!(asn);
    }
    if let Some(address) = address {
        properties["bgpSettings"]["bgpPeeringAddress"] = json!(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x9_the_bandwidth_of_a_gateway_is_shown() {
        let shown = |stated: Value| bandwidth(Some(&stated));
        let unlimited =
            json!({"publishedMbps": 650, "limitMbps": null, "lastMinuteBytes": null, "droppedPackets": null});
        assert_eq!(shown(unlimited), "no limit (SKU: 650 Mbit/s)");
        let used = json!({
            "publishedMbps": 100, "limitMbps": 100, "lastMinuteBytes": 736_500_000_u64, "droppedPackets": 12,
        });
        assert_eq!(
            shown(used),
            "limit 100 Mbit/s (SKU: 100 Mbit/s), last minute 98.2 Mbit/s, 12 packets dropped"
        );
        let without_figure = json!({
            "publishedMbps": null, "limitMbps": 5, "lastMinuteBytes": 0, "droppedPackets": 0,
        });
        assert_eq!(shown(without_figure), "limit 5 Mbit/s, last minute 0.0 Mbit/s");
        assert_eq!(bandwidth(None), "", "a controller of an earlier version");
    }
}
