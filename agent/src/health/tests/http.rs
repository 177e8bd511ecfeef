//! HTTP and HTTPS probes.

use super::super::{ProbeProtocol, Target};
use super::backend::Behaviour;
use super::world::World;
use super::{secs, target};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use std::sync::Arc;
use std::time::Duration;
use tombolo_proto::status::ProbeFailure;

const A: &str = "10.0.0.4";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn http() -> Target {
    target(A, ProbeProtocol::Http, 80)
}

fn https() -> Target {
    target(A, ProbeProtocol::Https, 443)
}

/// The health after some probes of a service.
fn probe(target: &Target, behaviour: Behaviour) -> (bool, World) {
    let mut world = World::new(std::slice::from_ref(target));
    let address = target.address.to_string();
    world.serve(&address, &[(target.probe.port, behaviour)]);
    // Between two probes.
    world.run(secs(16));
    while world.backend(&address).states().len() > 1 {
        world.run(Duration::from_millis(100));
    }
    (world.is_up(), world)
}

fn answer(text: &[u8]) -> Behaviour {
    Behaviour::Answer(text.to_vec(), Duration::ZERO)
}

#[test]
fn l6_http_is_up_with_status_200_only() {
    for (text, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true),
        ("HTTP/1.0 200\r\n\r\n", true),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", true),
        ("HTTP/1.1 201 Created\r\n\r\n", false),
        ("HTTP/1.1 204 No Content\r\n\r\n", false),
        ("HTTP/1.1 301 Moved\r\nLocation: http://10.0.0.4/\r\n\r\n", false),
        ("HTTP/1.1 302 Found\r\nLocation: /200\r\n\r\n", false),
        ("HTTP/1.1 401 Unauthorized\r\n\r\n", false),
        ("HTTP/1.1 500 Internal Server Error\r\n\r\n200 OK", false),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
        ("SSH-2.0-OpenSSH_10.0\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", false),
        ("HTTP/2 200\r\n\r\n", false),
        ("", false),
    ] {
        let (up, world) = probe(&http(), answer(text.as_bytes()));
        assert_eq!(up, expected, "{text:?}");
        // A status other than 200 is the reason. Of 1xx, the status after it counts.
        let status = text
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok());
        let reason = world.prober.failures().next().unwrap();
        match status.filter(|_| !text.ends_with("2\r\n") && !up) {
            Some(status) => assert_eq!(reason, Some(ProbeFailure::Status(status)), "{text:?}"),
            None => assert!(
                up == reason.is_none() && !matches!(reason, Some(ProbeFailure::Status(_))),
                "{text:?}"
            ),
        }
        let requests = &world.backend(A).requests;
        assert!(requests.len() >= 3, "{text:?}");
        let request = String::from_utf8(requests[0].clone()).unwrap();
        assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nHost: 10.0.0.4\r\n"), "{request}");
    }
}

#[test]
fn an_http_probe_closes_after_the_response_without_a_reset() {
    let (up, world) = probe(&http(), answer(OK));
    assert!(up);
    assert_eq!(world.count(|s| s.flags.rst), 0);
    assert!(world.count(|s| s.flags.fin) >= 3);
    // A server that does not close is reset at the time-out. The result is known before.
    let (up, world) = probe(&http(), Behaviour::AnswerAndStay(OK.to_vec()));
    assert!(up);
    assert!(world.count(|s| s.flags.rst) >= 2);
}

#[test]
fn l6_at_most_8_kib_of_a_response_are_read() {
    let mut long = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
    long.resize(100_000, b'x');
    let (up, world) = probe(&http(), answer(&long));
    assert!(!up, "the header is too long");
    assert!(world.count(|s| s.flags.rst) >= 3);

    let mut body = OK.to_vec();
    body.resize(100_000, b'x');
    let (up, world) = probe(&http(), answer(&body));
    assert!(up, "the header decides, the length of the body does not");
    let probes = world.starts("10.0.0.4:80").len();
    let bytes: usize = world.received.iter().map(Vec::len).sum();
    assert!(bytes < probes * 16 * 1024, "{bytes} bytes in {probes} probes");
}

#[test]
fn packets_of_1280_bytes_are_used_in_both_directions() {
    let mut body = OK.to_vec();
    body.resize(7_000, b'x');
    for address in [A, "2001:db8::4"] {
        let mut target = target(address, ProbeProtocol::Http, 80);
        target.probe.path = "/x".repeat(2_000);
        let (up, world) = probe(&target, answer(&body));
        assert!(up, "{address}");
        assert!(world.sent.iter().all(|s| s.size <= 1280));
        assert!(
            world.count(|s| s.flags.payload == 1024) >= 3,
            "as much as the buffer holds"
        );
        assert_eq!(world.received.iter().map(Vec::len).max(), Some(1280));
    }
}

#[test]
fn l6_an_answer_after_the_timeout_is_a_failure() {
    let slow = |millis| Behaviour::Answer(OK.to_vec(), Duration::from_millis(millis));
    assert!(probe(&http(), slow(4_500)).0);
    assert!(!probe(&http(), slow(5_500)).0);
    // With a long interval, 30 seconds are the limit.
    let mut rare = http();
    rare.probe.interval = secs(60);
    for (seconds, expected) in [(29, true), (31, false)] {
        let mut world = World::new(std::slice::from_ref(&rare));
        world.serve(A, &[(80, slow(seconds * 1000))]);
        world.run(secs(59));
        assert_eq!(world.is_up(), expected, "{seconds}");
    }
}

#[test]
fn l6_a_server_that_speaks_first_is_read() {
    assert!(probe(&http(), Behaviour::Banner(OK.to_vec())).0);
    assert!(!probe(&http(), Behaviour::Banner(b"220 smtp ready\r\n".to_vec())).0);
    assert!(!probe(&http(), Behaviour::Accept).0);
    assert!(!probe(&http(), Behaviour::Hang).0);
}

fn self_signed(name: &str, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    // Expired, for another name, and by no authority.
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap());
    Arc::new(config.unwrap())
}

#[test]
fn l6_https_accepts_any_certificate() {
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let config = self_signed("example.com", versions);
        let (up, world) = probe(&https(), Behaviour::Tls(config.clone(), OK.to_vec()));
        assert!(up, "{versions:?}");
        let request = String::from_utf8(world.backend(A).requests[0].clone()).unwrap();
        assert!(
            request.starts_with("GET /health HTTP/1.1\r\nHost: 10.0.0.4\r\n"),
            "{request}"
        );
        assert_eq!(world.count(|s| s.flags.rst), 0);
        assert!(world.sent.iter().all(|s| s.size <= 1280));

        let error = b"HTTP/1.1 500 Internal Server Error\r\n\r\n".to_vec();
        assert!(!probe(&https(), Behaviour::Tls(config.clone(), error)).0);
        let mut long = OK.to_vec();
        long.resize(200_000, b'x');
        let (up, world) = probe(&https(), Behaviour::Tls(config, long));
        assert!(up);
        let bytes: usize = world.received.iter().map(Vec::len).sum();
        assert!(bytes < world.starts("10.0.0.4:443").len() * 48 * 1024, "{bytes}");
    }
}

#[test]
fn l6_https_over_ipv6() {
    let target = target("2001:db8::4", ProbeProtocol::Https, 443);
    let config = self_signed("example.com", rustls::ALL_VERSIONS);
    let (up, world) = probe(&target, Behaviour::Tls(config, OK.to_vec()));
    assert!(up);
    assert!(world.sent.iter().all(|s| s.size <= 1280));
    let request = String::from_utf8(world.backend("2001:db8::4").requests[0].clone()).unwrap();
    assert!(request.contains("\r\nHost: [2001:db8::4]\r\n"), "{request}");
}

#[test]
fn l6_https_to_what_is_not_tls_is_down() {
    let (up, world) = probe(&https(), Behaviour::Banner(OK.to_vec()));
    assert!(!up, "plain HTTP");
    assert_eq!(world.backend(A).states(), []);
    assert!(!probe(&https(), Behaviour::Banner(vec![0x16; 100_000])).0, "garbage");
    assert!(!probe(&https(), Behaviour::Accept).0);
    let config = self_signed("example.com", rustls::ALL_VERSIONS);
    assert!(
        !probe(&http_on_443(), Behaviour::Tls(config, OK.to_vec())).0,
        "TLS, but the probe is HTTP"
    );
}

fn http_on_443() -> Target {
    target(A, ProbeProtocol::Http, 443)
}
