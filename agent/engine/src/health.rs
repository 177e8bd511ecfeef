//! What an agent knows about the health of back ends, and from whom (L6 to L8, D36).
//!
//! Three sources tell whether a back end answers its probe:
//!
//! | Source | Says | Counts |
//! |---|---|---|
//! | the agent's own probes | the health of its own back ends | always |
//! | the owner, over its link | the health of the owner's back ends | if it is not older than what the controller says |
//! | the controller | the last report of each owner | otherwise |
//!
//! Each owner numbers the changes of its health ([`HealthVersion`]), and puts the number into its reports to the controller
//! and into its statements over links. So a receiver knows which of the two is newer. A back end of which no source tells
//! anything counts as up.

mod statement;

pub use statement::{MAX_BACK_ENDS, MAX_STATEMENT_LEN, MalformedStatement};

use statement::Statement;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::HealthVersion;

/// A back end as a probe sees it: the probe and the address.
pub type Probed = (ResourceId, IpAddr);

/// What the controller says about the back ends in an agent's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControllerHealth {
    /// The back ends that are down by the last reports of their owners.
    pub down: BTreeSet<Probed>,
    /// The owners whose reports the controller has, each with the version of its last report. An owner that does not number
    /// its reports has the version 0. `None`: the controller does not pass versions on.
    pub versions: Option<BTreeMap<AgentId, HealthVersion>>,
}

/// The sources of the health of back ends, and the decision which of them counts.
#[derive(Debug)]
pub struct HealthSources {
    /// The probed back ends of the configuration, without the own ones.
    others: BTreeMap<Probed, Other>,
    /// The agents that own back ends, probed or not, and with which there is a link. Only they state anything.
    owners: BTreeSet<AgentId>,
    /// The owners of the back ends in `others`, by the back end's number in statements.
    owner_by_number: BTreeMap<u64, AgentId>,
    /// The own back ends. `true` is up.
    own: BTreeMap<Probed, bool>,
    version: HealthVersion,
    /// Whether there has ever been an own back end.
    has_stated: bool,
    /// The last statement of each owner over its link.
    stated: BTreeMap<AgentId, Statement>,
    /// What the controller says; `None`: nothing yet.
    reported: Option<ControllerHealth>,
    ignored: u64,
}

/// A back end of another agent.
#[derive(Debug)]
struct Other {
    owner: AgentId,
    /// The back end's number in statements.
    number: u64,
}

impl HealthSources {
    /// Nothing is known yet. `start`: the time of the agent's start in milliseconds of Unix time. It must be later than at
    /// the agent's start before, so that the other agents prefer the new statements to the old ones.
    #[must_use]
    pub const fn new(start: u64) -> Self {
        Self {
            others: BTreeMap::new(),
            owners: BTreeSet::new(),
            owner_by_number: BTreeMap::new(),
            own: BTreeMap::new(),
            version: HealthVersion { start, change: 0 },
            has_stated: false,
            stated: BTreeMap::new(),
            reported: None,
            ignored: 0,
        }
    }

    /// Takes the back ends and their owners from a configuration. Statements of agents that own no back end any more, or with
    /// which there is no link, are forgotten; the others also apply to back ends that are new in the configuration.
    pub fn configure(&mut self, config: &AgentConfig) {
        let others = config.probed_back_ends().into_iter();
        let others = others.filter(|back_end| *back_end.owner != config.agent);
        let others = others.map(|back_end| {
            let probed = (back_end.probe.id.clone(), back_end.address);
            let (owner, number) = (back_end.owner.clone(), statement::number(&probed));
            (probed, Other { owner, number })
        });
        self.others = others.collect();
        let numbered = self.others.values().map(|other| (other.number, other.owner.clone()));
        self.owner_by_number = numbered.collect();
        let linked = |agent: &AgentId| config.links.binary_search_by(|l| l.peer.cmp(agent)).is_ok();
        let owners = config.owned_back_ends().into_iter().map(|(_, _, owner)| owner);
        self.owners = owners.filter(|owner| linked(owner)).cloned().collect();
        self.stated.retain(|agent, _| self.owners.contains(agent));
    }

    /// Sets the health of the own back ends: `true` is up. If it differs from the last one, it gets a new version.
    pub fn set_own(&mut self, own: BTreeMap<Probed, bool>) {
        if self.own != own {
            self.has_stated = true;
            self.own = own;
            self.version.change += 1;
        }
    }

    /// The version of the own back ends' health, for the report to the controller. `None`: the agent never had a back end.
    #[must_use]
    pub fn version(&self) -> Option<HealthVersion> {
        self.has_stated.then_some(self.version)
    }

    /// The health of the own back ends, for the other agents. `None`: the agent never had a back end.
    #[must_use]
    pub fn statement(&self) -> Option<Arc<[u8]>> {
        self.has_stated
            .then(|| Statement::new(self.version, &self.own).encode().into())
    }

    /// Takes a statement of `owner` over its link, which is untrusted input. Of its entries, only those count that are about
    /// back ends of this owner in the configuration; the others are counted ([`ignored`](Self::ignored)).
    ///
    /// # Errors
    /// The bytes are no statement. The earlier one stays.
    pub fn receive(&mut self, owner: &AgentId, bytes: &[u8]) -> Result<(), MalformedStatement> {
        let statement = Statement::decode(bytes)?;
        let is_own = |number: &u64| self.owner_by_number.get(number) == Some(owner);
        let foreign = statement.numbers().filter(|number| !is_own(number));
        self.ignored += foreign.count() as u64;
        if self.owners.contains(owner) {
            self.stated.insert(owner.clone(), statement);
        }
        Ok(())
    }

    /// Number of entries of received statements that were about back ends of others, or about none in the configuration. A
    /// statement is the same for all peers of its sender, so an honest sender causes them too.
    #[must_use]
    pub const fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes what the controller says. It replaces what the controller has said before, except about owners whose reports the
    /// controller does not have: a controller that has just started knows less than the one before.
    pub fn set_reported(&mut self, mut new: ControllerHealth) {
        if let (Some(versions), Some(old)) = (&mut new.versions, self.reported.take()) {
            let is_missing = |other: &Other| !versions.contains_key(&other.owner);
            let kept = old.down.into_iter();
            let kept = kept.filter(|probed| self.others.get(probed).is_some_and(is_missing));
            new.down.extend(kept);
            for (owner, version) in old.versions.into_iter().flatten() {
                versions.entry(owner).or_insert(version);
            }
        }
        self.reported = Some(new);
    }

    /// The back ends that are down. `links_down`: the peers with which the link is down.
    #[must_use]
    pub fn unhealthy(&self, links_down: &BTreeSet<AgentId>) -> BTreeSet<Probed> {
        let own = self.own.iter().filter(|(_, up)| !**up).map(|(probed, _)| probed);
        let others = self.others.iter().filter(|(probed, Other { owner, number })| {
            let stated = self.stated.get(owner);
            let stated = stated.filter(|statement| self.counts(owner, statement, links_down));
            let is_up = stated.and_then(|statement| statement.is_up(*number));
            let reported_down = || self.reported.as_ref().is_some_and(|r| r.down.contains(*probed));
            is_up.map_or_else(reported_down, |up| !up)
        });
        own.chain(others.map(|(probed, _)| probed)).cloned().collect()
    }

    /// Whether the statement of an owner over its link counts more than what the controller says.
    fn counts(&self, owner: &AgentId, statement: &Statement, links_down: &BTreeSet<AgentId>) -> bool {
        match &self.reported {
            None => true,
            Some(reported) => match &reported.versions {
                // Without versions, the age of the controller's knowledge is unknown. A link that is up delivers a change as
                // fast as the controller, and one that is down delivers none.
                None => !links_down.contains(owner),
                Some(versions) => match versions.get(owner) {
                    // The owner runs an earlier version now, and states nothing over links.
                    Some(version) if *version == HealthVersion::default() => false,
                    Some(version) => statement.version >= *version,
                    None => true,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests;
