//! A neighbour that was gone and comes back is told nothing for a moment. It sends packets as soon as it hears of routes, and
//! whoever receives those checks their sources by the neighbour's own routes, which are on their way from agent to agent.
//!
//! Not so with one that restarts gracefully (RFC 4724): it has kept what it heard, and hears it again at once.

use super::bird_socket::Seen;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_proto::status::BgpPeerState;

/// Ten times what routes take to the last agent.
const HOLD_BACK: Duration = Duration::from_millis(500);

/// What each session hears; by the protocol's name, for those that have stood since BIRD started.
#[derive(Debug, Clone, Default)]
pub(super) struct ExportHold {
    stood: BTreeMap<String, Export>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Export {
    Everything,
    /// Nothing; the session stands again and hears everything from then on, or does not stand.
    Nothing(Option<Instant>),
}

impl ExportHold {
    /// The commands that what was seen calls for.
    pub(super) fn step(&mut self, seen: &BTreeMap<String, Seen>, now: Instant) -> Vec<String> {
        self.stood.retain(|name, _| seen.contains_key(name));
        let mut commands = Vec::new();
        for (name, seen) in seen {
            let stands = seen.state == BgpPeerState::Connected;
            let before = self.stood.get(name).copied();
            let hears = match before {
                None if stands => Export::Everything,
                None => continue,
                Some(Export::Everything) if stands || seen.restarting => Export::Everything,
                Some(Export::Nothing(Some(due))) if stands && due <= now => Export::Everything,
                Some(Export::Nothing(None)) if stands => Export::Nothing(Some(now + HOLD_BACK)),
                Some(kept @ Export::Nothing(Some(_))) if stands => kept,
                Some(_) => Export::Nothing(None),
            };
            let everything = |hears| hears == Export::Everything;
            let was = before.is_none_or(everything);
            if was != everything(hears) {
                commands.push(command(name, !was));
            }
            self.stood.insert(name.clone(), hears);
        }
        commands
    }

    /// BIRD did not carry out what this step called for: the next one calls for it again.
    pub(super) fn failed(&mut self, before: Self) {
        *self = before;
    }

    /// The commands that a BIRD which has read its configuration anew needs: it has enabled all.
    pub(super) fn again(&self) -> Vec<String> {
        let held = self.stood.iter().filter(|(_, hears)| **hears != Export::Everything);
        held.map(|(name, _)| command(name, false)).collect()
    }

    /// When the next one may hear everything.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = |hears: &Export| match hears {
            Export::Nothing(due) => *due,
            Export::Everything => None,
        };
        self.stood.values().filter_map(due).min()
    }
}

/// Has BIRD announce to a session, or not: what it announces are static protocols.
fn command(session: &str, hears: bool) -> String {
    let verb = if hears { "enable" } else { "disable" };
    format!("{verb} \"s?_{}\"", session.strip_prefix("n_").unwrap_or(session))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(state: BgpPeerState, restarting: bool) -> BTreeMap<String, Seen> {
        let one = Seen {
            state,
            restarting,
            ..Seen::default()
        };
        BTreeMap::from([("n_x".to_owned(), one)])
    }

    #[test]
    fn who_was_gone_hears_nothing_for_a_moment() {
        use BgpPeerState::{Connected, Connecting};
        let (mut held, start) = (ExportHold::default(), Instant::now());
        let mut at = |state, restarting, millis| {
            let now = start + Duration::from_millis(millis);
            let commands = held.step(&seen(state, restarting), now);
            (commands, held.due())
        };
        let none = (Vec::new(), None);
        // The first time it hears all from the beginning: it may be us who restart.
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
        // Gone again before its time.
        assert_eq!(at(Connecting, false, 600).0.len(), 1);
        assert_eq!(at(Connected, false, 700).0.len(), 0);
        assert_eq!(at(Connecting, false, 800), none);
        assert_eq!(
            at(Connected, false, 900),
            (vec![], Some(start + Duration::from_millis(1400)))
        );
    }

    #[test]
    fn what_bird_did_not_do_is_called_for_again() {
        let (mut held, start) = (ExportHold::default(), Instant::now());
        let connected = seen(BgpPeerState::Connected, false);
        held.step(&connected, start);
        held.step(&seen(BgpPeerState::Connecting, false), start);
        held.step(&connected, start);
        let (before, later) = (held.clone(), start + HOLD_BACK);
        assert_eq!(held.step(&connected, later), ["enable \"s?_x\""]);
        assert!(held.step(&connected, later).is_empty());
        held.failed(before);
        assert_eq!(held.step(&connected, later), ["enable \"s?_x\""]);
    }

    #[test]
    fn who_is_not_configured_any_more_is_forgotten() {
        let (mut held, now) = (ExportHold::default(), Instant::now());
        held.step(&seen(BgpPeerState::Connected, false), now);
        held.step(&seen(BgpPeerState::Stopped, false), now);
        assert_eq!(held.again(), ["disable \"s?_x\""]);
        held.step(&BTreeMap::new(), now);
        assert!(held.again().is_empty());
        assert!(held.step(&seen(BgpPeerState::Connecting, false), now).is_empty());
    }
}
