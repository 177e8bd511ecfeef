//! Agents, join tokens and the operator's switches: what does not exist in Azure (D7, D8).

use super::Draft;
use super::address::find_subnet;
use crate::path::{ArmPath, Kind, parent_id, shown};
use crate::resource::is_gateway_subnet;
use crate::resource::{Agent, Binding, JoinToken, Reach, Settings};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use tombolo_proto::config::{CircuitLink, MAX_LANES};
use tombolo_proto::id::{AgentId, ResourceId};

/// Most addresses that one agent may be reached at.
const MAX_ENDPOINTS: usize = 16;
const MAX_NICS: usize = 64;
const MAX_SERVED: usize = 256;

impl Draft<'_> {
    pub(crate) fn put_token(&mut self, token: &JoinToken) -> bool {
        if token.id.is_empty() || self.topology.tokens.contains_key(&token.id) {
            self.problems.add_status(
                409,
                "XTokenExists",
                None::<String>,
                format!("A join token '{}' exists already.", shown(&token.id)),
            );
        }
        self.check_agent_is_new(&token.agent);
        let binding = self.check_binding(&token.binding);
        let mut token = token.clone();
        token.binding = binding;
        self.topology.tokens.insert(token.id.clone(), Arc::new(token));
        true
    }

    fn check_agent_is_new(&mut self, agent: &AgentId) {
        if agent.as_str().starts_with(AgentId::SITE) {
            let message = format!(
                "agent: '{agent}' cannot be an agent's name: names that begin with '{}' are those of sites' devices (D16)",
                AgentId::SITE
            );
            self.problems.add("XReservedAgentName", "agent", message);
        }
        if let Some(old) = self.topology.agents.get(agent) {
            let state = if old.revoked { "revoked" } else { "in use" };
            self.problems.add_status(
                409,
                "XAgentExists",
                "agent",
                format!("agent: '{agent}' exists already and is {state}. Delete it first, or choose another name."),
            );
        }
    }

    pub(crate) fn join(&mut self, token: &str, agent: &Agent) -> bool {
        let Some(found) = self.topology.tokens.get(token).cloned() else {
            self.problems.add(
                "XTokenInvalid",
                "token",
                "token: it does not exist, was used already, or was deleted".to_owned(),
            );
            return false;
        };
        if found.agent != agent.id || found.binding != agent.binding {
            self.problems.add(
                "XTokenInvalid",
                "token",
                format!(
                    "token: it is for agent '{}' and what it stands for, not for '{}'",
                    found.agent, agent.id
                ),
            );
        }
        self.check_agent_is_new(&agent.id);
        let binding = self.check_binding(&found.binding);
        self.check_reach(&agent.reach);
        for other in self.topology.agents.values() {
            let same_key = other.public_key == agent.public_key;
            if same_key || other.certificate_key.eq_ignore_ascii_case(&agent.certificate_key) {
                let what = if same_key { "publicKey" } else { "csr" };
                self.problems.add_status(
                    409,
                    "XKeyInUse",
                    what,
                    format!(
                        "{what}: agent '{}' has the same key; every agent makes its own",
                        other.id
                    ),
                );
                break;
            }
        }
        let mut sites = self.topology.local_gateways.values();
        if let Some(site) = sites.find(|s| s.public_key == Some(agent.public_key)) {
            let message = format!(
                "publicKey: the device of local network gateway {} has the same key; every agent makes its own",
                site.envelope.id
            );
            self.problems.add_status(409, "XKeyInUse", "publicKey", message);
        }
        self.topology.tokens.remove(token);
        let mut agent = agent.clone();
        agent.binding = binding;
        agent.revoked = false;
        self.topology.agents.insert(agent.id.clone(), Arc::new(agent));
        true
    }

    fn check_reach(&mut self, reach: &Reach) {
        let Reach {
            endpoints,
            quic_endpoint,
            lanes,
        } = reach;
        if endpoints.len() > MAX_ENDPOINTS {
            self.problems.add(
                "XTooManyItems",
                "endpoints",
                format!(
                    "endpoints: {} of them, at most {MAX_ENDPOINTS} are allowed",
                    endpoints.len()
                ),
            );
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            self.check_endpoint(&format!("endpoints[{i}]"), *endpoint);
        }
        if let Some(endpoint) = quic_endpoint {
            self.check_endpoint("quicEndpoint", *endpoint);
        }
        if !(1..=MAX_LANES).contains(lanes) {
            let message = format!("lanes: {lanes} is not within 1 to {MAX_LANES}");
            self.problems.add("XInvalidLanes", "lanes", message);
        }
    }

    fn check_endpoint(&mut self, what: &str, endpoint: SocketAddr) {
        let ip = endpoint.ip();
        if ip.is_unspecified() || ip.is_multicast() || endpoint.port() == 0 {
            let message = format!("{what}: nobody can be reached at {endpoint}");
            self.problems.add("XInvalidEndpoint", what, message);
        }
    }

    pub(crate) fn set_reach(&mut self, id: &AgentId, reach: &Reach) -> bool {
        self.check_reach(reach);
        self.edit_agent(id, true, |agent| agent.reach = reach.clone());
        false
    }

    pub(crate) fn set_certificate_key(&mut self, id: &AgentId, expected: &str, key: &str) -> bool {
        let known = self.topology.agents.get(id).filter(|a| !a.revoked);
        if known.is_some_and(|a| !a.certificate_key.eq_ignore_ascii_case(expected)) {
            self.problems.add_status(
                409,
                "XAgentHasOtherKey",
                "csr",
                format!("csr: agent '{id}' has another key by now"),
            );
            return false;
        }
        let same = |a: &&Arc<Agent>| a.id != *id && a.certificate_key.eq_ignore_ascii_case(key);
        if let Some(other) = self.topology.agents.values().find(same) {
            self.problems.add_status(
                409,
                "XKeyInUse",
                "csr",
                format!("csr: agent '{}' has the same key; every agent makes its own", other.id),
            );
        }
        self.edit_agent(id, true, |agent| key.clone_into(&mut agent.certificate_key));
        false
    }

    pub(crate) fn revoke(&mut self, id: &AgentId) -> bool {
        self.edit_agent(id, false, |agent| agent.revoked = true);
        false
    }

    fn edit_agent(&mut self, id: &AgentId, must_be_trusted: bool, edit: impl FnOnce(&mut Agent)) {
        let Some(old) = self.topology.agents.get(id) else {
            self.problems
                .add_status(404, "NotFound", None::<String>, format!("Agent '{id}' not found."));
            return;
        };
        if must_be_trusted && old.revoked {
            self.problems.add_status(
                409,
                "XAgentRevoked",
                None::<String>,
                format!("Agent '{id}' is revoked."),
            );
            return;
        }
        let mut new = (**old).clone();
        edit(&mut new);
        if new != **old {
            self.topology.agents.insert(id.clone(), Arc::new(new));
        }
    }

    pub(crate) fn set_settings(&mut self, settings: &Settings) -> bool {
        if !(1280..=9000).contains(&settings.mtu) {
            self.problems.add(
                "InvalidRequestFormat",
                "mtu",
                format!("mtu: {} is not within 1280 to 9000 (D20)", settings.mtu),
            );
        }
        for (name, value, most) in [
            ("peeringsPerVnet", settings.peerings_per_vnet, 1_000),
            ("tunnelsPerGateway", settings.tunnels_per_gateway, 1_000),
        ] {
            if !(1..=most).contains(&value) {
                self.problems.add(
                    "InvalidRequestFormat",
                    name,
                    format!("{name}: {value} is not within 1 to {most}"),
                );
            }
        }
        if settings.bgp_hold_time < 3 {
            self.problems.add(
                "InvalidRequestFormat",
                "bgpHoldTime",
                format!(
                    "bgpHoldTime: {} is not within 3 to 65535 (RFC 4271)",
                    settings.bgp_hold_time
                ),
            );
        }
        if let Some((name, value, range)) = settings.probes().out_of_range() {
            let (least, most) = range.into_inner();
            let message = format!("{name}: {value} is not within {least} to {most} (D19)");
            self.problems.add("InvalidRequestFormat", name, message);
        }
        if !settings.global_gateway_transit {
            self.check_no_global_transit();
        }
        if *self.topology.settings != *settings {
            self.topology.settings = Arc::new(settings.clone());
        }
        false
    }

    /// P30: switched off only when nothing uses it.
    fn check_no_global_transit(&mut self) {
        let topology = &self.topology;
        let crosses = |here: &str, to: &ResourceId| topology.vnets.get(to).is_some_and(|r| r.envelope.location != here);
        let users: Vec<ResourceId> = topology
            .vnets
            .values()
            .flat_map(|v| v.peerings.iter().map(move |p| (v.envelope.location.as_str(), p)))
            .filter(|(here, p)| (p.use_remote_gateways || p.allow_gateway_transit) && crosses(here, &p.remote_vnet))
            .map(|(_, p)| p.id.clone())
            .collect();
        for id in users {
            self.problems.add(
                "XGlobalPeeringFeatureNotAllowed",
                "globalGatewayTransit",
                format!("globalGatewayTransit: cannot be switched off while peering {id} uses it across regions (P30)"),
            );
        }
    }

    /// D7, D8: what is bound exists, fits together, and is nobody else's. Gives the binding with ids as they are stored.
    fn check_binding(&mut self, binding: &Binding) -> Binding {
        match binding {
            Binding::Vm { vm, nics, served } => self.check_vm(vm, nics, served),
            Binding::Gateway {
                gateway,
                ip_configuration,
            } => self.check_instance(gateway, ip_configuration),
            Binding::Edge { circuit, link } => self.check_edge(circuit, *link),
        }
    }

    fn check_vm(&mut self, vm: &ResourceId, nics: &[ResourceId], served: &[ResourceId]) -> Binding {
        let mut result = (vm.clone(), Vec::new(), Vec::new());
        match ArmPath::parse(vm.as_str()) {
            Ok(path) if path.kind() == Some(Kind::VirtualMachine) => {
                self.check_name(path.name(), "binding.vm");
                match self.topology.resource_groups.get(&path.group_id()).cloned() {
                    Some(group) => result.0 = Self::new_id(&group, &path),
                    None => self.group_not_found(&path),
                }
            }
            _ => self.problems.add(
                "InvalidRequestFormat",
                "binding.vm",
                format!(
                    "binding.vm: '{}' is not the id of a virtual machine \
                     (…/providers/Microsoft.Compute/virtualMachines/{{name}})",
                    shown(vm.as_str())
                ),
            ),
        }
        if nics.is_empty() || nics.len() > MAX_NICS || served.len() > MAX_SERVED {
            self.problems.add(
                "InvalidRequestFormat",
                "binding.nics",
                format!(
                    "binding: {} nics and {} served subnets; 1 to {MAX_NICS} and at most {MAX_SERVED} are allowed",
                    nics.len(),
                    served.len()
                ),
            );
            return Binding::Vm {
                vm: result.0,
                nics: result.1,
                served: result.2,
            };
        }
        let mut vnets = BTreeSet::new();
        for (i, id) in nics.iter().enumerate() {
            let at = format!("binding.nics[{i}]");
            match self.topology.nics.get(id) {
                None => self.dangling_id(id, &at),
                Some(_) if nics[..i].contains(id) => {
                    self.problems.add(
                        "InvalidRequestFormat",
                        at.clone(),
                        format!("{at}: {id} is listed twice"),
                    );
                }
                Some(nic) => {
                    vnets.extend(nic.ip_configurations.first().map(|c| parent_id(&c.subnet)));
                    result.1.push(nic.envelope.id.clone());
                }
            }
        }
        for (i, id) in served.iter().enumerate() {
            let at = format!("binding.served[{i}]");
            match find_subnet(&self.topology, id) {
                None => self.dangling_id(id, &at),
                Some(_) if served[..i].contains(id) => {
                    self.problems.add(
                        "InvalidRequestFormat",
                        at.clone(),
                        format!("{at}: {id} is listed twice"),
                    );
                }
                Some(subnet) if is_gateway_subnet(&subnet.id) => self.problems.add(
                    "GatewaySubnet",
                    at.clone(),
                    format!("{at}: {id} is for virtual network gateways alone (G1)"),
                ),
                Some(subnet) => {
                    vnets.insert(parent_id(&subnet.id));
                    result.2.push(subnet.id);
                }
            }
        }
        if vnets.len() > 1 {
            let names: Vec<&str> = vnets.iter().map(ResourceId::as_str).collect();
            self.problems.add(
                "XBindingInDifferentVnets",
                "binding",
                format!(
                    "binding: all nics and served subnets must be of one virtual network, found {}",
                    names.join(", ")
                ),
            );
        }
        self.check_vm_is_free(&result.0, nics, served);
        Binding::Vm {
            vm: result.0,
            nics: result.1,
            served: result.2,
        }
    }

    fn check_vm_is_free(&mut self, vm: &ResourceId, nics: &[ResourceId], served: &[ResourceId]) {
        let taken: Vec<(AgentId, String)> = self
            .topology
            .agents
            .values()
            .filter(|a| !a.revoked)
            .flat_map(|agent| {
                let Binding::Vm {
                    vm: v,
                    nics: n,
                    served: s,
                } = &agent.binding
                else {
                    return Vec::new();
                };
                let own_vm = (v == vm).then_some(v);
                let nics = n.iter().filter(|n| nics.contains(n));
                let served = s.iter().filter(|s| served.contains(s));
                own_vm
                    .into_iter()
                    .chain(nics)
                    .chain(served)
                    .map(|id| (agent.id.clone(), id.to_string()))
                    .collect()
            })
            .collect();
        for (agent, what) in taken {
            self.bound_elsewhere(&what, &agent);
        }
    }

    fn check_instance(&mut self, gateway: &ResourceId, ip_configuration: &str) -> Binding {
        let found = self.topology.gateways.get(gateway).cloned();
        let config = found.as_deref().and_then(|g| {
            g.ip_configurations
                .iter()
                .find(|c| c.name.eq_ignore_ascii_case(ip_configuration))
        });
        match (&found, config) {
            (None, _) => self.dangling_id(gateway, "binding.gateway"),
            (Some(found), None) => {
                let names: Vec<&str> = found.ip_configurations.iter().map(|c| c.name.as_str()).collect();
                self.problems.add(
                    "InvalidResourceReference",
                    "binding.ipConfiguration",
                    format!(
                        "binding.ipConfiguration: gateway {gateway} has no ip configuration '{}'; it has {}",
                        shown(ip_configuration),
                        names.join(", ")
                    ),
                );
            }
            (Some(_), Some(_)) => {}
        }
        let taken = self
            .topology
            .agents
            .values()
            .filter(|a| !a.revoked)
            .find(|a| match &a.binding {
                Binding::Gateway {
                    gateway: g,
                    ip_configuration: c,
                } => g == gateway && c.eq_ignore_ascii_case(ip_configuration),
                Binding::Vm { .. } | Binding::Edge { .. } => false,
            });
        if let Some(agent) = taken.map(|a| a.id.clone()) {
            self.bound_elsewhere(
                &format!("{gateway}/ipConfigurations/{}", shown(ip_configuration)),
                &agent,
            );
        }
        Binding::Gateway {
            gateway: found
                .as_deref()
                .map_or_else(|| gateway.clone(), |g| g.envelope.id.clone()),
            ip_configuration: config.map_or_else(|| ip_configuration.to_owned(), |c| c.name.clone()),
        }
    }

    fn check_edge(&mut self, circuit: &ResourceId, link: CircuitLink) -> Binding {
        let found = self.topology.circuits.get(circuit).map(|c| c.envelope.id.clone());
        if found.is_none() {
            self.dangling_id(circuit, "binding.circuit");
        }
        let same =
            |binding: &Binding| matches!(binding, Binding::Edge { circuit: c, link: l } if c == circuit && *l == link);
        let mut agents = self.topology.agents.values().filter(|a| !a.revoked);
        if let Some(agent) = agents.find(|a| same(&a.binding)).map(|a| a.id.clone()) {
            self.bound_elsewhere(&format!("the {} link of {circuit}", link.name()), &agent);
        }
        Binding::Edge {
            circuit: found.unwrap_or_else(|| circuit.clone()),
            link,
        }
    }

    fn bound_elsewhere(&mut self, what: &str, agent: &AgentId) {
        self.problems.add_status(
            409,
            "XBoundElsewhere",
            "binding",
            format!("binding: agent '{agent}' stands for {what} already; delete or revoke it first"),
        );
    }

    fn dangling_id(&mut self, id: &ResourceId, at: &str) {
        self.problems.add(
            "InvalidResourceReference",
            at,
            format!("{at}: Resource {} was not found.", shown(id.as_str())),
        );
    }
}
