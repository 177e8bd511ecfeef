//! The DNS servers of virtual networks and network interfaces, which are kept and shown (P33).

use crate::arm::body::{MAX_ITEMS, Object};
use crate::draft::Draft;
use crate::path::shown;
use crate::problems::Problems;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// The word with which a NIC chooses Azure's own DNS servers in place of those of its VNet.
const OF_AZURE: &str = "AzureProvidedDNS";

impl Draft<'_> {
    /// Reads `dhcpOptions.dnsServers` of a VNet, and writes it into `kept`, the echoed members of the body, in the form
    /// that GET shows. Each entry must be an IP address.
    pub(crate) fn read_vnet_dns_servers(&mut self, properties: &Object<'_>, kept: &mut Map<String, Value>) {
        // A member that is no object is a problem already, because the echoed members have been read.
        if let Some(options) = properties.object("dhcpOptions", &mut Problems::default()) {
            let servers = self.dns_servers(&options, false);
            show(kept, "dhcpOptions", json!({"dnsServers": servers}));
        }
    }

    /// Reads `dnsSettings` of a NIC, and writes it into `kept`, the echoed members of the body, in the form that GET
    /// shows. Each entry of `dnsServers` must be an IP address; `AzureProvidedDNS` is possible as the only entry.
    pub(crate) fn read_nic_dns_servers(&mut self, properties: &Object<'_>, kept: &mut Map<String, Value>) {
        let Some(settings) = properties.object("dnsSettings", &mut Problems::default()) else {
            return;
        };
        let servers = self.dns_servers(&settings, true);
        let mut shown = json!({"dnsServers": servers, "appliedDnsServers": []});
        if let Some(label) = settings.text("internalDnsNameLabel", &mut self.problems) {
            shown["internalDnsNameLabel"] = label.into();
        }
        show(kept, "dnsSettings", shown);
    }

    /// The texts in `dnsServers` of `object`. Adds a problem for each that is no address of a DNS server.
    fn dns_servers<'b>(&mut self, object: &Object<'b>, word: bool) -> Vec<&'b str> {
        let items = object.list("dnsServers", MAX_ITEMS, &mut self.problems);
        let items = items.unwrap_or_default();
        let alone = items.len() == 1;
        let mut servers = Vec::new();
        for item in items {
            let Some(text) = item.text(&mut self.problems) else {
                continue;
            };
            let address = text.parse::<IpAddr>().ok();
            let usable = address.is_some_and(|a| !a.is_unspecified() && !a.is_multicast());
            if !usable && !(word && alone && text.eq_ignore_ascii_case(OF_AZURE)) {
                let message = format!("{}: '{}' is not the IP address of a DNS server", item.path, shown(text));
                self.problems.add("InvalidIPAddressFormat", item.path, message);
            }
            servers.push(text);
        }
        servers
    }
}

/// Replaces the member `name` of the echoed properties.
fn show(kept: &mut Map<String, Value>, name: &str, value: Value) {
    if let Some(Value::Object(properties)) = kept.get_mut("properties")
        && properties.contains_key(name)
    {
        properties.insert(name.to_owned(), value);
    }
}
