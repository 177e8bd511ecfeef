//! Decides which message the controller sends to an agent, without IO. The push is level-triggered: at most one
//! configuration is in flight, and after the agent's answer the controller sends only the newest configuration and
//! skips those between.
//!
//! ```text
//! Hello ──▶ published ──▶ Config ──▶ Applied ─┐     UpToDate: once a stream, if there is nothing to push
//!               ▲          (in flight) Rejected│     Close: the identity that opened the stream is not valid
//!               └──────────────────────────────┘
//! ```

use crate::resource::Agent;
use tombolo_proto::id::{AgentId, Revision};

/// Why the controller closes the control stream of an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// No agent has this name.
    Unknown,
    /// The agent was revoked.
    Revoked,
    /// The agent with this name has another key: it renewed its certificate with a new key, or it was deleted and
    /// another host joined under its name.
    OtherKey,
}

impl Close {
    /// The reason as a sentence without a full stop, for the agent's log and its operator. It names `agent`.
    #[must_use]
    pub fn reason(self, agent: &AgentId) -> String {
        match self {
            Self::Unknown => format!("{agent} is not an agent of this controller"),
            Self::Revoked => format!("{agent} was revoked"),
            Self::OtherKey => format!("{agent} joined with another key"),
        }
    }
}

/// Checks that a certificate key is the present key of the agent, and that the agent is not revoked. `agent`: the agent
/// with the certificate's name. `key`: as in [`Agent::certificate_key`]; the case of the hex digits does not matter.
///
/// # Errors
/// No agent has the name, the agent is revoked, or it has another key.
pub fn authorize(agent: Option<&Agent>, key: &str) -> Result<(), Close> {
    match agent {
        None => Err(Close::Unknown),
        Some(a) if a.revoked => Err(Close::Revoked),
        Some(a) if !a.certificate_key.eq_ignore_ascii_case(key) => Err(Close::OtherKey),
        Some(_) => Ok(()),
    }
}

/// The configuration that was compiled for the stream's agent at one revision.
#[derive(Debug, Clone, Copy)]
pub struct Desired<'a> {
    /// The revision that was compiled.
    pub revision: Revision,
    /// The agent with the stream's name at that revision. `None`: there was no such agent.
    pub agent: Option<&'a Agent>,
    /// The digest of the configuration that the agent should run. `None`: the agent's binding refers to a deleted
    /// resource, so there is no configuration for the agent, and the agent keeps the configuration that it runs.
    pub digest: Option<&'a str>,
}

/// The next message to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// There is nothing to send now.
    Nothing,
    /// Tell the agent that it runs the newest configuration.
    UpToDate,
    /// Send the configuration of [`Desired::digest`], which counts as in flight now.
    Config,
    /// Close the stream for this reason.
    Close(Close),
}

/// The state of one control stream: the key that opened it, the configuration that the agent runs, and whether a
/// configuration is in flight. A new stream needs a new value.
#[derive(Debug, Clone)]
pub struct AgentSync {
    key: String,
    /// The revision whose state admitted the agent.
    since: Revision,
    /// The digest of the configuration that the agent runs, by its last answer.
    digest: String,
    /// Whether the agent has not answered the last pushed configuration yet.
    in_flight: bool,
    /// The digest of the configuration that the agent has rejected last.
    refused: Option<String>,
    /// Whether this stream needs no `UpToDate` any more.
    greeted: bool,
}

impl AgentSync {
    /// Starts with the agent's Hello: the holder of `key` runs the configuration `digest` (empty: none). The state of
    /// revision `since` admitted the agent. Compiled states of earlier revisions are ignored, because they have no
    /// agent with this name, or an earlier agent.
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

    /// Returns the next message to the agent, for the newest compiled state `desired`. Call it after each publication
    /// and after each message of the agent. After [`Push::Config`] the configuration counts as in flight, and the
    /// method returns no other one until [`Self::applied`] or [`Self::rejected`] is called. [`Push::Close`] may come
    /// while a configuration is in flight, [`Push::UpToDate`] at most once.
    pub fn published(&mut self, desired: &Desired<'_>) -> Push {
        if desired.revision < self.since {
            return Push::Nothing;
        }
        if let Err(close) = authorize(desired.agent, &self.key) {
            return Push::Close(close);
        }
        let Some(digest) = desired.digest else {
            return Push::Nothing;
        };
        // While a configuration is in flight, the agent may end up with this configuration or with its old one. So
        // nothing is sent before its answer, not even if the controller wants the old one again.
        if self.in_flight {
            return Push::Nothing;
        }
        if digest == self.digest {
            // UpToDate is sent once for each stream, because later revisions that do not change this agent's
            // configuration need no message.
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

    /// Records the agent's answer that it runs the configuration `digest` now (D2). A configuration that it rejected
    /// before may then be sent again.
    pub fn applied(&mut self, digest: &str) {
        self.in_flight = false;
        self.refused = None;
        digest.clone_into(&mut self.digest);
    }

    /// Records the agent's answer that it rejects the configuration `digest` and keeps its present one. The same
    /// configuration is sent again only after the agent has answered a different one, or on a new stream.
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
