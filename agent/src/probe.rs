//! Ping and traceroute from an address of this host, by ICMP echo requests on a raw socket.
//!
//! * `connect`: TCP connections.
//! * `answer`: the controller's requests for probes.

pub(crate) mod answer;
mod connect;

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::time::timeout_at;
use tombolo_proto::probe::{Hop, ProbeKind, ProbeReport, ProbeRequest};

/// Payload of an echo request in bytes: the default of `ping`.
const ECHO_PAYLOAD: usize = 56;

/// Pause between two probes of a trace, because routers limit the rate of their ICMP errors.
const TRACE_SPACING: Duration = Duration::from_millis(5);

/// Number of TTLs that a trace probes together. Four silent hops then cost one timeout instead of four.
const TRACE_WINDOW: u8 = 4;

/// Runs a probe through the TUN device with the name `device`, in the network namespace of the calling thread; a probe
/// whose destination is its own source needs no device. `None`: the packets take the way of the host's own routes, as at a
/// site probe (M10). Waits until all echo requests are answered or have timed out.
/// The report has all results. Pings and connections take at most `count` × `interval_ms` + `timeout_ms`, and a trace at most
/// `timeout_ms` + `count` × 20 ms for every four TTLs. Pings and traces need CAP_NET_RAW. Dropping the future ends the probe. If the
/// probe cannot be run or fails before its end, the report has only an `error`, which names the field and its range, or
/// says what failed.
pub async fn run(request: &ProbeRequest, device: Option<&str>) -> ProbeReport {
    let outcome = match check(request) {
        Ok(()) => match request.kind {
            ProbeKind::Ping => ping(request, device).await,
            ProbeKind::Trace => trace(request, device).await,
            ProbeKind::Connect => connect::run(request, device).await,
        },
        Err(e) => Err(e),
    };
    outcome.unwrap_or_else(|e| ProbeReport {
        error: Some(format!("{e:#}")),
        ..ProbeReport::default()
    })
}

fn check(r: &ProbeRequest) -> Result<()> {
    if r.source.is_ipv4() != r.destination.is_ipv4() {
        bail!(
            "destination: {} must be of the same address family as source {}",
            r.destination,
            r.source
        );
    }
    // These limits bound how long one request keeps the agent busy, and how many packets it sends.
    let max_count = match r.kind {
        ProbeKind::Ping => 100,
        ProbeKind::Trace => 10,
        // Each connection needs a file descriptor, and several probes may run at the same time.
        ProbeKind::Connect => 20,
    };
    if !(1..=max_count).contains(&r.count) {
        bail!("count: {} is not within 1 to {max_count}", r.count);
    }
    if !(10..=60_000).contains(&r.interval_ms) {
        bail!("intervalMs: {} is not within 10 to 60000", r.interval_ms);
    }
    if !(10..=10_000).contains(&r.timeout_ms) {
        bail!("timeoutMs: {} is not within 10 to 10000", r.timeout_ms);
    }
    if r.max_ttl == 0 || (r.kind == ProbeKind::Trace && r.max_ttl > 64) {
        bail!(
            "maxTtl: {} is not within 1 to {}",
            r.max_ttl,
            if r.kind == ProbeKind::Trace { 64 } else { 255 }
        );
    }
    match (r.kind, r.port) {
        (ProbeKind::Connect, Some(1..)) | (ProbeKind::Ping | ProbeKind::Trace, None) => Ok(()),
        (ProbeKind::Connect, _) => bail!("port: a connection needs a port from 1 to 65535"),
        (ProbeKind::Ping | ProbeKind::Trace, Some(port)) => {
            bail!("port: {port} is possible for connections only; echo requests have no port")
        }
    }
}

/// Binds the socket of a probe to the source address, and to the device. Probes of virtual networks must go through the
/// engine, so the socket is bound to the device. The host's own address is the exception, because packets to it do not pass the device.
fn bind(socket: &Socket, r: &ProbeRequest, device: Option<&str>) -> Result<()> {
    if let Some(device) = device.filter(|_| r.source != r.destination) {
        socket
            .bind_device(Some(device.as_bytes()))
            .with_context(|| format!("binding to {device}"))?;
    }
    let source = SocketAddr::new(r.source, 0);
    socket
        .bind(&source.into())
        .with_context(|| format!("source: {} is not an address of this host", r.source))
}

async fn ping(r: &ProbeRequest, device: Option<&str>) -> Result<ProbeReport> {
    let mut echoes = Echoes::open(r, device)?;
    let timeout = Duration::from_millis(r.timeout_ms.into());
    let mut next = Instant::now();
    for _ in 0..r.count {
        echoes.collect_until(next, false).await?;
        echoes.send(r.max_ttl)?;
        next = Instant::now() + Duration::from_millis(r.interval_ms.into());
    }
    echoes.collect_until(Instant::now() + timeout, true).await?;
    let mut report = ProbeReport {
        sent: r.count,
        ..ProbeReport::default()
    };
    // An answer after the timeout counts as lost.
    for answer in echoes.answers.values().filter(|answer| answer.rtt <= timeout) {
        count(&mut report, answer, r.destination);
    }
    Ok(report)
}

/// Counts an answer of the destination, which has replied to the request or rejected it. ICMP errors of routers are no answers
/// of the destination.
fn count(report: &mut ProbeReport, answer: &Answer, destination: IpAddr) {
    match answer.is_reply {
        _ if answer.from != destination => {}
        true => {
            report.received += 1;
            report.rtts_ms.push(millis(answer.rtt));
        }
        false => report.refused += 1,
    }
}

async fn trace(r: &ProbeRequest, device: Option<&str>) -> Result<ProbeReport> {
    let mut echoes = Echoes::open(r, device)?;
    let timeout = Duration::from_millis(r.timeout_ms.into());
    let mut report = ProbeReport::default();
    let mut ttl = 1;
    while ttl <= r.max_ttl {
        let window = ttl..=r.max_ttl.min(ttl.saturating_add(TRACE_WINDOW - 1));
        let mut sent = BTreeMap::new();
        for t in window.clone() {
            for _ in 0..r.count {
                sent.insert(echoes.send(t)?, t);
                echoes.collect_until(Instant::now() + TRACE_SPACING, false).await?;
            }
        }
        echoes.collect_until(Instant::now() + timeout, true).await?;
        // The hops of this window are reported now, so an answer that comes later must not count.
        echoes.waiting.clear();
        for t in window.clone() {
            let answers = sent
                .iter()
                .filter(|(_, at)| **at == t)
                .filter_map(|(s, _)| echoes.answers.get(s));
            let mut hop = Hop::default();
            let mut arrived = false;
            report.sent += r.count;
            for answer in answers {
                arrived |= answer.from == r.destination;
                hop.address = hop.address.or(Some(answer.from));
                hop.rtts_ms.push(millis(answer.rtt));
                count(&mut report, answer, r.destination);
            }
            report.hops.push(hop);
            if arrived {
                // The destination has answered at this TTL, so hops with larger TTLs are not reported.
                return Ok(report);
            }
        }
        ttl = window.end().saturating_add(1);
        if *window.end() == u8::MAX {
            break;
        }
    }
    Ok(report)
}

fn millis(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    from: IpAddr,
    rtt: Duration,
    /// Whether it is an echo reply. Otherwise it is an ICMP error.
    is_reply: bool,
}

/// The echo requests of one probe, and their answers. A random identifier distinguishes these requests from those of
/// other probes.
struct Echoes {
    /// A raw socket. tokio's `UdpSocket` works with any socket that supports `recvfrom` and `sendto`.
    socket: UdpSocket,
    destination: IpAddr,
    id: u16,
    sequence: u16,
    waiting: BTreeMap<u16, Instant>,
    answers: BTreeMap<u16, Answer>,
}

impl Echoes {
    fn open(r: &ProbeRequest, device: Option<&str>) -> Result<Self> {
        let (domain, protocol) = match r.source {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket =
            Socket::new(domain, Type::RAW, Some(protocol)).context("opening a raw socket: CAP_NET_RAW is needed")?;
        socket.set_nonblocking(true)?;
        bind(&socket, r, device)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            destination: r.destination,
            id: rand::random(),
            sequence: 0,
            waiting: BTreeMap::new(),
            answers: BTreeMap::new(),
        })
    }

    /// Sends one echo request with this TTL. Returns its sequence number.
    fn send(&mut self, ttl: u8) -> Result<u16> {
        let socket = SockRef::from(&self.socket);
        let v6 = self.destination.is_ipv6();
        if v6 {
            socket.set_unicast_hops_v6(ttl.into())?;
        } else {
            socket.set_ttl_v4(ttl.into())?;
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = vec![0u8; 8 + ECHO_PAYLOAD];
        packet[0] = if v6 { 128 } else { 8 };
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        packet[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        if !v6 {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        self.waiting.insert(self.sequence, Instant::now());
        match socket.send_to(&packet, &SocketAddr::new(self.destination, 0).into()) {
            Ok(_) => {}
            // If the device's queue is full, the request counts as lost. A full queue elsewhere on the path would drop
            // it too.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(e) => return Err(e).with_context(|| format!("sending to {}", self.destination)),
        }
        Ok(self.sequence)
    }

    /// Collects answers until `deadline`. With `until_complete` it ends earlier, as soon as every request is answered.
    async fn collect_until(&mut self, deadline: Instant, until_complete: bool) -> Result<()> {
        let mut buffer = [0u8; 1500];
        loop {
            // The socket is asked first, so that without this check a flood of other messages could outlast the deadline.
            if Instant::now() >= deadline || until_complete && self.waiting.is_empty() {
                return Ok(());
            }
            let Ok(received) = timeout_at(deadline.into(), self.socket.recv_from(&mut buffer)).await else {
                return Ok(());
            };
            let (n, from) = match received {
                Ok((n, from)) => (n, from.ip()),
                // The kernel also reports an ICMP error as an error of the socket. This error is skipped, because the
                // ICMP message itself can be read next.
                Err(e) if e.kind() == io::ErrorKind::HostUnreachable => continue,
                Err(e) => return Err(e).context("receiving answers"),
            };
            let now = Instant::now();
            let parsed = match self.destination {
                IpAddr::V4(_) => answer_v4(&buffer[..n], self.id),
                IpAddr::V6(_) => answer_v6(&buffer[..n], self.id),
            };
            let Some((sequence, is_reply)) = parsed else { continue };
            if let Some(sent) = self.waiting.remove(&sequence) {
                let rtt = now - sent;
                self.answers.insert(sequence, Answer { from, rtt, is_reply });
            }
        }
    }
}

/// The sequence number of the echo request that an ICMP message answers, and whether the message is an echo reply; else it is an
/// error that quotes the request. None: the message answers no request with this identifier.
fn answer_v4(packet: &[u8], id: u16) -> Option<(u16, bool)> {
    let icmp = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
    match icmp.first()? {
        0 => Some((sequence(icmp, id)?, true)),
        3 | 11 => {
            let quoted = icmp.get(8..)?;
            let inner = quoted.get(usize::from(quoted.first()? & 0xf) * 4..)?;
            (*inner.first()? == 8).then(|| Some((sequence(inner, id)?, false)))?
        }
        _ => None,
    }
}

fn answer_v6(icmp: &[u8], id: u16) -> Option<(u16, bool)> {
    match icmp.first()? {
        129 => Some((sequence(icmp, id)?, true)),
        1 | 3 => {
            let inner = icmp.get(8 + 40..)?;
            (*icmp.get(8 + 6)? == 58 && *inner.first()? == 128).then(|| Some((sequence(inner, id)?, false)))?
        }
        _ => None,
    }
}

fn sequence(echo: &[u8], id: u16) -> Option<u16> {
    let word = |at: usize| Some(u16::from_be_bytes([*echo.get(at)?, *echo.get(at + 1)?]));
    (word(4)? == id).then(|| word(6))?
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ping_loopback(v6: bool) -> ProbeRequest {
        let a: IpAddr = if v6 {
            "::1".parse().unwrap()
        } else {
            "127.0.0.1".parse().unwrap()
        };
        ProbeRequest {
            source: a,
            destination: a,
            kind: ProbeKind::Ping,
            count: 3,
            interval_ms: 10,
            timeout_ms: 1000,
            max_ttl: 64,
            port: None,
        }
    }

    /// The host answers pings to its loopback addresses. Without CAP_NET_RAW, the error of the report names this
    /// capability.
    #[tokio::test]
    async fn pings_the_loopback_address() {
        for v6 in [false, true] {
            let report = run(&ping_loopback(v6), Some("lo")).await;
            match report.error {
                None => assert_eq!((report.sent, report.received), (3, 3)),
                Some(e) => assert!(e.contains("CAP_NET_RAW") || v6, "{e}"),
            }
        }
    }

    #[tokio::test]
    async fn values_out_of_range_are_refused_by_field() {
        let refused = |change: fn(&mut ProbeRequest), field: &'static str| async move {
            let mut r = ping_loopback(false);
            change(&mut r);
            assert!(run(&r, Some("lo")).await.error.unwrap().starts_with(field), "{field}");
        };
        refused(|r| r.count = 0, "count").await;
        refused(|r| r.count = 101, "count").await;
        refused(|r| r.timeout_ms = 1, "timeoutMs").await;
        refused(|r| r.max_ttl = 0, "maxTtl").await;
        refused(|r| r.destination = "::1".parse().unwrap(), "destination").await;
    }

    #[test]
    fn errors_that_quote_our_echo_are_answers() {
        let mut inner = vec![0x45; 20];
        inner.extend([8, 0, 0, 0, 0x12, 0x34, 0, 7]);
        let mut packet = vec![0x45; 20];
        packet.extend([11, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend(&inner);
        assert_eq!(answer_v4(&packet, 0x1234), Some((7, false)));
        assert_eq!(answer_v4(&packet, 0x1235), None);
        for cut in 0..packet.len() {
            assert_eq!(answer_v4(&packet[..cut], 0x1234), None);
            assert_eq!(answer_v6(&packet[..cut], 0x1234), None);
        }
    }

    /// M5: messages of others that wait in the socket do not keep a probe from ending.
    #[tokio::test]
    async fn m5_a_probe_ends_although_messages_wait() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let own = socket.local_addr().unwrap();
        socket.send_to(b"of somebody else", own).await.unwrap();
        socket.readable().await.unwrap();
        let mut echoes = Echoes {
            socket,
            destination: own.ip(),
            id: 1,
            sequence: 1,
            waiting: BTreeMap::from([(1, Instant::now())]),
            answers: BTreeMap::new(),
        };
        echoes.collect_until(Instant::now(), true).await.unwrap();
        let mut buffer = [0; 100];
        let (length, _) = echoes.socket.try_recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"of somebody else", "it was not read");
    }

    /// M5: a destination that rejects echo requests has not replied to them.
    #[test]
    fn m5_a_rejected_echo_is_no_reply() {
        let mut reply = vec![0x45; 20];
        reply.extend([0, 0, 0, 0, 0x12, 0x34, 0, 7]);
        let mut rejection = vec![0x45; 20];
        rejection.extend([3, 10, 0, 0, 0, 0, 0, 0]);
        rejection.extend([0x45; 20]);
        rejection.extend([8, 0, 0, 0, 0x12, 0x34, 0, 7]);
        let mut reply_v6 = vec![129, 0, 0, 0, 0x12, 0x34, 0, 7];
        let mut rejection_v6 = vec![1, 1, 0, 0, 0, 0, 0, 0];
        rejection_v6.extend([0x60, 0, 0, 0, 0, 8, 58, 64]);
        rejection_v6.extend([0; 32]);
        rejection_v6.extend([128, 0, 0, 0, 0x12, 0x34, 0, 7]);
        let parsed = [
            answer_v4(&reply, 0x1234),
            answer_v4(&rejection, 0x1234),
            answer_v6(&reply_v6, 0x1234),
            answer_v6(&rejection_v6, 0x1234),
        ];
        assert_eq!(
            parsed,
            [Some((7, true)), Some((7, false)), Some((7, true)), Some((7, false))]
        );
        reply_v6.truncate(7);
        assert_eq!(answer_v6(&reply_v6, 0x1234), None);

        let destination = IpAddr::from([10, 0, 0, 2]);
        let mut report = ProbeReport::default();
        let mut answer = |from: [u8; 4], is_reply| {
            let (from, rtt) = (from.into(), Duration::from_millis(2));
            count(&mut report, &Answer { from, rtt, is_reply }, destination);
        };
        answer([10, 0, 0, 2], true);
        answer([10, 0, 0, 2], false);
        answer([10, 0, 0, 1], false);
        assert_eq!((report.received, report.refused, report.rtts_ms), (1, 1, vec![2.0]));
    }
}
