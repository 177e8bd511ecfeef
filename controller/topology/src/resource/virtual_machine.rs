//! Virtual machines. A virtual machine is not stored: ARM shows one for each agent that is bound to a VM, read-only
//! (D7).

use crate::arm::view::Views;
use crate::path::Kind;
use crate::resource::frame::{Child, Entry};
use crate::resource::{Agent, Binding};
use serde_json::{Value, json};

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
