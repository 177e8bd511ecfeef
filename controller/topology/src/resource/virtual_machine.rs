//! Virtual machines. A virtual machine is not stored: ARM shows one for each agent that is bound to a VM (D7). It
//! cannot be written. Its deletion removes the agent.

use crate::arm::view::Views;
use crate::draft::Draft;
use crate::path::Kind;
use crate::resource::frame::{Child, Entry};
use crate::resource::{Agent, Binding};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;

/// The registry entry of virtual machines, which have no stored document.
pub(super) const VIRTUAL_MACHINES: Entry = Entry {
    kind: Kind::VirtualMachine,
    stored: None,
    item: |views, id| views.vms().get(id).map(|agent| view(agent, views)),
    list: |views, holds| {
        let vms = views.vms().iter().filter(|(id, _)| holds(id));
        vms.map(|(_, agent)| view(agent, views)).collect()
    },
    children: &[EXTENSIONS],
};

/// Always an empty list: extensions cannot be installed through ARM.
const EXTENSIONS: Child = Child {
    name: "extensions",
    kind: Some(Kind::VirtualMachineExtension),
    writes: None,
    item: |_, _| None,
    list: |views, parent| views.vms().contains_key(parent).then(Vec::new),
};

/// The ARM body of the VM that an agent is bound to, in the region of its primary NIC. Null for the agent of a gateway
/// or an edge.
fn view(agent: &Agent, views: &Views<'_>) -> Value {
    let Binding::Vm { vm, nics, .. } = &agent.binding else {
        return Value::Null;
    };
    let interfaces: Vec<Value> = nics
        .iter()
        .enumerate()
        .map(|(i, nic)| json!({"id": nic, "properties": {"primary": i == 0}}))
        .collect();
    let location = nics
        .first()
        .and_then(|n| views.topology.nics.get(n))
        .map(|n| n.envelope.location.clone());
    json!({
        "id": vm,
        "name": vm.name(),
        "type": Kind::VirtualMachine.type_name(),
        "location": location.unwrap_or_default(),
        "tags": {},
        "properties": {
            "provisioningState": "Succeeded",
            "networkProfile": {"networkInterfaces": interfaces},
            "storageProfile": {"osDisk": {"osType": "Linux"}},
        },
    })
}

impl Draft<'_> {
    /// DELETE of a virtual machine: removes its agent, which then can no longer connect, and the join tokens for the
    /// machine. Its network interfaces stay, as in Azure. True: the machine existed, because an agent had joined for it;
    /// tokens are removed in every case. A VM has no etag, so a header `If-Match` holds for an existing one only if it is
    /// `*`.
    pub(crate) fn delete_virtual_machine(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let is_bound = |binding: &Binding| matches!(binding, Binding::Vm { vm, .. } if vm == id);
        let mut trusted = self.topology.agents.values().filter(|a| !a.revoked);
        let exists = trusted.any(|agent| is_bound(&agent.binding));
        if exists && if_match.is_some_and(|wanted| wanted.trim() != "*") {
            self.check_if_match(if_match, None, id);
            return false;
        }
        self.remove_agents(is_bound);
        exists
    }

    /// Removes the agents, and the join tokens, whose binding satisfies `is_bound`. A revoked agent stays, because its
    /// record keeps others from using its name and keys.
    pub(crate) fn remove_agents(&mut self, is_bound: impl Fn(&Binding) -> bool) {
        self.topology
            .agents
            .retain(|_, agent| agent.revoked || !is_bound(&agent.binding));
        self.topology.tokens.retain(|_, token| !is_bound(&token.binding));
    }
}
