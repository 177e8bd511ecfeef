//! Holds back the announcements to a neighbour for a moment after its session came back. A neighbour sends packets as
//! soon as it has received routes. The agents that receive these packets check the packets' source addresses against
//! the routes that the neighbour announces. Those routes must first spread from agent to agent. An agent drops packets
//! as spoofed if they arrive before the routes.
//!
//! A neighbour that restarts gracefully (RFC 4724) is not held back, because it kept the routes that were announced to
//! it.

use super::bird_socket::Session;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_proto::status::BgpPeerState;

/// How long announcements are held back. This time is ten times as long as routes take to spread to the last agent.
const EXPORT_HOLD: Duration = Duration::from_millis(500);

/// The state of the exports to each session that was established at least once since BIRD started. The key is the name
/// of the session's protocol.
#[derive(Debug, Clone, Default)]
pub(super) struct ExportHold {
    sessions: BTreeMap<String, Export>,
}

/// Whether routes are announced to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Export {
    Enabled,
    /// Disabled because the session is down.
    Down,
    /// Disabled until this time, although the session is up again.
    HeldUntil(Instant),
}

impl ExportHold {
    /// Updates the state of the exports from the present states of the sessions. A session that is missing from
    /// `sessions` is forgotten. Returns the commands for BIRD that enable or disable exports, in the order of the
    /// sessions' names. The new state assumes that BIRD carries them out: see [`revert`](Self::revert).
    pub(super) fn update(&mut self, sessions: &BTreeMap<String, Session>, now: Instant) -> Vec<String> {
        self.sessions.retain(|name, _| sessions.contains_key(name));
        let mut commands = Vec::new();
        for (name, session) in sessions {
            let is_up = session.state == BgpPeerState::Connected;
            let before = self.sessions.get(name).copied();
            let export = match before {
                // The first session since BIRD started is not held back. If only this agent has restarted, the other
                // agents still know the neighbour's routes.
                None if is_up => Export::Enabled,
                None => continue,
                Some(Export::Enabled) if is_up || session.restarting => Export::Enabled,
                Some(Export::HeldUntil(due)) if is_up && due <= now => Export::Enabled,
                Some(Export::Down) if is_up => Export::HeldUntil(now + EXPORT_HOLD),
                Some(held @ Export::HeldUntil(_)) if is_up => held,
                Some(_) => Export::Down,
            };
            let enabled = |export| export == Export::Enabled;
            let was_enabled = before.is_none_or(enabled);
            if was_enabled != enabled(export) {
                commands.push(command(name, !was_enabled));
            }
            self.sessions.insert(name.clone(), export);
        }
        commands
    }

    /// Undoes an update whose commands failed, so that the next update returns the commands again. `before`: the state
    /// that this value had before the update.
    pub(super) fn revert(&mut self, before: Self) {
        *self = before;
    }

    /// The commands that disable exports again after BIRD has reloaded its configuration, because a reload enables all
    /// protocols.
    pub(super) fn commands_after_reload(&self) -> Vec<String> {
        let disabled = self.sessions.iter().filter(|(_, export)| **export != Export::Enabled);
        disabled.map(|(name, _)| command(name, false)).collect()
    }

    /// The earliest time at which [`update`](Self::update) will enable the exports to a session. The time may be in the
    /// past. None: no session is held back.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = |export: &Export| match export {
            Export::HeldUntil(due) => Some(*due),
            Export::Enabled | Export::Down => None,
        };
        self.sessions.values().filter_map(due).min()
    }
}

/// The command that enables or disables the announcements to a session. The announcements come from the session's
/// static protocols `s4_…` and `s6_…`.
fn command(session: &str, enable: bool) -> String {
    let verb = if enable { "enable" } else { "disable" };
    format!("{verb} \"s?_{}\"", session.strip_prefix("n_").unwrap_or(session))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One session in the given state, by its name.
    fn sessions(state: BgpPeerState, restarting: bool) -> BTreeMap<String, Session> {
        let session = Session {
            state,
            restarting,
            ..Session::default()
        };
        BTreeMap::from([("n_x".to_owned(), session)])
    }

    #[test]
    fn a_session_that_comes_back_is_held_for_a_moment() {
        use BgpPeerState::{Connected, Connecting};
        let (mut hold, start) = (ExportHold::default(), Instant::now());
        let mut at = |state, restarting, millis| {
            let now = start + Duration::from_millis(millis);
            let commands = hold.update(&sessions(state, restarting), now);
            (commands, hold.next_due())
        };
        let none = (Vec::new(), None);
        // Announcements are not held back on the first session since BIRD started, and not on a session after a
        // graceful restart.
        assert_eq!(at(Connecting, false, 0), none);
        assert_eq!(at(Connected, false, 10), none);
        assert_eq!(at(Connecting, true, 20), none);
        assert_eq!(at(Connected, false, 30), none);
        assert_eq!(at(Connecting, false, 40), (vec!["disable \"s?_x\"".into()], None));
        assert_eq!(at(Connecting, false, 50), none);
        let due = Some(start + Duration::from_millis(560));
        assert_eq!(at(Connected, false, 60), (vec![], due));
        assert_eq!(at(Connected, false, 559), (vec![], due));
        assert_eq!(at(Connected, false, 560), (vec!["enable \"s?_x\"".into()], None));
        // The session goes down before the hold has passed, so the next hold starts anew.
        assert_eq!(at(Connecting, false, 600).0.len(), 1);
        assert_eq!(at(Connected, false, 700).0.len(), 0);
        assert_eq!(at(Connecting, false, 800), none);
        assert_eq!(
            at(Connected, false, 900),
            (vec![], Some(start + Duration::from_millis(1400)))
        );
    }

    #[test]
    fn a_command_that_failed_is_repeated() {
        let (mut hold, start) = (ExportHold::default(), Instant::now());
        let connected = sessions(BgpPeerState::Connected, false);
        hold.update(&connected, start);
        hold.update(&sessions(BgpPeerState::Connecting, false), start);
        hold.update(&connected, start);
        let (before, later) = (hold.clone(), start + EXPORT_HOLD);
        assert_eq!(hold.update(&connected, later), ["enable \"s?_x\""]);
        assert!(hold.update(&connected, later).is_empty());
        hold.revert(before);
        assert_eq!(hold.update(&connected, later), ["enable \"s?_x\""]);
    }

    #[test]
    fn a_session_that_is_no_longer_configured_is_forgotten() {
        let (mut hold, now) = (ExportHold::default(), Instant::now());
        hold.update(&sessions(BgpPeerState::Connected, false), now);
        hold.update(&sessions(BgpPeerState::Stopped, false), now);
        assert_eq!(hold.commands_after_reload(), ["disable \"s?_x\""]);
        hold.update(&BTreeMap::new(), now);
        assert!(hold.commands_after_reload().is_empty());
        assert!(hold.update(&sessions(BgpPeerState::Connecting, false), now).is_empty());
    }
}
