//! TCP and UDP servers on the hosts of a lab that send back what they receive, and attempts to reach them.

use crate::host::inside;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time that an attempt waits for an answer. Inside of a lab an answer takes milliseconds, and a packet that a
/// security rule denies has none.
const ATTEMPT: Duration = Duration::from_millis(1200);

/// Longest time that an open connection may take to send back a few bytes, on a busy machine.
const ECHO: Duration = Duration::from_secs(5);

/// Time between two looks at the sockets of a server.
const POLL: Duration = Duration::from_millis(2);

/// A port of a transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// A TCP port.
    Tcp(u16),
    /// A UDP port.
    Udp(u16),
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp {port}"),
            Self::Udp(port) => write!(f, "udp {port}"),
        }
    }
}

/// A server in a thread of its own. Dropping it closes its connections and its port.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts a server at an address of the network namespace `netns`. The server runs when the call returns.
    ///
    /// # Errors
    /// The namespace cannot be entered, for which root is needed, or the address or port cannot be bound.
    pub fn start(netns: &Path, address: std::net::IpAddr, port: Port) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = match port {
            Port::Tcp(number) => {
                let at = SocketAddr::new(address, number);
                let listener =
                    inside(netns, || TcpListener::bind(at))?.with_context(|| format!("listening at {at}"))?;
                listener.set_nonblocking(true)?;
                std::thread::spawn(move || serve_tcp(&listener, &stopped))
            }
            Port::Udp(number) => {
                let at = SocketAddr::new(address, number);
                let socket = inside(netns, || UdpSocket::bind(at))?.with_context(|| format!("binding {at}"))?;
                socket.set_read_timeout(Some(POLL))?;
                std::thread::spawn(move || serve_udp(&socket, &stopped))
            }
        };
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server that panicked has not answered, which the attempts have reported.
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // One thread answers all connections, so none of them may block it.
        if let Ok((stream, _)) = listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            open.push(stream);
        }
        open.retain_mut(|stream| {
            let mut buffer = [0; 64];
            match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
                Err(e) => e.kind() == ErrorKind::WouldBlock,
            }
        });
        std::thread::sleep(POLL);
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            // A client that has gone away needs no answer.
            let _ = socket.send_to(&buffer[..n], from);
        }
    }
}

/// An open TCP connection to an [`EchoServer`].
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// Opens a connection from the network namespace `netns`, and exchanges a few bytes. `None`: nobody answers within
    /// 1.2 s. Blocks the calling thread.
    ///
    /// # Errors
    /// The namespace cannot be entered; the connection is refused, because no server listens; or it breaks.
    pub fn open(netns: &Path, to: SocketAddr) -> Result<Option<Self>> {
        match inside(netns, || TcpStream::connect_timeout(&to, ATTEMPT))? {
            Ok(stream) => {
                stream.set_read_timeout(Some(ECHO))?;
                let mut connection = Self(stream);
                connection.exchange()?;
                Ok(Some(connection))
            }
            Err(e) if e.kind() == ErrorKind::TimedOut => Ok(None),
            Err(e) => Err(e).with_context(|| format!("connecting to {to}")),
        }
    }

    /// Sends a few bytes, and waits up to 5 s until they come back.
    ///
    /// # Errors
    /// They do not come back, or the connection is closed.
    pub fn exchange(&mut self) -> Result<()> {
        self.0.write_all(WORDS)?;
        let mut back = [0; WORDS.len()];
        self.0
            .read_exact(&mut back)
            .context("no answer over an open connection")?;
        if back != *WORDS {
            bail!("the answer is {back:?}");
        }
        Ok(())
    }
}

const WORDS: &[u8; 5] = b"hello";

/// Whether the server at `to` answers a host, and after which time. `None`: it does not answer within 1.2 s. UDP is tried
/// three times in this time. Blocks the calling thread.
///
/// # Errors
/// As [`Connection::open`]; for UDP, the socket cannot be created.
pub fn attempt(netns: &Path, to: std::net::IpAddr, port: Port) -> Result<Option<Duration>> {
    let start = Instant::now();
    match port {
        Port::Tcp(number) => {
            let opened = Connection::open(netns, SocketAddr::new(to, number))?;
            Ok(opened.map(|_| start.elapsed()))
        }
        Port::Udp(number) => {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = inside(netns, || UdpSocket::bind(any))??;
            socket.connect(SocketAddr::new(to, number))?;
            socket.set_read_timeout(Some(ATTEMPT / 3))?;
            for _ in 0..3 {
                socket.send(WORDS)?;
                let mut back = [0; 64];
                match socket.recv(&mut back) {
                    Ok(n) if back[..n] == *WORDS => return Ok(Some(start.elapsed())),
                    Ok(_) => bail!("another answer than what was sent"),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(e) => return Err(e).with_context(|| format!("udp {to}:{number}")),
                }
            }
            Ok(None)
        }
    }
}
