#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

/// An agent that owns the back end 10.0.0.9, with links to the owners of 10.0.0.1 to 10.0.0.3. All have one probe. The agent
/// `four` owns 10.0.0.4, which no rule has.
fn config(members: &[u8]) -> AgentConfig {
    let back_ends: Vec<String> = members.iter().map(|n| format!("10.0.0.{n}")).collect();
    let own = |n: u8, agent: &str| json!({"prefix": format!("10.0.0.{n}/32"), "agent": agent});
    let link = |peer: &str| {
        json!({"peer": peer, "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "alwaysOn": false,
            "initiator": false, "relation": {"type": "vnetLocal"}, "sources": [], "foreign": "none"})
    };
    serde_json::from_value(json!({
        "agent": "nine", "vnet": "/vnet", "addressSpace": ["10.0.0.0/24"], "mtu": 1420, "subnets": [],
        "role": {"type": "vm", "served": [], "nics": []},
        "spaces": [{"vnet": "/vnet", "kind": {"type": "local"}, "prefixes": ["10.0.0.0/24"],
            "owners": [own(1, "one"), own(2, "two"), own(3, "three"), own(4, "four"), own(9, "nine")]}],
        "links": [link("four"), link("one"), link("three"), link("two")],
        "frontEnds": [{"id": "/lb/front", "vnet": "/vnet", "address": "10.0.0.36", "rules": [{
            "id": "/lb/rule", "protocol": "tcp", "port": 80, "backEndPort": 80, "idleTimeoutMinutes": 4,
            "backEnds": back_ends,
            "probe": {"id": "/lb/probe", "protocol": "tcp", "port": 80, "interval": 5, "threshold": 2},
        }]}],
    }))
    .unwrap()
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn probed(n: u8) -> Probed {
    (ResourceId::new("/lb/probe"), IpAddr::from([10, 0, 0, n]))
}

const fn version(start: u64, change: u64) -> HealthVersion {
    HealthVersion { start, change }
}

/// The receiver: nothing is known yet.
fn sources() -> HealthSources {
    let mut sources = HealthSources::new(5000);
    sources.configure(&config(&[1, 2, 3, 9]));
    sources
}

/// The statement of an owner whose back ends are up or down.
fn statement(version: HealthVersion, back_ends: &[(u8, bool)]) -> Vec<u8> {
    let back_ends = back_ends.iter().map(|(n, up)| (probed(*n), *up)).collect();
    Statement::new(version, &back_ends).encode()
}

/// What the controller says: the back ends that are down, and the versions of the owners that it knows.
fn controller(down: &[u8], versions: &[(&str, HealthVersion)]) -> ControllerHealth {
    ControllerHealth {
        down: down.iter().map(|n| probed(*n)).collect(),
        versions: Some(
            versions
                .iter()
                .map(|(owner, version)| (agent(owner), *version))
                .collect(),
        ),
    }
}

/// The last bytes of the addresses that are down, while all links are up.
fn down(sources: &HealthSources) -> Vec<u8> {
    down_without(sources, &[])
}

fn down_without(sources: &HealthSources, links: &[&str]) -> Vec<u8> {
    let links = links.iter().map(|peer| agent(peer)).collect();
    let last = |(_, address): &Probed| match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    };
    sources.unhealthy(&links).iter().map(last).collect()
}

#[test]
fn d36_the_newest_statement_of_an_owner_counts() {
    let mut sources = sources();
    assert!(down(&sources).is_empty(), "a back end of which nothing is known is up");
    // Without a word of the controller, only links tell.
    sources
        .receive(&agent("one"), &statement(version(100, 2), &[(1, false)]))
        .unwrap();
    assert_eq!(down_without(&sources, &["one"]), [1]);
    for (reported, is_up) in [
        // The controller has an older report, the same one, and a newer one.
        (version(100, 1), false),
        (version(100, 2), false),
        (version(100, 3), true),
        // The owner has restarted since, or the controller has not heard of the last start yet.
        (version(200, 1), true),
        (version(90, 7), false),
    ] {
        sources.set_reported(controller(&[], &[("one", reported)]));
        for links in [&[][..], &["one"]] {
            assert_eq!(
                down_without(&sources, links).is_empty(),
                is_up,
                "{reported:?}, down: {links:?}"
            );
        }
    }
    // The same with what they say exchanged.
    sources
        .receive(&agent("one"), &statement(version(100, 4), &[(1, true)]))
        .unwrap();
    sources.set_reported(controller(&[1], &[("one", version(100, 3))]));
    assert!(down(&sources).is_empty());
    sources.set_reported(controller(&[1], &[("one", version(100, 5))]));
    assert_eq!(down(&sources), [1]);
    // A back end of which the statement tells nothing.
    sources
        .receive(&agent("one"), &statement(version(100, 6), &[]))
        .unwrap();
    assert_eq!(down(&sources), [1]);
}

#[test]
fn d36_a_controller_or_an_owner_of_an_earlier_version_is_understood() {
    let mut sources = sources();
    sources
        .receive(&agent("one"), &statement(version(100, 2), &[(1, false)]))
        .unwrap();
    sources
        .receive(&agent("two"), &statement(version(100, 2), &[(2, true)]))
        .unwrap();
    // A controller that passes no versions on: what it says counts while the link is down.
    sources.set_reported(ControllerHealth {
        down: [probed(2), probed(3)].into(),
        versions: None,
    });
    assert_eq!(down(&sources), [1, 3]);
    assert_eq!(down_without(&sources, &["one", "two"]), [2, 3]);
    // An owner that was replaced by an earlier version states nothing any more.
    sources.set_reported(controller(&[2], &[("one", version(0, 0)), ("two", version(0, 0))]));
    assert_eq!(
        down(&sources),
        [2, 3],
        "of the owner of 3, this controller has no report"
    );
}

#[test]
fn d36_a_controller_that_has_restarted_makes_nothing_forgotten() {
    let mut sources = sources();
    sources
        .receive(&agent("one"), &statement(version(100, 2), &[(1, true)]))
        .unwrap();
    sources.set_reported(controller(
        &[1, 2, 3],
        &[
            ("one", version(100, 3)),
            ("two", version(100, 1)),
            ("three", version(0, 0)),
        ],
    ));
    assert_eq!(down(&sources), [1, 2, 3]);
    // The new controller has no report of the owners yet, then that of the second one.
    sources.set_reported(controller(&[], &[]));
    assert_eq!(down(&sources), [1, 2, 3]);
    sources.set_reported(controller(&[], &[("two", version(100, 1))]));
    assert_eq!(down(&sources), [1, 3]);
}

#[test]
fn d36_an_agent_is_believed_about_its_own_back_ends_only() {
    let mut sources = sources();
    sources.set_own([(probed(9), true)].into());
    let about_all = statement(
        version(u64::MAX, u64::MAX),
        &[(1, false), (2, false), (3, true), (9, false)],
    );
    sources.receive(&agent("one"), &about_all).unwrap();
    assert_eq!(down(&sources), [1]);
    assert_eq!(sources.ignored(), 3);
    // An agent that owns no back end, and one that is no peer.
    for stranger in ["four", "five"] {
        sources.receive(&agent(stranger), &about_all).unwrap();
    }
    assert_eq!(
        (down(&sources), sources.ignored(), sources.stated.len()),
        (vec![1], 11, 1)
    );
    // The own probes count more than what others say.
    sources.set_own([(probed(9), false)].into());
    sources.set_reported(controller(
        &[],
        &[("nine", version(u64::MAX, 0)), ("one", version(1, 1))],
    ));
    assert_eq!(down(&sources), [1, 9]);
}

#[test]
fn d36_a_statement_also_applies_to_back_ends_that_come_later() {
    let mut sources = HealthSources::new(1);
    sources.configure(&config(&[1]));
    sources
        .receive(&agent("one"), &statement(version(1, 1), &[(1, false), (7, false)]))
        .unwrap();
    sources
        .receive(&agent("two"), &statement(version(1, 1), &[(2, false)]))
        .unwrap();
    assert_eq!(down(&sources), [1]);
    // The rule has no back ends for a while. What was stated before is forgotten then, because links forget it too.
    sources.configure(&config(&[]));
    sources.configure(&config(&[1, 2]));
    assert!(down(&sources).is_empty());
    sources
        .receive(&agent("one"), &statement(version(1, 1), &[(1, false)]))
        .unwrap();
    sources.configure(&config(&[1, 2, 3]));
    assert_eq!(down(&sources), [1]);
}

#[test]
fn d36_own_changes_are_numbered_and_stated() {
    let mut owner = HealthSources::new(700);
    owner.set_own(BTreeMap::new());
    assert!(
        owner.statement().is_none() && owner.version().is_none(),
        "it has no back end"
    );
    let mut receiver = sources();
    for (change, up) in [(1, false), (2, true), (3, false)] {
        for _ in 0..2 {
            owner.set_own([(probed(1), up)].into());
        }
        assert_eq!(owner.version(), Some(version(700, change)));
        receiver.receive(&agent("one"), &owner.statement().unwrap()).unwrap();
        assert_eq!(down(&receiver).is_empty(), up);
    }
    // The last back end leaves: the statement says that it is not known any more.
    owner.set_own(BTreeMap::new());
    receiver.receive(&agent("one"), &owner.statement().unwrap()).unwrap();
    assert!(down(&receiver).is_empty());
}

#[test]
fn d36_malformed_statements_change_nothing() {
    let mut sources = sources();
    let good = statement(version(1, 1), &[(1, false), (2, true)]);
    sources.receive(&agent("one"), &good).unwrap();
    let entry = &good[HEADER..HEADER + 9];
    let twice = [&good[..HEADER], entry, entry].concat();
    let reversed = [&good[..HEADER], &good[HEADER + 9..], entry].concat();
    let mut other_format = good.clone();
    other_format[0] = 2;
    let mut other_state = good.clone();
    other_state[HEADER + 8] = 2;
    for bytes in [
        twice,
        reversed,
        other_format,
        other_state,
        [good.clone(), vec![0]].concat(),
    ] {
        assert_eq!(
            sources.receive(&agent("one"), &bytes),
            Err(MalformedStatement),
            "{bytes:?}"
        );
    }
    // A statement that ends after a whole entry is complete.
    for len in (0..good.len()).filter(|len| *len < HEADER || !(len - HEADER).is_multiple_of(9)) {
        assert_eq!(
            sources.receive(&agent("one"), &good[..len]),
            Err(MalformedStatement),
            "{len}"
        );
    }
    assert_eq!(down(&sources), [1], "the earlier statement stays");
}

proptest! {
    /// Bytes that are read as a statement are exactly those that the statement is sent as.
    #[test]
    fn d36_no_bytes_do_harm(
        mut bytes in vec(any::<u8>(), 0..200),
        entries in vec((any::<u64>(), 0u8..3), 0..8),
        is_near in any::<bool>(),
    ) {
        if is_near {
            bytes.truncate(HEADER);
            bytes.resize(HEADER, 0);
            bytes[0] = 1;
            for (number, state) in entries {
                bytes.extend(number.to_be_bytes());
                bytes.push(state);
            }
        }
        let mut sources = sources();
        if sources.receive(&agent("one"), &bytes).is_ok() {
            prop_assert_eq!(sources.stated[&agent("one")].encode(), bytes);
        }
        prop_assert!(down(&sources).len() <= 1);
    }
}

/// The length of a statement without back ends.
const HEADER: usize = 17;

#[test]
fn d36_the_longest_statement_is_read_and_a_longer_one_is_not() {
    let all: BTreeMap<Probed, bool> = (0..=MAX_BACK_ENDS as u32)
        .map(|n| {
            (
                (ResourceId::new("/lb/probe"), IpAddr::from(n.to_be_bytes())),
                n % 2 == 0,
            )
        })
        .collect();
    let bytes = Statement::new(version(1, 1), &all).encode();
    assert_eq!(bytes.len(), MAX_STATEMENT_LEN);
    assert_eq!(Statement::decode(&bytes).unwrap().encode(), bytes);
    let longer = [bytes, vec![0xff; 8], vec![0]].concat();
    assert_eq!(Statement::decode(&longer), Err(MalformedStatement));
}

/// Agents of different versions must give a back end the same number. The letters of ids have no case.
#[test]
fn d36_the_numbers_of_back_ends_do_not_change() {
    let statement = statement(version(0x0102, 3), &[(1, true)]);
    let text: String = statement.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(text, "0100000000000001020000000000000003ec19341c3c4602b601");
    let upper = (ResourceId::new("/LB/Probe"), probed(1).1);
    assert_eq!(statement::number(&upper), statement::number(&probed(1)));
}
