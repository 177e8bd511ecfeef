//! What a probe says on its connection, and what it concludes from the answers.

use super::connection::Buffers;
use super::http::{self, Head, MAX_RESPONSE, Response};
use super::status::Failure;
use super::{ProbeProtocol, Target};
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use smoltcp::socket::tcp::{Socket, State};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// Bytes that an HTTPS back end may send at most: a chain of certificates of at most 64 KiB, which is the limit of
/// rustls, comes before the response.
const MAX_TLS_BYTES: usize = 64 * 1024 + 2 * MAX_RESPONSE;

/// The application's part of a probe.
pub(super) struct Dialogue {
    protocol: Protocol,
    established: bool,
    /// Bytes received, TLS included.
    received: usize,
    result: Option<Result<(), Failure>>,
}

enum Protocol {
    Tcp,
    Http {
        request: Vec<u8>,
        sent: usize,
        response: Response,
    },
    Https(Box<Https>),
}

struct Https {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    request: Vec<u8>,
    /// Created after the TCP handshake, so that silent back ends cost neither keys nor memory.
    session: Option<ClientConnection>,
    /// Whether the back end has ended the response with a close_notify alert, or the session has failed.
    is_ended: bool,
    /// Whether the session has failed or has sent its own close_notify. It must not be given more bytes then: rustls would
    /// answer with a second alert, which it asserts never to do.
    is_over: bool,
    response: Response,
}

impl Dialogue {
    /// A probe of HTTPS needs `tls`.
    pub(super) fn new(target: &Target, tls: Option<&Arc<ClientConfig>>) -> Self {
        let request = match target.probe.protocol {
            ProbeProtocol::Tcp => Vec::new(),
            ProbeProtocol::Http | ProbeProtocol::Https => http::request(target),
        };
        let response = Response::default();
        let protocol = match (target.probe.protocol, tls) {
            (ProbeProtocol::Tcp, _) => Protocol::Tcp,
            (ProbeProtocol::Https, Some(config)) => Protocol::Https(Box::new(Https {
                config: config.clone(),
                name: ServerName::IpAddress(target.address.into()),
                request,
                session: None,
                is_ended: false,
                is_over: false,
                response,
            })),
            (ProbeProtocol::Http | ProbeProtocol::Https, _) => Protocol::Http {
                request,
                sent: 0,
                response,
            },
        };
        Self {
            protocol,
            established: false,
            received: 0,
            result: None,
        }
    }

    /// The buffers that the connection needs. They need not hold a whole message.
    pub(super) fn buffers(&self) -> Buffers {
        let (receive, transmit) = match self.protocol {
            Protocol::Tcp => (2 * 1024, 1024),
            Protocol::Http { .. } => (4 * 1024, 1024),
            Protocol::Https(_) => (8 * 1024, 2 * 1024),
        };
        Buffers { receive, transmit }
    }

    /// The result, once it is known. The connection can still be open then.
    pub(super) fn result(&self) -> Option<Result<(), Failure>> {
        self.result
    }

    /// Sets the result if there is none.
    pub(super) fn conclude(&mut self, result: Result<(), Failure>) {
        self.result.get_or_insert(result);
    }

    /// Reads from the connection, writes to it and closes it, as far as that is possible now.
    pub(super) fn step(&mut self, socket: &mut Socket<'_>) {
        if !self.established {
            match socket.state() {
                State::SynSent | State::SynReceived | State::Listen => return,
                State::Closed => return self.conclude(Err(Failure::Refused)),
                _ => self.established = true,
            }
        }
        while let Ok(bytes) = socket.recv(|bytes| (bytes.len(), bytes.to_vec())) {
            if bytes.is_empty() {
                break;
            }
            self.received = self.received.saturating_add(bytes.len());
            self.read(&bytes);
        }
        let is_ended = !socket.may_recv();
        match &mut self.protocol {
            Protocol::Tcp => {
                self.conclude(Ok(()));
                socket.close();
                if self.received > MAX_RESPONSE {
                    socket.abort();
                }
            }
            Protocol::Http {
                request,
                sent,
                response,
            } => {
                while let Ok(count @ 1..) = socket.send_slice(&request[*sent..]) {
                    *sent += count;
                }
                let is_full = response.is_full();
                self.finish(socket, is_ended, is_full);
            }
            Protocol::Https(https) => {
                let written = https.write(socket);
                if written.is_err() {
                    https.fail();
                }
                let is_ended = is_ended || https.is_ended;
                let is_full = https.response.is_full() || self.received >= MAX_TLS_BYTES;
                if written.is_err() {
                    self.conclude(Err(Failure::Tls));
                }
                self.finish(socket, is_ended, is_full);
            }
        }
    }

    /// Closes the connection when the back end has ended its response. A connection that the back end could use for ever
    /// is reset instead.
    fn finish(&mut self, socket: &mut Socket<'_>, is_ended: bool, is_full: bool) {
        if is_ended {
            self.conclude(Err(Failure::Closed));
        } else if is_full {
            self.conclude(Err(Failure::TooLong));
        }
        let is_useless = matches!(self.result, Some(Err(Failure::Malformed | Failure::TooLong)));
        if is_useless || (is_full && !is_ended) {
            socket.abort();
        } else if is_ended {
            if let Protocol::Https(https) = &mut self.protocol {
                https.say_goodbye(socket);
            }
            socket.close();
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        let head = match &mut self.protocol {
            Protocol::Tcp => return,
            Protocol::Http { response, .. } => response.feed(bytes),
            Protocol::Https(https) if https.is_over => return,
            Protocol::Https(https) => match https.read(bytes) {
                Ok(head) => head,
                Err(_) => {
                    https.fail();
                    return self.conclude(Err(Failure::Tls));
                }
            },
        };
        match head {
            Head::Incomplete => {}
            Head::Status(200) => self.conclude(Ok(())),
            Head::Status(status) => self.conclude(Err(Failure::Status(status))),
            Head::Malformed => self.conclude(Err(Failure::Malformed)),
            Head::TooLong => self.conclude(Err(Failure::TooLong)),
        }
    }
}

impl Https {
    fn read(&mut self, mut bytes: &[u8]) -> Result<Head, rustls::Error> {
        let mut head = Head::Incomplete;
        let Some(session) = &mut self.session else {
            return Ok(head);
        };
        let mut plaintext = [0; 2048];
        while !bytes.is_empty() {
            match session.read_tls(&mut bytes) {
                Ok(1..) => {}
                // Data after a close_notify alert.
                Ok(0) => break,
                Err(e) => return Err(rustls::Error::General(e.to_string())),
            }
            self.is_ended |= session.process_new_packets()?.peer_has_closed();
            while let Ok(count @ 1..) = session.reader().read(&mut plaintext) {
                head = self.response.feed(&plaintext[..count]);
                if matches!(head, Head::Malformed | Head::TooLong) {
                    return Ok(head);
                }
            }
        }
        Ok(head)
    }

    fn write(&mut self, socket: &mut Socket<'_>) -> Result<(), rustls::Error> {
        let session = match &mut self.session {
            Some(session) => session,
            session => {
                let mut new = ClientConnection::new(self.config.clone(), self.name.clone())?;
                // The session keeps the request until the handshake is complete.
                let written = new.writer().write_all(&self.request);
                written.map_err(|e| rustls::Error::General(e.to_string()))?;
                session.insert(new)
            }
        };
        flush(session, socket);
        Ok(())
    }

    fn say_goodbye(&mut self, socket: &mut Socket<'_>) {
        if let Some(session) = &mut self.session {
            // Without effect after the alert of a failed session.
            session.send_close_notify();
            flush(session, socket);
        }
        self.is_over = true;
    }

    fn fail(&mut self) {
        self.is_over = true;
        self.is_ended = true;
    }
}

fn flush(session: &mut ClientConnection, socket: &mut Socket<'_>) {
    while session.wants_write() {
        let Ok(1..) = session.write_tls(&mut Outgoing(socket)) else {
            return;
        };
    }
}

struct Outgoing<'a, 'b>(&'a mut Socket<'b>);

impl Write for Outgoing<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_slice(bytes).map_err(|_| io::ErrorKind::NotConnected.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
