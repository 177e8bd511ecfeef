//! Checks the expectations and events of a topology.

use super::is_valid_name;
use crate::topology::Topology;
use crate::topology::expected::{Action, Learned, Row, Target};
use crate::underlay;
use std::collections::BTreeSet;

impl Topology {
    /// Checks the topology's expectations and events, and adds their problems to `problems`.
    pub(super) fn check_expected(&self, problems: &mut Vec<String>) {
        self.check_rows("expected", &self.expected, problems);
        self.check_learned("learned", &self.learned, problems);
        for (name, event) in self.events.iter() {
            let at = format!("events.{name}");
            // `tombolo lab event restore` undoes all events, so no event can have this name.
            if !is_valid_name(name, 32) || name == "restore" {
                problems.push(format!(
                    "{at}: an event's name is 1 to 32 of a-z, 0-9 and '-', and not 'restore'"
                ));
            }
            if event.actions.is_empty() {
                problems.push(format!("{at}.actions: at least one is needed"));
            }
            for (number, action) in event.actions.iter().enumerate() {
                if let Err(problem) = self.check_action(action) {
                    problems.push(format!("{at}.actions[{number}]: {problem}"));
                }
            }
            self.check_rows(&format!("{at}.expected"), &event.expected, problems);
            self.check_learned(&format!("{at}.learned"), &event.learned, problems);
            for own in &event.learned {
                if !self.learned.iter().any(|steady| steady.same_neighbour(own)) {
                    let (site, router) = (&own.site, &own.router);
                    problems.push(format!(
                        "{at}.learned: the steady state does not have this neighbour of {site} {router}"
                    ));
                }
            }
        }
    }

    /// Checks expectations of learned prefixes, and adds their problems to `problems`. `at` is the place of the
    /// expectations in the file.
    fn check_learned(&self, at: &str, all: &[Learned], problems: &mut Vec<String>) {
        for (number, one) in all.iter().enumerate() {
            let at = format!("{at}[{number}]");
            if self.session_of(one).is_none() {
                problems.push(format!(
                    "{at}: set 'site', 'router' and either 'line' or 'tunnel' to existing ones"
                ));
            }
            if all[..number].iter().any(|other| other.same_neighbour(one)) {
                problems.push(format!("{at}: each neighbour may occur only once"));
            }
        }
    }

    /// Checks rows, and adds their problems to `problems`. `at` is the place of the rows in the file.
    fn check_rows(&self, at: &str, rows: &[Row], problems: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for (number, row) in rows.iter().enumerate() {
            let Row { from, to, .. } = row;
            let at = format!("{at}[{number}] ({from} → {to})");
            for name in [from, to] {
                if !self.has_address(name) {
                    problems.push(format!("{at}: there is no VM, router or host of a site named '{name}'"));
                }
            }
            if from == to || !seen.insert((from, to)) {
                problems.push(format!("{at}: name two different hosts, and each pair once"));
            }
            if !row.reachable && row.lists().any(|hops| !hops.is_empty()) {
                problems.push(format!("{at}: a pair that is not reachable has no hops"));
            }
            if !row.reachable {
                continue;
            }
            let destination = self.given_address(to);
            for hops in row.lists() {
                let last = hops.last().and_then(|h| h.0);
                if last.is_none() {
                    problems.push(format!("{at}: the last hop must be the destination's address"));
                } else if destination.is_some() && last != destination {
                    problems.push(format!("{at}: the last hop is not the address of '{to}'"));
                }
            }
        }
    }

    /// Whether a host has an overlay address, so that it may be the source or destination of a row.
    fn has_address(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|h| h.vm.is_some())
            || self.machines().any(|m| m.host == host && m.address().is_some())
    }

    /// Checks that the target of an action exists. Returns the problem otherwise.
    fn check_action(&self, action: &Action) -> Result<(), String> {
        match action.target()? {
            Target::Host(host) => {
                let known = underlay::addresses(self).iter().any(|(name, _)| name == host);
                known
                    .then_some(())
                    .ok_or_else(|| format!("'{host}' is no host on the underlay"))
            }
            Target::Line { site, router, line, .. } => {
                let edge = self.customer_edge(site, router);
                let edge = edge.ok_or_else(|| format!("site '{site}' has no customer edge '{router}'"))?;
                let known = edge.lines.iter().any(|l| l.is(line));
                known
                    .then_some(())
                    .ok_or_else(|| format!("'{router}' has no line '{line}'"))
            }
            Target::Tunnel {
                site,
                router,
                connection,
                ..
            } => {
                let edge = self.customer_edge(site, router);
                let edge = edge.ok_or_else(|| format!("site '{site}' has no customer edge '{router}'"))?;
                let known = edge
                    .tunnels
                    .iter()
                    .any(|t| t.connection.eq_ignore_ascii_case(connection));
                known
                    .then_some(())
                    .ok_or_else(|| format!("'{router}' has no tunnel '{connection}'"))
            }
        }
    }
}
