//! The events of one batch, as tuples by log, NIC and rule. No function of this file does I/O.

use super::record::{self, RuleTuples};
use super::tail::Added;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;
use tombolo_engine::security::{FlowEvent, FlowEventKind, FlowKey, LoggedRule};
use tombolo_proto::config::{FlowLogFormat, FlowLogs};

/// Largest number of denied flows whose repetitions are recognized in a batch. Denied packets of further flows may get
/// several tuples.
const MAX_DENIED: usize = 200_000;

/// A batch.
#[derive(Debug)]
pub struct Batch {
    logs: Arc<FlowLogs>,
    groups: Vec<Group>,
    /// The positions in `groups` for the events of a rule, by the rule's number. `None`: the rule's NIC has no log.
    of_rule: HashMap<u32, Option<Vec<usize>>>,
    denied: HashSet<(u32, FlowKey)>,
    bytes: usize,
    tuples: u64,
}

/// The tuples of one rule at one NIC in one log.
#[derive(Debug)]
struct Group {
    /// The position of the log.
    log: usize,
    mac: String,
    rule: Arc<LoggedRule>,
    tuples: String,
    count: u64,
}

/// A record, and the path of its file relative to the directory of the flow logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The path of the file.
    pub path: PathBuf,
    /// One line of JSON.
    pub record: String,
    /// The number of tuples in it.
    pub tuples: u64,
}

impl Batch {
    /// A batch without events, for the logs of a configuration.
    #[must_use]
    pub fn new(logs: Arc<FlowLogs>) -> Self {
        Self {
            logs,
            groups: Vec::new(),
            of_rule: HashMap::new(),
            denied: HashSet::new(),
            bytes: 0,
            tuples: 0,
        }
    }

    /// Adds an event. `at` is its time. `rule` returns the rule with a number. A denied packet of a flow that has a tuple in this
    /// batch already is left out. Calls `added` for each tuple that was added. Returns false, and adds nothing, if the NIC of the
    /// event has no log.
    pub fn add(
        &mut self,
        event: &FlowEvent,
        at: SystemTime,
        rule: impl FnOnce(u32) -> Option<Arc<LoggedRule>>,
        mut added: impl FnMut(&Added<'_>),
    ) -> bool {
        let groups = match self.of_rule.get(&event.rule) {
            Some(known) => known,
            None => {
                let found = rule(event.rule).and_then(|rule| self.groups_for(&rule));
                self.of_rule.entry(event.rule).or_insert(found)
            }
        };
        let Some(groups) = groups else { return false };
        if event.kind == FlowEventKind::Denied && self.denied.len() < MAX_DENIED {
            let is_new = self.denied.insert((event.rule, event.key));
            if !is_new {
                return true;
            }
        }
        for position in groups {
            let group = &mut self.groups[*position];
            let before = group.tuples.len();
            let log = &self.logs.logs[group.log];
            if record::tuple(&mut group.tuples, log.format, event, at) {
                self.bytes += group.tuples.len() - before;
                group.count += 1;
                self.tuples += 1;
                let (mac, rule) = (&*group.mac, &*group.rule);
                added(&Added {
                    log,
                    mac,
                    rule,
                    event,
                    at,
                });
            }
        }
        true
    }

    /// Adds a group for each log that has the flows about which a rule decides. Returns the positions of the groups. `None`: the
    /// rule's NIC has no log.
    fn groups_for(&mut self, rule: &Arc<LoggedRule>) -> Option<Vec<usize>> {
        let nic = self.logs.nics.iter().find(|nic| nic.id == rule.nic)?;
        let has = |log: &tombolo_proto::config::FlowLog| {
            let of_target = match log.format {
                FlowLogFormat::Group1 | FlowLogFormat::Group2 => {
                    rule.rule.as_ref().is_some_and(|(group, _)| *group == log.target)
                }
                FlowLogFormat::Network4 => true,
            };
            of_target && log.nics.contains(&nic.id)
        };
        let logs = self.logs.logs.iter().enumerate().filter(|(_, log)| has(log));
        let logs: Vec<usize> = logs.map(|(position, _)| position).collect();
        let first = self.groups.len();
        self.groups.extend(logs.into_iter().map(|log| Group {
            log,
            mac: nic.mac.clone(),
            rule: rule.clone(),
            tuples: String::new(),
            count: 0,
        }));
        Some((first..self.groups.len()).collect())
    }

    /// The length of all tuples in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of tuples.
    #[must_use]
    pub const fn tuples(&self) -> u64 {
        self.tuples
    }

    /// The records of the batch: one for each log and NIC, with `at` as their time.
    #[must_use]
    pub fn records(&self, at: SystemTime) -> Vec<Written> {
        let guid = |group: &tombolo_proto::id::ResourceId| {
            let found = self.logs.groups.iter().find(|g| g.id == *group);
            found.map(|g| g.guid.as_str())
        };
        let mut files: BTreeMap<(usize, &str), (u64, Vec<RuleTuples<'_>>)> = BTreeMap::new();
        for group in self.groups.iter().filter(|g| !g.tuples.is_empty()) {
            let rule = group.rule.rule.as_ref();
            let (count, rules) = files.entry((group.log, &group.mac)).or_default();
            *count += group.count;
            rules.push(RuleTuples {
                group: rule.and_then(|(group, _)| guid(group)),
                rule: rule.map(|(_, name)| name.as_str()),
                tuples: &group.tuples,
            });
        }
        let hour = record::hour(at);
        let written = files.into_iter().map(|((log, mac), (tuples, mut rules))| {
            rules.sort_by_key(|rule| (rule.group, rule.rule));
            let log = &self.logs.logs[log];
            Written {
                path: record::path(log, mac, &hour),
                record: record::record(log, guid(&log.target), mac, at, &rules),
                tuples,
            }
        });
        written.collect()
    }
}

#[cfg(test)]
mod tests;
