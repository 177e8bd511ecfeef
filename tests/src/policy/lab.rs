//! Writes a policy as a lab's topology file.

use super::{Machine, Policy};
use crate::arm::security_group_body;
use crate::operation::{Operation, UserHop};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use tombolo_lab::Topology;

impl Policy {
    /// The topology of a lab with the name `name`, in which each machine of the policy is a host.
    ///
    /// # Errors
    /// The lab refuses the topology, for example because of its name.
    pub fn topology(&self, name: &str) -> Result<Topology> {
        let mut resources = json!({"resourceGroup": "lab", "location": "region1"});
        let mut settings = json!({});
        for operation in &self.operations {
            add(&mut resources, &mut settings, operation);
        }
        let hosts: Map<String, Value> = (11..).zip(&self.machines).map(|(n, m)| host(n, m)).collect();
        let text = json!({
            "name": name,
            "settings": settings,
            "underlay": {
                "segments": {"internet": {"prefix": "203.0.113.0/24"}},
                "controller": {"address": "203.0.113.10", "port": 8443},
            },
            "hosts": hosts,
            "resources": resources,
        });
        // JSON is a subset of YAML.
        Topology::parse(&text.to_string()).with_context(|| format!("the topology of seed {}", self.seed))
    }
}

fn host(number: u8, machine: &Machine) -> (String, Value) {
    let vm = json!({"nics": [machine.nic()], "kernelForwarding": machine.forwards});
    let host = json!({"address": format!("203.0.113.{number}"), "vm": vm});
    (machine.name.clone(), host)
}

/// Adds what an operation creates to the lab's resources and settings.
fn add(resources: &mut Value, settings: &mut Value, operation: &Operation) {
    match operation {
        Operation::PutApplicationGroup { group } => resources["applicationSecurityGroups"][group] = json!({}),
        Operation::PutSecurityGroup { group, rules } => {
            let body = security_group_body(rules);
            let rules = body["properties"]["securityRules"].as_array().into_iter().flatten();
            let named = rules.map(|rule| (rule["name"].as_str().unwrap_or_default().to_owned(), flat(rule)));
            resources["networkSecurityGroups"][group] = json!({"rules": named.collect::<Map<_, _>>()});
        }
        Operation::SetAccessOff { block } => {
            settings["vnetAccessOff"] = json!(if *block { "block" } else { "tagOnly" });
        }
        Operation::PutVnet { vnet, space, .. } => {
            resources["virtualNetworks"][vnet] = json!({"addressSpace": space});
        }
        Operation::PutTable { table, routes, .. } => {
            let route = |(number, (prefix, hop)): (usize, &_)| {
                let mut route = json!({"addressPrefix": prefix, "nextHopType": match hop {
                    UserHop::Appliance(_) => "VirtualAppliance",
                    UserHop::Gateway => "VirtualNetworkGateway",
                    UserHop::Local => "VnetLocal",
                    UserHop::Internet => "Internet",
                    UserHop::None => "None",
                }});
                if let UserHop::Appliance(address) = hop {
                    route["nextHopIpAddress"] = json!(address);
                }
                (format!("r{number}"), route)
            };
            let routes: Map<_, _> = routes.iter().enumerate().map(route).collect();
            resources["routeTables"][table] = json!({"routes": routes});
        }
        Operation::PutSubnet {
            vnet,
            subnet,
            prefixes,
            table,
            security,
        } => {
            resources["virtualNetworks"][vnet]["subnets"][subnet] =
                json!({"addressPrefixes": prefixes, "routeTable": table, "networkSecurityGroup": security});
        }
        Operation::PutPeering {
            vnet, remote, flags, ..
        } => {
            resources["virtualNetworks"][vnet]["peerings"][format!("to-{remote}")] = json!({
                "remoteVirtualNetwork": remote,
                "allowVirtualNetworkAccess": flags.access,
                "allowForwardedTraffic": flags.forwarded,
            });
        }
        Operation::PutNic {
            nic,
            vnet,
            subnet,
            addresses,
            forwarding,
            security,
            application_groups,
            ..
        } => {
            let configuration = |(number, address): (usize, &_)| {
                let configuration = json!({"subnet": format!("{vnet}/{subnet}"), "privateIPAddress": address});
                (format!("ip{number}"), configuration)
            };
            let configurations: Map<_, _> = addresses.iter().enumerate().map(configuration).collect();
            resources["networkInterfaces"][nic] = json!({
                "ipConfigurations": configurations,
                "enableIPForwarding": forwarding,
                "networkSecurityGroup": security,
                "applicationSecurityGroups": application_groups,
            });
        }
        // The lab itself joins the agents of its hosts.
        Operation::JoinVm { .. } => {}
        other => unreachable!("a policy has no {other:?}"),
    }
}

/// The properties of a rule of ARM as a topology file has them: with the names of application security groups instead
/// of references.
fn flat(rule: &Value) -> Value {
    let mut properties = rule["properties"].clone();
    for side in [
        "sourceApplicationSecurityGroups",
        "destinationApplicationSecurityGroups",
    ] {
        if let Some(groups) = properties[side].as_array() {
            let ids = groups.iter().filter_map(|group| group["id"].as_str());
            let names: Vec<_> = ids.map(tombolo_client::path::last).collect();
            properties[side] = json!(names);
        } else if let Some(all) = properties.as_object_mut() {
            all.remove(side);
        }
    }
    properties
}
