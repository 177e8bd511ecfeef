//! Tests the parser with replies of BIRD 2.0.12, with generated replies, and with arbitrary text.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A shortened reply of BIRD 2.0.12 to `show protocols all`.
const REPLY: &str = "\
Name       Proto      Table      State  Since         Info
n_a        BGP        ---        up     1795681816    Established   
  BGP state:          Established
    Neighbor address: 192.168.30.17
    Neighbor AS:      65021
    Last error:       Socket: Connection closed
  Channel ipv4
    State:          UP
    Routes:         2 imported, 1 filtered, 2 exported, 1 preferred
    Route change stats:     received   rejected   filtered    ignored   accepted
      Import updates:              2          0          0          0          2
  Channel ipv6
    Routes:         1 imported, 3 exported, 1 preferred

n_b        BGP        ---        start  1795681817    Active        Socket: No route to host
  BGP state:          Active
    Connect delay:    1.234/5
    Last error:       Socket: No route to host
n_c        BGP        ---        start  1795681818    Idle          Automatic shutdown: Route limit exceeded
  BGP state:          Idle
    Last error:       Automatic shutdown: Route limit exceeded
n_d        BGP        ---        start  1795681818    Idle
  BGP state:          Idle
n_e        BGP        ---        down   1795681818
n_f        BGP        ---        start  1795681819    Active        Received: Administrative reset
  BGP state:          Active
    Neighbor graceful restart active
    Restart timer:    57.123/-
";

#[test]
fn a_reply_of_bird_is_parsed() {
    use BgpPeerState::{Connected, Connecting, Idle, Stopped};
    let lines: Vec<String> = REPLY.lines().map(str::to_owned).collect();
    let sessions = parse_sessions(&lines);
    let states: Vec<_> = sessions.values().map(|s| s.state).collect();
    assert_eq!(states, [Connected, Connecting, Stopped, Idle, Stopped, Connecting]);
    let restarting = sessions.iter().filter(|(_, s)| s.restarting);
    assert_eq!(restarting.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["n_f"]);
    let expected = Session {
        state: Connected,
        since: 1_795_681_816,
        received: 3,
        sent: 5,
        last_error: Some("Socket: Connection closed".into()),
        restarting: false,
    };
    assert_eq!(sessions.get("n_a"), Some(&expected));
}

#[test]
fn lines_have_codes_or_continue_the_line_before() {
    assert_eq!(
        split_code("0001 BIRD 2.0.12 ready."),
        (Some((1, true)), "BIRD 2.0.12 ready.")
    );
    assert_eq!(
        split_code("1006-  BGP state: Up"),
        (Some((1006, false)), "  BGP state: Up")
    );
    assert_eq!(split_code("   BGP state: Up"), (None, "  BGP state: Up"));
    assert_eq!(split_code("0000 "), (Some((0, true)), ""));
    for odd in ["", "é", "1", "12é4", "9999", "9999é", "9999x", "+0001"] {
        assert_eq!(split_code(odd).0, None, "{odd}");
    }
}

/// A random session, and the counts of imported and exported routes for each family.
fn any_session() -> impl Strategy<Value = (Session, [(u32, u32); 2])> {
    use BgpPeerState::{Connected, Connecting, Idle, Stopped};
    let state = prop::sample::select(vec![Connected, Connecting, Idle, Stopped]);
    let error = prop::option::of("[a-z]{1,12}: [a-z]{1,12}");
    let session = (state, any::<u64>(), any::<[(u32, u32); 2]>(), error, any::<bool>());
    session.prop_map(|(state, since, counts, last_error, restarting)| {
        let session = Session {
            state,
            since,
            received: counts.iter().map(|(imported, _)| u64::from(*imported)).sum(),
            sent: counts.iter().map(|(_, exported)| u64::from(*exported)).sum(),
            last_error,
            restarting,
        };
        (session, counts)
    })
}

/// The lines by which BIRD shows a session. An unknown line follows each of them.
fn shown(name: &str, session: &Session, counts: [(u32, u32); 2], unknown: &str) -> Vec<String> {
    let state = match session.state {
        BgpPeerState::Connected => "up",
        BgpPeerState::Stopped => "down",
        BgpPeerState::Connecting | BgpPeerState::Idle | BgpPeerState::Unknown => "start",
    };
    let mut lines = vec![format!("{name}   BGP   ---   {state}   {}   Info", session.since)];
    if session.state == BgpPeerState::Idle {
        lines.push("  BGP state:          Idle".to_owned());
    }
    if session.restarting {
        lines.push("    Neighbor graceful restart active".to_owned());
    }
    lines.extend(session.last_error.iter().map(|e| format!("    Last error:       {e}")));
    for (imported, exported) in counts {
        lines.push(format!(
            "    Routes:         {imported} imported, {exported} exported, 1 preferred"
        ));
    }
    let with_unknown = lines.into_iter().flat_map(|l| [l, format!("    x{unknown}")]);
    with_unknown.collect()
}

proptest! {
    #[test]
    fn what_bird_shows_is_parsed(
        all in prop::collection::btree_map("n_[a-z0-9]{1,8}", any_session(), 0..5),
        unknown in "\\PC{0,60}",
    ) {
        let lines = all.iter().flat_map(|(name, (session, counts))| shown(name, session, *counts, &unknown));
        let parsed = parse_sessions(&lines.collect::<Vec<_>>());
        let expected: BTreeMap<String, Session> = all.into_iter().map(|(name, (session, _))| (name, session)).collect();
        prop_assert_eq!(parsed, expected);
    }

    /// The parser returns a session for each line of a BGP protocol and for no other line, whatever lines stand
    /// between.
    #[test]
    fn any_text_has_the_sessions_that_its_lines_name(
        lines in prop::collection::vec("\\PC{0,60}|n_[a-c] +BGP --- up [0-9]{0,25}| +Routes: +[0-9]{21,25} imported, \\PC*", 0..20)
    ) {
        let names: BTreeSet<&str> = lines
            .iter()
            .filter(|line| !line.starts_with(' '))
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
            .filter(|words| words.len() >= 5 && words[1] == "BGP")
            .map(|words| words[0])
            .collect();
        let parsed = parse_sessions(&lines);
        prop_assert_eq!(parsed.keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
        for (line, (code, text)) in lines.iter().map(|line| (line, split_code(line))) {
            match code {
                Some((code, true)) => prop_assert_eq!(line, &format!("{code:04} {text}")),
                Some((code, false)) => prop_assert_eq!(line, &format!("{code:04}-{text}")),
                None => prop_assert!(line.ends_with(text) && text.len() < line.len().max(1), "{line:?}: {text:?}"),
            }
        }
    }
}
