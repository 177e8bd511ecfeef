//! Turns the flow logs of a manifest into request bodies.

use super::Expansion;
use crate::manifest::schema::{Document, FlowLog};
use serde_json::json;
use tombolo_proto::arm::Kind;

impl<'a> Expansion<'a> {
    /// Adds a flow log of `document`.
    pub(super) fn flow_log(&mut self, document: &'a Document, name: &str, log: &'a FlowLog) {
        let place = format!("flowLogs.{name}");
        let whole = |kind: Kind, name: &Option<String>| {
            let name = name.as_ref()?;
            Some(Ok(self.group.resolve(kind.collection(), name)))
        };
        let subnet = log.subnet.as_ref().map(|subnet| self.group.resolve_subnet(subnet));
        let targets = [
            whole(Kind::NetworkSecurityGroup, &log.network_security_group),
            whole(Kind::VirtualNetwork, &log.virtual_network),
            whole(Kind::NetworkInterface, &log.network_interface),
            subnet,
        ];
        let mut targets = targets.into_iter().flatten();
        let target = match (targets.next(), targets.next()) {
            (Some(Ok(target)), None) => target,
            (Some(Err(why)), None) => return self.problem(&place, &format!("subnet: {why}")),
            _ => {
                let text = "set exactly one of networkSecurityGroup, virtualNetwork, subnet and networkInterface (N14)";
                return self.problem(&place, text);
            }
        };
        let location = self.region_of(document, log).unwrap_or(self.location).to_owned();
        // Azure requires an account. None is used here.
        let none = || self.group.path() + "/providers/Microsoft.Storage/storageAccounts/none";
        let mut body = json!({"location": location, "properties": {
            "targetResourceId": target,
            "storageId": log.storage_account.clone().unwrap_or_else(none),
            "enabled": log.enabled.unwrap_or(true),
            "format": {"type": "JSON", "version": log.format_version.unwrap_or(2)},
        }});
        if !log.tags.is_empty() {
            body["tags"] = json!(log.tags);
        }
        let path = format!(
            "/subscriptions/{}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/\
             NetworkWatcher_{location}/flowLogs/{name}",
            self.group.subscription
        );
        self.push(Kind::FlowLog, name.to_owned(), path, body);
    }

    /// The region that a flow log names, or that of its target, if the document names it.
    fn region_of(&self, document: &'a Document, log: &'a FlowLog) -> Option<&'a str> {
        let nic = log.network_interface.as_ref();
        let nic = nic.and_then(|name| document.network_interfaces.find(name));
        let group = log.network_security_group.as_ref();
        let group = group.and_then(|name| document.network_security_groups.find(name));
        let of_target = match (nic, group) {
            (Some(nic), _) => self.regions.network_interface(nic),
            (None, Some(group)) => group.location.as_ref(),
            (None, None) => {
                let network = log.virtual_network.as_deref().or(log.subnet.as_deref());
                self.regions.with_address(None, network)
            }
        };
        log.location.as_ref().or(of_target).map(String::as_str)
    }
}
