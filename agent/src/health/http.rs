//! The request and the response of an HTTP probe.

use super::Target;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Bytes of a response that are read at most, header and body together.
pub(super) const MAX_RESPONSE: usize = 8 * 1024;

/// The request for the path of `target`.
pub(super) fn request(target: &Target) -> Vec<u8> {
    let path = &target.probe.path;
    let mut request = String::from("GET ");
    if !path.starts_with('/') {
        request.push('/');
    }
    for byte in path.bytes() {
        // Spaces, control characters and bytes over 0x7f would end or corrupt the request line.
        if byte.is_ascii_graphic() {
            request.push(char::from(byte));
        } else {
            let _ = write!(request, "%{byte:02X}");
        }
    }
    let host = match target.address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let _ = write!(
        request,
        " HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Load Balancer Agent\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    request.into_bytes()
}

/// What is known about a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// The header is not complete.
    Incomplete,
    /// The header is complete, with this status. It is not 1xx.
    Status(u16),
    /// Not the beginning of an HTTP/1 response.
    Malformed,
    /// The header is not complete after [`MAX_RESPONSE`] bytes.
    TooLong,
}

/// Reads a response as it arrives. The header is kept until it is complete; the body is only counted.
#[derive(Default)]
pub(super) struct Response {
    head: Vec<u8>,
    /// End of the part of `head` in which there is no empty line.
    scanned: usize,
    received: usize,
    status: Option<u16>,
}

impl Response {
    /// Adds received bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Head {
        let room = MAX_RESPONSE.saturating_sub(self.received);
        self.received = self.received.saturating_add(bytes.len());
        if let Some(status) = self.status {
            return Head::Status(status);
        }
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        loop {
            let status = match parse_status_line(&self.head) {
                StatusLine::Malformed => return Head::Malformed,
                StatusLine::Incomplete => None,
                StatusLine::Status(status) => Some(status),
            };
            let (Some(status), Some(end)) = (status, self.find_end()) else {
                return if self.received >= MAX_RESPONSE {
                    Head::TooLong
                } else {
                    Head::Incomplete
                };
            };
            if (100..200).contains(&status) {
                // An interim response, after which the final one follows.
                self.head.drain(..end);
                self.scanned = 0;
                continue;
            }
            self.status = Some(status);
            self.head = Vec::new();
            return Head::Status(status);
        }
    }

    /// Whether [`MAX_RESPONSE`] bytes have been received.
    pub(super) fn is_full(&self) -> bool {
        self.received >= MAX_RESPONSE
    }

    /// The end of the header in `head`: after the first empty line.
    fn find_end(&mut self) -> Option<usize> {
        while let Some(offset) = self.head[self.scanned..].iter().position(|&b| b == b'\n') {
            let after = self.scanned + offset + 1;
            match &self.head[after..] {
                [b'\n', ..] => return Some(after + 1),
                [b'\r', b'\n', ..] => return Some(after + 2),
                [] | [b'\r'] => {
                    self.scanned = after - 1;
                    return None;
                }
                _ => self.scanned = after,
            }
        }
        self.scanned = self.head.len();
        None
    }
}

#[derive(Debug, PartialEq)]
enum StatusLine {
    Incomplete,
    Status(u16),
    Malformed,
}

/// `HTTP/1.`, a digit, a space, three digits, then a space or the end of the line. A reason is not required.
fn parse_status_line(head: &[u8]) -> StatusLine {
    const PATTERN: &[u8; 12] = b"HTTP/1.d ddd";
    let fits = head.iter().zip(PATTERN).all(|(byte, expected)| match expected {
        b'd' => byte.is_ascii_digit(),
        _ => byte == expected,
    });
    if !fits {
        return StatusLine::Malformed;
    }
    match head {
        [_, _, _, _, _, _, _, _, _, a, b, c, b' ' | b'\r' | b'\n', ..] => {
            let status = [a, b, c]
                .iter()
                .fold(0, |value, digit| value * 10 + u16::from(**digit - b'0'));
            if (100..600).contains(&status) {
                StatusLine::Status(status)
            } else {
                StatusLine::Malformed
            }
        }
        _ if head.len() > PATTERN.len() => StatusLine::Malformed,
        _ => StatusLine::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProbeProtocol, ProbeSpec};
    use super::*;
    use std::time::Duration;

    fn requested(address: &str, path: &str) -> String {
        let probe = ProbeSpec {
            protocol: ProbeProtocol::Http,
            port: 80,
            path: path.to_owned(),
            interval: Duration::from_secs(5),
            threshold: 1,
        };
        let address = address.parse().unwrap();
        String::from_utf8(request(&Target { address, probe })).unwrap()
    }

    #[test]
    fn l6_the_request_is_one_get_whatever_the_path_is() {
        let request = requested("10.0.0.4", "/health?deep=1");
        assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\n"), "{request}");
        for line in ["Host: 10.0.0.4", "User-Agent: Load Balancer Agent", "Connection: close"] {
            assert!(request.contains(&format!("\r\n{line}\r\n")), "{line} in {request}");
        }
        assert!(requested("2001:db8::4", "").starts_with("GET / HTTP/1.1\r\nHost: [2001:db8::4]\r\n"));
        let request = requested("10.0.0.4", "a b\r\nX: y/ü");
        assert!(
            request.starts_with("GET /a%20b%0D%0AX:%20y/%C3%BC HTTP/1.1\r\n"),
            "{request}"
        );
    }

    #[test]
    fn a_response_is_read_in_any_pieces() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 \r\nLink: x\r\n\r\nHTTP/1.0 204\r\nA: b\r\n\r\nbody";
        for size in 1..=text.len() {
            let mut response = Response::default();
            let heads: Vec<Head> = text.chunks(size).map(|piece| response.feed(piece)).collect();
            assert_eq!(heads.last(), Some(&Head::Status(204)), "{size}");
            let done = heads.iter().position(|h| *h != Head::Incomplete).unwrap();
            // "body" is not waited for.
            assert!((done + 1) * size >= text.len() - 4, "{size}: not before the empty line");
            assert!(done * size < text.len() - 4, "{size}: at the empty line");
        }
    }

    #[test]
    fn bare_line_feeds_end_a_header() {
        assert_eq!(
            Response::default().feed(b"HTTP/1.1 200 OK\nA: b\n\n"),
            Head::Status(200)
        );
    }

    #[test]
    fn what_is_not_http_1_is_malformed_at_the_first_wrong_byte() {
        for text in [
            "SSH-2.0-",
            "h",
            "HTTP/2",
            "HTTP/1.1 2x",
            "HTTP/1.1 2000",
            "HTTP/1.1 099 ",
            "HTTP/1.1 600 ",
            "\r\n",
        ] {
            assert_eq!(Response::default().feed(text.as_bytes()), Head::Malformed, "{text}");
        }
        for text in [
            "",
            "H",
            "HTTP/1.1 2",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\n\r",
        ] {
            assert_eq!(Response::default().feed(text.as_bytes()), Head::Incomplete, "{text}");
        }
    }

    #[test]
    fn a_header_of_more_than_8_kib_is_too_long() {
        let mut text = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        text.resize(MAX_RESPONSE - 4, b'x');
        text.extend_from_slice(b"\r\n\r\n");
        assert_eq!(Response::default().feed(&text), Head::Status(200), "exactly 8 KiB");
        text.insert(20, b'x');
        assert_eq!(Response::default().feed(&text), Head::TooLong);
        let mut response = Response::default();
        let heads: Vec<Head> = text.chunks(1000).map(|c| response.feed(c)).collect();
        assert_eq!(heads.last(), Some(&Head::TooLong));
    }
}
