//! The numbers of the rules and NICs that flow logs name (N14). A flow keeps one number in the table instead of names. A name
//! that no flow and no configuration uses loses its number; the number is not used again.

use super::{FlowLog, LOCAL, LoggedRule};
use crate::security::secured_nics::SecuredNics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tombolo_proto::id::ResourceId;

/// Largest number of rules at NICs with numbers. Their names take about 100 MB then. Flows of further rules are logged without
/// the name of their rule.
const MAX_RULES: usize = 1 << 20;

/// Largest number of NICs with numbers. Flows at further ones are not logged.
const MAX_NICS: usize = 1 << 16;

/// Shortest time between two searches for names that nobody uses. Events that wait for the writer name them no longer.
const SEARCH_INTERVAL: Duration = Duration::from_secs(10);

/// Number of names that nobody may use before they are searched.
const FEW: usize = 4096;

/// The numbers of the rules and NICs of one configuration.
#[derive(Debug)]
pub(in crate::security) struct LogNumbers {
    /// The log that has given the numbers.
    of: Weak<FlowLog>,
    /// The number of each rule, by its number in the configuration (`SecuredNics::rule_number`). 0: its NIC has no log.
    pub(super) of_rule: Vec<u32>,
    /// The number of each NIC without a rule, by the number of the NIC. 0: it has no log.
    pub(super) of_nic: Vec<u32>,
}

impl LogNumbers {
    /// Whether this log has given the numbers.
    pub(in crate::security) fn is_of(&self, log: &Arc<FlowLog>) -> bool {
        std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(log))
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        self.of_rule.iter().chain(&self.of_nic).copied()
    }
}

/// All names with numbers, from 1.
#[derive(Debug)]
pub(super) struct Names {
    numbers: BTreeMap<Arc<LoggedRule>, u32>,
    rules: BTreeMap<u32, Arc<LoggedRule>>,
    /// How many of them are NICs.
    nics: usize,
    last: u32,
    /// The numbers of configurations that may be in use.
    installed: Vec<Weak<LogNumbers>>,
    /// The names that nobody used at the last search.
    unused: BTreeSet<u32>,
    searched: Option<Instant>,
    most: (usize, usize),
}

impl Default for Names {
    fn default() -> Self {
        Self::with_limits(MAX_RULES, MAX_NICS)
    }
}

impl Names {
    /// Room for so many rules and NICs.
    pub(super) const fn with_limits(rules: usize, nics: usize) -> Self {
        Self {
            numbers: BTreeMap::new(),
            rules: BTreeMap::new(),
            nics: 0,
            last: 0,
            installed: Vec::new(),
            unused: BTreeSet::new(),
            searched: None,
            most: (rules, nics),
        }
    }

    pub(super) fn rule(&self, number: u32) -> Option<&Arc<LoggedRule>> {
        self.rules.get(&number)
    }

    /// The number of a rule or NIC. 0: there are too many.
    pub(super) fn number(&mut self, rule: LoggedRule) -> u32 {
        if let Some(number) = self.numbers.get(&rule) {
            self.unused.remove(number);
            return *number;
        }
        let is_nic = rule.rule.is_none();
        let is_full = match is_nic {
            true => self.nics >= self.most.1,
            false => self.rules.len() - self.nics >= self.most.0,
        };
        if is_full || self.last + 1 >= LOCAL {
            return 0;
        }
        self.last += 1;
        self.nics += usize::from(is_nic);
        let rule = Arc::new(rule);
        self.rules.insert(self.last, rule.clone());
        self.numbers.insert(rule, self.last);
        self.last
    }

    /// Gives all rules and NICs of a configuration with a log their numbers. `of_flows` returns the numbers that flows have.
    pub(super) fn number_all(
        &mut self,
        of: Weak<FlowLog>,
        nics: &SecuredNics,
        of_flows: impl FnOnce() -> BTreeSet<u32>,
        now: Instant,
    ) -> Arc<LogNumbers> {
        let (mut of_rule, mut of_nic) = (Vec::with_capacity(nics.rule_count()), Vec::with_capacity(nics.count()));
        for number in (0..nics.count()).filter_map(|n| u8::try_from(n).ok()) {
            let (Some(id), Some(rules)) = (nics.id(number), nics.rules(number)) else {
                continue;
            };
            let is_logged = nics.is_logged(number);
            let mut name = |nic: &ResourceId, rule| match is_logged {
                true => self.number(LoggedRule { nic: nic.clone(), rule }),
                false => 0,
            };
            of_nic.push(name(id, None));
            let rules = rules.all().map(|(group, rule)| (group.clone(), rule.name.clone()));
            of_rule.extend(rules.map(|rule| name(id, Some(rule))));
        }
        let numbers = Arc::new(LogNumbers { of, of_rule, of_nic });
        self.installed.retain(|earlier| earlier.strong_count() > 0);
        self.installed.push(Arc::downgrade(&numbers));
        let present = numbers.of_rule.len() + numbers.of_nic.len();
        let is_due = self
            .searched
            .is_none_or(|at| now.saturating_duration_since(at) >= SEARCH_INTERVAL);
        if is_due && self.rules.len() > 2 * present + FEW {
            self.searched = Some(now);
            self.free(&of_flows());
        }
        numbers
    }

    /// Frees the names that nobody uses, now and at the last search.
    pub(super) fn free(&mut self, of_flows: &BTreeSet<u32>) {
        let installed: Vec<_> = self.installed.iter().filter_map(Weak::upgrade).collect();
        let mut used: BTreeSet<u32> = installed.iter().flat_map(|numbers| numbers.all()).collect();
        used.extend(of_flows);
        let before = std::mem::take(&mut self.unused);
        self.unused = self
            .rules
            .keys()
            .filter(|number| !used.contains(*number))
            .copied()
            .collect();
        let free: Vec<u32> = self.unused.intersection(&before).copied().collect();
        for number in free {
            self.unused.remove(&number);
            if let Some(rule) = self.rules.remove(&number) {
                self.nics -= usize::from(rule.rule.is_none());
                self.numbers.remove(&rule);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(nic: &str, rule: Option<&str>) -> LoggedRule {
        LoggedRule {
            nic: ResourceId::new(nic),
            rule: rule.map(|rule| (ResourceId::new("/group"), rule.to_owned())),
        }
    }

    /// N14: a NIC gets its number although there are too many rules, so that its flows are logged.
    #[test]
    fn n14_a_new_nic_is_logged_although_there_are_too_many_rules() {
        let mut names = Names::with_limits(2, 2);
        assert_eq!(names.number(name("/a", Some("1"))), 1);
        assert_eq!(names.number(name("/a", Some("2"))), 2);
        assert_eq!(names.number(name("/a", Some("3"))), 0);
        assert_eq!(names.number(name("/a", None)), 3);
        assert_eq!(names.number(name("/b", None)), 4);
        assert_eq!(names.number(name("/c", None)), 0);
        assert_eq!(names.number(name("/a", Some("2"))), 2);
    }

    /// N14: names that no flow and no configuration uses make room. Those that are in use keep their numbers.
    #[test]
    fn n14_names_that_nobody_uses_make_room() {
        let mut names = Names::with_limits(3, 1);
        let numbers: Vec<u32> = ["flow", "configuration", "old"]
            .into_iter()
            .map(|rule| names.number(name("/a", Some(rule))))
            .collect();
        assert_eq!(names.number(name("/a", Some("new"))), 0);
        let configuration = Arc::new(LogNumbers {
            of: Weak::new(),
            of_rule: vec![numbers[1]],
            of_nic: vec![0],
        });
        names.installed.push(Arc::downgrade(&configuration));
        let of_flows = BTreeSet::from([numbers[0]]);
        names.free(&of_flows);
        assert!(names.rule(numbers[2]).is_some(), "an event may wait");
        names.free(&of_flows);
        assert_eq!(names.rule(numbers[2]), None);
        let new = names.number(name("/a", Some("new")));
        assert!(!numbers.contains(&new) && new != 0);
        assert!(names.rule(numbers[0]).is_some() && names.rule(numbers[1]).is_some());
        // A name that is used again between two searches stays.
        drop(configuration);
        names.free(&of_flows);
        assert_eq!(names.number(name("/a", Some("configuration"))), numbers[1]);
        names.free(&of_flows);
        assert!(names.rule(numbers[1]).is_some());
    }
}
