//! The addresses for which tags and application security groups stand at one NIC (N8, N9).

use crate::tables::lpm::Lpm;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// The number of a set in [`AddressSets`]. Sets are numbered from 0, in the order in which their names were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u16);

/// Named sets of addresses.
///
/// There are few tags, and a tag has prefixes, so a lookup searches each tag. There can be many application security
/// groups, and a group has single addresses, so a map from addresses to groups gives all groups of an address at once.
/// Clones share the application security groups. Each NIC has sets of its own, because tags stand for different
/// addresses at each NIC; but the members of the groups are in memory only once.
#[derive(Debug, Default, Clone)]
pub struct AddressSets {
    ids: Arc<BTreeMap<String, SetId>>,
    tags: Vec<Tag>,
    groups_of: Arc<BTreeMap<IpAddr, Vec<SetId>>>,
}

#[derive(Debug, Clone)]
struct Tag {
    id: SetId,
    prefixes: Lpm<()>,
    complement: bool,
}

/// The addresses of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetContent {
    /// The addresses in at least one of these prefixes.
    Within(Vec<IpNet>),
    /// The addresses of both families in none of these prefixes.
    Outside(Vec<IpNet>),
}

impl AddressSets {
    /// The id of the set with this name. `None`: no such set was added.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<SetId> {
        self.ids.get(name).copied()
    }

    /// Adds a tag with these prefixes, and returns its id. If `complement` is true, the tag has all addresses outside
    /// of the prefixes, as `Internet` has all addresses outside of `VirtualNetwork` (N9). A tag that exists keeps its
    /// id, and the new prefixes replace the old ones.
    ///
    /// Returns `None` and adds nothing if the name is new and there are 65,536 sets already.
    pub fn set_tag(
        &mut self,
        name: &str,
        prefixes: impl IntoIterator<Item = IpNet>,
        complement: bool,
    ) -> Option<SetId> {
        let id = self.intern(name)?;
        let mut lpm = Lpm::default();
        for prefix in prefixes {
            lpm.insert(prefix, ());
        }
        self.tags.retain(|tag| tag.id != id);
        self.tags.push(Tag {
            id,
            prefixes: lpm,
            complement,
        });
        Some(id)
    }

    /// Adds an application security group with the addresses of its NICs, and returns its id. No set may have the name
    /// yet.
    ///
    /// Returns `None` and adds nothing if the name is new and there are 65,536 sets already.
    pub fn add_group(&mut self, name: &str, members: impl IntoIterator<Item = IpAddr>) -> Option<SetId> {
        let id = self.intern(name)?;
        let groups_of = Arc::make_mut(&mut self.groups_of);
        for member in members {
            groups_of.entry(member).or_default().push(id);
        }
        Some(id)
    }

    /// Calls `found` with the id of each set that contains the address: first the tags, then the application security
    /// groups.
    pub fn containing(&self, address: IpAddr, mut found: impl FnMut(SetId)) {
        for tag in &self.tags {
            if tag.prefixes.get(address).is_some() != tag.complement {
                found(tag.id);
            }
        }
        for id in self.groups_of.get(&address).into_iter().flatten() {
            found(*id);
        }
    }

    /// Whether a set contains the address.
    #[must_use]
    pub fn contains(&self, set: SetId, address: IpAddr) -> bool {
        let mut contained = false;
        self.containing(address, |id| contained |= id == set);
        contained
    }

    /// The addresses of the set with this name; the prefixes are ordered. `None`: no set has the name.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<SetContent> {
        let id = self.id(name)?;
        if let Some(tag) = self.tags.iter().find(|tag| tag.id == id) {
            let prefixes = tag.prefixes.iter().map(|(prefix, ())| prefix).collect();
            return Some(match tag.complement {
                true => SetContent::Outside(prefixes),
                false => SetContent::Within(prefixes),
            });
        }
        let members = self.groups_of.iter().filter(|(_, groups)| groups.contains(&id));
        let mut prefixes: Vec<IpNet> = members.map(|(address, _)| IpNet::from(*address)).collect();
        prefixes.sort_unstable();
        Some(SetContent::Within(prefixes))
    }

    /// Whether the sets of both have the same names and ids, so that rules that were prepared for one of them fit the
    /// other.
    #[must_use]
    pub fn has_ids_of(&self, other: &Self) -> bool {
        self.ids == other.ids
    }

    fn intern(&mut self, name: &str) -> Option<SetId> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        let id = SetId(u16::try_from(self.ids.len()).ok()?);
        Arc::make_mut(&mut self.ids).insert(name.to_owned(), id);
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sets: &AddressSets, address: &str) -> Vec<SetId> {
        let mut all = Vec::new();
        sets.containing(address.parse().unwrap(), |id| all.push(id));
        all
    }

    #[test]
    fn n9_internet_is_everything_outside_virtual_network() {
        let mut sets = AddressSets::default();
        let vnet: Vec<IpNet> = vec!["10.0.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()];
        let own = sets.set_tag("VirtualNetwork", vnet.clone(), false).unwrap();
        let internet = sets.set_tag("Internet", vnet, true).unwrap();
        assert_eq!(found(&sets, "10.0.255.1"), [own]);
        assert_eq!(found(&sets, "fd00::7"), [own]);
        assert_eq!(found(&sets, "10.1.0.1"), [internet]);
        assert_eq!(found(&sets, "2001:db8::1"), [internet]);
        let both = sets.content("VirtualNetwork").zip(sets.content("Internet"));
        let Some((SetContent::Within(inside), SetContent::Outside(outside))) = both else {
            panic!("two tags");
        };
        assert_eq!(inside, outside);
        assert_eq!(inside.len(), 2);
    }

    #[test]
    fn n8_a_tag_that_gets_other_prefixes_keeps_its_id() {
        let mut sets = AddressSets::default();
        let id = sets
            .set_tag("VirtualNetwork", ["10.0.0.0/16".parse().unwrap()], false)
            .unwrap();
        let again = sets
            .set_tag("VirtualNetwork", ["10.9.0.0/16".parse().unwrap()], false)
            .unwrap();
        assert_eq!(id, again);
        assert!(sets.contains(id, "10.9.0.1".parse().unwrap()));
        assert!(!sets.contains(id, "10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn an_address_is_in_all_of_its_application_security_groups() {
        let mut sets = AddressSets::default();
        let address: IpAddr = "10.0.0.4".parse().unwrap();
        let web = sets.add_group("web", [address, "10.0.0.5".parse().unwrap()]).unwrap();
        let all = sets.add_group("all", [address]).unwrap();
        assert_eq!(found(&sets, "10.0.0.4"), [web, all]);
        let web_members = ["10.0.0.4/32", "10.0.0.5/32"].map(|p| p.parse().unwrap());
        assert_eq!(sets.content("web"), Some(SetContent::Within(web_members.into())));
        assert_eq!(sets.content("mail"), None);
        assert_eq!(found(&sets, "10.0.0.5"), [web]);
        assert!(found(&sets, "10.0.0.6").is_empty());
    }
}
