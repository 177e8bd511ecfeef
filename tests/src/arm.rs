//! ARM paths and bodies of the tests' resources. Bodies are built unchecked: the controller or topology under test
//! validates them.

use crate::operation::{Addresses, Balancer, BalancingRule, Distribution, Flags, NAT_PORTS, Protocol, Rule, UserHop};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;

/// The id of the subscription in which all tests create their resources.
pub const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";

/// The ARM id of a resource group in [`SUBSCRIPTION`]. Whether the group exists is not checked.
#[must_use]
pub fn group(name: &str) -> String {
    format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{name}")
}

/// The ARM id of a `Microsoft.Network` resource in group `g`, from its types and names:
/// `network("virtualNetworks/v/subnets/s")`.
#[must_use]
pub fn network(path: &str) -> String {
    format!("{}/providers/Microsoft.Network/{path}", group("g"))
}

/// The ARM id of a VM in group `g`. In ARM a VM is a read-only view of the VM's agent (D7).
#[must_use]
pub fn vm(name: &str) -> String {
    format!("{}/providers/Microsoft.Compute/virtualMachines/{name}", group("g"))
}

/// A VNet's body without subnets and peerings: a PUT keeps the existing ones. `space` has the VNet's address ranges.
#[must_use]
pub fn vnet_body(region: &str, space: &[IpNet]) -> Value {
    json!({"location": region, "properties": {"addressSpace": {"addressPrefixes": space}}})
}

/// A subnet's body. If there is one prefix, the body has `addressPrefix`; otherwise it has `addressPrefixes`, which is
/// empty if there are none. `table` is the name of a route table of group `g`. Without it the body has no `routeTable`,
/// so a PUT takes the subnet's table away.
#[must_use]
pub fn subnet_body(prefixes: &[IpNet], table: Option<&str>) -> Value {
    let mut properties = match prefixes {
        [one] => json!({"addressPrefix": one}),
        many => json!({"addressPrefixes": many}),
    };
    if let Some(table) = table {
        properties["routeTable"] = json!({"id": network(&format!("routeTables/{table}"))});
    }
    json!({"properties": properties})
}

/// The body of a peering half that points to the VNet `remote` of group `g`.
#[must_use]
pub fn peering_body(remote: &str, flags: Flags) -> Value {
    json!({"properties": {
        "remoteVirtualNetwork": {"id": network(&format!("virtualNetworks/{remote}"))},
        "allowVirtualNetworkAccess": flags.access,
        "allowForwardedTraffic": flags.forwarded,
        "allowGatewayTransit": flags.transit,
        "useRemoteGateways": flags.use_remote,
    }})
}

/// A NIC's body, with one `ipConfiguration` for each address: `ip0`, `ip1` and so on. All are in the subnet `subnet` of
/// the VNet `vnet` of group `g`. The addresses are static, and the first one is primary. `forwarding` is
/// `enableIPForwarding`.
#[must_use]
pub fn nic_body(region: &str, vnet: &str, subnet: &str, addresses: &[IpAddr], forwarding: bool) -> Value {
    let subnet = network(&format!("virtualNetworks/{vnet}/subnets/{subnet}"));
    let configurations: Vec<Value> = addresses
        .iter()
        .enumerate()
        .map(|(index, address)| {
            json!({"name": format!("ip{index}"), "properties": {
                "subnet": {"id": subnet},
                "privateIPAddress": address,
                "privateIPAllocationMethod": "Static",
                "privateIPAddressVersion": if address.is_ipv4() { "IPv4" } else { "IPv6" },
                "primary": index == 0,
            }})
        })
        .collect();
    json!({"location": region, "properties": {
        "enableIPForwarding": forwarding,
        "ipConfigurations": configurations,
    }})
}

/// The body of a route table in `region1`. `no_gateway_routes` is `disableBgpRoutePropagation`. The routes are named
/// `r0`, `r1` and so on, in the given order.
#[must_use]
pub fn table_body(no_gateway_routes: bool, routes: &[(IpNet, UserHop)]) -> Value {
    let route = |(index, (prefix, hop)): (usize, &(IpNet, UserHop))| {
        let mut properties = json!({"addressPrefix": prefix, "nextHopType": match hop {
            UserHop::Appliance(_) => "VirtualAppliance",
            UserHop::Gateway => "VirtualNetworkGateway",
            UserHop::Local => "VnetLocal",
            UserHop::Internet => "Internet",
            UserHop::None => "None",
        }});
        if let UserHop::Appliance(address) = hop {
            properties["nextHopIpAddress"] = json!(address);
        }
        json!({"name": format!("r{index}"), "properties": properties})
    };
    json!({"location": "region1", "properties": {
        "disableBgpRoutePropagation": no_gateway_routes,
        "routes": routes.iter().enumerate().map(route).collect::<Vec<_>>(),
    }})
}

/// Attaches the network security group `group` of group `g` to a subnet or NIC with this body.
pub fn attach(body: &mut Value, group: &str) {
    body["properties"]["networkSecurityGroup"] = json!({"id": network(&format!("networkSecurityGroups/{group}"))});
}

/// Puts all addresses of the NIC with this body into these application security groups of group `g`.
pub fn join_application_groups(body: &mut Value, groups: &[String]) {
    let configurations = body["properties"]["ipConfigurations"].as_array_mut();
    for configuration in configurations.into_iter().flatten() {
        configuration["properties"]["applicationSecurityGroups"] = application_groups(groups);
    }
}

fn application_groups(groups: &[String]) -> Value {
    let reference = |group: &String| json!({"id": network(&format!("applicationSecurityGroups/{group}"))});
    groups.iter().map(reference).collect()
}

/// The body of a network security group in `region1`.
#[must_use]
pub fn security_group_body(rules: &[Rule]) -> Value {
    let rules: Vec<Value> = rules.iter().enumerate().map(rule_body).collect();
    json!({"location": "region1", "properties": {"securityRules": rules}})
}

fn rule_body((index, rule): (usize, &Rule)) -> Value {
    let mut properties = json!({
        "priority": rule.priority,
        "direction": if rule.inbound { "Inbound" } else { "Outbound" },
        "access": if rule.allow { "Allow" } else { "Deny" },
        "protocol": match rule.protocol {
            None => "*",
            Some(Protocol::Tcp) => "Tcp",
            Some(Protocol::Udp) => "Udp",
            Some(Protocol::Icmp) => "Icmp",
        },
    });
    let ports = |(first, last): (u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    let source_ports: Vec<_> = rule.source_ports.into_iter().collect();
    let sides = [
        ("source", &rule.source, &source_ports),
        ("destination", &rule.destination, &rule.destination_ports),
    ];
    for (side, addresses, ranges) in sides {
        let (name, value) = match addresses {
            Addresses::Any => ("AddressPrefix", json!("*")),
            Addresses::VirtualNetwork => ("AddressPrefix", json!("VirtualNetwork")),
            Addresses::Internet => ("AddressPrefix", json!("Internet")),
            Addresses::LoadBalancer => ("AddressPrefix", json!("AzureLoadBalancer")),
            Addresses::Prefixes(prefixes) => match &prefixes[..] {
                [one] => ("AddressPrefix", json!(one)),
                many => ("AddressPrefixes", json!(many)),
            },
            Addresses::Groups(groups) => ("ApplicationSecurityGroups", application_groups(groups)),
        };
        properties[format!("{side}{name}")] = value;
        match &ranges[..] {
            [] => properties[format!("{side}PortRange")] = json!("*"),
            [one] => properties[format!("{side}PortRange")] = json!(ports(*one)),
            many => {
                let many: Vec<_> = many.iter().map(|range| ports(*range)).collect();
                properties[format!("{side}PortRanges")] = json!(many);
            }
        }
    }
    json!({"name": format!("r{index}"), "properties": properties})
}

/// The body of a route-based VPN gateway with one instance, at `address` in the VNet's `GatewaySubnet`. It refers to the public
/// address `VNET-pip`, which the caller creates.
#[must_use]
pub fn gateway_body(region: &str, vnet: &str, address: IpAddr) -> Value {
    json!({"location": region, "properties": {
        "gatewayType": "Vpn",
        "vpnType": "RouteBased",
        "sku": {"name": "VpnGw1", "tier": "VpnGw1"},
        "ipConfigurations": [{"name": "default", "properties": {
            "subnet": {"id": network(&format!("virtualNetworks/{vnet}/subnets/GatewaySubnet"))},
            "publicIPAddress": {"id": network(&format!("publicIPAddresses/{vnet}-pip"))},
            "privateIPAddress": address,
            "privateIPAllocationMethod": "Static",
        }}],
    }})
}

/// Puts the addresses of the NIC with this body into the pool of a load balancer, and makes the first address the target of
/// the inbound NAT rule of a load balancer.
pub fn join_balancers(body: &mut Value, pool: Option<&str>, nat_rule: Option<&str>) {
    let reference =
        |balancer: &str, child: &str| json!([{"id": network(&format!("loadBalancers/{balancer}/{child}"))}]);
    let configurations = body["properties"]["ipConfigurations"].as_array_mut();
    for (number, configuration) in configurations.into_iter().flatten().enumerate() {
        let properties = &mut configuration["properties"];
        if let Some(balancer) = pool {
            properties["loadBalancerBackendAddressPools"] = reference(balancer, "backendAddressPools/pool");
        }
        if let Some(balancer) = nat_rule.filter(|_| number == 0) {
            properties["loadBalancerInboundNatRules"] = reference(balancer, "inboundNatRules/nat");
        }
    }
}

/// The body of the load balancer `name`.
#[must_use]
pub fn balancer_body(region: &str, name: &str, balancer: &Balancer) -> Value {
    let child = |path: &str| json!({"id": network(&format!("loadBalancers/{name}/{path}"))});
    let front_end = |number: usize| child(&format!("frontendIPConfigurations/fe{number}"));
    let vnet = format!("virtualNetworks/{}", balancer.vnet);
    let front_ends = balancer.front_ends.iter().enumerate().map(|(number, address)| {
        json!({"name": format!("fe{number}"), "properties": {
            "subnet": {"id": network(&format!("{vnet}/subnets/{}", balancer.subnet))},
            "privateIPAddress": address,
            "privateIPAllocationMethod": "Static",
        }})
    });
    let addresses = balancer.addresses.iter().enumerate().map(|(number, address)| {
        json!({"name": format!("a{number}"), "properties": {
            "ipAddress": address,
            "virtualNetwork": {"id": network(&vnet)},
        }})
    });
    let mut pool = json!({"name": "pool"});
    if !balancer.addresses.is_empty() {
        pool["properties"] = json!({"loadBalancerBackendAddresses": addresses.collect::<Vec<_>>()});
    }
    let rule = |rule: &BalancingRule| {
        let mut properties = json!({
            "frontendIPConfiguration": front_end(rule.front_end),
            "backendAddressPool": child("backendAddressPools/pool"),
            "protocol": match rule.protocol {
                Some(Protocol::Udp) => "Udp",
                Some(Protocol::Tcp | Protocol::Icmp) => "Tcp",
                None => "All",
            },
            "frontendPort": rule.port,
            "backendPort": rule.back_end_port,
            "loadDistribution": match rule.distribution {
                Distribution::Default => "Default",
                Distribution::SourceIp => "SourceIP",
                Distribution::SourceIpProtocol => "SourceIPProtocol",
            },
            "enableFloatingIP": rule.floating_ip,
            "idleTimeoutInMinutes": rule.idle_timeout,
        });
        if rule.is_probed {
            properties["probe"] = child("probes/probe");
        }
        json!({"name": rule.name(), "properties": properties})
    };
    let nat_rule = json!({"name": "nat", "properties": {
        "frontendIPConfiguration": front_end(0),
        "protocol": "Tcp",
        "frontendPort": NAT_PORTS.0,
        "backendPort": NAT_PORTS.1,
    }});
    let behavior = if balancer.all_up_when_all_down {
        "AllProbedUp"
    } else {
        "AllProbedDown"
    };
    let probe = json!({"protocol": "Tcp", "port": 80, "noHealthyBackendsBehavior": behavior});
    json!({
        "location": region,
        "sku": {"name": if balancer.is_standard { "Standard" } else { "Basic" }},
        "properties": {
            "frontendIPConfigurations": front_ends.collect::<Vec<_>>(),
            "backendAddressPools": [pool],
            "probes": [{"name": "probe", "properties": probe}],
            "loadBalancingRules": balancer.rules.iter().map(rule).collect::<Vec<_>>(),
            "inboundNatRules": balancer.has_nat_rule.then_some(nat_rule).into_iter().collect::<Vec<_>>(),
        },
    })
}

/// The body of one side's connection object between the gateways `FROM-gw` and `TO-gw` of two VNets of group `g`.
/// `from` and `to` are the names of the VNets; the object belongs to the gateway of `from`. Without `key` the body has
/// no `sharedKey`; a PUT then keeps an existing one.
#[must_use]
pub fn connection_body(region: &str, from: &str, to: &str, key: Option<&str>) -> Value {
    let gateway = |vnet: &str| json!({"id": network(&format!("virtualNetworkGateways/{vnet}-gw"))});
    let mut body = json!({"location": region, "properties": {
        "connectionType": "Vnet2Vnet",
        "virtualNetworkGateway1": gateway(from),
        "virtualNetworkGateway2": gateway(to),
    }});
    if let Some(key) = key {
        body["properties"]["sharedKey"] = json!(key);
    }
    body
}
