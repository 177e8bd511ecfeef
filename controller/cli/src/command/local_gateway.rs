//! Local network gateways, which describe sites and their VPN devices.

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::name;
use crate::output::{Column, at};
use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::arm::Kind;
use tombolo_proto::id::PublicKey;

#[derive(Debug, Subcommand)]
pub(crate) enum LocalGateway {
    /// Create a local network gateway, which describes a site
    Create {
        /// Name of the local network gateway
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        site: Site,
        /// Region [default: the group's]
        #[arg(short, long)]
        location: Option<String>,
    },
    /// Change the description of a site
    Update {
        /// Name of the local network gateway
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        site: Site,
    },
    /// List local network gateways
    List,
    /// Show a local network gateway
    Show {
        /// Name of the local network gateway
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a local network gateway
    Delete {
        /// Name of the local network gateway
        #[arg(value_parser = name)]
        name: String,
    },
}

/// The properties of a site.
#[derive(Debug, Args)]
pub(crate) struct Site {
    /// Public address of the site's VPN device; if it is not given, the device has to initiate the handshake
    #[arg(long)]
    gateway_ip_address: Option<IpAddr>,
    /// Prefixes of the site; optional if the connection uses BGP (G7)
    #[arg(short = 'p', long = "local-address-prefixes", value_name = "PREFIX", num_args = 1.., value_delimiter = ',')]
    prefixes: Vec<IpNet>,
    /// ASN of the site (G4)
    #[arg(long)]
    asn: Option<u32>,
    /// Address of the VPN device inside the tunnel, for BGP (G4)
    #[arg(long)]
    bgp_peering_address: Option<IpAddr>,
    /// WireGuard public key of the VPN device, as `wg pubkey` prints it
    #[arg(long, value_name = "KEY")]
    public_key: Option<PublicKey>,
    /// UDP port of the VPN device [default: 51820]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

impl Site {
    /// Sets in the body the properties for which an option is given. The other properties stay.
    fn apply_to(&self, body: &mut Value) {
        let properties = &mut body["properties"];
        if let Some(address) = self.gateway_ip_address {
            properties["gatewayIpAddress"] = json!(address);
        }
        if !self.prefixes.is_empty() {
            properties["localNetworkAddressSpace"] = json!({"addressPrefixes": self.prefixes});
        }
        if let Some(asn) = self.asn {
            properties["bgpSettings"]["asn"] = json!(asn);
        }
        if let Some(address) = self.bgp_peering_address {
            properties["bgpSettings"]["bgpPeeringAddress"] = json!(address);
        }
        if let Some(key) = self.public_key {
            properties["wireGuardPublicKey"] = json!(key);
        }
        if let Some(port) = self.port {
            properties["wireGuardPort"] = json!(port);
        }
    }

    /// Whether none of the options in this group is given.
    fn is_empty(&self) -> bool {
        let mut body = json!({});
        self.apply_to(&mut body);
        body["properties"].is_null()
    }
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Prefixes", |v| {
        Cell::new(at(v, "/properties/localNetworkAddressSpace/addressPrefixes"))
    }),
    ("Device", |v| {
        let address = at(v, "/properties/gatewayIpAddress");
        let port = at(v, "/properties/wireGuardPort");
        Cell::new(match address.as_str() {
            "" => "initiates".to_owned(),
            v6 if v6.contains(':') => format!("[{v6}]:{port}"),
            v4 => format!("{v4}:{port}"),
        })
    }),
    ("Key", |v| Cell::new(at(v, "/properties/wireGuardPublicKey"))),
    ("ASN", |v| Cell::new(at(v, "/properties/bgpSettings/asn"))),
    ("BGP address", |v| {
        Cell::new(at(v, "/properties/bgpSettings/bgpPeeringAddress"))
    }),
];

impl LocalGateway {
    /// Creates, changes, deletes or prints local network gateways. An update without an option is a [`UsageError`].
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let path = |name: &str| c.item(Kind::LocalNetworkGateway, name);
        match self {
            Self::Create { name, site, location } => {
                let mut body = json!({"location": c.location(location.as_deref()).await?, "properties": {}});
                site.apply_to(&mut body);
                let what = format!(
                    "Created local network gateway {name}. Connect it: tombolo connection create NAME --gateway1 GATEWAY \
                     --local-gateway {name}"
                );
                c.put(&path(name)?, &body, &what).await
            }
            Self::Update { name, site } => {
                if site.is_empty() {
                    return Err(UsageError::new("nothing to change", "add one of the options of --help").into());
                }
                c.update(Kind::LocalNetworkGateway, name, |body| site.apply_to(body))
                    .await
            }
            Self::List => c.out.list(
                &c.list(Kind::LocalNetworkGateway).await?,
                COLUMNS,
                "No local network gateways. Describe a site: tombolo local-gateway create NAME -p PREFIX",
            ),
            Self::Show { name } => c.show(Kind::LocalNetworkGateway, name, COLUMNS).await,
            Self::Delete { name } => c.remove(Kind::LocalNetworkGateway, name).await,
        }
    }
}
