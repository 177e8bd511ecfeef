//! Network interfaces.

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{name, optional_child, optional_reference, reference, subnet};
use crate::output::{Column, at, items, name_at, text};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_client::manifest::NIC_IP_CONFIGURATION;
use tombolo_client::path::{last, segment};
use tombolo_proto::arm::Kind;
use tombolo_proto::config::BANDWIDTH_TAG;

#[derive(Debug, Subcommand)]
pub(crate) enum Nic {
    /// Create a network interface
    Create {
        /// Name of the network interface
        #[arg(value_parser = name)]
        name: String,
        /// Subnet, as VNET/SUBNET or id
        #[arg(short, long, value_parser = subnet)]
        subnet: String,
        /// Static address [default: allocated]; several addresses, such as IPv4 and IPv6, get an ipConfiguration each
        #[arg(short = 'a', long = "private-ip-address", value_delimiter = ',')]
        addresses: Vec<IpAddr>,
        /// Public address resource, by name or id
        #[arg(long = "public-ip-address", value_parser = reference)]
        public: Option<String>,
        /// Let the machine forward packets of other machines (R12)
        #[arg(long)]
        ip_forwarding: bool,
        /// Network security group of the network interface, by name or id (N4)
        #[arg(long, visible_alias = "nsg", value_name = "GROUP", value_parser = optional_reference)]
        network_security_group: Option<String>,
        /// Application security groups of all addresses, by name or id (N9)
        #[arg(long, visible_alias = "asgs", value_name = "GROUP", num_args = 1.., value_delimiter = ',',
            value_parser = optional_reference)]
        application_security_groups: Vec<String>,
        /// Back-end pools, as LB/POOL or id, of which the first address is a member (L2)
        #[arg(long, value_name = "LB/POOL", num_args = 1.., value_delimiter = ',', value_parser = optional_child)]
        lb_address_pools: Vec<String>,
        /// Inbound NAT rules, as LB/RULE or id, whose target is the first address
        #[arg(long, value_name = "LB/RULE", num_args = 1.., value_delimiter = ',', value_parser = optional_child)]
        lb_inbound_nat_rules: Vec<String>,
        /// What the network interface may send, in Mbit/s, 1 to 100000 [default: no limit] (P32)
        #[arg(long, value_name = "MBPS")]
        bandwidth: Option<u32>,
        /// Region [default: the group's]
        #[arg(short, long)]
        location: Option<String>,
    },
    /// List network interfaces
    List,
    /// Show a network interface
    Show {
        /// Name of the network interface
        #[arg(value_parser = name)]
        name: String,
    },
    /// Change a network interface
    Update {
        /// Name of the network interface
        #[arg(value_parser = name)]
        name: String,
        /// Let the machine forward packets of other machines (R12)
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        ip_forwarding: Option<bool>,
        /// New static address of the primary ipConfiguration
        #[arg(short = 'a', long = "private-ip-address")]
        address: Option<IpAddr>,
        /// New network security group of the network interface, by name or id; '' removes the present one (N4)
        #[arg(long, visible_alias = "nsg", value_name = "GROUP", value_parser = optional_reference)]
        network_security_group: Option<String>,
        /// Application security groups, by name or id, that replace those of all addresses; '' removes them (N9)
        #[arg(long, visible_alias = "asgs", value_name = "GROUP", num_args = 1.., value_delimiter = ',',
            value_parser = optional_reference)]
        application_security_groups: Option<Vec<String>>,
        /// Back-end pools, as LB/POOL or id, that replace those of the primary ipConfiguration; '' removes them (L2)
        #[arg(long, value_name = "LB/POOL", num_args = 1.., value_delimiter = ',', value_parser = optional_child)]
        lb_address_pools: Option<Vec<String>>,
        /// Inbound NAT rules, as LB/RULE or id, that replace those of the primary ipConfiguration; '' removes them
        #[arg(long, value_name = "LB/RULE", num_args = 1.., value_delimiter = ',', value_parser = optional_child)]
        lb_inbound_nat_rules: Option<Vec<String>>,
        /// What the network interface may send, in Mbit/s, 1 to 100000; 0 removes the limit (P32)
        #[arg(long, value_name = "MBPS")]
        bandwidth: Option<u32>,
    },
    /// Delete a network interface
    Delete {
        /// Name of the network interface
        #[arg(value_parser = name)]
        name: String,
    },
}

const CONFIGURATIONS: &str = "/properties/ipConfigurations";
const POOLS: &str = "loadBalancerBackendAddressPools";
const NAT_RULES: &str = "loadBalancerInboundNatRules";
const APPLICATION_GROUPS: &str = "/properties/applicationSecurityGroups";

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
    ("Security group", |v| {
        Cell::new(name_at(v, "/properties/networkSecurityGroup/id"))
    }),
    ("Application groups", |v| {
        let groups = items(v, CONFIGURATIONS).flat_map(|c| items(c, APPLICATION_GROUPS));
        let names: BTreeSet<_> = groups.map(|group| name_at(group, "/id")).collect();
        Cell::new(names.into_iter().collect::<Vec<_>>().join(", "))
    }),
    ("Pools", |v| {
        let pools = items(v, CONFIGURATIONS).flat_map(|c| items(c, "/properties/loadBalancerBackendAddressPools"));
        let name = |pool: &Value| {
            let id = at(pool, "/id");
            format!("{}/{}", segment(&id, "loadBalancers").unwrap_or_default(), last(&id))
        };
        let names: BTreeSet<_> = pools.map(name).collect();
        Cell::new(names.into_iter().collect::<Vec<_>>().join(", "))
    }),
    ("Mbit/s", |v| Cell::new(at(v, &format!("/tags/{BANDWIDTH_TAG}")))),
    ("VM", |v| Cell::new(name_at(v, "/properties/virtualMachine/id"))),
];

impl Nic {
    /// Creates, changes, deletes or prints network interfaces. A creation prints the addresses that the controller has
    /// allocated. An update without an option is a [`UsageError`].
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let path = |name: &str| c.item(Kind::NetworkInterface, name);
        match self {
            Self::Create {
                name,
                subnet,
                addresses,
                public,
                ip_forwarding,
                network_security_group,
                application_security_groups,
                lb_address_pools,
                lb_inbound_nat_rules,
                bandwidth,
                location,
            } => {
                let group = c.group()?;
                let subnet = json!({"id": group.resolve_subnet(subnet).map_err(anyhow::Error::msg)?});
                let asgs = c.references(Kind::ApplicationSecurityGroup, application_security_groups)?;
                let mut configurations = configurations(&subnet, addresses);
                set_application_groups(&mut configurations, &asgs);
                let first = &mut configurations[0]["properties"];
                first[POOLS] = balanced(c, Kind::BackendPool, lb_address_pools)?;
                first[NAT_RULES] = balanced(c, Kind::InboundNatRule, lb_inbound_nat_rules)?;
                if let Some(public) = public {
                    configurations[0]["properties"]["publicIPAddress"] =
                        json!({"id": group.resolve("publicIPAddresses", public)});
                }
                let security = network_security_group.as_deref().unwrap_or_default();
                let mut body = json!({"location": c.location(location.as_deref()).await?, "properties": {
                    "enableIPForwarding": ip_forwarding,
                    "networkSecurityGroup": c.reference(Kind::NetworkSecurityGroup, security)?,
                    "ipConfigurations": configurations,
                }});
                if let Some(rate) = bandwidth {
                    set_bandwidth(&mut body, *rate);
                }
                let answer = c.client.arm_put(&path(name)?, &body).await?;
                let given: Vec<_> = items(&answer, CONFIGURATIONS)
                    .map(|c| at(c, "/properties/privateIPAddress"))
                    .collect();
                c.report_write(
                    &answer,
                    &format!("Created network interface {name}: {}.", given.join(", ")),
                )
                .await
            }
            Self::List => {
                let all = c.list(Kind::NetworkInterface).await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No network interfaces. Create one: tombolo nic create NAME -s VNET/SUBNET",
                )
            }
            Self::Show { name } => c.show(Kind::NetworkInterface, name, COLUMNS).await,
            Self::Update {
                name,
                ip_forwarding,
                address,
                network_security_group,
                application_security_groups,
                lb_address_pools,
                lb_inbound_nat_rules,
                bandwidth,
            } => {
                let changes_groups = network_security_group.is_some() || application_security_groups.is_some();
                let is_balanced = lb_address_pools.is_some() || lb_inbound_nat_rules.is_some();
                let changes_rest = ip_forwarding.is_some() || address.is_some() || bandwidth.is_some();
                if !changes_rest && !changes_groups && !is_balanced {
                    let hint = "add --ip-forwarding, --private-ip-address, --network-security-group, \
                                --application-security-groups, --lb-address-pools, --lb-inbound-nat-rules or --bandwidth";
                    return Err(UsageError::new("nothing to change", hint).into());
                }
                let security = network_security_group.as_ref();
                let security = security
                    .map(|name| c.reference(Kind::NetworkSecurityGroup, name))
                    .transpose()?;
                let asgs = application_security_groups.as_ref();
                let asgs = asgs
                    .map(|names| c.references(Kind::ApplicationSecurityGroup, names))
                    .transpose()?;
                let pools = lb_address_pools.as_ref();
                let pools = pools.map(|names| balanced(c, Kind::BackendPool, names)).transpose()?;
                let nat_rules = lb_inbound_nat_rules.as_ref();
                let nat_rules = nat_rules
                    .map(|names| balanced(c, Kind::InboundNatRule, names))
                    .transpose()?;
                let change = |nic: &mut Value| {
                    if let Some(on) = ip_forwarding {
                        nic["properties"]["enableIPForwarding"] = json!(on);
                    }
                    let first = nic.pointer_mut(&format!("{CONFIGURATIONS}/0/properties"));
                    if let (Some(address), Some(properties)) = (address, first) {
                        properties["privateIPAllocationMethod"] = json!("Static");
                        properties["privateIPAddress"] = json!(address);
                    }
                    for (property, references) in [(POOLS, pools), (NAT_RULES, nat_rules)] {
                        let primary = nic.pointer_mut(CONFIGURATIONS).and_then(primary);
                        if let (Some(references), Some(primary)) = (references, primary) {
                            primary["properties"][property] = references;
                        }
                    }
                    if let Some(rate) = bandwidth {
                        set_bandwidth(nic, *rate);
                    }
                    if let Some(security) = security {
                        nic["properties"]["networkSecurityGroup"] = security;
                    }
                    if let (Some(asgs), Some(configurations)) = (asgs, nic.pointer_mut(CONFIGURATIONS)) {
                        set_application_groups(configurations, &asgs);
                    }
                };
                c.update(Kind::NetworkInterface, name, change).await
            }
            Self::Delete { name } => c.remove(Kind::NetworkInterface, name).await,
        }
    }
}

/// Returns references to children of load balancers, by `LB/CHILD` or full id. Empty names are left out.
fn balanced(c: &Context, kind: Kind, names: &[String]) -> Result<Value> {
    let group = c.group()?;
    let named = names.iter().filter(|name| !name.is_empty());
    let id = |name: &String| group.resolve_child(Kind::LoadBalancer.collection(), kind.collection(), name);
    let all: Result<Vec<String>, String> = named.map(id).collect();
    let all = all.map_err(anyhow::Error::msg)?;
    Ok(all.into_iter().map(|id| json!({"id": id})).collect())
}

/// Sets the tag with the bandwidth of a network interface, or removes it if the bandwidth is 0. Other tags stay.
fn set_bandwidth(nic: &mut Value, rate: u32) {
    if !nic["tags"].is_object() {
        nic["tags"] = json!({});
    }
    if let Some(tags) = nic["tags"].as_object_mut() {
        if rate == 0 {
            tags.remove(BANDWIDTH_TAG);
        } else {
            tags.insert(BANDWIDTH_TAG.to_owned(), rate.to_string().into());
        }
    }
}

/// Returns the primary one of the `ipConfigurations`.
fn primary(configurations: &mut Value) -> Option<&mut Value> {
    let all = configurations.as_array_mut()?;
    let index = all.iter().position(|c| c["properties"]["primary"] == true);
    all.get_mut(index.unwrap_or(0))
}

/// Gives every `ipConfiguration` the same application security groups, as Azure's command line does.
fn set_application_groups(configurations: &mut Value, groups: &Value) {
    for configuration in configurations.as_array_mut().into_iter().flatten() {
        configuration["properties"]["applicationSecurityGroups"] = groups.clone();
    }
}

/// Returns an `ipConfiguration` for each address; the first one is primary. If `addresses` is empty, returns one
/// `ipConfiguration`, whose address the controller allocates.
fn configurations(subnet: &Value, addresses: &[IpAddr]) -> Value {
    let one = |(name, address): (String, Option<&IpAddr>)| {
        let primary = name == NIC_IP_CONFIGURATION;
        let mut properties = json!({
            "subnet": subnet,
            "privateIPAllocationMethod": if address.is_some() { "Static" } else { "Dynamic" },
            "privateIPAddress": address,
            "primary": primary,
        });
        if address.is_some_and(IpAddr::is_ipv6) {
            properties["privateIPAddressVersion"] = json!("IPv6");
        }
        json!({"name": name, "properties": properties})
    };
    if addresses.is_empty() {
        return json!([one((NIC_IP_CONFIGURATION.to_owned(), None))]);
    }
    let stem = NIC_IP_CONFIGURATION.trim_end_matches('1');
    let all = addresses.iter().enumerate();
    json!(
        all.map(|(index, address)| one((format!("{stem}{}", index + 1), Some(address))))
            .collect::<Vec<_>>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n9_application_groups_are_set_on_every_configuration() {
        let mut both = json!([{"properties": {"primary": true}}, {"properties": {"applicationSecurityGroups": []}}]);
        let groups = json!([{"id": "g"}]);
        set_application_groups(&mut both, &groups);
        assert_eq!(
            both[0]["properties"],
            json!({"primary": true, "applicationSecurityGroups": groups})
        );
        assert_eq!(both[1]["properties"]["applicationSecurityGroups"], groups);
    }

    #[test]
    fn l2_pools_are_those_of_the_primary_configuration() {
        let mut all = json!([{"name": "a", "properties": {}}, {"name": "b", "properties": {"primary": true}}]);
        assert_eq!(primary(&mut all).unwrap()["name"], "b");
        let mut none = json!([{"name": "a", "properties": {}}]);
        assert_eq!(primary(&mut none).unwrap()["name"], "a");
        assert!(primary(&mut json!([])).is_none());
    }

    #[test]
    fn every_address_has_a_configuration_and_the_first_is_primary() {
        let subnet = json!({"id": "s"});
        let two = configurations(&subnet, &["10.1.0.4".parse().unwrap(), "fd00::4".parse().unwrap()]);
        assert_eq!(
            (&two[0]["name"], &two[1]["name"]),
            (&json!(NIC_IP_CONFIGURATION), &json!("ipconfig2"))
        );
        assert_eq!(two[0]["properties"]["primary"], true);
        assert_eq!(two[1]["properties"]["primary"], false);
        assert_eq!(two[1]["properties"]["privateIPAddressVersion"], "IPv6");
        let none = configurations(&subnet, &[]);
        assert_eq!(none[0]["properties"]["privateIPAllocationMethod"], "Dynamic");
        assert_eq!(none.as_array().map(Vec::len), Some(1));
    }
}
