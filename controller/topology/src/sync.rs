//! The push to one agent, sans-IO: level-triggered, one configuration in flight, nothing queued.
//!
//! ```text
//! Hello ──▶ published ──▶ Config ──▶ Applied ─┐     UpToDate: once a stream, if there is nothing to push
//!               ▲          (in flight) Rejected│     Close: not, or no longer, who it was when the stream opened
//!               └──────────────────────────────┘
//! ```

use crate::resource::Agent;
use tombolo_proto::id::{AgentId, Revision};

/// Why an identity is not, or no longer, served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// No such agent.
    Unknown,
    /// It was revoked.
    Revoked,
    /// Its name belongs to another key: it renewed with a new one, or was deleted and another host joined.
    OtherKey,
}

impl Close {
    /// In words, for the agent and its operator.
    #[must_use]
    pub fn reason(self, agent: &AgentId) -> String {
        match self {
            Self::Unknown => format!("{agent} is no agent of this controller"),
            Self::Revoked => format!("{agent} was revoked"),
            Self::OtherKey => format!("{agent} joined with another key"),
        }
    }
}

/// Whether the holder of a certificate key (see [`Agent::certificate_key`]) speaks for an agent.
///
/// # Errors
/// Why not.
pub fn standing(agent: Option<&Agent>, key: &str) -> Result<(), Close> {
    match agent {
        None => Err(Close::Unknown),
        Some(a) if a.revoked => Err(Close::Revoked),
        Some(a) if !a.certificate_key.eq_ignore_ascii_case(key) => Err(Close::OtherKey),
        Some(_) => Ok(()),
    }
}

/// What is compiled for the stream's agent at one revision.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// Which revision.
    pub revision: Revision,
    /// The agent of this name.
    pub agent: Option<&'a Agent>,
    /// Digest of what it should run; none: what it stands for is gone, and it keeps what it has.
    pub digest: Option<&'a str>,
}

/// What to tell the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// Nothing.
    Nothing,
    /// It runs what it should.
    UpToDate,
    /// The configuration of [`Desired::digest`]; it is in flight now.
    Config,
    /// The stream ends.
    Close(Close),
}

/// One stream: who opened it, what the agent runs, and what it was sent.
#[derive(Debug, Clone)]
pub struct AgentSync {
    key: String,
    since: Revision,
    digest: String,
    in_flight: bool,
    refused: Option<String>,
    greeted: bool,
}

impl AgentSync {
    /// The holder of `key` said Hello and runs `digest`. It was let in by the state of revision `since`: what was
    /// compiled before knows nothing of it yet, or knows somebody else by its name.
    #[must_use]
    pub fn hello(key: &str, since: Revision, digest: &str) -> Self {
        Self {
            key: key.to_owned(),
            since,
            digest: digest.to_owned(),
            in_flight: false,
            refused: None,
            greeted: false,
        }
    }

    /// What follows from the newest compiled state. To be asked after each publication and each message of the agent.
    pub fn published(&mut self, desired: &Desired<'_>) -> Push {
        if desired.revision < self.since {
            return Push::Nothing;
        }
        if let Err(close) = standing(desired.agent, &self.key) {
            return Push::Close(close);
        }
        let Some(digest) = desired.digest else {
            return Push::Nothing;
        };
        // What it will run is open until it has answered, also if it should run again what it runs now.
        if self.in_flight {
            return Push::Nothing;
        }
        if digest == self.digest {
            // Once a stream; later revisions that change nothing here are nobody's business.
            let greeted = std::mem::replace(&mut self.greeted, true);
            return if greeted { Push::Nothing } else { Push::UpToDate };
        }
        self.greeted = true;
        if self.refused.as_deref() == Some(digest) {
            return Push::Nothing;
        }
        self.in_flight = true;
        Push::Config
    }

    /// The agent runs this now (D2).
    pub fn applied(&mut self, digest: &str) {
        self.in_flight = false;
        self.refused = None;
        digest.clone_into(&mut self.digest);
    }

    /// The agent refused this and goes on with what it had; it is not asked again until there is something else.
    pub fn rejected(&mut self, digest: &str) {
        self.in_flight = false;
        self.refused = Some(digest.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Binding, Reach};
    use tombolo_proto::id::{PublicKey, ResourceId};

    fn agent(key: &str) -> Agent {
        Agent {
            id: AgentId::new("vm").unwrap(),
            binding: Binding::Vm {
                vm: ResourceId::new("/vm"),
                nics: Vec::new(),
                served: Vec::new(),
            },
            public_key: PublicKey([1; 32]),
            certificate_key: key.to_owned(),
            reach: Reach::at(Vec::new()),
            revoked: false,
        }
    }

    fn at<'a>(revision: u64, agent: &'a Agent, digest: &'a str) -> Desired<'a> {
        Desired {
            revision: Revision(revision),
            agent: Some(agent),
            digest: Some(digest),
        }
    }

    #[test]
    fn one_configuration_is_in_flight_and_the_newest_follows() {
        let a = agent("k");
        let mut sync = AgentSync::hello("k", Revision(1), "");
        assert_eq!(sync.published(&at(1, &a, "d1")), Push::Config);
        assert_eq!(sync.published(&at(2, &a, "d2")), Push::Nothing);
        assert_eq!(sync.published(&at(3, &a, "d3")), Push::Nothing);
        sync.applied("d1");
        assert_eq!(sync.published(&at(3, &a, "d3")), Push::Config);
        sync.applied("d3");
        assert_eq!(sync.published(&at(3, &a, "d3")), Push::Nothing);
    }

    #[test]
    fn a_return_to_what_runs_waits_for_what_is_in_flight() {
        let a = agent("k");
        let mut sync = AgentSync::hello("k", Revision(1), "d1");
        assert_eq!(sync.published(&at(1, &a, "d1")), Push::UpToDate);
        assert_eq!(sync.published(&at(2, &a, "d2")), Push::Config);
        assert_eq!(sync.published(&at(3, &a, "d1")), Push::Nothing);
        sync.applied("d2");
        assert_eq!(sync.published(&at(3, &a, "d1")), Push::Config);
    }

    #[test]
    fn what_was_refused_is_not_sent_again_until_there_is_something_else() {
        let a = agent("k");
        let mut sync = AgentSync::hello("k", Revision(1), "d0");
        assert_eq!(sync.published(&at(1, &a, "d1")), Push::Config);
        sync.rejected("d1");
        assert_eq!(sync.published(&at(2, &a, "d1")), Push::Nothing);
        assert_eq!(sync.published(&at(3, &a, "d2")), Push::Config);
        sync.applied("d2");
        assert_eq!(sync.published(&at(4, &a, "d1")), Push::Config);
    }

    #[test]
    fn up_to_date_is_said_once_a_stream() {
        let a = agent("k");
        let mut sync = AgentSync::hello("k", Revision(1), "d1");
        assert_eq!(sync.published(&at(1, &a, "d1")), Push::UpToDate);
        assert_eq!(sync.published(&at(2, &a, "d1")), Push::Nothing);
    }

    #[test]
    fn a_state_from_before_the_agent_was_let_in_says_nothing_of_it() {
        let (mine, before) = (agent("k"), agent("old"));
        let mut sync = AgentSync::hello("k", Revision(7), "");
        let unknown = Desired {
            revision: Revision(6),
            agent: None,
            digest: None,
        };
        assert_eq!(sync.published(&unknown), Push::Nothing);
        assert_eq!(sync.published(&at(6, &before, "d")), Push::Nothing);
        assert_eq!(sync.published(&at(7, &mine, "d")), Push::Config);
    }

    #[test]
    fn a_stream_ends_with_the_identity_that_opened_it() {
        let mut revoked = agent("k");
        revoked.revoked = true;
        let successor = agent("other");
        let (none, digest) = (None, Some("d"));
        for (agent, close) in [
            (none, Close::Unknown),
            (Some(&revoked), Close::Revoked),
            (Some(&successor), Close::OtherKey),
        ] {
            let mut sync = AgentSync::hello("k", Revision(1), "");
            let revision = Revision(2);
            let desired = Desired {
                revision,
                agent,
                digest,
            };
            assert_eq!(sync.published(&desired), Push::Close(close));
        }
    }

    #[test]
    fn who_has_no_configuration_keeps_what_it_runs() {
        let a = agent("k");
        let mut sync = AgentSync::hello("k", Revision(1), "d1");
        let gone = Desired {
            digest: None,
            ..at(1, &a, "")
        };
        assert_eq!(sync.published(&gone), Push::Nothing);
        assert_eq!(sync.published(&at(2, &a, "d1")), Push::UpToDate);
    }
}
