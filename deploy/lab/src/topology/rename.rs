//! The same lab with other names and addresses: what works in one must work in the other, whatever the numbers are.
//!
//! Networks move as a whole and what lies inside keeps its place, so that "the fourth address of the subnet" stays that.
//! Equal names stay equal, unlike ones unlike. What Azure or the lab gives a meaning (`GatewaySubnet`, the reserved
//! ASNs, the default route) stays.

mod addresses;

use super::Topology;
use super::site::{LAN_ROUTER, host_name};
use addresses::Addresses;
use anyhow::{Context, Result};
use serde_norway::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Names that mean something by themselves.
const FIXED: &[&str] = &["GatewaySubnet", LAN_ROUTER];
/// Values that are words of their own, or free text.
const WORDS: &[&str] = &[
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
];
/// Below these, keys are names.
const NAMED: &[&str] = &[
    "hosts",
    "sites",
    "events",
    "segments",
    "customerEdges",
    "subnets",
    "peerings",
    "routes",
    "ipConfigurations",
];
/// The first and last ASN for private use that a site may have (G4).
const ASNS: std::ops::Range<u32> = 64_512..65_515;

/// Gives every network, host, site and resource another name and other addresses, and sites other ASNs, as `seed` says.
///
/// # Errors
/// The result cannot be used: there is no room for a name or a network.
pub fn rename(topology: &Topology, seed: u64) -> Result<Topology> {
    let renamed: Topology = serde_norway::from_value(tree(topology, seed)?)?;
    renamed.check().context("the renamed topology")?;
    Ok(renamed)
}

/// The file as a tree, in the order of the one before.
fn tree(topology: &Topology, seed: u64) -> Result<Value> {
    let mut tree = serde_norway::to_value(topology)?;
    let mut random = Random(seed);
    let mut found = Found::default();
    found.look(&tree, &mut Vec::new());
    let renaming = Renaming {
        names: new_names(topology, &found.names, &mut random),
        asns: new_asns(topology, &found.asns, &mut random),
        addresses: Addresses::new(&found.texts, &mut random),
    };
    renaming.apply(&mut tree, &mut Vec::new());
    Ok(tree)
}

/// Numbers that look random and are the same for the same seed, everywhere and always (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of these; none if there are none.
    fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(from.len()).ok().filter(|c| *c > 0)?;
        from.get(usize::try_from(self.next() % count).ok()?)
    }

    /// Six letters that can be said.
    fn word(&mut self) -> String {
        let mut word = String::new();
        for _ in 0..3 {
            word.extend(self.choose(b"bcdfgklmnprstvz").map(|b| char::from(*b)));
            word.extend(self.choose(b"aeiou").map(|b| char::from(*b)));
        }
        word
    }
}

/// What is in a file.
#[derive(Default)]
struct Found {
    names: BTreeSet<String>,
    /// All other texts: addresses are among them.
    texts: Vec<String>,
    asns: BTreeSet<u32>,
}

impl Found {
    fn look(&mut self, value: &Value, path: &mut Vec<String>) {
        if path.last().is_some_and(|key| opaque(key, path.len(), value)) {
            return;
        }
        match value {
            Value::Mapping(map) => {
                for (key, value) in map {
                    let Some(key) = key.as_str() else { continue };
                    if is_named(path) && !FIXED.contains(&key) {
                        self.names.insert(key.to_owned());
                    }
                    path.push(key.to_owned());
                    self.look(value, path);
                    path.pop();
                }
            }
            Value::Sequence(all) => all.iter().for_each(|value| self.look(value, path)),
            Value::String(text) => {
                let key = path.last().map(String::as_str);
                // Regions and groups are named where they are used, and nowhere else.
                if matches!(key, Some("location" | "resourceGroup")) || path.len() == 1 && key == Some("name") {
                    self.names.insert(text.clone());
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

/// Whether a value under this key is to be left as it is. `routes` is a map of names in a route table, and a word in a
/// LAN.
fn opaque(key: &str, depth: usize, value: &Value) -> bool {
    WORDS.contains(&key) && !(key == "routes" && value.is_mapping()) || depth == 1 && key == "settings"
}

/// Whether the keys of the map at this place are names.
fn is_named(path: &[String]) -> bool {
    match path {
        [resources, _kind] if resources == "resources" => true,
        [.., last] => NAMED.contains(&last.as_str()),
        [] => false,
    }
}

fn is_asn(path: &[String]) -> bool {
    path.last().is_some_and(|key| key.to_ascii_lowercase().ends_with("asn"))
}

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
    // A machine's host has the names of its site and itself; resources may be called as the host is.
    let own = |name: &str| names.get(name).cloned().unwrap_or_else(|| name.to_owned());
    let machines = topology.machines();
    let machines: Vec<_> = machines
        .map(|m| (m.host.clone(), host_name(&own(m.site_name), &own(m.name))))
        .collect();
    names.extend(machines);
    names
}

/// The sites' ASNs become others; those of gateways mean something (G4).
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

/// Old to new.
struct Renaming {
    names: BTreeMap<String, String>,
    asns: BTreeMap<u32, u32>,
    addresses: Addresses,
}

impl Renaming {
    fn apply(&self, value: &mut Value, path: &mut Vec<String>) {
        if path.last().is_some_and(|key| opaque(key, path.len(), value)) {
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

    fn name(&self, old: &str) -> String {
        self.names.get(old).cloned().unwrap_or_else(|| old.to_owned())
    }

    /// An address, a name, or names joined by `/` (a subnet, an id) or followed by a word (a line).
    fn text(&self, old: &str) -> String {
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
