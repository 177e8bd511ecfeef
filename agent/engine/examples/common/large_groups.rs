//! Security groups as large as Azure permits (X5), for measurements.

use std::net::{IpAddr, Ipv4Addr};
use tombolo_proto::config::{
    ALL_PORTS, Access, AccessOff, AddressMatch, DEFAULT_FLOW_TIMEOUT, Direction, PortRange, RuleProtocol, SecuredNic,
    Security, SecurityGroup, SecurityRule,
};
use tombolo_proto::id::ResourceId;

/// Number of rules of the group in each direction.
pub(crate) const RULES: u16 = 1000;

/// Number of source prefixes of each rule. All rules of a group together have 4,000, Azure's limit.
const PREFIXES: u32 = 4;

/// A group with [`RULES`] rules in each direction. Rule n denies TCP port n from addresses within 172.16.0.0/12, and
/// the last one allows everything. So a packet between other addresses, or to a higher port, passes by the last rule.
pub(crate) fn group(name: &str) -> SecurityGroup {
    let mut rules = Vec::new();
    for direction in [Direction::Inbound, Direction::Outbound] {
        for number in 1..RULES {
            let address = |n: u32| Ipv4Addr::from(0xac10_0000 + (u32::from(number) * PREFIXES + n) * 64);
            let prefix = |n: u32| format!("{}/26", address(n)).parse().unwrap();
            rules.push(SecurityRule {
                name: format!("securityRules/deny-{number}"),
                priority: 100 + number,
                direction,
                access: Access::Deny,
                protocol: RuleProtocol::Tcp,
                source: AddressMatch::Prefixes((0..PREFIXES).map(prefix).collect()),
                source_ports: vec![ALL_PORTS],
                destination: AddressMatch::Any,
                destination_ports: vec![PortRange {
                    first: number,
                    last: number,
                }],
            });
        }
        rules.push(SecurityRule {
            name: "securityRules/allow".into(),
            priority: 4096,
            direction,
            access: Access::Allow,
            protocol: RuleProtocol::Any,
            source: AddressMatch::Any,
            source_ports: vec![ALL_PORTS],
            destination: AddressMatch::Any,
            destination_ports: vec![ALL_PORTS],
        });
    }
    SecurityGroup {
        id: ResourceId::new(format!("/{name}")),
        rules,
    }
}

/// The security of a machine whose only NIC `nic`, in `subnet`, has a group of its own and one of the subnet.
pub(crate) fn security(nic: &str, subnet: &str, address: IpAddr) -> Security {
    let groups = vec![group("nic-group"), group("subnet-group")];
    let ids: Vec<_> = groups.iter().map(|group| group.id.clone()).collect();
    Security {
        nics: vec![SecuredNic {
            id: ResourceId::new(nic),
            prefixes: vec![address.into()],
            subnet: ResourceId::new(subnet),
            subnet_group: Some(ids[1].clone()),
            nic_group: Some(ids[0].clone()),
        }],
        groups,
        application_groups: Vec::new(),
        access_off: AccessOff::default(),
        flow_timeout_minutes: DEFAULT_FLOW_TIMEOUT,
        reevaluate: false,
        flow_logs: None,
    }
}
