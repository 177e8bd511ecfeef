//! The DNS servers of virtual networks and network interfaces, which are kept and shown (P33).

use crate::arm::body::{MAX_ITEMS, Object};
use crate::draft::Draft;
use crate::path::shown;
use crate::problems::Problems;
use crate::resource::Envelope;
use serde_json::{Map, Value, json};
use std::net::IpAddr;

/// The word with which a NIC chooses Azure's own DNS servers in place of those of its VNet.
const OF_AZURE: &str = "AzureProvidedDNS";

impl Draft<'_> {
    /// Reads `dhcpOptions.dnsServers` of a VNet, and writes it into `kept`, the echoed members of the body, in the form
    /// that GET shows. Each entry must be an IP address. `old`: the VNet before the change; what it holds is accepted
    /// again, because version 0.1 accepted every text.
    pub(crate) fn read_vnet_dns_servers(
        &mut self,
        properties: &Object<'_>,
        old: Option<&Envelope>,
        kept: &mut Map<String, Value>,
    ) {
        let held = held(old, "dhcpOptions");
        // A member that is no object is a problem already, because the echoed members have been read.
        let options = properties.object("dhcpOptions", &mut Problems::default());
        let Some(options) = options.filter(|_| held.is_none() || properties.get("dhcpOptions") != held) else {
            return;
        };
        let servers = self.dns_servers(&options, &servers_in(held), false);
        show(kept, "dhcpOptions", json!({"dnsServers": servers}));
    }

    /// Reads `dnsSettings` of a NIC, and writes it into `kept`, the echoed members of the body, in the form that GET
    /// shows. Each entry of `dnsServers` must be an IP address; `AzureProvidedDNS` is possible as the only entry. `old`:
    /// the NIC before the change, as in [`Self::read_vnet_dns_servers`].
    pub(crate) fn read_nic_dns_servers(
        &mut self,
        properties: &Object<'_>,
        old: Option<&Envelope>,
        kept: &mut Map<String, Value>,
    ) {
        let held = held(old, "dnsSettings");
        let settings = properties.object("dnsSettings", &mut Problems::default());
        let Some(settings) = settings.filter(|_| held.is_none() || properties.get("dnsSettings") != held) else {
            return;
        };
        let servers = self.dns_servers(&settings, &servers_in(held), true);
        let mut shown = json!({"dnsServers": servers, "appliedDnsServers": []});
        if let Some(label) = settings.text("internalDnsNameLabel", &mut self.problems) {
            shown["internalDnsNameLabel"] = label.into();
        }
        show(kept, "dnsSettings", shown);
    }

    /// The texts in `dnsServers` of `object`. Adds a problem for each that is no address of a DNS server and not in
    /// `held`.
    fn dns_servers<'b>(&mut self, object: &Object<'b>, held: &[&str], word: bool) -> Vec<&'b str> {
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
            if !(usable || held.contains(&text) || word && alone && text.eq_ignore_ascii_case(OF_AZURE)) {
                let message = format!(
                    "{}: '{}' is not the IP address of a DNS server. Give an address, or leave the entry out.",
                    item.path,
                    shown(text)
                );
                self.problems.add("InvalidIPAddressFormat", item.path, message);
            }
            servers.push(text);
        }
        servers
    }
}

/// The stored value of the echoed property `name`. `None`: nothing is stored, or the default.
fn held<'o>(old: Option<&'o Envelope>, name: &str) -> Option<&'o Value> {
    old?.echoed.get("properties")?.get(name)
}

/// The texts in `dnsServers` of a stored value, which has the casing in which a client sent it.
fn servers_in(held: Option<&Value>) -> Vec<&str> {
    let members = held.and_then(Value::as_object).into_iter().flatten();
    let lists = members.filter(|(name, _)| name.eq_ignore_ascii_case("dnsServers"));
    let items = lists.filter_map(|(_, value)| value.as_array()).flatten();
    items.filter_map(Value::as_str).collect()
}

/// Replaces the member `name` of the echoed properties.
fn show(kept: &mut Map<String, Value>, name: &str, value: Value) {
    if let Some(Value::Object(properties)) = kept.get_mut("properties")
        && properties.contains_key(name)
    {
        properties.insert(name.to_owned(), value);
    }
}
