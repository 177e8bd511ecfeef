//! The command lines of the real `ping` and `traceroute`, and parsers for the output of both.

use crate::command::CommandOutput;
use crate::process::Process;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Time that a busy machine may take for a ping in addition to the ping's intervals and timeout.
const BUSY_MARGIN: Duration = Duration::from_secs(10);

/// The parameters of a ping that ends by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ping {
    /// Number of echo requests to send.
    pub count: u32,
    /// Time between two echo requests.
    pub interval: Duration,
    /// Longest wait for a reply after the last echo request.
    pub timeout: Duration,
    /// Size, in bytes, of the data in each echo request, without the ICMP and IP headers.
    pub size: u16,
}

impl Ping {
    /// The parameters for a pair that should be reachable.
    pub const REACHABLE: Self = Self {
        count: 3,
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(2),
        size: 56,
    };
    /// The parameters for a pair that should be unreachable. The timeout is shorter than for a reachable pair, because
    /// a ping without replies always waits for the whole timeout.
    pub const UNREACHABLE: Self = Self {
        count: 3,
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(700),
        size: 56,
    };

    /// Returns the command line. `source` must be an address of the host on which the command runs, in the family of
    /// `destination`. Nothing is checked: `ping` itself refuses values such as a count of 0.
    #[must_use]
    pub fn argv(&self, source: IpAddr, destination: IpAddr) -> Vec<String> {
        let mut argv = endless_ping_argv(source, destination, self.interval, self.size);
        argv.splice(
            2..2,
            [
                "-c".to_owned(),
                self.count.to_string(),
                "-W".to_owned(),
                self.timeout.as_secs_f64().to_string(),
            ],
        );
        argv
    }

    /// Returns the longest time that the command can take: all intervals, the timeout, and ten seconds for a busy
    /// machine.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.interval * self.count + self.timeout + BUSY_MARGIN
    }
}

/// Returns the command line of a ping that runs until SIGINT, with an echo request of `size` data bytes every
/// `interval`. `source` must be an address of the host on which the command runs, in the family of `destination`.
/// Nothing is checked. For very short intervals `ping` needs root.
#[must_use]
pub fn endless_ping_argv(source: IpAddr, destination: IpAddr, interval: Duration, size: u16) -> Vec<String> {
    let (interval, size) = (interval.as_secs_f64().to_string(), size.to_string());
    let (source, destination) = (source.to_string(), destination.to_string());
    ["ping", "-n", "-i", &interval, "-s", &size, "-I", &source, &destination]
        .map(str::to_owned)
        .to_vec()
}

/// What a ping has found: which echo requests were answered, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct PingResult {
    /// Number of echo requests that count.
    pub sent: u32,
    /// Number of these echo requests that were answered; duplicates count once.
    pub received: u32,
    /// Sequence numbers, from 1 and ascending, of the echo requests without a reply.
    pub missing: Vec<u32>,
    /// Number of ICMP errors that arrived for the echo requests.
    pub refusals: u32,
    /// Round-trip times of the replies, in milliseconds, in the order in which the replies arrived.
    pub rtts_ms: Vec<f64>,
}

impl PingResult {
    /// Parses the whole output of `ping`, standard output and standard error in any order. Lost packets are no error.
    ///
    /// A ping of more than 65,535 echo requests is not supported: `ping` then starts its sequence numbers again, and
    /// all further requests count as missing.
    ///
    /// # Errors
    /// The output has no summary, for example because ping could not be started or was killed.
    pub fn read(text: &str) -> Result<Self> {
        let mut answered = BTreeSet::new();
        let mut rtts_ms = Vec::new();
        for line in text.lines().filter(|l| !l.contains("DUP!")) {
            let (Some(sequence), Some(rtt)) = (after(line, "icmp_seq="), after(line, " time=")) else {
                continue;
            };
            if let (Ok(sequence), Ok(rtt)) = (sequence.parse::<u32>(), rtt.parse()) {
                answered.insert(sequence);
                rtts_ms.push(rtt);
            }
        }
        let summary = text.lines().find(|l| l.contains(" packets transmitted, "));
        let sent = summary.and_then(|l| l.split(' ').next()?.parse().ok());
        let refusals = summary.and_then(|l| after(l, " +")?.parse().ok());
        let Some(sent) = sent else {
            bail!("ping did not run: {}", text.trim());
        };
        Ok(Self {
            sent,
            received: u32::try_from(answered.len()).unwrap_or(u32::MAX),
            missing: (1..=sent).filter(|n| !answered.contains(n)).collect(),
            refusals: refusals.unwrap_or_default(),
            rtts_ms,
        })
    }

    /// Whether every echo request was answered, and at least one was sent.
    #[must_use]
    pub fn all(&self) -> bool {
        self.sent > 0 && self.missing.is_empty()
    }

    /// Whether no echo request was answered, and at least one was sent.
    #[must_use]
    pub fn none(&self) -> bool {
        self.sent > 0 && self.received == 0
    }

    /// Returns the number of echo requests in the longest run without a reply; 0 if all were answered.
    #[must_use]
    pub fn longest_gap(&self) -> u32 {
        let (mut longest, mut run, mut last) = (0, 0, 0);
        for &n in &self.missing {
            run = if n == last + 1 { run + 1 } else { 1 };
            last = n;
            longest = longest.max(run);
        }
        longest
    }

    /// Removes the last `count` echo requests from the result. Their round-trip times stay.
    fn without_last(&mut self, count: u32) {
        self.sent = self.sent.saturating_sub(count);
        self.missing.retain(|n| *n <= self.sent);
        let missing = u32::try_from(self.missing.len()).unwrap_or(u32::MAX);
        self.received = self.sent.saturating_sub(missing);
    }

    /// Returns the median round-trip time in milliseconds; `None` if there were no replies. Of an even number, it is
    /// the larger middle value.
    #[must_use]
    pub fn median_ms(&self) -> Option<f64> {
        let mut all = self.rtts_ms.clone();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

impl fmt::Display for PingResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} answered", self.received, self.sent)?;
        if self.refusals > 0 {
            write!(f, ", {} refused", self.refusals)?;
        }
        match self.median_ms() {
            Some(ms) => write!(f, ", {ms:.2} ms"),
            None => Ok(()),
        }
    }
}

/// Returns the text of `line` after `key`, up to the next space; `None` if the line does not contain `key`.
fn after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(key)?;
    rest.split(' ').next()
}

/// A ping that runs in the background. Dropping it kills the ping without a result.
#[derive(Debug)]
pub struct BackgroundPing {
    pub(crate) process: Process,
    /// Name of the ping in reports, `FROM → TO`.
    pub name: String,
    /// Time between two echo requests.
    pub interval: Duration,
}

/// Longest time that a reply may take on a busy machine. `BackgroundPing::stop` lets the ping run for this time, and
/// then leaves out the echo requests that were sent in this time. So every echo request that counts has had this time
/// for its reply.
const IN_FLIGHT_TIME: Duration = Duration::from_secs(1);

/// Longest time that an interrupted ping may take to end.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(5);

impl BackgroundPing {
    /// Stops the ping and returns its result. Echo requests that are sent after this call do not count. Blocks the
    /// thread for one second, and then until the ping has ended. The ping's log stays.
    ///
    /// # Errors
    /// The ping has ended by itself before, cannot be signalled or does not end within five seconds, or its log cannot
    /// be read or has no summary. The ping is then killed.
    pub fn stop(self) -> Result<PingResult> {
        std::thread::sleep(IN_FLIGHT_TIME);
        self.end()
    }

    /// Stops several pings, as [`Self::stop`]. Returns their results in the order of `all`. Waits one second for all
    /// pings together, and then until each of them has ended. An error of one ping does not affect the others.
    #[must_use]
    pub fn stop_all(all: Vec<Self>) -> Vec<Result<PingResult>> {
        std::thread::sleep(IN_FLIGHT_TIME);
        all.into_iter().map(Self::end).collect()
    }

    /// Interrupts the ping, and removes the echo requests of the last [`IN_FLIGHT_TIME`] from the result, but at least
    /// one echo request.
    fn end(self) -> Result<PingResult> {
        // A ping that has ended by itself is an error: it sent no echo requests after its end, so its result would not
        // show later losses.
        if !self.process.alive() {
            bail!("ping {} ended by itself: {}", self.name, self.process.tail(5));
        }
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(INTERRUPT_TIMEOUT)?;
        let text = std::fs::read_to_string(&self.process.log).context("the ping's output")?;
        let mut pinged = PingResult::read(&text)?;
        let in_flight = IN_FLIGHT_TIME.as_micros() / self.interval.as_micros().max(1);
        pinged.without_last(u32::try_from(in_flight).unwrap_or(u32::MAX).max(1));
        Ok(pinged)
    }
}

impl Drop for BackgroundPing {
    fn drop(&mut self) {
        // A stopped ping has ended already, so an error is ignored. If a running ping cannot be killed, the removal of
        // the lab reports this.
        let _ = self.process.signal(Signal::SIGKILL);
    }
}

/// What a traceroute has found: the hops of the path that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceResult {
    /// For each TTL from 1, the address of the first answer; `None` for a silent hop. Silent hops at the end are left
    /// out.
    pub hops: Vec<Option<IpAddr>>,
    /// Further addresses that answered at the TTL of a hop, each with the index of that hop in `hops`.
    pub others: Vec<(usize, IpAddr)>,
    /// Whether the last answer came from the destination.
    pub reached: bool,
}

/// Largest TTL of a trace. The longest path of the built-in topologies has fewer hops than this.
const MAX_HOPS: u8 = 8;

/// Returns the command line of a traceroute with ICMP echo requests, `probes` for each TTL up to 8. `source` must be an
/// address of the host on which the command runs, in the family of `destination`. `traceroute` accepts 1 to 10 probes;
/// this is not checked.
#[must_use]
pub fn trace_argv(source: IpAddr, destination: IpAddr, probes: u8) -> Vec<String> {
    let (hops, probes) = (MAX_HOPS.to_string(), probes.to_string());
    let (source, destination) = (source.to_string(), destination.to_string());
    [
        "traceroute",
        "-n",
        "-I",
        "-q",
        &probes,
        // Waits a full second for each answer. The two zeros switch off the shorter waits that traceroute derives from
        // the answers of other hops.
        "-w",
        "1,0,0",
        "-m",
        &hops,
        "-s",
        &source,
        &destination,
    ]
    .map(str::to_owned)
    .to_vec()
}

impl TraceResult {
    /// Whether `traceroute` may have missed answers, because a hop answered but the destination did not. This is also
    /// true for a path that really ends at a hop.
    ///
    /// Version 2.1.2 of traceroute sometimes missed answers, although the network device had delivered all of them. The
    /// likely reason is a race in traceroute: while a socket reports an error, traceroute reads only the socket's error
    /// queue, and not its normal receive queue. If the kernel reports the error just after traceroute has emptied the
    /// error queue, traceroute finds the error queue empty, and leaves answers in the receive queue unread.
    #[must_use]
    pub fn may_have_missed(&self) -> bool {
        !self.reached && self.hops.iter().any(Option::is_some)
    }

    /// Parses the output of `traceroute` to `destination`. Missing answers are no error. The exit status is not
    /// checked.
    ///
    /// # Errors
    /// The output has no hops, for example because traceroute could not be started, or a TTL is missing between two
    /// others.
    pub fn read(done: &CommandOutput, destination: IpAddr) -> Result<Self> {
        let (mut hops, mut others) = (Vec::new(), Vec::new());
        for line in done.stdout.lines() {
            let mut words = line.split_whitespace();
            let Some(ttl) = words.next().and_then(|w| w.parse::<usize>().ok()) else {
                continue;
            };
            if ttl != hops.len() + 1 {
                bail!("traceroute printed an odd line: {line}");
            }
            let mut answers = words.filter_map(|w| w.parse().ok());
            let first = answers.next();
            others.extend(answers.filter(|a| Some(*a) != first).map(|a| (hops.len(), a)));
            hops.push(first);
        }
        if hops.is_empty() {
            bail!("traceroute did not run: {}{}", done.stdout.trim(), done.stderr.trim());
        }
        while hops.last() == Some(&None) {
            hops.pop();
        }
        let reached = hops.last() == Some(&Some(destination));
        Ok(Self { hops, others, reached })
    }
}

impl fmt::Display for TraceResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&path(&self.hops))?;
        for (index, address) in &self.others {
            write!(f, " (also {address} at {})", index + 1)?;
        }
        if self.reached {
            Ok(())
        } else {
            f.write_str(if self.hops.is_empty() { "*" } else { " → *" })
        }
    }
}

/// Formats hops as one line with arrows between them, and with `*` for each silent hop. Empty if there are no hops.
#[must_use]
pub fn path(hops: &[Option<IpAddr>]) -> String {
    let each = hops.iter().map(|h| h.map_or("*".to_owned(), |a| a.to_string()));
    each.collect::<Vec<_>>().join(" → ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: &str = "PING 10.1.0.4 (10.1.0.4) from 10.2.0.4 : 56(84) bytes of data.
64 bytes from 10.1.0.4: icmp_seq=1 ttl=64 time=0.413 ms
64 bytes from 10.1.0.4: icmp_seq=4 ttl=64 time=0.5 ms
64 bytes from 10.1.0.4: icmp_seq=4 ttl=64 time=0.5 ms (DUP!)

--- 10.1.0.4 ping statistics ---
5 packets transmitted, 2 received, 60% packet loss, time 204ms
rtt min/avg/max/mdev = 0.4/0.4/0.5/0.0 ms
";

    #[test]
    fn a_ping_is_read() {
        let pinged = PingResult::read(PING).unwrap();
        assert_eq!((pinged.sent, pinged.received, pinged.longest_gap()), (5, 2, 2));
        assert_eq!(pinged.missing, [2, 3, 5]);
        assert!(!pinged.all() && !pinged.none());
        assert!(PingResult::read("ping: connect: Network is unreachable").is_err());
        let refused = PING.replace("2 received,", "2 received, +3 errors,");
        assert_eq!(PingResult::read(&refused).unwrap().refusals, 3);
        assert_eq!(pinged.refusals, 0);
    }

    #[test]
    fn echoes_under_way_at_the_end_do_not_count() {
        let mut pinged = PingResult::read(PING).unwrap();
        pinged.without_last(2);
        assert_eq!((pinged.sent, pinged.received), (3, 1));
        assert_eq!(pinged.missing, [2, 3]);
        pinged.without_last(9);
        assert!(!pinged.all() && !pinged.none(), "nothing was pinged");
    }

    #[test]
    fn a_trace_is_read() {
        let finished = |stdout: &str| CommandOutput {
            code: 0,
            stdout: stdout.into(),
            stderr: String::new(),
        };
        let text = "traceroute to 10.9.0.4 (10.9.0.4), 8 hops max, 60 byte packets\n 1  10.1.255.4  0.3 ms\n 2  *\n 3  10.9.0.4  0.8 ms\n";
        let to: IpAddr = "10.9.0.4".parse().unwrap();
        let traced = TraceResult::read(&finished(text), to).unwrap();
        assert!(traced.reached && !traced.may_have_missed());
        assert_eq!(traced.to_string(), "10.1.255.4 → * → 10.9.0.4");
        let cut_short = TraceResult::read(&finished(" 1  10.1.255.4  0.3 ms\n 2  *\n 3  *\n"), to).unwrap();
        assert!(cut_short.may_have_missed());
        let three = " 1  * 10.1.255.4  0.3 ms  0.2 ms\n 2  * * *\n 3  10.9.0.4  0.8 ms 10.9.0.5  1 ms 10.9.0.4  1 ms\n";
        let traced = TraceResult::read(&finished(three), to).unwrap();
        assert_eq!(traced.hops, [Some("10.1.255.4".parse().unwrap()), None, Some(to)]);
        assert_eq!(traced.others, [(2, "10.9.0.5".parse().unwrap())]);
        assert_eq!(traced.to_string(), "10.1.255.4 → * → 10.9.0.4 (also 10.9.0.5 at 3)");
        let silent = TraceResult::read(&finished("traceroute to x\n 1  *\n 2  *\n"), to).unwrap();
        assert_eq!((silent.reached, silent.to_string()), (false, "*".to_owned()));
        assert!(!silent.may_have_missed());
        assert!(TraceResult::read(&finished("bind: Cannot assign"), to).is_err());
    }
}
