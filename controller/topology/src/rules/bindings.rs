//! The rules of bindings, which tie an agent or a join token to one VM, one instance of a gateway, or one line of a
//! circuit (D7, D8). The rules of site probes are in `site_probe`.

use super::address::find_subnet;
use crate::draft::Draft;
use crate::lookup::is_gateway_subnet;
use crate::path::{ArmPath, Kind, parent_id, shown};
use crate::resource::Binding;
use std::collections::BTreeSet;
use tombolo_proto::config::{CircuitLink, MAX_VM_NICS};
use tombolo_proto::id::{AgentId, ResourceId};

/// The maximum number of subnets that one host serves. It bounds the size of a binding and of the host's configuration.
const MAX_SERVED: usize = 256;

impl Draft<'_> {
    /// Checks that all resources of a binding exist and fit together, and that none of them is bound to another agent
    /// that is not revoked (D7, D8). Returns the binding with ids in the stored casing. If there is a problem, ids may
    /// be missing from it.
    pub(super) fn check_binding(&mut self, binding: &Binding) -> Binding {
        match binding {
            Binding::Vm { vm, nics, served } => self.check_vm(vm, nics, served),
            Binding::Gateway {
                gateway,
                ip_configuration,
            } => self.check_instance(gateway, ip_configuration),
            Binding::Edge { circuit, link } => self.check_edge(circuit, *link),
            Binding::Site { attachments, address } => self.check_site_probe(attachments, *address),
        }
    }

    /// Checks a VM's binding: the VM's id, and that its NICs and served subnets exist and are in one VNet.
    fn check_vm(&mut self, vm: &ResourceId, nics: &[ResourceId], served: &[ResourceId]) -> Binding {
        let id = self.check_vm_id(vm);
        if nics.is_empty() || nics.len() > MAX_VM_NICS || served.len() > MAX_SERVED {
            self.problems.add(
                "InvalidRequestFormat",
                "binding.nics",
                format!(
                    "binding: {} nics and {} served subnets; 1 to {MAX_VM_NICS} and at most {MAX_SERVED} are allowed",
                    nics.len(),
                    served.len()
                ),
            );
            return Binding::Vm {
                vm: id,
                nics: Vec::new(),
                served: Vec::new(),
            };
        }
        let mut vnets = BTreeSet::new();
        let found_nics = self.check_nics(nics, &mut vnets);
        let found_served = self.check_served(served, &mut vnets);
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
        self.check_vm_is_free(&id, nics, served);
        let binding = Binding::Vm {
            vm: id,
            nics: found_nics,
            served: found_served,
        };
        self.check_secured_entries_of(&binding);
        binding
    }

    /// Checks that an id is that of a VM in an existing group. Returns it with the group in the stored casing. The VM
    /// cannot be created in advance: it exists while an agent is bound to it.
    fn check_vm_id(&mut self, vm: &ResourceId) -> ResourceId {
        match ArmPath::parse(vm.as_str()) {
            Ok(path) if path.kind() == Some(Kind::VirtualMachine) => {
                self.check_name(path.name(), "binding.vm");
                match self.topology.resource_groups.get(&path.group_id()).cloned() {
                    Some(group) => return Self::new_id(&group, &path),
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
        vm.clone()
    }

    /// Checks that all NICs exist and that none is listed twice. Returns the stored ids, and adds the NICs' VNets to
    /// `vnets`.
    fn check_nics(&mut self, nics: &[ResourceId], vnets: &mut BTreeSet<ResourceId>) -> Vec<ResourceId> {
        let mut found = Vec::new();
        for (i, id) in nics.iter().enumerate() {
            let at = format!("binding.nics[{i}]");
            match self.topology.nics.get(id) {
                None => self.dangling_id(id, &at),
                Some(_) if nics[..i].contains(id) => self.listed_twice(id, &at),
                Some(nic) => {
                    vnets.extend(nic.ip_configurations.first().map(|c| parent_id(&c.subnet)));
                    found.push(nic.envelope.id.clone());
                }
            }
        }
        found
    }

    /// Checks that all served subnets exist, that none is a `GatewaySubnet`, and that none is listed twice. Returns the
    /// stored ids, and adds the subnets' VNets to `vnets`.
    fn check_served(&mut self, served: &[ResourceId], vnets: &mut BTreeSet<ResourceId>) -> Vec<ResourceId> {
        let mut found = Vec::new();
        for (i, id) in served.iter().enumerate() {
            let at = format!("binding.served[{i}]");
            match find_subnet(&self.topology, id) {
                None => self.dangling_id(id, &at),
                Some(_) if served[..i].contains(id) => self.listed_twice(id, &at),
                Some(subnet) if is_gateway_subnet(&subnet.id) => self.problems.add(
                    "GatewaySubnet",
                    at.clone(),
                    format!("{at}: {id} is for virtual network gateways only (G1)"),
                ),
                Some(subnet) => {
                    vnets.insert(parent_id(&subnet.id));
                    found.push(subnet.id);
                }
            }
        }
        found
    }

    /// Adds the problem that a list of a binding has an id twice.
    pub(super) fn listed_twice(&mut self, id: &ResourceId, at: &str) {
        let message = format!("{at}: {id} is listed twice");
        self.problems.add("InvalidRequestFormat", at, message);
    }

    /// Checks that no agent, except revoked ones, is bound to the VM, to one of the NICs or to one of the served
    /// subnets.
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

    /// Checks the binding of a gateway's instance: the ip configuration exists, and no other agent is bound to it,
    /// except revoked agents.
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
                Binding::Vm { .. } | Binding::Edge { .. } | Binding::Site { .. } => false,
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

    /// Checks the binding of a circuit's edge: the circuit exists, and no other agent is bound to that line, except
    /// revoked agents. The circuit needs no peering yet.
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

    /// Adds the problem, with status 409, that the resource `what` is bound to another agent.
    pub(super) fn bound_elsewhere(&mut self, what: &str, agent: &AgentId) {
        self.problems.add_status(
            409,
            "XBoundElsewhere",
            "binding",
            format!("binding: agent '{agent}' is bound to {what} already; delete or revoke it first"),
        );
    }

    /// Adds the problem that a bound resource does not exist.
    pub(super) fn dangling_id(&mut self, id: &ResourceId, at: &str) {
        self.problems.add(
            "InvalidResourceReference",
            at,
            format!("{at}: Resource {} was not found.", shown(id.as_str())),
        );
    }
}
