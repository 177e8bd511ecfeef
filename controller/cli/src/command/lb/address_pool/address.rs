//! The addresses of a back-end pool. They are changed as by Azure's command line: the pool is read and written back with
//! the change.

use super::pool::{PART, vnet_of_front_end};
use crate::context::Context;
use crate::options::{Child, child, name, reference, subnet, word};
use crate::output::{at, items};
use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Address {
    /// Add an address to a pool, or replace the one with this name
    Add(Add),
    /// Remove an address from a pool
    Remove {
        /// Name of the pool, as LB/POOL
        #[arg(value_parser = child)]
        pool: Child,
        /// Name of the address
        #[arg(short, long, visible_alias = "address-name", value_parser = name)]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Name of the pool, as LB/POOL
    #[arg(value_parser = child)]
    pool: Child,
    /// Name of the address
    #[arg(short, long, visible_alias = "address-name", value_parser = name)]
    name: String,
    /// Address of the back end
    #[arg(long, value_name = "ADDRESS")]
    ip_address: IpAddr,
    /// Virtual network of the address, by name or id [default: that of the pool, otherwise that of the first front end]
    #[arg(long, value_parser = reference)]
    vnet: Option<String>,
    /// Subnet of the address, as VNET/SUBNET or id, instead of --vnet
    #[arg(long, value_parser = subnet, conflicts_with = "vnet")]
    subnet: Option<String>,
    /// Override of the probe: Up gives the address new flows, Down gives it none [default of a new address: None]
    #[arg(long, value_enum, ignore_case = true)]
    admin_state: Option<AdminState>,
}

/// Overrides of the health of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum AdminState {
    None,
    Up,
    Down,
}

/// The JSON pointer to the addresses of a pool.
const ADDRESSES: &str = "/properties/loadBalancerBackendAddresses";

/// Returns the addresses of a pool without the one that has this name; names are compared case-insensitively.
fn others(pool: &Value, name: &str) -> Vec<Value> {
    let all = items(pool, ADDRESSES);
    all.filter(|address| !at(address, "/name").eq_ignore_ascii_case(name))
        .cloned()
        .collect()
}

/// Returns the reference to the virtual network that the pool, or one of its addresses, names.
fn vnet_of_pool(pool: &Value) -> Option<Value> {
    let own = pool.pointer("/properties/virtualNetwork");
    let of_addresses = items(pool, ADDRESSES).filter_map(|a| a.pointer("/properties/virtualNetwork"));
    own.into_iter()
        .chain(of_addresses)
        .find(|vnet| vnet.is_object())
        .cloned()
}

impl Add {
    /// Adds the address to the body of a pool, or replaces the one with this name. `place`: the property that names the
    /// virtual network or subnet, and a reference to it.
    fn apply_to(&self, pool: &mut Value, (property, reference): (&str, Value)) {
        let mut properties = json!({"ipAddress": self.ip_address});
        properties[property] = reference;
        if let Some(state) = &self.admin_state {
            properties["adminState"] = word(state);
        }
        let mut all = others(pool, &self.name);
        all.push(json!({"name": self.name, "properties": properties}));
        pool["properties"]["loadBalancerBackendAddresses"] = all.into();
    }

    /// Returns the property of the address that names its virtual network or subnet, and a reference to it.
    async fn place(&self, c: &Context, pool: &Value) -> Result<(&'static str, Value)> {
        if let Some(subnet) = &self.subnet {
            let id = c.group()?.resolve_subnet(subnet).map_err(anyhow::Error::msg)?;
            return Ok(("subnet", json!({"id": id})));
        }
        let vnet = match (&self.vnet, vnet_of_pool(pool)) {
            (Some(vnet), _) => c.reference(Kind::VirtualNetwork, vnet)?,
            (None, Some(vnet)) => vnet,
            (None, None) => vnet_of_front_end(&c.get(Kind::LoadBalancer, &self.pool.parent).await?)?,
        };
        Ok(("virtualNetwork", vnet))
    }
}

impl Address {
    pub(super) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Add(add) => {
                let path = PART.path(c, &add.pool)?;
                let mut pool = c.client.arm_get(&path).await?;
                let place = add.place(c, &pool).await?;
                add.apply_to(&mut pool, place);
                let Child { parent, name } = &add.pool;
                let what = format!(
                    "Added address {} ({}) to back-end pool {name} of {parent}.",
                    add.name, add.ip_address
                );
                c.put(&path, &pool, &what).await
            }
            Self::Remove { pool: of, name } => {
                let path = PART.path(c, of)?;
                let mut pool = c.client.arm_get(&path).await?;
                let left = others(&pool, name);
                if left.len() == items(&pool, ADDRESSES).count() {
                    let what = format!(
                        "There was no address {name} in back-end pool {} of {}.",
                        of.name, of.parent
                    );
                    return c.report_write(&pool, &what).await;
                }
                pool["properties"]["loadBalancerBackendAddresses"] = left.into();
                let what = format!(
                    "Removed address {name} from back-end pool {} of {}.",
                    of.name, of.parent
                );
                c.put(&path, &pool, &what).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches as _};

    fn add(options: &[&str]) -> Add {
        let command = Add::augment_args(Command::new("add").no_binary_name(true));
        Add::from_arg_matches(&command.get_matches_from([&["lb/pool"], options].concat())).unwrap()
    }

    fn address(name: &str, ip: &str) -> Value {
        json!({"name": name, "properties": {"ipAddress": ip, "virtualNetwork": {"id": "/v"}}})
    }

    #[test]
    fn l2_an_address_is_added_or_replaced() {
        let mut pool =
            json!({"properties": {"loadBalancerBackendAddresses": [address("a", "10.0.0.4")], "syncMode": "Manual"}});
        let place = || ("virtualNetwork", json!({"id": "/v"}));
        add(&["-n", "b", "--ip-address", "10.0.0.5"]).apply_to(&mut pool, place());
        let both = json!([address("a", "10.0.0.4"), address("b", "10.0.0.5")]);
        assert_eq!(pool["properties"]["loadBalancerBackendAddresses"], both);
        assert_eq!(pool["properties"]["syncMode"], "Manual");
        let options = ["--name", "A", "--ip-address", "10.0.0.6", "--admin-state", "down"];
        add(&options).apply_to(&mut pool, ("subnet", json!({"id": "/s"})));
        let new = json!({"ipAddress": "10.0.0.6", "subnet": {"id": "/s"}, "adminState": "Down"});
        let both = json!([address("b", "10.0.0.5"), {"name": "A", "properties": new}]);
        assert_eq!(pool["properties"]["loadBalancerBackendAddresses"], both);
        let mut empty = json!({});
        add(&["-n", "b", "--ip-address", "10.0.0.5"]).apply_to(&mut empty, place());
        assert_eq!(others(&empty, "c"), [address("b", "10.0.0.5")]);
        assert!(others(&empty, "B").is_empty());
    }

    #[test]
    fn l2_the_virtual_network_is_that_of_the_pool_or_of_its_addresses() {
        let (own, other) = (json!({"id": "/own"}), json!({"id": "/v"}));
        let addresses = json!([{"name": "x", "properties": {}}, address("a", "10.0.0.4")]);
        let of = |vnet: &Value, addresses: &Value| {
            let properties = json!({"virtualNetwork": vnet, "loadBalancerBackendAddresses": addresses});
            vnet_of_pool(&json!({"properties": properties}))
        };
        assert_eq!(of(&own, &addresses), Some(own.clone()));
        assert_eq!(of(&Value::Null, &addresses), Some(other));
        assert_eq!(of(&Value::Null, &json!([])), None);
    }
}
