//! An agent that has joined and turned hostile: it has the keys and the configuration of a real one, and says on its links whatever
//! it likes.
//!
//! The real agent must not run meanwhile: peers would hear both.

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

/// Longest that a session may take to come up.
const SESSION: Duration = Duration::from_secs(10);

/// The link that it attacks: the only one that it has.
const LINK: LinkIndex = LinkIndex(0);

/// Packets over a connection that flaps.
const PACKETS: u32 = 50;

/// What an attack did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Route tables advertised, or connections made and closed.
    pub count: u64,
    /// Processor time that this thread spent.
    pub cpu: Duration,
    /// How long it took.
    pub elapsed: Duration,
}

/// One link of a hostile agent.
pub struct Hostile {
    links: SecureLinks,
    link: Link,
    socket: UdpSocket,
    buffer: Vec<u8>,
    datagram: Vec<u8>,
    up: bool,
}

impl Hostile {
    /// Takes the identity in an agent's state folder, for its link with `peer`. The socket is opened in the network namespace of the
    /// calling thread, and works from any other thread.
    ///
    /// # Errors
    /// The agent has no configuration or no such peer, or its port is taken.
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

    /// Takes the link up, over this transport.
    fn open(&mut self, transport: Transport) {
        let link = Link {
            transport,
            // For a link over QUIC packets open connections, and nothing is said over WireGuard.
            always_on: transport != Transport::Quic,
            initiator: true,
            ..self.link.clone()
        };
        self.links.update(&[link], now());
    }

    /// Works for so long.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        let end = now() + time;
        loop {
            let left = end.saturating_duration_since(now());
            // A timeout of zero would be none.
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
            // What a peer that has gone says of itself is not the end.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
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
                Event::EndpointChanged(..) | Event::Switched(..) | Event::RoutesReceived(..) => {}
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

    /// Waits until there is a session.
    ///
    /// # Errors
    /// There is none in ten seconds.
    pub fn wait_until_up(&mut self) -> Result<()> {
        let begin = now();
        while !self.up {
            ensure!(begin.elapsed() < SESSION, "{} does not answer", self.link.peer);
            self.run(Duration::from_millis(10))?;
        }
        Ok(())
    }

    /// Advertises tables of routes in turn, `rate` a second or, with 0, as fast as it can. What the peer has said last that it has
    /// is left out: with three tables or more each message says something else than the one before.
    ///
    /// # Errors
    /// There is no session, or the socket is broken.
    pub fn advertise(&mut self, tables: &[Vec<Route>], rate: u32, time: Duration) -> Result<Done> {
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
        Ok(Done {
            count,
            cpu: cpu_time().saturating_sub(cpu),
            elapsed: begin.elapsed(),
        })
    }

    /// Makes a QUIC connection, sends some packets over it and closes it, again and again: the peer's lane is busy while it hears of
    /// connections that come and go.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn flap(&mut self, time: Duration) -> Result<Done> {
        let (begin, cpu) = (now(), cpu_time());
        let mut count = 0;
        while begin.elapsed() < time {
            self.up = false;
            self.open(Transport::Quic);
            let mut out = Collected::default();
            // Whatever is sent opens one.
            self.links.seal(LINK, &[0x45; 40], 0, now(), &mut out);
            self.send(out)?;
            let opened = now();
            // Whom the peer does not know is not answered.
            while !self.up && opened.elapsed() < Duration::from_millis(50) {
                self.run(Duration::from_millis(1))?;
            }
            count += u64::from(self.up);
            for _ in 0..PACKETS {
                let mut out = Collected::default();
                self.links.seal(LINK, &[0x45; 1000], 0, now(), &mut out);
                self.send(out)?;
            }
            self.links.update(&[], now());
            self.run(Duration::ZERO)?;
        }
        Ok(Done {
            count,
            cpu: cpu_time().saturating_sub(cpu),
            elapsed: begin.elapsed(),
        })
    }

    /// Where the peer is.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.link.endpoint
    }
}

/// Four tables of an agent with this ASN, of `count` routes each that lead nowhere in particular, from 172.16.0.0 on.
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

/// Processor time of the calling thread; zero where the kernel does not say.
fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let spent = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(spent.unwrap_or(0))
}
