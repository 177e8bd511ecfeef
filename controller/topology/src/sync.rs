//! Decides, without IO, which message the controller sends to an agent next. At most one configuration is in flight,
//! that is, sent and not yet answered. After the agent's answer, the controller sends only the newest configuration and
//! skips those in between.
//!
//! ```text
//! Hello ──▶ published ──▶ Config ──▶ Applied ─┐     UpToDate: once a stream, if there is nothing to push
//!               ▲          (in flight) Rejected│     Close: the identity that opened the stream is not valid
//!               └──────────────────────────────┘
//! ```

use crate::resource::Agent;
use tombolo_proto::id::{AgentId, Revision};

/// The reason for which the controller closes the control stream of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// No agent has this name.
    Unknown,
    /// The agent was revoked.
    Revoked,
    /// The agent with this name has another certificate key than the stream: the agent has renewed its certificate with
    /// a new key, or it was deleted and another host has joined under its name.
    OtherKey,
}

impl Close {
    /// The reason as a sentence without a full stop, for the agent's log. It names `agent`.
    #[must_use]
    pub fn reason(self, agent: &AgentId) -> String {
        match self {
            Self::Unknown => format!("{agent} is not an agent of this controller"),
            Self::Revoked => format!("{agent} was revoked"),
            Self::OtherKey => format!("{agent} joined with another key"),
        }
    }
}

/// Checks that `key` is the agent's present certificate key, and that the agent is not revoked. `agent`: the agent with
/// the certificate's name. `key`: in the form of [`Agent::certificate_key`]; the case of the hex digits does not
/// matter.
///
/// # Errors
/// `agent` is `None`, is revoked, or has another key.
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

/// The state of one control stream: the certificate key of its agent, the configuration that the agent runs, and
/// whether a configuration is in flight. Each new stream needs a new value.
#[derive(Debug, Clone)]
pub struct AgentSync {
    key: String,
    /// The revision at which the agent's key was checked when the stream began.
    since: Revision,
    /// The digest of the configuration that the agent runs, by its last answer.
    digest: String,
    /// Whether the agent has not answered the last pushed configuration yet.
    in_flight: bool,
    /// The digest of the configuration that the agent has rejected last.
    refused: Option<String>,
    /// Whether [`Push::UpToDate`] or [`Push::Config`] has been returned for this stream. Then it needs no `UpToDate`
    /// any more.
    greeted: bool,
}

impl AgentSync {
    /// Starts with the agent's Hello: the holder of `key` runs the configuration `digest` (empty: none). `since`: the
    /// revision at which the agent's key was checked. States that were compiled for earlier revisions are ignored: in
    /// them, the agent may be missing, or another agent may have its name. `key`: in the form of
    /// [`Agent::certificate_key`].
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
    /// and after each message of the agent. After [`Push::Config`] the configuration counts as in flight: the method
    /// returns no further `Config` until [`Self::applied`] or [`Self::rejected`] is called. It can return
    /// [`Push::Close`] even while a configuration is in flight; the caller then ends the stream. It returns
    /// [`Push::UpToDate`] at most once for each stream.
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
        // Until the agent answers, it is unknown whether it runs the configuration in flight or its old one. So nothing
        // is sent before its answer, even if the newest configuration equals the old one.
        if self.in_flight {
            return Push::Nothing;
        }
        if digest == self.digest {
            // `UpToDate` is sent at most once for each stream. A later revision that does not change this agent's
            // configuration needs no message.
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

    /// Records the agent's answer that it runs the configuration `digest` now (D2). A configuration that the agent has
    /// rejected before may be sent again from now on. No configuration is in flight any more; `digest` is not compared
    /// with the configuration that was sent.
    pub fn applied(&mut self, digest: &str) {
        self.in_flight = false;
        self.refused = None;
        digest.clone_into(&mut self.digest);
    }

    /// Records the agent's answer that it rejects the configuration `digest` and keeps its present one. The rejected
    /// configuration is sent again only on a new stream, or after the agent has applied or rejected another one. No
    /// configuration is in flight any more; `digest` is not compared with the configuration that was sent.
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
