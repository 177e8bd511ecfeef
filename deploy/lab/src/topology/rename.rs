//! Renames a topology: replaces names, addresses and ASNs. Tests on renamed topologies show that nothing in the product
//! or the lab depends on these values.
//!
//! Each network gets a new prefix, and each address keeps its position in its network. Values that were equal have
//! equal new values, and values that were different have different new values. Values with a meaning for Azure or the
//! lab (`GatewaySubnet`, reserved ASNs, the default route) stay as they are.

mod addresses;

use super::Topology;
use super::site::{LAN_ROUTER, host_name};
use addresses::Addresses;
use anyhow::{Context, Result};
use serde_norway::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Names that have a meaning for Azure or the lab, and are therefore kept. Service tags (N9) are texts beside names.
const RESERVED_NAMES: &[&str] = &[
    "GatewaySubnet",
    "VirtualNetwork",
    "Internet",
    "AzureLoadBalancer",
    LAN_ROUTER,
];
/// Keys whose values are enumerations or free text, and are therefore kept.
const OPAQUE_KEYS: &[&str] = &[
    "link",
    "action",
    "routes",
    "nextHopType",
    "vpnType",
    "gatewayType",
    "connectionType",
    "sku",
    "transport",
    "sharedKey",
    "note",
    "settings",
    "tags",
    "description",
    "direction",
    "access",
    "protocol",
    "sourcePortRange",
    "sourcePortRanges",
    "destinationPortRange",
    "destinationPortRanges",
    "loadDistribution",
    "noHealthyBackendsBehavior",
    "requestPath",
];
/// Keys whose values are maps. The keys of these maps are names.
const NAME_MAPS: &[&str] = &[
    "hosts",
    "sites",
    "events",
    "segments",
    "customerEdges",
    "subnets",
    "peerings",
    "routes",
    "rules",
    "ipConfigurations",
    "frontEnds",
    "pools",
    "addresses",
    "probes",
    "inboundNatRules",
];
/// ASNs that a renamed site may get: the ASNs for private use that are below those that Azure reserves (G4).
const ASNS: std::ops::Range<u32> = 64_512..65_515;

/// Returns a copy with other names and addresses for all networks, hosts, sites and resources, and with other ASNs for
/// the sites. Names and values that have a meaning for Azure or the lab stay as they are, and so do addresses outside
/// of the private and documentation ranges. The same topology and the same `seed` always give the same result, on every
/// platform. The lab's own name changes too. `topology` should pass [`Topology::check`].
///
/// # Errors
/// The renamed topology fails its check, because `topology` itself does, or for example because the name of a host
/// became too long.
pub fn rename(topology: &Topology, seed: u64) -> Result<Topology> {
    let renamed: Topology = serde_norway::from_value(tree(topology, seed)?)?;
    renamed.check().context("the renamed topology")?;
    Ok(renamed)
}

/// Returns the renamed topology as a YAML tree. Maps and lists keep the order of the original.
fn tree(topology: &Topology, seed: u64) -> Result<Value> {
    let mut tree = serde_norway::to_value(topology)?;
    let mut random = Random(seed);
    let mut found = Contents::default();
    found.collect_from(&tree, &mut Vec::new());
    let renaming = Renaming {
        names: new_names(topology, &found.names, &mut random),
        asns: new_asns(topology, &found.asns, &mut random),
        addresses: Addresses::new(&found.texts, &mut random),
    };
    renaming.apply(&mut tree, &mut Vec::new());
    Ok(tree)
}

/// A pseudo-random generator (splitmix64). Its numbers depend only on the seed, and not on the platform or on versions
/// of libraries.
struct Random(u64);

impl Random {
    /// Returns the next number, of 64 random bits.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a random item; none if there are no items.
    fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(from.len()).ok().filter(|c| *c > 0)?;
        from.get(usize::try_from(self.next() % count).ok()?)
    }

    /// Returns a pronounceable name of six letters.
    fn word(&mut self) -> String {
        let mut word = String::new();
        for _ in 0..3 {
            word.extend(self.choose(b"bcdfgklmnprstvz").map(|b| char::from(*b)));
            word.extend(self.choose(b"aeiou").map(|b| char::from(*b)));
        }
        word
    }
}

/// The values of a topology that may be replaced.
#[derive(Default)]
struct Contents {
    names: BTreeSet<String>,
    /// All texts that do not define a name, for example addresses and references to names.
    texts: Vec<String>,
    asns: BTreeSet<u32>,
}

impl Contents {
    /// Collects the values of the tree `value`, which is at `path`.
    fn collect_from(&mut self, value: &Value, path: &mut Vec<String>) {
        if path.last().is_some_and(|key| is_opaque(key, path.len(), value)) {
            return;
        }
        match value {
            Value::Mapping(map) => {
                for (key, value) in map {
                    let Some(key) = key.as_str() else { continue };
                    if is_named(path) && !RESERVED_NAMES.contains(&key) {
                        self.names.insert(key.to_owned());
                    }
                    path.push(key.to_owned());
                    self.collect_from(value, path);
                    path.pop();
                }
            }
            Value::Sequence(all) => all.iter().for_each(|value| self.collect_from(value, path)),
            Value::String(text) => {
                let key = path.last().map(String::as_str);
                // A file does not define regions and resource groups as keys of a map. So their names are collected
                // where they are used. The lab's name is not the key of a map either.
                if matches!(key, Some("location" | "resourceGroup")) || path.len() == 1 && key == Some("name") {
                    self.names.insert(text.clone());
                } else if let Some((first, last)) = address_range(text) {
                    self.texts.extend([first, last].map(str::to_owned));
                } else {
                    self.texts.push(text.clone());
                }
            }
            Value::Number(number) if is_asn(path) => {
                self.asns.extend(number.as_u64().and_then(|n| u32::try_from(n).ok()));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Tagged(_) => {}
        }
    }
}

/// Whether the value of this key is kept. The key `routes` of a route table has a map with names, which is not kept.
/// The key `routes` of a LAN has an enumeration, which is kept.
fn is_opaque(key: &str, depth: usize, value: &Value) -> bool {
    OPAQUE_KEYS.contains(&key) && !(key == "routes" && value.is_mapping()) || depth == 1 && key == "settings"
}

/// Returns the two ends of a range of addresses, `10.1.0.4-10.1.0.9`; `None` for every other text.
fn address_range(text: &str) -> Option<(&str, &str)> {
    let (first, last) = text.split_once('-')?;
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    (is_address(first) && is_address(last)).then_some((first, last))
}

/// Whether the keys of the map at this path are names of hosts, sites or resources.
fn is_named(path: &[String]) -> bool {
    match path {
        [resources, _kind] if resources == "resources" => true,
        [.., last] => NAME_MAPS.contains(&last.as_str()),
        [] => false,
    }
}

/// Whether the number at this path is an ASN.
fn is_asn(path: &[String]) -> bool {
    path.last().is_some_and(|key| key.to_ascii_lowercase().ends_with("asn"))
}

/// Returns a map with the new name of every old name, and with the new name of the host of every site's machine.
fn new_names(topology: &Topology, old: &BTreeSet<String>, random: &mut Random) -> BTreeMap<String, String> {
    let mut used = BTreeSet::new();
    let mut names = BTreeMap::new();
    for name in old {
        let mut new = random.word();
        while old.contains(&new) || !used.insert(new.clone()) {
            new = random.word();
        }
        names.insert(name.clone(), new);
    }
    // The name of the host of a site's machine consists of the site's and the machine's name. So its new name must
    // consist of both new names. If a resource has the same name as such a host, it gets the host's new name too.
    let own = |name: &str| names.get(name).cloned().unwrap_or_else(|| name.to_owned());
    let machines = topology.machines();
    let machines: Vec<_> = machines
        .map(|m| (m.host.clone(), host_name(&own(m.site_name), &own(m.name))))
        .collect();
    names.extend(machines);
    names
}

/// Returns new ASNs for the sites. All other ASNs, such as those of gateways, are kept.
fn new_asns(topology: &Topology, known: &BTreeSet<u32>, random: &mut Random) -> BTreeMap<u32, u32> {
    let mut free: Vec<u32> = ASNS.filter(|asn| !known.contains(asn)).collect();
    let sites: BTreeSet<u32> = topology.sites.values().map(|s| s.asn).collect();
    let mut asns = BTreeMap::new();
    for asn in sites {
        if let Some(new) = random.choose(&free).copied() {
            free.retain(|other| *other != new);
            asns.insert(asn, new);
        }
    }
    asns
}

/// The new names, ASNs and addresses by the old ones.
struct Renaming {
    names: BTreeMap<String, String>,
    asns: BTreeMap<u32, u32>,
    addresses: Addresses,
}

impl Renaming {
    /// Replaces the values of the tree `value`, which is at `path`.
    fn apply(&self, value: &mut Value, path: &mut Vec<String>) {
        if path.last().is_some_and(|key| is_opaque(key, path.len(), value)) {
            return;
        }
        match value {
            Value::Mapping(map) => {
                let named = is_named(path);
                let old = std::mem::take(map);
                for (key, mut value) in old {
                    let Some(text) = key.as_str().map(str::to_owned) else {
                        continue;
                    };
                    path.push(text.clone());
                    self.apply(&mut value, path);
                    path.pop();
                    let new = if named { self.name(&text) } else { text };
                    map.insert(Value::String(new), value);
                }
            }
            Value::Sequence(all) => all.iter_mut().for_each(|value| self.apply(value, path)),
            Value::String(text) => *text = self.text(text),
            Value::Number(number) if is_asn(path) => {
                let asn = number.as_u64().and_then(|n| u32::try_from(n).ok());
                if let Some(new) = asn.and_then(|asn| self.asns.get(&asn)) {
                    *value = Value::Number((*new).into());
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Tagged(_) => {}
        }
    }

    /// Returns the new name; `old` itself if it is no name of the topology.
    fn name(&self, old: &str) -> String {
        self.names.get(old).cloned().unwrap_or_else(|| old.to_owned())
    }

    /// Returns the new text for an address, a range of addresses, a name, names joined by `/` (a subnet, an id), or a name
    /// before a word (a line, as `er1 primary`). Other texts are returned unchanged.
    fn text(&self, old: &str) -> String {
        if let Some((first, last)) = address_range(old) {
            return format!("{}-{}", self.text(first), self.text(last));
        }
        if let Some(address) = self.addresses.map(old) {
            return address;
        }
        if let Some(name) = self.names.get(old) {
            return name.clone();
        }
        if let Some((first, word)) = old.split_once(' ') {
            return format!("{} {word}", self.name(first));
        }
        old.split('/').map(|part| self.name(part)).collect::<Vec<_>>().join("/")
    }
}

#[cfg(test)]
mod tests;
