//! TCP and UDP servers on the hosts of a lab that send back all data that they receive, and attempts to reach these
//! servers.

use crate::host::inside;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time for which an attempt waits for an answer. Inside of a lab an answer takes milliseconds, and a packet
/// that a security rule denies gets no answer.
const ATTEMPT: Duration = Duration::from_millis(1200);

/// Longest time for which an open connection waits until a few bytes come back. It is long because the machine may be
/// busy.
const ECHO: Duration = Duration::from_secs(5);

/// Time between two reads from the sockets of a server.
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

/// A server that runs in a thread of its own. When the value is dropped, the server closes its connections and its
/// port, and the thread ends.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts a server at an address of the network namespace `netns`. When the call returns, clients can reach the
    /// server.
    ///
    /// # Errors
    /// The namespace cannot be entered, which needs root, or the socket cannot be bound to the address and port.
    pub fn start(netns: &Path, address: std::net::IpAddr, port: Port) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicUsize::new(0));
        let (stopped, counted) = (stop.clone(), served.clone());
        let thread = match port {
            Port::Tcp(number) => {
                let at = SocketAddr::new(address, number);
                let listener =
                    inside(netns, || TcpListener::bind(at))?.with_context(|| format!("listening at {at}"))?;
                listener.set_nonblocking(true)?;
                std::thread::spawn(move || serve_tcp(&listener, &stopped, &counted))
            }
            Port::Udp(number) => {
                let at = SocketAddr::new(address, number);
                let socket = inside(netns, || UdpSocket::bind(at))?.with_context(|| format!("binding {at}"))?;
                socket.set_read_timeout(Some(POLL))?;
                std::thread::spawn(move || serve_udp(&socket, &stopped, &counted))
            }
        };
        Ok(Self {
            stop,
            served,
            thread: Some(thread),
        })
    }

    /// Number of connections that the server has accepted, or of datagrams that it has received.
    #[must_use]
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If the server panicked, it did not answer, and the attempts to reach it have reported that.
            let _ = thread.join();
        }
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool, accepted: &AtomicUsize) {
    let mut open: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // One thread answers all connections, so no connection may block the thread.
        if let Ok((stream, _)) = listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            accepted.fetch_add(1, Ordering::Relaxed);
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

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool, received: &AtomicUsize) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((n, from)) = socket.recv_from(&mut buffer) {
            received.fetch_add(1, Ordering::Relaxed);
            // An error means that the client has gone away, and needs no answer.
            let _ = socket.send_to(&buffer[..n], from);
        }
    }
}

/// An open TCP connection to an [`EchoServer`].
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// Opens a connection from the network namespace `netns`, and exchanges a few bytes with the server. `None`: the
    /// attempt to connect gets no answer within 1.2 s. Blocks the calling thread.
    ///
    /// # Errors
    /// The namespace cannot be entered, the connection is refused because no server listens, or the connection breaks
    /// or does not send back the bytes within 5 s.
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

    /// Sends a few bytes, and waits up to 5 s until the server has sent them back. Blocks the calling thread.
    ///
    /// # Errors
    /// The bytes do not come back or are others, or the connection is closed.
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

/// Returns the times that `count` TCP connections to `to`, one after the other, take from the first packet until the
/// server has accepted. Each connection is closed at once. Blocks the calling thread.
///
/// # Errors
/// The namespace cannot be entered, or a connection is refused or gets no answer within 1.2 s.
pub fn connect_times(netns: &Path, to: SocketAddr, count: usize) -> Result<Vec<Duration>> {
    let one = |_| {
        let start = Instant::now();
        TcpStream::connect_timeout(&to, ATTEMPT).map(|_| start.elapsed())
    };
    let all: std::io::Result<Vec<Duration>> = inside(netns, || (0..count).map(one).collect())?;
    all.with_context(|| format!("connecting to {to}"))
}

/// A UDP socket that exchanges datagrams with an [`EchoServer`]. All datagrams have the same addresses and ports, so
/// they belong to one flow.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    /// The number of datagrams that were sent. Each datagram contains its number.
    sent: u64,
}

impl Datagrams {
    /// Creates a socket in the network namespace `netns`, which sends to the server at `to`. Sends nothing yet.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the socket cannot be created.
    pub fn open(netns: &Path, to: SocketAddr) -> Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = inside(netns, || UdpSocket::bind(any))??;
        socket.connect(to)?;
        socket.set_read_timeout(Some(ATTEMPT / 3))?;
        Ok(Self { socket, sent: 0 })
    }

    /// Sends up to three datagrams within 1.2 s, until the server has sent one of them back. Returns whether it has.
    /// Answers to datagrams of earlier calls do not count. Blocks the calling thread.
    ///
    /// # Errors
    /// The port is closed, or another error of the socket.
    pub fn exchange(&mut self) -> Result<bool> {
        let first = self.sent;
        for _ in 0..3 {
            self.socket.send(&self.sent.to_be_bytes())?;
            self.sent += 1;
            let mut back = [0; 64];
            let end = Instant::now() + ATTEMPT / 3;
            while Instant::now() < end {
                match self.socket.recv(&mut back) {
                    Ok(n) if (first..self.sent).any(|number| back[..n] == number.to_be_bytes()) => return Ok(true),
                    // An answer to an earlier call.
                    Ok(_) => {}
                    // The kernel does not restart a receive call that has a timeout (signal(7)).
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                    Err(e) => return Err(e).context("exchanging datagrams"),
                }
            }
        }
        Ok(false)
    }
}

/// The bytes that attempts send.
const WORDS: &[u8; 5] = b"hello";

/// The time after which the server at `to` answers a client in the network namespace `netns`. `None`: the server does
/// not answer within 1.2 s. For UDP, up to three datagrams are sent in this time. Blocks the calling thread.
///
/// # Errors
/// For TCP, as for [`Connection::open`]. For UDP: the namespace cannot be entered, the socket cannot be created, the
/// port is closed.
pub fn attempt(netns: &Path, to: std::net::IpAddr, port: Port) -> Result<Option<Duration>> {
    let start = Instant::now();
    match port {
        Port::Tcp(number) => {
            let opened = Connection::open(netns, SocketAddr::new(to, number))?;
            Ok(opened.map(|_| start.elapsed()))
        }
        Port::Udp(number) => {
            let mut datagrams = Datagrams::open(netns, SocketAddr::new(to, number))?;
            Ok(datagrams.exchange()?.then(|| start.elapsed()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::pthread::{pthread_kill, pthread_self};
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    use std::sync::mpsc;

    extern "C" fn nothing(_: nix::libc::c_int) {}

    /// A program that starts others gets a signal when one of them ends, and may wait for an answer at this moment.
    #[test]
    #[allow(
        unsafe_code,
        reason = "nix cannot know that the handler calls nothing that is unsafe in a handler"
    )]
    fn a_signal_does_not_end_an_exchange() -> Result<()> {
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGUSR1, &action) }?;
        let server = UdpSocket::bind("127.0.0.1:0")?;
        let here = Path::new("/proc/self/ns/net");
        let mut datagrams = Datagrams::open(here, server.local_addr()?)?;
        let (thread, waiting) = mpsc::channel();
        let exchange = std::thread::spawn(move || {
            thread.send(pthread_self()).unwrap();
            datagrams.exchange()
        });
        let waiting = waiting.recv()?;
        let mut datagram = [0; 64];
        let (n, from) = server.recv_from(&mut datagram)?;
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(10));
            pthread_kill(waiting, Signal::SIGUSR1)?;
        }
        std::thread::sleep(Duration::from_millis(10));
        server.send_to(&datagram[..n], from)?;
        assert!(exchange.join().unwrap()?);
        Ok(())
    }
}
