//! Turns the load balancers of a manifest into request bodies.
//!
//! Defaults are written into the bodies, because the controller's answers have them too: the comparison of the two finds
//! no difference then.

use super::{Expansion, set_address};
use crate::manifest::named::Named;
use crate::manifest::schema::{
    BackendPool, BalancedProtocol, BalancingRule, FrontEnd, InboundNatRule, LoadBalancer, LoadBalancerSku, Probe,
    ProbeProtocol,
};
use serde_json::{Value, json};
use tombolo_proto::arm::Kind;

/// Azure's range of `idleTimeoutInMinutes`.
const IDLE_TIMEOUT: std::ops::RangeInclusive<u16> = 4..=30;

/// A load balancer whose children are expanded.
struct Parent<'a> {
    /// The load balancer in messages: `loadBalancers.NAME`.
    place: String,
    path: String,
    balancer: &'a LoadBalancer,
}

impl Parent<'_> {
    /// A reference to the child with this name.
    fn child(&self, kind: Kind, name: &str) -> Value {
        json!({"id": format!("{}/{}/{name}", self.path, kind.collection())})
    }
}

impl Expansion<'_> {
    pub(super) fn load_balancer(&mut self, name: &str, balancer: &LoadBalancer) {
        let parent = Parent {
            place: format!("loadBalancers.{name}"),
            path: self.group.item(Kind::LoadBalancer.collection(), name),
            balancer,
        };
        let front_ends = self.children(&balancer.front_ends, &parent, "frontEnds", Self::front_end);
        let pools = self.children(&balancer.pools, &parent, "pools", Self::pool);
        let probes = self.children(&balancer.probes, &parent, "probes", Self::probe);
        let rules = self.children(&balancer.rules, &parent, "rules", Self::balancing_rule);
        let nat_rules = self.children(
            &balancer.inbound_nat_rules,
            &parent,
            "inboundNatRules",
            Self::inbound_nat_rule,
        );
        let body = json!({"sku": {"name": balancer.sku}, "properties": {
            "frontendIPConfigurations": front_ends,
            "backendAddressPools": pools,
            "probes": probes,
            "loadBalancingRules": rules,
            "inboundNatRules": nat_rules,
        }});
        let first = balancer.front_ends.iter().next();
        let subnet = first.map(|(_, f)| f.subnet.as_str());
        let location = self.regions.with_address(balancer.location.as_ref(), subnet);
        self.push_resource(Kind::LoadBalancer, name, location, &balancer.tags, body);
    }

    /// The bodies of the children of one kind. `property` is the manifest's property that has them.
    fn children<T>(
        &mut self,
        all: &Named<T>,
        parent: &Parent<'_>,
        property: &str,
        expand: impl Fn(&mut Self, &str, &T, &Parent<'_>) -> Value,
    ) -> Vec<Value> {
        let one = |(name, child): (&str, &T)| {
            let place = format!("{}.{property}.{name}", parent.place);
            json!({"name": name, "properties": expand(self, &place, child, parent)})
        };
        all.iter().map(one).collect()
    }

    fn front_end(&mut self, place: &str, front_end: &FrontEnd, _: &Parent<'_>) -> Value {
        let mut properties = json!({"subnet": self.subnet_reference(place, &front_end.subnet)});
        set_address(&mut properties, front_end.private_ip_address);
        if let Some(ip) = front_end.private_ip_address {
            properties["privateIPAddressVersion"] = json!(if ip.is_ipv4() { "IPv4" } else { "IPv6" });
        }
        properties
    }

    fn pool(&mut self, place: &str, pool: &BackendPool, parent: &Parent<'_>) -> Value {
        let mut vnet = self.optional_reference(Kind::VirtualNetwork, pool.virtual_network.as_ref());
        if pool.addresses.is_empty() {
            if !vnet.is_null() {
                self.problem(place, "virtualNetwork is allowed with addresses only (L2)");
            }
            return json!({
                "loadBalancerBackendAddresses": null,
                "virtualNetwork": null,
                "drainPeriodInSeconds": pool.drain_period_in_seconds,
            });
        }
        if parent.balancer.sku == LoadBalancerSku::Basic {
            self.problem(place, "addresses need sku Standard (L2)");
        }
        if vnet.is_null() {
            let mut front_ends = parent.balancer.front_ends.iter();
            // A subnet that cannot be resolved is a problem of its front end.
            match front_ends.next().map(|(_, f)| self.group.resolve_subnet(&f.subnet)) {
                Some(Ok(subnet)) => vnet = json!({"id": subnet.rsplit_once("/subnets/").map_or("", |(vnet, _)| vnet)}),
                Some(Err(_)) => {}
                None => self.problem(place, "virtualNetwork is needed, because there is no front end (L2)"),
            }
        }
        // The virtual network is a property of the pool here, and of each address in bodies of some other clients.
        let address = |(name, address)| {
            let properties = json!({"ipAddress": address, "virtualNetwork": null, "subnet": null});
            json!({"name": name, "properties": properties})
        };
        json!({
            "loadBalancerBackendAddresses": pool.addresses.iter().map(address).collect::<Vec<_>>(),
            "virtualNetwork": vnet,
            "drainPeriodInSeconds": pool.drain_period_in_seconds,
        })
    }

    fn probe(&mut self, place: &str, probe: &Probe, _: &Parent<'_>) -> Value {
        let is_http = probe.protocol != ProbeProtocol::Tcp;
        if is_http != probe.request_path.is_some() {
            let text = "requestPath must be set with protocol Http or Https, and not with Tcp (L6)";
            self.problem(place, text);
        }
        json!({
            "protocol": probe.protocol,
            "port": probe.port,
            "requestPath": probe.request_path,
            "intervalInSeconds": probe.interval_in_seconds,
            "probeThreshold": probe.probe_threshold,
            "noHealthyBackendsBehavior": probe.no_healthy_backends_behavior,
        })
    }

    fn balancing_rule(&mut self, place: &str, rule: &BalancingRule, parent: &Parent<'_>) -> Value {
        let (front_end_port, back_end_port) = self.balanced_ports(place, rule, parent.balancer.sku);
        self.check_flows(
            place,
            rule.idle_timeout_in_minutes,
            rule.enable_floating_ip && front_end_port != back_end_port,
        );
        let balancer = parent.balancer;
        let front_end = self.front_end_of(place, rule.front_end.as_ref(), parent);
        let pool = self.sibling(place, ["pool", "pools"], rule.pool.as_ref(), &balancer.pools);
        let pool = pool.map(|name| parent.child(Kind::BackendPool, &name));
        let probe = match &rule.probe {
            None => None,
            given => self.sibling(place, ["probe", "probes"], given.as_ref(), &balancer.probes),
        };
        json!({
            "protocol": rule.protocol,
            "frontendIPConfiguration": front_end,
            "frontendPort": front_end_port,
            "backendPort": back_end_port,
            // The controller reads both properties, and refuses two different pools.
            "backendAddressPool": pool,
            "backendAddressPools": pool.iter().collect::<Vec<_>>(),
            "probe": probe.map(|name| parent.child(Kind::Probe, &name)),
            "loadDistribution": rule.load_distribution,
            "idleTimeoutInMinutes": rule.idle_timeout_in_minutes,
            "enableFloatingIP": rule.enable_floating_ip,
            "enableTcpReset": rule.enable_tcp_reset,
        })
    }

    /// The ports of a load-balancing rule: both are 0 with the protocol `All`, and otherwise neither is (L9).
    fn balanced_ports(&mut self, place: &str, rule: &BalancingRule, sku: LoadBalancerSku) -> (u16, u16) {
        let (front_end, back_end) = (rule.front_end_port.unwrap_or(0), rule.back_end_port);
        if rule.protocol == BalancedProtocol::All {
            if front_end != 0 || back_end.unwrap_or(0) != 0 {
                let text = "protocol All is for all ports: leave frontEndPort and backEndPort out (L9)";
                self.problem(place, text);
            }
            if sku == LoadBalancerSku::Basic {
                self.problem(place, "protocol All needs sku Standard (L9)");
            }
            return (0, 0);
        }
        if front_end == 0 || back_end == Some(0) {
            let text = "frontEndPort is needed, from 1 to 65535, and backEndPort is not 0; for all ports, set protocol All \
                        (L9)";
            self.problem(place, text);
        }
        (front_end, back_end.unwrap_or(front_end))
    }

    fn inbound_nat_rule(&mut self, place: &str, rule: &InboundNatRule, parent: &Parent<'_>) -> Value {
        if rule.protocol == BalancedProtocol::All {
            self.problem(place, "protocol must be Tcp or Udp: only rules have protocol All (L9)");
        }
        let back_end_port = rule.back_end_port.unwrap_or(rule.front_end_port);
        self.check_flows(
            place,
            rule.idle_timeout_in_minutes,
            rule.enable_floating_ip && rule.front_end_port != back_end_port,
        );
        json!({
            "protocol": rule.protocol,
            "frontendIPConfiguration": self.front_end_of(place, rule.front_end.as_ref(), parent),
            "frontendPort": rule.front_end_port,
            "backendPort": back_end_port,
            "idleTimeoutInMinutes": rule.idle_timeout_in_minutes,
            "enableFloatingIP": rule.enable_floating_ip,
            "enableTcpReset": rule.enable_tcp_reset,
        })
    }

    /// Checks properties that load-balancing rules and inbound NAT rules have in common. `ports_differ`: the rule has
    /// floating IP and two different ports.
    fn check_flows(&mut self, place: &str, idle_timeout: u16, ports_differ: bool) {
        if !IDLE_TIMEOUT.contains(&idle_timeout) {
            let (least, most) = (IDLE_TIMEOUT.start(), IDLE_TIMEOUT.end());
            let text = format!("idleTimeoutInMinutes: {idle_timeout} is not within {least} to {most} (L3)");
            self.problem(place, &text);
        }
        if ports_differ {
            let text = "with enableFloatingIP, backEndPort must be equal to frontEndPort, or be left out (L3)";
            self.problem(place, text);
        }
    }

    /// A reference to the front end that a rule names, or to the only one; null after a problem.
    fn front_end_of(&mut self, place: &str, given: Option<&String>, parent: &Parent<'_>) -> Value {
        let all = &parent.balancer.front_ends;
        let name = self.sibling(place, ["frontEnd", "frontEnds"], given, all);
        name.map_or(Value::Null, |name| parent.child(Kind::FrontEnd, &name))
    }

    /// The name of the child to which the property `property` of a rule refers: `given`, or the only child in the map
    /// `map`. `None`: there is no such child, or there are several, and a problem says so.
    fn sibling<T>(
        &mut self,
        place: &str,
        [property, map]: [&str; 2],
        given: Option<&String>,
        all: &Named<T>,
    ) -> Option<String> {
        let names: Vec<&str> = all.iter().map(|(name, _)| name).collect();
        let listed = || match names.as_slice() {
            [] => format!("{map} is empty"),
            names => format!("{map} has {}", names.join(", ")),
        };
        let text = match given {
            Some(name) => match names.iter().find(|n| n.eq_ignore_ascii_case(name)) {
                Some(found) => return Some((*found).to_owned()),
                None => format!("{property}: there is no '{name}'; {} (L3)", listed()),
            },
            None => match names.as_slice() {
                [only] => return Some((*only).to_owned()),
                _ => format!("{property} is needed, because {} (L3)", listed()),
            },
        };
        self.problem(place, &text);
        None
    }
}
