//! A joined agent that turned hostile. It has the keys and the configuration of a real agent, and attacks the peer of one
//! link with route advertisements or QUIC connections.
//!
//! The real agent must be stopped, because it uses the same UDP port and would take part in the same sessions.

use anyhow::{Context, Result, ensure};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::Collected;
use tombolo_engine::link::secure::SecureLinks;
use tombolo_engine::link::{Event, LinkSet};
use tombolo_engine::routing;
use tombolo_engine::tables::LinkIndex;
use tombolo_proto::config::{AgentConfig, Link, Transport};
use tombolo_proto::id::PublicKey;
use tombolo_proto::route::{Route, RouteOrigin};

/// The longest wait for a session. A handshake takes milliseconds, but WireGuard repeats a lost one only after 5 s
/// (section 6.1 of its paper). This time covers two repetitions.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The attacked link. A [`Hostile`] has no other link, so the index is 0.
const LINK: LinkIndex = LinkIndex(0);

/// The number of packets that are sent over each QUIC connection before it is closed: enough to keep the peer's lane
/// (its packet-forwarding thread) busy while the connection closes.
const PACKETS_PER_CONNECTION: u32 = 50;

/// What an attack has done, and what it cost the attacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttackResult {
    /// The route tables that were advertised, or the connections that came up and were closed.
    pub count: u64,
    /// Processor time that the attacking thread spent; zero if the kernel does not report it.
    pub cpu: Duration,
    /// How long the attack really lasted.
    pub elapsed: Duration,
}

/// A hostile agent with one link. The hostile agent has no thread of its own, so it does nothing while none of these
/// methods runs.
pub struct Hostile {
    links: SecureLinks,
    link: Link,
    socket: UdpSocket,
    buffer: Vec<u8>,
    datagram: Vec<u8>,
    up: bool,
}

impl Hostile {
    /// Takes the identity and the last configuration from an agent's state folder, and configures the agent's link with
    /// `peer`, the id of another agent. The folder is only read. No datagram is sent yet. The UDP socket has the
    /// agent's `listen_port` in the network namespace of the calling thread; afterwards other threads may use the
    /// value. The agent must be stopped.
    ///
    /// # Errors
    /// A file of the state folder is missing or malformed (`link.key`, `tls.key`, `last-good.json`, `agent.toml` with
    /// `listen_port`), the configuration has no link with `peer`, or another process has the port.
    pub fn new(state: &Path, peer: &str) -> Result<Self> {
        let read = |name: &str| {
            let path = state.join(name);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let secret: PublicKey = read("link.key")?.trim().parse().context("link.key")?;
        let key = PrivateKeyDer::from_pem_slice(read("tls.key")?.as_bytes()).context("tls.key")?;
        let mut last: serde_json::Value = serde_json::from_str(&read("last-good.json")?)?;
        let config: AgentConfig = serde_json::from_value(last["config"].take()).context("last-good.json")?;
        let link = config.links.iter().find(|l| l.peer.as_str() == peer);
        let link = link.with_context(|| format!("{} has no link with {peer}", config.agent))?;
        let settings = read("agent.toml")?;
        let port = settings.lines().find_map(|l| l.strip_prefix("listen_port = "));
        let port: u16 = port.context("no listen_port")?.trim().parse()?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("is its agent stopped?")?;
        let mut this = Self {
            links: SecureLinks::new(secret.0).with_quic(key, [3; 32])?,
            link: link.clone(),
            socket,
            buffer: vec![0; 66_000],
            datagram: vec![0; 65_536],
            up: false,
        };
        this.open(link.transport);
        Ok(this)
    }

    /// Configures the link with this transport. A session of the former configuration may end.
    fn open(&mut self, transport: Transport) {
        let link = Link {
            transport,
            // Over QUIC, packets of the attack open the connections. An always-on link would also send keepalives over
            // WireGuard, and might then keep using WireGuard.
            always_on: transport != Transport::Quic,
            initiator: true,
            ..self.link.clone()
        };
        self.links.update(&[link], now());
    }

    /// Blocks for this time. Meanwhile the method receives datagrams and handles timeouts of the link. A time of zero
    /// makes one turn.
    ///
    /// # Errors
    /// The socket fails. A full buffer and ICMP's port unreachable are no failures.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        let end = now() + time;
        loop {
            let left = end.saturating_duration_since(now());
            // `set_read_timeout` refuses zero. The upper bound keeps the link's timers punctual while no datagram arrives.
            let wait = left.clamp(Duration::from_micros(1), Duration::from_millis(20));
            self.socket.set_read_timeout(Some(wait))?;
            self.receive()?;
            self.timeout()?;
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    fn receive(&mut self) -> Result<()> {
        let (len, from) = match self.socket.recv_from(&mut self.datagram) {
            Ok(received) => received,
            // ICMP reports the port of a restarting peer as unreachable. That must not end the attack.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted | ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(());
            }
            Err(e) => return Err(e).context("receiving"),
        };
        let (mut out, now) = (Collected::default(), now());
        self.links
            .open(&self.datagram[..len], from.into(), now, &mut self.buffer, &mut out);
        while self.links.next_packet(now, &mut self.buffer, &mut out).is_some() {}
        self.send(out)
    }

    fn timeout(&mut self) -> Result<()> {
        let mut out = Collected::default();
        if self.links.poll_timeout().is_some_and(|t| t <= now()) {
            self.links.handle_timeout(now(), &mut out);
        }
        self.send(out)?;
        while let Some(event) = self.links.poll_event() {
            match event {
                Event::Up(_) => self.up = true,
                Event::Down(_) => self.up = false,
                Event::EndpointChanged(..)
                | Event::Switched(..)
                | Event::RoutesReceived(..)
                | Event::HealthReceived(..) => {}
            }
        }
        Ok(())
    }

    fn send(&mut self, mut out: Collected) -> Result<()> {
        self.links.flush(now(), &mut out);
        for (to, bytes) in out.datagrams {
            match self.socket.send_to(&bytes, to) {
                Err(e) if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {
                    return Err(e).with_context(|| format!("sending to {to}"));
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Blocks until the link has a session; returns at once if it has one.
    ///
    /// # Errors
    /// The peer has not completed a handshake within ten seconds, or the socket fails. The link stays configured, so
    /// another call may succeed.
    pub fn wait_until_up(&mut self) -> Result<()> {
        let begin = now();
        while !self.up {
            ensure!(begin.elapsed() < SESSION_TIMEOUT, "{} does not answer", self.link.peer);
            self.run(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// Waits for a session, then advertises the tables in turn for `time`, and blocks meanwhile. `rate` is the number
    /// of tables a second; 0 means as many as possible. Links do not send a table again that the peer has just
    /// confirmed, so give three tables or more. With none, nothing is advertised, but the count grows nevertheless.
    ///
    /// # Errors
    /// As for [`Self::wait_until_up`]. The peer need not confirm anything.
    pub fn advertise(&mut self, tables: &[Vec<Route>], rate: u32, time: Duration) -> Result<AttackResult> {
        self.wait_until_up()?;
        let encoded = tables.iter().map(|routes| Arc::<[u8]>::from(routing::encode(routes)));
        let mut tables = encoded.collect::<Vec<_>>().into_iter().cycle();
        let (begin, cpu) = (now(), cpu_time());
        let mut count = 0;
        while begin.elapsed() < time {
            if let Some(table) = tables.next() {
                self.links.advertise(LINK, table);
            }
            self.links.advertise_now(now());
            self.timeout()?;
            count += 1;
            let due = begin + Duration::from_secs(count) / rate.max(1);
            let left = due.saturating_duration_since(now());
            if rate > 0 && !left.is_zero() {
                self.run(left)?;
            } else if count % 64 == 0 {
                self.run(Duration::ZERO)?;
            }
        }
        Ok(AttackResult {
            count,
            cpu: cpu_time().saturating_sub(cpu),
            elapsed: begin.elapsed(),
        })
    }

    /// Opens a QUIC connection, sends 50 packets over it and closes it, again and again for `time`. Blocks meanwhile.
    /// An attempt that the peer does not answer within 50 ms is closed too, and does not count. No session is needed
    /// before. Afterwards the link is gone, so [`Self::advertise`] and [`Self::wait_until_up`] are of no use any more;
    /// this method may be called again.
    ///
    /// # Errors
    /// The socket fails.
    pub fn flap(&mut self, time: Duration) -> Result<AttackResult> {
        let (begin, cpu) = (now(), cpu_time());
        let mut count = 0;
        while begin.elapsed() < time {
            self.up = false;
            self.open(Transport::Quic);
            let mut out = Collected::default();
            // The content does not matter, because any packet makes the link open a connection.
            self.links.seal(LINK, &[0x45; 40], 0, now(), &mut out);
            self.send(out)?;
            let opened = now();
            // The wait is limited, because a peer that has removed the link does not answer.
            while !self.up && opened.elapsed() < Duration::from_millis(50) {
                self.run(Duration::from_millis(1))?;
            }
            count += u64::from(self.up);
            for _ in 0..PACKETS_PER_CONNECTION {
                let mut out = Collected::default();
                self.links.seal(LINK, &[0x45; 1000], 0, now(), &mut out);
                self.send(out)?;
            }
            self.links.update(&[], now());
            self.run(Duration::ZERO)?;
        }
        Ok(AttackResult {
            count,
            cpu: cpu_time().saturating_sub(cpu),
            elapsed: begin.elapsed(),
        })
    }

    /// The peer's endpoint in the agent's configuration. Later changes of the peer's address do not show. None: the
    /// configuration has no endpoint for this peer.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.link.endpoint
    }
}

/// Four different route tables with `count` routes each, for [`Hostile::advertise`]. The prefixes are /24 from
/// 172.16.0.0 on, which no lab uses; `asn` is the whole AS path. With a `count` above 1,024 some prefixes are in more
/// than one table, because the block has only 4,096 such prefixes.
#[must_use]
pub fn tables(asn: u32, count: u16) -> Vec<Vec<Route>> {
    (0..4).map(|n| routes(asn, count, count.saturating_mul(n))).collect()
}

fn routes(asn: u32, count: u16, after: u16) -> Vec<Route> {
    let prefix = |n: u16| {
        let n = n.saturating_add(after);
        let [high, low] = n.to_be_bytes();
        ipnet::Ipv4Net::new_assert(Ipv4Addr::new(172, 16 + (high & 15), low, 0), 24).into()
    };
    let route = |n| Route {
        prefix: prefix(n),
        via: None,
        as_path: vec![asn],
        weight: 0,
        origin: RouteOrigin::Site,
    };
    (0..count).map(route).collect()
}

fn now() -> Instant {
    Instant::now()
}

/// Processor time of the calling thread; zero if the kernel has no schedstat.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let spent = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(spent.unwrap_or(0))
}
