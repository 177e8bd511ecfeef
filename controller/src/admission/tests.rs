use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::time::Duration;

fn ip(n: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + n).into()
}

fn agent(n: u32) -> AgentId {
    AgentId::new(format!("agent-{n}")).unwrap()
}

/// Small limits, which a test reaches with few connections.
fn small() -> Limits {
    let part = |timeout| Unauthenticated {
        silent: Share {
            per_holder: 4,
            total: 8,
        },
        handshake: Share {
            per_holder: 3,
            total: 6,
        },
        strangers: Share {
            per_holder: 2,
            total: 4,
        },
        handshake_timeout: Duration::from_secs(timeout),
    };
    Limits {
        total: 40,
        open: part(3),
        reserved: part(10),
        bearers: 5,
        per_agent: 2,
        body_bytes: 1000,
        key_exchanges: Rate {
            burst: 3,
            per_second: 2,
        },
        key_exchanges_per_agent: Rate {
            burst: 2,
            per_second: 1,
        },
    }
}

/// Accepts a connection that must be admitted.
fn accept(admission: &mut Admission, from: IpAddr, now: Instant) -> (Id, Option<Id>) {
    let admitted = admission.accept(from, now);
    assert!(admitted.evicted.len() <= 1);
    (admitted.id.expect("admitted"), admitted.evicted.first().copied())
}

/// A connection that is brought to a stage.
fn bring(admission: &mut Admission, from: IpAddr, stage: &Stage, now: Instant) -> Id {
    let (id, evicted) = accept(admission, from, now);
    evicted.into_iter().for_each(|e| admission.closed(e));
    if *stage == Stage::Silent {
        return id;
    }
    let evicted = admission.client_hello_received(id);
    evicted.into_iter().for_each(|e| admission.closed(e));
    match stage {
        Stage::Silent | Stage::Handshake => {}
        Stage::Stranger => drop(admission.handshake_completed(id, None, now)),
        Stage::Bearer => {
            admission.handshake_completed(id, None, now);
            admission.request_started(id, now);
            admission.authorized(id, now);
            admission.request_ended(id, true, now);
        }
        Stage::Agent(agent) => drop(admission.handshake_completed(id, Some(agent), now)),
    }
    assert_eq!(admission.stage(id), Some(stage));
    id
}

#[test]
fn a_newcomer_displaces_the_oldest_of_its_address() {
    let now = Instant::now();
    let mut admission = Admission::new(small());
    let first = bring(&mut admission, ip(1), &Stage::Silent, now);
    for _ in 0..3 {
        assert_eq!(accept(&mut admission, ip(1), now).1, None);
    }
    assert_eq!(accept(&mut admission, ip(1), now).1, Some(first));
    assert_eq!(admission.stage(first), None);
    // The evicted connection counts as closing until its socket is closed.
    assert_eq!(admission.counts().closing, 1);
    admission.closed(first);
    assert_eq!(admission.counts().closing, 0);
}

#[test]
fn a_newcomer_displaces_a_connection_of_the_address_that_has_the_most() {
    let now = Instant::now();
    let mut admission = Admission::new(small());
    let honest = bring(&mut admission, ip(9), &Stage::Silent, now);
    for address in [1, 2] {
        for _ in 0..3 {
            accept(&mut admission, ip(address), now);
        }
    }
    accept(&mut admission, ip(3), now);
    for n in 0..20 {
        let (id, evicted) = accept(&mut admission, ip(1 + n % 2), now);
        assert!(evicted.is_some_and(|e| e != honest && e != id));
        admission.closed(evicted.unwrap());
    }
    assert_eq!(admission.stage(honest), Some(&Stage::Silent));
}

#[test]
fn a_flood_in_one_stage_leaves_the_others_alone() {
    let now = Instant::now();
    for flooded in [Stage::Silent, Stage::Handshake, Stage::Stranger] {
        let mut admission = Admission::new(small());
        let others: Vec<Id> = [Stage::Silent, Stage::Handshake, Stage::Stranger]
            .iter()
            .filter(|s| **s != flooded)
            // The connections in the other stages have the attacker's address too, so they would be the first to be
            // displaced.
            .map(|s| bring(&mut admission, ip(1), s, now))
            .collect();
        for _ in 0..50 {
            let id = bring(&mut admission, ip(1), &Stage::Silent, now);
            let held = admission.stage(id).is_some();
            assert!(held);
            // The flood passes the earlier stages at once.
            if flooded != Stage::Silent {
                admission.client_hello_received(id);
            }
            if flooded == Stage::Stranger {
                admission.handshake_completed(id, None, now);
            }
        }
        for id in others {
            assert!(admission.stage(id).is_some(), "{flooded:?}");
        }
    }
}

#[test]
fn strangers_do_not_displace_connections_of_agents_addresses() {
    let now = Instant::now();
    let mut admission = Admission::new(small());
    admission.add_agent_address(&agent(1), ip(1).into());
    let back = bring(&mut admission, ip(1), &Stage::Handshake, now);
    for n in 0..1000 {
        let id = bring(&mut admission, ip(100 + n), &Stage::Handshake, now);
        assert_ne!(id, back);
    }
    assert_eq!(admission.stage(back), Some(&Stage::Handshake));
    assert!(admission.is_reserved(ip(1)) && !admission.is_reserved(ip(2)));
    assert!(admission.is_reserved(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    assert!(admission.is_reserved(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()));
}

#[test]
fn agents_displace_only_their_own_connections() {
    let now = Instant::now();
    let mut admission = Admission::new(small());
    let (a, b) = (Stage::Agent(agent(1)), Stage::Agent(agent(2)));
    let first = bring(&mut admission, ip(1), &a, now);
    let other = bring(&mut admission, ip(1), &b, now);
    let second = bring(&mut admission, ip(1), &a, now);
    let (third, _) = accept(&mut admission, ip(1), now);
    admission.client_hello_received(third);
    assert_eq!(admission.handshake_completed(third, Some(&agent(1)), now), Some(first));
    for id in [other, second, third] {
        assert!(admission.stage(id).is_some());
    }
}

#[test]
fn a_full_port_gives_up_strangers_and_then_refuses() {
    let now = Instant::now();
    let limits = Limits { total: 3, ..small() };
    let mut admission = Admission::new(limits);
    bring(&mut admission, ip(1), &Stage::Agent(agent(1)), now);
    bring(&mut admission, ip(2), &Stage::Agent(agent(2)), now);
    let stranger = bring(&mut admission, ip(3), &Stage::Stranger, now);
    let (id, evicted) = accept(&mut admission, ip(4), now);
    assert_eq!(evicted, Some(stranger));
    admission.closed(stranger);
    admission.client_hello_received(id);
    admission.handshake_completed(id, Some(&agent(3)), now);
    let refused = Admitted {
        id: None,
        evicted: Vec::new(),
    };
    assert_eq!(admission.accept(ip(5), now), refused);
    assert_eq!(admission.counts().closed[0][0], 1);
}

/// One new connection can evict two others; both are returned, so that the caller closes their sockets.
#[test]
fn a_newcomer_may_cost_two_connections() {
    let now = Instant::now();
    let limits = Limits { total: 6, ..small() };
    let mut admission = Admission::new(limits);
    admission.add_agent_address(&agent(1), ip(1).into());
    let first = bring(&mut admission, ip(1), &Stage::Silent, now);
    for _ in 0..3 {
        bring(&mut admission, ip(1), &Stage::Silent, now);
    }
    let strangers = [2, 3].map(|n| bring(&mut admission, ip(n), &Stage::Silent, now));
    let admitted = admission.accept(ip(1), now);
    assert_eq!(admitted.evicted, [strangers[0], first]);
}

#[test]
fn sockets_that_are_not_closed_yet_count() {
    let now = Instant::now();
    let limits = Limits { total: 8, ..small() };
    let mut admission = Admission::new(limits);
    let mut kept = 0;
    for n in 0..1000 {
        kept += usize::from(admission.accept(ip(n), now).id.is_some());
    }
    assert_eq!(kept, 8 + MAX_CLOSING);
}

#[test]
fn every_stage_has_its_time() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut admission = Admission::new(small());
    admission.add_agent_address(&agent(7), ip(7).into());
    let silent = bring(&mut admission, ip(1), &Stage::Silent, start);
    let half = bring(&mut admission, ip(1), &Stage::Handshake, start);
    let known = bring(&mut admission, ip(7), &Stage::Handshake, start);
    let stranger = bring(&mut admission, ip(1), &Stage::Stranger, start);
    let slow = bring(&mut admission, ip(2), &Stage::Stranger, start);
    admission.request_started(slow, start);
    let bearer = bring(&mut admission, ip(1), &Stage::Bearer, start);
    let idle = bring(&mut admission, ip(1), &Stage::Agent(agent(1)), start);
    let busy = bring(&mut admission, ip(1), &Stage::Agent(agent(2)), start);
    admission.request_started(busy, start);
    let long = bring(&mut admission, ip(1), &Stage::Bearer, start);
    admission.request_started(long, start);
    admission.authorized(long, start);

    assert_eq!(admission.next_deadline(), Some(at(3)));
    assert_eq!(admission.expire(at(2)), []);
    assert_eq!(admission.expire(at(3)), [silent, half]);
    assert_eq!(admission.expire(at(10)), [known, stranger]);
    assert_eq!(admission.expire(at(15)), [slow]);
    assert_eq!(admission.expire(at(60)), [bearer, idle]);
    assert_eq!(admission.expire(at(6000)), []);
    assert_eq!(admission.next_deadline(), None);
    admission.request_ended(busy, false, at(6000));
    admission.request_ended(long, true, at(6000));
    assert_eq!(admission.expire(at(6060)), [busy, long]);
    assert_eq!(admission.counts().open, [0; 5]);
}

/// [`IDLE_TIMEOUT`] after its last request with a token, a connection is subject to the limits of strangers again.
#[test]
fn a_bearer_that_shows_no_token_becomes_a_stranger() {
    let start = Instant::now();
    let mut admission = Admission::new(small());
    let id = bring(&mut admission, ip(1), &Stage::Bearer, start);
    for seconds in (10..=60).step_by(10) {
        let now = start + Duration::from_secs(seconds);
        admission.request_started(id, now);
        admission.request_ended(id, false, now);
        assert_eq!(admission.stage(id), Some(&Stage::Bearer));
    }
    let now = start + Duration::from_secs(61);
    admission.request_started(id, now);
    assert_eq!(admission.stage(id), Some(&Stage::Stranger));
    admission.authorized(id, now);
    assert_eq!(admission.stage(id), Some(&Stage::Bearer));
}

#[test]
fn the_address_that_holds_the_most_bytes_loses_a_connection() {
    let now = Instant::now();
    let mut admission = Admission::new(small());
    let honest = bring(&mut admission, ip(1), &Stage::Stranger, now);
    let a = bring(&mut admission, ip(2), &Stage::Stranger, now);
    let b = bring(&mut admission, ip(2), &Stage::Stranger, now);
    assert_eq!(admission.body_received(a, 450), []);
    assert_eq!(admission.body_received(b, 350), []);
    assert_eq!(admission.body_received(honest, 200), []);
    assert_eq!(admission.body_received(honest, 1), [a]);
    assert_eq!(admission.counts().body_bytes, 551);
    admission.body_released(honest, 201);
    admission.closed(b);
    assert_eq!(admission.counts().body_bytes, 0);
    // If the eviction of one connection does not free enough bytes, a second one is evicted too.
    let mut admission = Admission::new(small());
    let [a, b, c, d] = [2, 2, 3, 4].map(|n| bring(&mut admission, ip(n), &Stage::Stranger, now));
    for (id, bytes) in [(a, 310), (b, 290), (c, 390)] {
        assert_eq!(admission.body_received(id, bytes), []);
    }
    assert_eq!(admission.body_received(d, 399), [a, d]);
    assert_eq!(admission.counts().body_bytes, 680);
}

#[test]
fn the_last_addresses_of_an_agent_are_known() {
    let mut admission = Admission::new(small());
    for n in 0..10 {
        admission.add_agent_address(&agent(1), ip(n).into());
        admission.add_agent_address(&agent(1), ip(n).into());
    }
    let known: Vec<u32> = (0..10).filter(|n| admission.is_reserved(ip(*n))).collect();
    assert_eq!(known, [6, 7, 8, 9]);
    admission.add_agent_address(&agent(2), ip(9).into());
    for n in 20..30 {
        admission.add_agent_address(&agent(1), ip(n).into());
    }
    assert!(admission.is_reserved(ip(9)), "another agent is there");
    assert!(!admission.is_reserved(ip(8)));
}

/// If an address begins more key exchanges than its rate allows, they are first delayed. When the delay would be too
/// long, the address's connections are closed, and further ones are refused. Other addresses are not affected, and
/// addresses of agents have a higher rate.
#[test]
fn an_address_gets_key_exchanges_at_a_limited_rate() {
    let now = Instant::now();
    let mut admission = Admission::new(small());
    let waits = |admission: &mut Admission, from, times, now| {
        let ask = |_| {
            let id = bring(admission, from, &Stage::Handshake, now);
            admission.begin_key_exchange(id, now).map(|wait| wait.as_millis())
        };
        (0..times).map(ask).collect::<Vec<_>>()
    };
    let first = bring(&mut admission, ip(1), &Stage::Silent, now);
    assert_eq!(waits(&mut admission, ip(1), 5, now), [0, 0, 0, 500, 1000].map(Some));
    // `first` was admitted while its address was below its rate limit, so it is evicted only when it begins a key
    // exchange.
    admission.client_hello_received(first);
    assert_eq!(admission.begin_key_exchange(first, now), None);
    assert_eq!(admission.stage(first), None);
    admission.closed(first);
    let refused = admission.accept(ip(1), now);
    assert_eq!((refused.id, refused.evicted.len()), (None, 0));
    assert_eq!(
        admission.counts().closed[Stage::Handshake.index()][CloseReason::Rate.index()],
        1
    );
    assert_eq!(
        admission.counts().closed[Stage::Silent.index()][CloseReason::Rate.index()],
        1
    );
    let later = now + Duration::from_secs(1);
    assert_eq!(waits(&mut admission, ip(1), 2, later), [500, 1000].map(Some));
    // This host has no rate limit, an address of agents has a higher one, and other addresses are not affected.
    assert!(
        waits(&mut admission, Ipv4Addr::LOCALHOST.into(), 50, now)
            .iter()
            .all(|w| *w == Some(0))
    );
    admission.add_agent_address(&agent(1), ip(2).into());
    admission.add_agent_address(&agent(2), ip(2).into());
    assert_eq!(
        waits(&mut admission, ip(2), 8, now),
        [0, 0, 0, 0, 0, 0, 0, 250].map(Some)
    );
    assert_eq!(waits(&mut admission, ip(3), 3, now), [0, 0, 0].map(Some));
}

#[test]
fn an_ipv6_host_is_one_address() {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(address("2001:db8:1:2::1"), address("2001:db8:1:2:ffff::9"));
    assert_ne!(address("2001:db8:1:2::1"), address("2001:db8:1:3::1"));
    assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    assert_ne!(address("::ffff:192.0.2.1"), address("::ffff:192.0.2.2"));
    assert_eq!(address("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
}

#[test]
fn the_limits_fit_the_file_descriptors() {
    for descriptors in [0, 256, 512, 1024, 4096, 20_000, 65_536, 1 << 20] {
        let limits = Limits::for_descriptors(descriptors);
        let parts = [limits.open, limits.reserved];
        let sum: usize = parts
            .iter()
            .map(|p| p.silent.total + p.handshake.total + p.strangers.total)
            .sum();
        assert!(sum <= (limits.total / 2).max(28), "{descriptors}: {limits:?}");
        assert!(sum <= 7168, "memory");
        assert!(descriptors < 512 || limits.total + limits::RESERVED_DESCRIPTORS <= descriptors);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Accept(u32),
    Greet(usize),
    Secure(usize, Option<u32>),
    Begin(usize),
    Authorize(usize),
    End(usize),
    Hold(usize, usize),
    Close(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..200_usize;
    prop_oneof![
        6 => (0..12_u32).prop_map(Step::Accept),
        4 => which.clone().prop_map(Step::Greet),
        4 => (which.clone(), prop::option::weighted(0.3, 0..4_u32)).prop_map(|(n, a)| Step::Secure(n, a)),
        2 => which.clone().prop_map(Step::Begin),
        2 => which.clone().prop_map(Step::Authorize),
        2 => which.clone().prop_map(Step::End),
        1 => (which.clone(), 1..400_usize).prop_map(|(n, b)| Step::Hold(n, b)),
        2 => which.prop_map(Step::Close),
        1 => (0..20_u64).prop_map(Step::Pass),
    ]
}

/// A connection that the test has opened and not closed yet.
struct Known {
    id: Id,
    ip: IpAddr,
    /// For each open request, whether it is authorized.
    requests: Vec<bool>,
}

proptest! {
    /// In every order of events, the limits hold and the counters add up. A stranger displaces no authenticated
    /// connection. While the port is not full, no address loses a connection to a newcomer while another address has
    /// more connections in the same pool.
    #[test]
    fn limits_hold_and_the_small_are_spared(steps in prop::collection::vec(step(), 1..400)) {
        // The port is full before its pools are.
        let limits = Limits { total: 24, ..small() };
        let mut admission = Admission::new(limits);
        let mut given_up = HashSet::new();
        let mut now = Instant::now();
        let mut all: Vec<Known> = Vec::new();
        for step in steps {
            let before: HashMap<Id, (Stage, Address, bool)> = admission
                .connections
                .iter()
                .map(|(id, e)| (*id, (e.place.stage.clone(), e.place.address, e.place.reserved)))
                .collect();
            let count = all.len();
            let pick = move |n: usize| n.checked_rem(count).unwrap_or(0);
            let mut by_bytes = false;
            let mut newcomer = None;
            let evicted: Vec<Id> = match step {
                Step::Accept(n) => {
                    let admitted = admission.accept(ip(n), now);
                    if let Some(id) = admitted.id {
                        all.push(Known { id, ip: ip(n), requests: Vec::new() });
                        newcomer = Some(id);
                    }
                    admitted.evicted
                }
                _ if all.is_empty() => Vec::new(),
                Step::Greet(n) => {
                    let known = &all[pick(n)];
                    newcomer = Some(known.id);
                    match admission.stage(known.id) {
                        Some(Stage::Silent) => admission.client_hello_received(known.id).into_iter().collect(),
                        _ => Vec::new(),
                    }
                }
                Step::Secure(n, who) => {
                    let known = &all[pick(n)];
                    newcomer = Some(known.id);
                    match admission.stage(known.id) {
                        Some(Stage::Handshake) => {
                            let who = who.map(agent);
                            admission.handshake_completed(known.id, who.as_ref(), now).into_iter().collect()
                        }
                        _ => Vec::new(),
                    }
                }
                Step::Begin(n) => {
                    let known = &mut all[pick(n)];
                    newcomer = Some(known.id);
                    match admission.stage(known.id) {
                        Some(Stage::Stranger | Stage::Bearer | Stage::Agent(_)) => {
                            known.requests.push(false);
                            admission.request_started(known.id, now).into_iter().collect()
                        }
                        _ => Vec::new(),
                    }
                }
                Step::Authorize(n) => {
                    let known = &mut all[pick(n)];
                    newcomer = Some(known.id);
                    match known.requests.iter_mut().find(|r| !**r) {
                        Some(request) => {
                            *request = true;
                            admission.authorized(known.id, now).into_iter().collect()
                        }
                        None => Vec::new(),
                    }
                }
                Step::End(n) => {
                    let known = &mut all[pick(n)];
                    if let Some(authorized) = known.requests.pop() {
                        admission.request_ended(known.id, authorized, now);
                    }
                    Vec::new()
                }
                Step::Hold(n, bytes) => {
                    by_bytes = true;
                    admission.body_received(all[pick(n)].id, bytes)
                }
                Step::Close(n) => {
                    let known = all.swap_remove(pick(n));
                    admission.closed(known.id);
                    Vec::new()
                }
                Step::Pass(seconds) => {
                    now += Duration::from_secs(seconds);
                    given_up.extend(admission.expire(now));
                    prop_assert!(admission.next_deadline().is_none_or(|at| at > now));
                    Vec::new()
                }
            };
            let full = before.len() >= limits.total;
            prop_assert!(evicted.len() <= 1 + usize::from(full));
            given_up.extend(evicted.iter().copied());
            prop_assert!(admission.closing.is_subset(&given_up), "the caller has been told to close them");
            for id in evicted {
                prop_assert!(admission.stage(id).is_none());
                prop_assert!(Some(id) != newcomer, "a new connection is never the displaced one");
                let (stage, address, reserved) = before[&id].clone();
                match (newcomer.and_then(|id| admission.stage(id)), by_bytes) {
                    // A connection that shows a token displaces only a connection that has shown one. A connection of
                    // an agent displaces only a connection of the same agent. All others displace only unauthenticated
                    // connections.
                    (_, true) => {}
                    (Some(Stage::Bearer), _) => prop_assert_eq!(&stage, &Stage::Bearer),
                    (Some(Stage::Agent(agent)), _) => prop_assert_eq!(&stage, &Stage::Agent(agent.clone())),
                    (_, _) => prop_assert!(matches!(stage, Stage::Silent | Stage::Handshake | Stage::Stranger)),
                }
                if matches!(stage, Stage::Silent | Stage::Handshake | Stage::Stranger) && !by_bytes && !full {
                    // The address of the displaced connection had the most connections of all addresses in the pool,
                    // the new connection included.
                    let held = |of: Address| {
                        before.values().filter(|(s, a, r)| (s, a, r) == (&stage, &of, &reserved)).count()
                    };
                    let most = before.values().map(|(_, a, _)| held(*a)).max().unwrap_or(0);
                    let same = newcomer.and_then(|id| all.iter().find(|k| k.id == id)).map(|k| Address::from(k.ip));
                    prop_assert!(held(address) + usize::from(same == Some(address)) >= most);
                }
            }
            for (pools, limits) in [(&admission.pools.open, limits.open), (&admission.pools.reserved, limits.reserved)] {
                for (pool, share) in [
                    (&pools.silent, limits.silent),
                    (&pools.handshake, limits.handshake),
                    (&pools.strangers, limits.strangers),
                ] {
                    prop_assert!(pool.len() <= share.total);
                    prop_assert!(pool.largest().is_none_or(|(_, n)| n <= share.per_holder));
                    let holders = (0..12).map(|n| pool.held(&ip(n).into())).sum::<usize>();
                    prop_assert_eq!(pool.len(), holders);
                }
            }
            prop_assert!(admission.pools.bearers.len() <= limits.bearers);
            prop_assert!(admission.connections.len() <= limits.total);
            prop_assert!(admission.counts.body_bytes <= limits.body_bytes);
            let counts = admission.counts();
            prop_assert_eq!(counts.open.iter().sum::<usize>(), admission.connections.len());
            prop_assert_eq!(counts.body_bytes, admission.connections.values().map(|e| e.bytes).sum::<usize>());
        }
        for known in all {
            admission.closed(known.id);
        }
        prop_assert_eq!(admission.connections.len() + admission.closing.len() + admission.deadlines.len(), 0);
        prop_assert_eq!(admission.counts().open, [0; 5]);
        prop_assert_eq!(admission.counts().body_bytes, 0);
    }
}

#[test]
fn a_stranger_that_downloads_a_package_gets_more_time() {
    let mut admission = Admission::new(small());
    let now = Instant::now();
    let id = bring(&mut admission, ip(1), &Stage::Stranger, now);
    admission.request_started(id, now);
    admission.download_started(id, now);
    assert_eq!(admission.expire(now + STRANGER_REQUEST_TIMEOUT), []);
    // After the download, the idle timeout of strangers applies again.
    let later = now + STRANGER_REQUEST_TIMEOUT;
    admission.download_ended(id);
    admission.request_ended(id, false, later);
    assert_eq!(admission.expire(later + STRANGER_IDLE_TIMEOUT), [id]);

    let id = bring(&mut admission, ip(2), &Stage::Stranger, now);
    admission.request_started(id, now);
    admission.download_started(id, now);
    assert_eq!(admission.expire(now + DOWNLOAD_TIMEOUT), [id], "but not for ever");
}
