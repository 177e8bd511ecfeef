//! What the two ends of a link say to each other inside it (D11): an echo, by which each knows that the way is open,
//! how long it takes and how much is lost; and probes of how long a packet may be ([`path_mtu`](super::path_mtu)).
//!
//! A message is an IPv6 packet with a next header for experiments (RFC 3692) between two link-local addresses, so that it
//! travels through any link that carries packets. It never leaves the engine, and a stock device drops it.

use std::time::{Duration, Instant};
use tombolo_proto::config::Probes;

/// Bytes of a message, but for a probe's padding.
pub(super) const LEN: usize = 40 + 8;

/// Longest probe, bytes: the longest MTU that a configuration may have.
pub(super) const LONGEST_PROBE: usize = 9000;

/// RFC 3692: for experiments.
const NEXT_HEADER: u8 = 253;

/// `fe80::746d:1` to `fe80::746d:2`, whichever end speaks.
const ADDRESSES: [u8; 32] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x74, 0x6d, 0, 1, //
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x74, 0x6d, 0, 2,
];

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// Answer this.
    Echo(u32),
    /// The answer.
    Reply(u32),
    /// A packet of so many bytes: say that it arrived.
    Probe(u16),
    /// It arrived.
    Arrived(u16),
    /// A part of a packet: the bytes after the message ([`parts`](super::parts)).
    Part {
        /// Which packet's.
        packet: u32,
        /// Its place, from 0.
        index: u8,
        /// How many there are.
        count: u8,
    },
    /// Of routes: the bytes after the message ([`exchange`](super::exchange)).
    Routes,
    /// This end is about to stop: whoever has another way takes it now.
    Leaving,
}

impl Message {
    /// As a packet.
    pub(super) fn encode(self) -> [u8; LEN] {
        let mut places = [0, 0];
        let (kind, number) = match self {
            Self::Echo(n) => (1, n),
            Self::Reply(n) => (2, n),
            Self::Probe(n) => (3, u32::from(n)),
            Self::Arrived(n) => (4, u32::from(n)),
            Self::Part { packet, index, count } => {
                places = [index, count];
                (5, packet)
            }
            Self::Routes => (6, 0),
            Self::Leaving => (7, 0),
        };
        let mut packet = [0; LEN];
        packet[0] = 0x60;
        packet[5] = 8;
        packet[6] = NEXT_HEADER;
        packet[7] = 1;
        packet[8..40].copy_from_slice(&ADDRESSES);
        packet[40] = kind;
        packet[41..43].copy_from_slice(&places);
        packet[44..48].copy_from_slice(&number.to_be_bytes());
        packet
    }

    /// A probe, in a packet of its size. Sizes are from [`LEN`] to [`LONGEST_PROBE`].
    pub(super) fn probe(size: u16, buffer: &mut [u8; LONGEST_PROBE]) -> &[u8] {
        let size = usize::from(size).clamp(LEN, LONGEST_PROBE);
        #[expect(clippy::cast_possible_truncation, reason = "clamped")]
        let said = size as u16;
        let packet = buffer.get_mut(..size).unwrap_or_default();
        Self::Probe(said).put(packet);
        packet
    }

    /// Writes it to the front of a packet, whose other bytes are its own; at least [`LEN`] bytes.
    pub(super) fn put(self, packet: &mut [u8]) {
        let payload = u16::try_from(packet.len().saturating_sub(40)).unwrap_or(u16::MAX);
        if let Some(head) = packet.first_chunk_mut() {
            *head = self.encode();
            head[4..6].copy_from_slice(&payload.to_be_bytes());
        }
    }

    /// Whether a packet is one: then it goes no further, understood or not.
    pub(super) fn is_one(packet: &[u8]) -> bool {
        let head = packet.first_chunk::<LEN>();
        head.is_some_and(|head| head[6] == NEXT_HEADER && head[0] >> 4 == 6 && head[8..40] == ADDRESSES)
    }

    /// Reads a packet that [`is_one`](Self::is_one).
    pub(super) fn decode(packet: &[u8]) -> Option<Self> {
        let head = packet.first_chunk::<LEN>()?;
        let number = u32::from_be_bytes([head[44], head[45], head[46], head[47]]);
        match head[40] {
            1 => Some(Self::Echo(number)),
            2 => Some(Self::Reply(number)),
            3 => Some(Self::Probe(
                number.try_into().ok().filter(|n| usize::from(*n) == packet.len())?,
            )),
            4 => Some(Self::Arrived(number.try_into().ok()?)),
            5 => Some(Self::Part {
                packet: number,
                index: head[41],
                count: head[42],
            }),
            6 => Some(Self::Routes),
            7 => Some(Self::Leaving),
            _ => None,
        }
    }
}

/// Echoes that are remembered.
const WINDOW: usize = 64;

/// A reply later than this is none.
const LATE: Duration = Duration::from_secs(1);

/// Where the round trip is not known, a way does not count as closed before.
const UNKNOWN: Duration = Duration::from_millis(1000);

/// A way that was silent for so long was closed, or its other end away, and not shaped: what was lost then says nothing of how
/// it is now. Shorter than what it takes to lose a quarter of the fewest echoes that a share is taken of.
const CLOSED: Duration = Duration::from_millis(600);

/// The echoes of one link over one transport.
#[derive(Debug, Clone)]
pub(super) struct Echoes {
    /// By number modulo [`WINDOW`]: when it went out, and what the reply took.
    sent: [Option<(Instant, Option<Duration>)>; WINDOW],
    next: u32,
    /// Smoothed as TCP does (RFC 6298).
    rtt: Option<Duration>,
    /// Echoes in a row that were answered, and since when.
    answered: Option<(u32, Instant)>,
    /// When anything was heard last over this transport.
    heard: Option<Instant>,
    /// The oldest echo that was sent after that.
    waiting: Option<(u32, Instant)>,
    /// Echoes in a row without anything heard after which a way counts as closed (D19), and how long they take.
    misses: u32,
    patience: Duration,
}

impl Default for Echoes {
    fn default() -> Self {
        Self {
            sent: [None; WINDOW],
            next: 0,
            rtt: None,
            answered: None,
            heard: None,
            waiting: None,
            misses: 0,
            patience: Duration::ZERO,
        }
        .with(Probes::default())
    }
}

impl Echoes {
    fn with(mut self, probes: Probes) -> Self {
        self.set_probes(probes);
        self
    }

    /// How silence is noticed from now on.
    pub(super) fn set_probes(&mut self, probes: Probes) {
        self.misses = probes.misses;
        self.patience = Duration::from_millis(u64::from(probes.interval)) * probes.misses;
    }

    /// The next echo to send.
    pub(super) fn send(&mut self, now: Instant) -> Message {
        let number = self.next;
        self.next = number.wrapping_add(1);
        if let Some(place) = self.sent.get_mut(number as usize % WINDOW) {
            *place = Some((now, None));
        }
        self.waiting.get_or_insert((0, now)).0 += 1;
        if self.silent(now).is_some() {
            self.answered = None;
        }
        Message::Echo(number)
    }

    /// When the last echo went out.
    pub(super) fn last_sent(&self) -> Option<Instant> {
        let last = self.next.wrapping_sub(1);
        self.sent.get(last as usize % WINDOW)?.map(|(at, _)| at)
    }

    /// Anything arrived over this transport.
    pub(super) fn heard(&mut self, now: Instant) {
        let closed = self.silent(now).is_some_and(|silence| silence >= CLOSED);
        if let Some((_, since)) = self.waiting.filter(|_| closed) {
            let under_way = 2 * self.rtt.unwrap_or(LATE);
            let missed = |(at, reply): &mut (Instant, Option<Duration>)| {
                reply.is_none() && *at >= since && now.saturating_duration_since(*at) > under_way
            };
            for echo in &mut self.sent {
                echo.take_if(missed);
            }
        }
        self.heard = Some(now);
        self.waiting = None;
    }

    /// When anything was heard last over this transport.
    pub(super) fn last_heard(&self) -> Option<Instant> {
        self.heard
    }

    /// A reply arrived.
    pub(super) fn reply(&mut self, number: u32, now: Instant) {
        self.replied(number, now);
        self.heard(now);
    }

    fn replied(&mut self, number: u32, now: Instant) {
        let Some(Some((at, reply @ None))) = self.sent.get_mut(number as usize % WINDOW) else {
            return;
        };
        let took = now.saturating_duration_since(*at);
        if self.next.wrapping_sub(number) > WINDOW as u32 || took > LATE {
            return;
        }
        *reply = Some(took);
        self.rtt = Some(self.rtt.map_or(took, |rtt| rtt - rtt / 8 + took / 8));
        let (count, _) = self.answered.get_or_insert((0, now));
        *count += 1;
    }

    /// What a round trip takes, as long as none was measured: that of another transport over the same path.
    pub(super) fn assume_rtt(&mut self, rtt: Option<Duration>) {
        self.rtt = self.rtt.or(rtt);
    }

    /// Smoothed round-trip time.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Share of the remembered echoes that were not answered, and how many they are; those of the last second are
    /// under way. None: too few to say.
    pub(super) fn loss(&self, now: Instant) -> Option<(f64, u32)> {
        let due = self.sent.iter().flatten();
        let due = due.filter(|(at, reply)| reply.is_some() || now.saturating_duration_since(*at) > LATE);
        let (mut all, mut lost) = (0u32, 0u32);
        for (_, reply) in due {
            all += 1;
            lost += u32::from(reply.is_none());
        }
        (all >= 10).then(|| (f64::from(lost) / f64::from(all), all))
    }

    /// How long nothing has been heard, if it is too long: some echoes (D19), and longer than a reply may take.
    pub(super) fn silent(&self, now: Instant) -> Option<Duration> {
        let (count, since) = self.waiting?;
        let silence = now.saturating_duration_since(since);
        let allowed = self
            .rtt
            .map_or(UNKNOWN.max(self.patience), |rtt| self.patience + 2 * rtt);
        (count >= self.misses && silence >= allowed).then_some(silence)
    }

    /// What was answered so far says nothing of what comes.
    pub(super) fn forget_answers(&mut self) {
        self.answered = None;
    }

    /// How many echoes in a row were answered, and since when.
    pub(super) fn answers(&self) -> Option<(u32, Instant)> {
        self.answered
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;
    use crate::packet::parse;

    const STEP: Duration = Duration::from_millis(100);

    #[test]
    fn a_message_is_a_packet_and_no_other_packet_is_one() {
        for message in [Message::Echo(7), Message::Reply(u32::MAX), Message::Leaving] {
            let packet = message.encode();
            assert!(Message::is_one(&packet));
            assert_eq!(Message::decode(&packet), Some(message));
            let info = parse(&packet).unwrap();
            assert_eq!((info.len, info.ttl, info.protocol), (LEN, 1, NEXT_HEADER));
        }
        let mut packet = Message::Echo(7).encode();
        packet[39] ^= 1;
        assert!(!Message::is_one(&packet) && !Message::is_one(&packet[..LEN - 1]) && !Message::is_one(&[]));
        packet[39] ^= 1;
        packet[40] = 9;
        assert!(
            Message::is_one(&packet) && Message::decode(&packet).is_none(),
            "of a later version"
        );
    }

    #[test]
    fn replies_make_a_round_trip_time_and_silence_is_counted() {
        let mut now = Instant::now();
        let mut echoes = Echoes::default();
        for _ in 0..40 {
            let Message::Echo(n) = echoes.send(now) else { panic!() };
            echoes.reply(n, now + Duration::from_millis(4));
            echoes.reply(n, now + Duration::from_millis(90));
            now += STEP;
        }
        assert_eq!(echoes.rtt(), Some(Duration::from_millis(4)));
        assert_eq!(echoes.loss(now), Some((0.0, 40)));
        assert_eq!((echoes.answers().map(|a| a.0), echoes.silent(now)), (Some(40), None));
        for sent in 1..=20 {
            echoes.send(now);
            assert_eq!(
                echoes.silent(now).is_some(),
                sent > 4,
                "{sent}: 300 ms and two round trips"
            );
            now += STEP;
        }
        assert_eq!(echoes.silent(now), Some(20 * STEP));
        assert_eq!(echoes.answers(), None);
        let (loss, of) = echoes.loss(now).unwrap();
        assert!(
            loss > 0.1 && loss < 0.3 && of < 60,
            "{loss} of {of}: the last second is under way"
        );
        echoes.heard(now);
        assert_eq!(echoes.silent(now), None, "any packet shows that the way is open");
    }

    /// What was lost while a way was closed is not held against it when it is open again.
    #[test]
    fn a_way_that_opens_again_begins_anew() {
        let mut now = Instant::now();
        let mut echoes = Echoes::default();
        let mut say = |echoes: &mut Echoes, times: u32, step: Duration, answered: bool| {
            for _ in 0..times {
                let Message::Echo(n) = echoes.send(now) else { panic!() };
                if answered {
                    echoes.reply(n, now + Duration::from_millis(4));
                }
                now += step;
            }
            now
        };
        say(&mut echoes, 30, STEP, true);
        say(&mut echoes, 30, Duration::from_secs(1), false);
        let now = say(&mut echoes, 30, STEP, true);
        let (loss, _) = echoes.loss(now).unwrap();
        assert!(loss < 0.05, "{loss}");
    }

    /// The other end was started again, which takes a second or two: its way is not shaped.
    #[test]
    fn an_end_that_was_away_for_a_moment_lost_nothing() {
        for away in [3, 7, 15, 29] {
            let mut now = Instant::now();
            let mut echoes = Echoes::default();
            for (times, answered) in [(15, true), (away, false), (30, true)] {
                for _ in 0..times {
                    let Message::Echo(n) = echoes.send(now) else { panic!() };
                    if answered {
                        echoes.reply(n, now + Duration::from_millis(1));
                    }
                    now += STEP;
                    let loss = echoes.loss(now).filter(|(_, of)| answered && *of >= 20);
                    assert!(loss.is_none_or(|(share, _)| share < 0.25), "{away}: {loss:?}");
                }
            }
        }
    }

    /// One in two is lost at random: that is shaping, whatever longer runs of losses there are among them.
    #[test]
    fn a_way_that_loses_half_loses_more_than_a_quarter() {
        let (mut now, mut chance) = (Instant::now(), 7u64);
        let mut echoes = Echoes::default();
        let (mut looked, mut noticed) = (0, 0);
        for sent in 0..1000 {
            let Message::Echo(n) = echoes.send(now) else { panic!() };
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if chance >> 63 == 0 {
                echoes.reply(n, now + Duration::from_millis(1));
            }
            now += STEP;
            if sent >= 100 {
                looked += 1;
                noticed += u32::from(echoes.loss(now).unwrap().0 > 0.25);
            }
        }
        assert!(10 * noticed > 9 * looked, "{noticed} of {looked}");
    }

    /// A spare connection to an end that is gone is found out as soon as the main one was.
    #[test]
    fn silence_needs_no_round_trip_of_its_own() {
        for assumed in [None, Some(Duration::from_millis(2))] {
            let mut now = Instant::now();
            let mut echoes = Echoes::default();
            echoes.assume_rtt(assumed);
            for _ in 0..5 {
                echoes.send(now);
                now += STEP;
            }
            assert_eq!(echoes.silent(now).is_some(), assumed.is_some());
        }
    }

    #[test]
    fn numbers_that_nobody_sent_mean_nothing() {
        let now = Instant::now();
        let mut echoes = Echoes::default();
        echoes.reply(3, now);
        echoes.send(now);
        echoes.reply(64, now);
        assert_eq!((echoes.rtt(), echoes.answers()), (None, None));
        echoes.reply(0, now + 2 * LATE);
        assert_eq!(echoes.rtt(), None, "too late");
    }
}
