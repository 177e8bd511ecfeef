//! Security groups and TCP segments for tests.

use super::{id, ip};
use etherparse::PacketBuilder;
use std::net::IpAddr;
use tombolo_proto::config::{
    ALL_PORTS, Access, AccessOff, AddressMatch, DEFAULT_FLOW_TIMEOUT, Direction, PortRange, RuleProtocol, SecuredNic,
    Security, SecurityGroup, SecurityRule,
};

/// A rule for all packets of a direction.
pub fn rule(name: &str, priority: u16, direction: Direction, access: Access) -> SecurityRule {
    SecurityRule {
        name: format!("securityRules/{name}"),
        priority,
        direction,
        access,
        protocol: RuleProtocol::Any,
        source: AddressMatch::Any,
        source_ports: vec![ALL_PORTS],
        destination: AddressMatch::Any,
        destination_ports: vec![ALL_PORTS],
    }
}

/// The rule for TCP to one port alone.
pub fn to_port(port: u16, rule: SecurityRule) -> SecurityRule {
    SecurityRule {
        protocol: RuleProtocol::Tcp,
        destination_ports: vec![PortRange {
            first: port,
            last: port,
        }],
        ..rule
    }
}

fn tag(name: &str) -> AddressMatch {
    AddressMatch::Sets(vec![name.to_owned()])
}

/// The default rules (N2).
fn defaults() -> Vec<SecurityRule> {
    let default =
        |name: &str, priority, direction, access, source: AddressMatch, destination: AddressMatch| SecurityRule {
            name: format!("defaultSecurityRules/{name}"),
            source,
            destination,
            ..rule("", priority, direction, access)
        };
    use {Access::*, AddressMatch::Any, Direction::*};
    vec![
        default(
            "AllowVnetInBound",
            65_000,
            Inbound,
            Allow,
            tag("VirtualNetwork"),
            tag("VirtualNetwork"),
        ),
        default(
            "AllowAzureLoadBalancerInBound",
            65_001,
            Inbound,
            Allow,
            tag("AzureLoadBalancer"),
            Any,
        ),
        default("DenyAllInBound", 65_500, Inbound, Deny, Any, Any),
        default(
            "AllowVnetOutBound",
            65_000,
            Outbound,
            Allow,
            tag("VirtualNetwork"),
            tag("VirtualNetwork"),
        ),
        default("AllowInternetOutBound", 65_001, Outbound, Allow, Any, tag("Internet")),
        default("DenyAllOutBound", 65_500, Outbound, Deny, Any, Any),
    ]
}

/// A group with these rules and the default rules.
pub fn group(name: &str, rules: Vec<SecurityRule>) -> SecurityGroup {
    SecurityGroup {
        id: id(name),
        rules: rules.into_iter().chain(defaults()).collect(),
    }
}

/// The groups of a machine with one NIC, which has the addresses `own`: `subnet` applies to the NIC's subnet, `nic` to
/// the NIC itself.
pub fn security(own: &[&str], subnet: Option<SecurityGroup>, nic: Option<SecurityGroup>) -> Security {
    Security {
        nics: vec![SecuredNic {
            id: id("nic"),
            prefixes: super::nets(own),
            subnet: id("subnet"),
            subnet_group: subnet.as_ref().map(|g| g.id.clone()),
            nic_group: nic.as_ref().map(|g| g.id.clone()),
        }],
        groups: match (subnet, nic) {
            (Some(subnet), Some(nic)) if subnet.id == nic.id => vec![nic],
            (subnet, nic) => subnet.into_iter().chain(nic).collect(),
        },
        application_groups: Vec::new(),
        access_off: AccessOff::default(),
        flow_timeout_minutes: DEFAULT_FLOW_TIMEOUT,
        reevaluate: false,
        flow_logs: None,
    }
}

/// The flags of a TCP segment.
#[derive(Debug, Clone, Copy)]
pub enum Flags {
    Syn,
    SynAck,
    Ack,
    Fin,
}

/// A TCP segment.
pub fn tcp(from: (&str, u16), to: (&str, u16), flags: Flags) -> Vec<u8> {
    let mut out = Vec::new();
    let header = match (ip(from.0), ip(to.0)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64).tcp(from.1, to.1, 1, 1000)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64).tcp(from.1, to.1, 1, 1000)
        }
        _ => panic!("two families"),
    };
    let header = match flags {
        Flags::Syn => header.syn(),
        Flags::SynAck => header.syn().ack(2),
        Flags::Ack => header.ack(2),
        Flags::Fin => header.fin().ack(2),
    };
    header.write(&mut out, b"data").unwrap();
    out
}
