#![allow(clippy::disallowed_methods, reason = "the clock is the test's")]

use super::*;

/// Runs both ends for `steps` of 50 ms. `lost` decides for each message whether it is lost. Returns the tables that `b`
/// passed on.
fn run(
    a: &mut TableSync,
    b: &mut TableSync,
    now: &mut Instant,
    steps: u32,
    mut lost: impl FnMut() -> bool,
) -> Vec<Vec<u8>> {
    let mut taken = Vec::new();
    for _ in 0..steps {
        let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
        let mut stats = AdvertisementStats::default();
        a.poll_messages(*now, &mut |m| to_b.push(m.to_vec()));
        for m in to_b.iter().filter(|_| !lost()) {
            b.receive(m, *now, &mut stats);
            taken.extend(b.next_table(*now, &mut stats));
        }
        taken.extend(b.next_table(*now, &mut stats));
        b.poll_messages(*now, &mut |m| to_a.push(m.to_vec()));
        for m in to_a.iter().filter(|_| !lost()) {
            a.receive(m, *now, &mut stats);
            assert_eq!(a.next_table(*now, &mut stats), None);
        }
        assert_eq!((stats.refused, stats.malformed), (0, 0));
        *now += Duration::from_millis(50);
    }
    taken
}

/// Creates an end that accepts routes.
fn receiver() -> TableSync {
    let mut receiver = TableSync::of_routes();
    receiver.accept(true);
    receiver
}

fn table(len: usize, seed: u8) -> Arc<[u8]> {
    (0..len)
        .map(|n| (n as u8).wrapping_mul(31) ^ seed)
        .collect::<Vec<_>>()
        .into()
}

#[test]
fn a_table_arrives_whole_and_once_and_then_there_is_silence() {
    let (mut a, mut b, mut now) = (TableSync::of_routes(), receiver(), Instant::now());
    for len in [0, 1, FRAGMENT_LEN, FRAGMENT_LEN + 1, 300 * FRAGMENT_LEN] {
        let table = table(len, 7);
        a.advertise(table.clone());
        assert_eq!(run(&mut a, &mut b, &mut now, 40, || false), [table.to_vec()]);
        let mut said = 0;
        for _ in 0..20 {
            a.poll_messages(now, &mut |_| panic!("it was confirmed"));
            b.poll_messages(now, &mut |_| said += 1);
            now += Duration::from_millis(50);
        }
        assert!(said <= 2, "{said}");
    }
}

#[test]
fn half_of_all_messages_lost_is_no_obstacle() {
    let (mut a, mut b, mut now) = (TableSync::of_routes(), receiver(), Instant::now());
    let mut seed = 1u64;
    let mut lost = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 63 == 1
    };
    a.advertise(table(10 * FRAGMENT_LEN, 1));
    let taken = run(&mut a, &mut b, &mut now, 1000, &mut lost);
    assert_eq!(taken, [table(10 * FRAGMENT_LEN, 1).to_vec()]);
    assert_eq!(a.confirmed, a.advertised.as_ref().map(|m| m.0));
}

#[test]
fn an_end_that_restarts_is_told_again_and_a_newer_table_replaces_the_older() {
    let (mut a, mut b, mut now) = (TableSync::of_routes(), receiver(), Instant::now());
    a.advertise(table(5000, 1));
    run(&mut a, &mut b, &mut now, 10, || false);
    // The receiver restarts. Its confirmations then show that it has no table, so the sender sends its table again.
    for seed in [2, 2] {
        b = receiver();
        a.advertise(table(5000, seed));
        assert_eq!(run(&mut a, &mut b, &mut now, 10, || false), [table(5000, 2).to_vec()]);
    }
    // The sender restarts with fewer routes.
    let mut a = TableSync::of_routes();
    a.advertise(table(0, 0));
    assert_eq!(run(&mut a, &mut b, &mut now, 10, || false), [Vec::<u8>::new()]);
}

#[test]
fn nonsense_is_no_table() {
    let mut b = receiver();
    let (now, mut stats) = (Instant::now(), AdvertisementStats::default());
    for message in [
        &[][..],
        &[TABLE],
        &[9; 20],
        &[TABLE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1],
        &[TABLE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        &[TABLE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 5],
    ] {
        b.receive(message, now, &mut stats);
        assert_eq!(b.next_table(now, &mut stats), None, "{message:?}");
    }
    assert_eq!((b.received, stats.malformed, stats.received), (None, 6, 0));
}

/// All messages in which a sender sends a table.
fn parts(table: Arc<[u8]>) -> Vec<Vec<u8>> {
    let mut sender = TableSync::of_routes();
    sender.advertise(table);
    let mut messages = Vec::new();
    while sender.next * FRAGMENT_LEN < sender.advertised.as_ref().map_or(0, |(_, table)| table.len()) {
        sender.poll_messages(Instant::now(), &mut |m| messages.push(m.to_vec()));
    }
    messages
}

#[test]
fn an_end_that_may_not_advertise_is_not_read() {
    let (mut b, now) = (TableSync::of_routes(), Instant::now());
    let mut stats = AdvertisementStats::default();
    let messages = parts(table(5000, 1));
    for message in &messages {
        b.receive(message, now, &mut stats);
    }
    // A confirmation is refused too, because this end has not advertised a table.
    b.receive(&[CONFIRM; 9], now, &mut stats);
    assert!(b.incomplete.is_none() && b.next_table(now, &mut stats).is_none() && b.confirmed.is_none());
    let refused = messages.len() as u64 + 1;
    let expected = AdvertisementStats {
        refused,
        ..AdvertisementStats::default()
    };
    assert_eq!(stats, expected);
    // When the other end may not advertise any more, the fragments that it has sent are discarded.
    b.accept(true);
    b.receive(&messages[0], now, &mut stats);
    b.accept(false);
    assert!(b.incomplete.is_none());
}

/// If the sender changes its table every millisecond for three seconds, the receiver passes on at most seven of the
/// tables. It always passes on the last one. A change after a quiet time is passed on at once.
#[test]
fn a_sender_that_changes_its_mind_all_the_time_is_acted_on_rarely() {
    let (mut b, begin) = (receiver(), Instant::now());
    let mut stats = AdvertisementStats::default();
    let tables = [table(70, 1), table(70, 2), table(70, 3)];
    let messages = tables.clone().map(parts);
    let (mut now, mut acted, mut said) = (begin, Vec::new(), 0);
    for round in 0..3000 {
        for message in &messages[round % 2] {
            b.receive(message, now, &mut stats);
        }
        b.poll_confirmation(now, &mut |_| said += 1);
        acted.extend(b.next_table(now, &mut stats));
        now += Duration::from_millis(1);
    }
    assert!((1..=7).contains(&acted.len()), "{} in three seconds", acted.len());
    assert!(said <= 151, "{said} confirmations");
    b.receive(&messages[2][0], now, &mut stats);
    for _ in 0..200 {
        now += Duration::from_millis(50);
        acted.extend(b.next_table(now, &mut stats));
    }
    assert_eq!(acted.last().map(Vec::as_slice), Some(&*tables[2]));
    assert_eq!(stats.received, stats.applied + stats.superseded);
    now += Duration::from_secs(20);
    b.receive(&messages[0][0], now, &mut stats);
    assert_eq!(b.next_table(now, &mut stats), Some(tables[0].to_vec()));
}

#[test]
fn d36_a_table_on_request_is_sent_to_an_end_that_asks() {
    let (mut a, mut now) = (TableSync::new(2 * FRAGMENT_LEN, true), Instant::now());
    a.advertise(table(1500, 1));
    // The other end accepts no tables, or does not know messages of this kind.
    let mut b = TableSync::new(2 * FRAGMENT_LEN, true);
    for _ in 0..200 {
        a.poll_messages(now, &mut |_| panic!("nobody has asked"));
        b.poll_messages(now, &mut |_| panic!("it does not accept tables"));
        now += Duration::from_millis(50);
    }
    b.accept(true);
    assert_eq!(run(&mut a, &mut b, &mut now, 40, || false), [table(1500, 1).to_vec()]);
    a.poll_messages(now, &mut |_| panic!("it was confirmed"));
    // An end that has asked once gets each later table.
    a.advertise(table(1500, 2));
    assert!(a.is_unconfirmed());
    assert_eq!(run(&mut a, &mut b, &mut now, 40, || false), [table(1500, 2).to_vec()]);
    assert!(!a.is_unconfirmed());
    // The sender restarts, and sends without being asked.
    let mut a = TableSync::new(2 * FRAGMENT_LEN, true);
    a.advertise(table(10, 3));
    a.request();
    let mut sent = 0;
    a.poll_messages(now, &mut |_| sent += 1);
    assert_eq!(sent, 1);
    // The limits of the two kinds of tables differ.
    a.advertise(table(2 * FRAGMENT_LEN + 1, 4));
    assert_eq!(a.advertised.as_ref().map(|(_, table)| table.len()), Some(10));
    let (mut b, mut stats) = (TableSync::new(2 * FRAGMENT_LEN, true), AdvertisementStats::default());
    b.accept(true);
    for message in parts(table(2 * FRAGMENT_LEN + 1, 4)) {
        b.receive(&message, now, &mut stats);
    }
    assert!(b.incomplete.is_none() && stats.malformed == 3);
}

#[test]
fn a_table_that_is_too_long_is_neither_sent_nor_kept() {
    let mut a = TableSync::of_routes();
    a.advertise(table(MAX_ROUTES_LEN + 1, 1));
    assert!(a.advertised.is_none());
    let (mut b, mut stats) = (receiver(), AdvertisementStats::default());
    let mut message = parts(table(10, 1))[0].clone();
    let count = u16::try_from(MAX_ROUTES_LEN.div_ceil(FRAGMENT_LEN) + 1).unwrap();
    message[11..13].copy_from_slice(&count.to_be_bytes());
    b.receive(&message, Instant::now(), &mut stats);
    assert!(b.incomplete.is_none() && stats.malformed == 1);
}
