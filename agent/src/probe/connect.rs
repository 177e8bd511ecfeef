//! TCP connections from an address of this host, as probes of a port.

use super::{ProbeReport, ProbeRequest, bind, millis};
use anyhow::{Context, Result};
use futures::future::join_all;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::time::{sleep, timeout};

/// How an attempt to connect ended.
enum Outcome {
    /// The connection was open after this time.
    Open(Duration),
    Refused,
    Unreachable,
    TimedOut,
}

/// Opens `count` connections, one every `interval_ms`, and closes each as soon as it is open. The attempts overlap, so
/// that lost packets of one do not delay the next.
pub(super) async fn run(r: &ProbeRequest, device: Option<&str>) -> Result<ProbeReport> {
    let to = SocketAddr::new(r.destination, r.port.unwrap_or_default());
    let interval = Duration::from_millis(r.interval_ms.into());
    let limit = Duration::from_millis(r.timeout_ms.into());
    let attempts = (0..r.count).map(|number| async move {
        sleep(interval * number).await;
        attempt(r, device, to, limit).await
    });
    report_of(join_all(attempts).await)
}

/// The report of all attempts. Those that failed for a reason of this host were not sent.
///
/// # Errors
/// All attempts failed for such a reason.
fn report_of(outcomes: Vec<Result<Outcome>>) -> Result<ProbeReport> {
    let mut report = ProbeReport::default();
    let mut failed = None;
    for outcome in outcomes {
        report.sent += 1;
        match outcome {
            Ok(Outcome::Open(after)) => {
                report.received += 1;
                report.rtts_ms.push(millis(after));
            }
            Ok(Outcome::Refused) => report.refused += 1,
            Ok(Outcome::Unreachable) => report.unreachable += 1,
            Ok(Outcome::TimedOut) => {}
            Err(e) => {
                report.sent -= 1;
                failed = failed.or(Some(e));
            }
        }
    }
    match failed {
        Some(e) if report.sent == 0 => Err(e),
        _ => Ok(report),
    }
}

async fn attempt(r: &ProbeRequest, device: Option<&str>, to: SocketAddr, limit: Duration) -> Result<Outcome> {
    let domain = match to.ip() {
        IpAddr::V4(_) => Domain::IPV4,
        IpAddr::V6(_) => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).context("opening a TCP socket")?;
    socket.set_nonblocking(true)?;
    bind(&socket, r, device)?;
    match to.ip() {
        IpAddr::V4(_) => socket.set_ttl_v4(r.max_ttl.into())?,
        IpAddr::V6(_) => socket.set_unicast_hops_v6(r.max_ttl.into())?,
    }
    let socket = TcpSocket::from_std_stream(TcpStream::from(socket));
    let begin = Instant::now();
    match timeout(limit, socket.connect(to)).await {
        Err(_) => Ok(Outcome::TimedOut),
        Ok(Ok(_)) => Ok(Outcome::Open(begin.elapsed())),
        Ok(Err(e)) => outcome_of(&e).ok_or(e).with_context(|| format!("connecting to {to}")),
    }
}

/// The outcome that an error of `connect` stands for. `None`: the error is one of this host.
fn outcome_of(error: &io::Error) -> Option<Outcome> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Some(Outcome::Refused),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(Outcome::Unreachable),
        io::ErrorKind::TimedOut => Some(Outcome::TimedOut),
        // The kernel maps some ICMP errors to errors without a kind of their own, such as "protocol unreachable", and others
        // to kinds that say nothing of the network: ICMPv6 "administratively prohibited" is EACCES.
        _ => match error.raw_os_error() {
            Some(
                libc::ENOPROTOOPT | libc::EHOSTDOWN | libc::ENONET | libc::EACCES | libc::EPROTO | libc::EOPNOTSUPP,
            ) => Some(Outcome::Unreachable),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::*;
    use std::net::TcpListener;
    use tombolo_proto::probe::ProbeKind;

    fn request(port: u16) -> ProbeRequest {
        let here = IpAddr::from([127, 0, 0, 1]);
        ProbeRequest {
            source: here,
            destination: here,
            kind: ProbeKind::Connect,
            count: 3,
            interval_ms: 10,
            timeout_ms: 2000,
            max_ttl: 64,
            port: Some(port),
        }
    }

    /// M5: connections that are opened and connections that are refused are told apart, and only the first have a
    /// latency.
    #[tokio::test]
    async fn m5_open_and_refused_ports() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let open = run(&request(port), Some("lo")).await;
        assert_eq!((open.sent, open.received, open.refused), (3, 3, 0), "{open:?}");
        assert!(
            open.rtts_ms.len() == 3 && open.rtts_ms.iter().all(|ms| *ms > 0.0),
            "{open:?}"
        );
        drop(server);
        let refused = run(&request(port), Some("lo")).await;
        assert_eq!(
            (refused.sent, refused.received, refused.refused),
            (3, 0, 3),
            "{refused:?}"
        );
        assert!(refused.rtts_ms.is_empty() && refused.error.is_none(), "{refused:?}");
    }

    /// M5: nobody answers, so the connection times out, which is none of the counted outcomes.
    #[tokio::test]
    async fn m5_a_full_backlog_times_out() {
        let server = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        server
            .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
            .unwrap();
        server.listen(0).unwrap();
        let address = server.local_addr().unwrap().as_socket().unwrap();
        // Linux accepts one connection more than the backlog, and drops the SYN of every further one.
        let _held: Vec<_> = (0..2)
            .map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(200)))
            .collect();
        let silent = ProbeRequest {
            timeout_ms: 100,
            ..request(address.port())
        };
        let report = run(&silent, Some("lo")).await;
        assert_eq!((report.sent, report.received), (3, 0), "{report:?}");
        assert_eq!((report.refused, report.unreachable), (0, 0), "{report:?}");
    }

    /// M5: the errors that Linux makes of ICMP and ICMPv6 errors say that the destination cannot be reached, and not that this
    /// host cannot send.
    #[test]
    fn m5_errors_of_the_network_are_no_errors_of_this_host() {
        let unreachable = |code| {
            let outcome = outcome_of(&io::Error::from_raw_os_error(code));
            matches!(outcome, Some(Outcome::Unreachable))
        };
        for code in [
            libc::ENETUNREACH,
            libc::EHOSTUNREACH,
            libc::EACCES,
            libc::EPROTO,
            libc::ENOPROTOOPT,
            libc::EHOSTDOWN,
            libc::ENONET,
            libc::EOPNOTSUPP,
        ] {
            assert!(unreachable(code), "{}", io::Error::from_raw_os_error(code));
        }
        assert!(!unreachable(libc::EADDRNOTAVAIL) && !unreachable(libc::EPERM));
    }

    /// M5: an attempt that this host could not make does not discard the others.
    #[test]
    fn m5_one_failed_attempt_leaves_the_results_of_the_others() {
        let failed = || Err(anyhow::anyhow!("no port is free"));
        let outcomes = vec![
            Ok(Outcome::Open(Duration::from_millis(3))),
            failed(),
            Ok(Outcome::Refused),
        ];
        let report = report_of(outcomes).unwrap();
        assert_eq!((report.sent, report.received, report.refused), (2, 1, 1));
        assert_eq!(report.rtts_ms, [3.0]);
        let error = report_of(vec![failed(), failed()]).unwrap_err();
        assert_eq!(error.to_string(), "no port is free");
    }

    #[tokio::test]
    async fn a_port_belongs_to_connections_only() {
        let none = ProbeRequest {
            port: None,
            ..request(1)
        };
        assert!(run(&none, Some("lo")).await.error.unwrap().starts_with("port"));
        let zero = request(0);
        assert!(run(&zero, Some("lo")).await.error.unwrap().starts_with("port"));
        let ping = ProbeRequest {
            kind: ProbeKind::Ping,
            ..request(80)
        };
        assert!(run(&ping, Some("lo")).await.error.unwrap().starts_with("port"));
    }
}
