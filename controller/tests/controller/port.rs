//! Tests of the controller's port: TLS parameters, and the limits for clients that have not authenticated.

use crate::fake_agent::FakeAgent;
use crate::world::{EVENT_TIMEOUT, World, until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::Method;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tombolo_proto::control_stream::RenewRequest;
use tonic::Code;

/// Raises the soft limit of open files, because a test holds more connections than the usual limit allows.
fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// A client's TLS configuration. It trusts the controller's authority, and offers only `groups` for the key exchange
/// and only the TLS version `version`.
fn trusting(
    world: &World,
    groups: &[&'static dyn SupportedKxGroup],
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    let provider = CryptoProvider {
        kx_groups: groups.to_vec(),
        ..aws_lc_rs::default_provider()
    };
    let mut roots = RootCertStore::empty();
    let ca = std::fs::read(world.data().join("ca.pem")).unwrap();
    roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

async fn connect(world: &World, config: ClientConfig) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let name = ServerName::try_from("tombolo-controller").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

/// Connects without a certificate, and offers a protocol by ALPN.
pub(crate) async fn stranger(world: &World, protocol: &[u8]) -> TlsStream<TcpStream> {
    let mut config = trusting(world, aws_lc_rs::DEFAULT_KX_GROUPS, &rustls::version::TLS13);
    config.alpn_protocols = vec![protocol.to_vec()];
    connect(world, config).await
}

/// The value of the metric whose line begins with `line`. Panics if there is none.
async fn metric(world: &World, line: &str) -> u64 {
    let answer = world
        .client
        .get(world.url("/metrics"))
        .bearer_auth(&world.token)
        .send()
        .await;
    let text = answer.unwrap().text().await.unwrap();
    let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("no {line} in\n{text}"))
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_where_the_client_can() {
    let world = World::start(&[]).await;
    let tls13 = &rustls::version::TLS13;
    let ours = connect(&world, trusting(&world, aws_lc_rs::DEFAULT_KX_GROUPS, tls13)).await;
    let session = ours.get_ref().1;
    let group = |s: &rustls::ClientConnection| s.negotiated_key_exchange_group().map(|g| g.name());
    assert_eq!(group(session), Some(NamedGroup::X25519MLKEM768));
    assert_eq!(
        session.handshake_kind(),
        Some(HandshakeKind::Full),
        "without another round trip"
    );
    // Azure's clients use older TLS libraries, which have no post-quantum groups, and some of which do not have TLS
    // 1.3.
    let plain: [&dyn SupportedKxGroup; 1] = [aws_lc_rs::kx_group::X25519];
    for version in [tls13, &rustls::version::TLS12] {
        let mut older = connect(&world, trusting(&world, &plain, version)).await;
        let request = "GET /fabric/v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        older.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = older.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let session = older.get_ref().1;
        assert_eq!(session.protocol_version(), Some(version.version));
        if version.version == ProtocolVersion::TLSv1_3 {
            assert_eq!(group(session), Some(NamedGroup::X25519));
        }
    }
}

/// While 3,000 idle connections are open, an agent and a new client can connect. The metrics count the idle
/// connections.
#[tokio::test]
async fn idle_connections_keep_nobody_out() {
    raise_descriptor_limit();
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut idle = Vec::new();
    for _ in 0..3000 {
        idle.push(TcpStream::connect(("127.0.0.1", world.port)).await.unwrap());
    }
    let fresh = reqwest::Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true);
    let health = fresh.build().unwrap().get(world.url("/fabric/v1/health")).send().await;
    assert_eq!(health.unwrap().status(), 200);
    agent.hello(0, "").await.unwrap().config().await;
    FakeAgent::join(&world, "vm-b", "b-nic").await;
    let name = "tombolo_connections_closed_total{stage=\"silent\",reason=\"displaced\"}";
    assert!(metric(&world, name).await >= 1000, "one address cannot have them all");
    let held = metric(&world, "tombolo_connections{stage=\"silent\"}").await;
    assert!(held <= 1024, "{held}");
    assert!(!world.log().contains("panicked"), "{}", world.log());
}

/// The connection of a client that has not authenticated is closed in each state: before the ClientHello, in the middle
/// of it, after the handshake without a request, and in the middle of a body.
#[tokio::test]
async fn strangers_that_do_nothing_are_closed() {
    let world = World::start(&[]).await;
    let tcp = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let mut half = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    // The beginning of a TLS record that announces 512 bytes.
    half.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252]).await.unwrap();
    let http1 = stranger(&world, b"http/1.1").await;
    let no_preface = stranger(&world, b"h2").await;
    let mut idle_h2 = stranger(&world, b"h2").await;
    // The connection preface of RFC 9113 with an empty SETTINGS frame, and no request.
    idle_h2
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut body = stranger(&world, b"http/1.1").await;
    let head = "POST /fabric/v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n{";
    body.write_all(head.as_bytes()).await.unwrap();
    async fn ends(what: &str, mut stream: impl tokio::io::AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        let read = async { while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {} };
        let ended = tokio::time::timeout(EVENT_TIMEOUT, read).await;
        assert!(ended.is_ok(), "{what} is held for ever");
    }
    tokio::join!(
        ends("a TCP connection", tcp),
        ends("half a ClientHello", half),
        ends("HTTP/1.1 without a request", http1),
        ends("HTTP/2 without its preface", no_preface),
        ends("HTTP/2 without a request", idle_h2),
        ends("a body that does not come", body),
    );
    until("the sockets are closed", async || {
        let strangers = metric(&world, "tombolo_connections{stage=\"stranger\"}").await;
        (strangers == 0).then_some(())
    })
    .await;
    let timeouts = "tombolo_connections_closed_total{stage=\"stranger\",reason=\"timeout\"}";
    assert!(metric(&world, timeouts).await >= 2);
}

/// If a client has no certificate, the control service refuses its request before the service reads the request's body.
#[tokio::test]
async fn agents_show_their_certificate_first() {
    let world = World::start(&[]).await;
    for method in ["Renew", "Sync", "Nothing"] {
        let mut stream = stranger(&world, b"http/1.1").await;
        // The header of a gRPC message. It announces 1 MiB, but the test sends no such bytes.
        let head = format!(
            "POST /tombolo.v1.Control/{method} HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\n\
             content-length: 1048581\r\n\r\n\0\0\x10\0\0"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
            let read = tokio::time::timeout(EVENT_TIMEOUT, stream.read(&mut buffer)).await;
            let read = read.expect("an answer before the body").unwrap();
            assert!(read > 0, "closed without an answer");
            answer.extend_from_slice(&buffer[..read]);
        }
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(answer.contains("grpc-status: 16"), "{method}: {answer}");
    }
    assert_eq!(metric(&world, "tombolo_control_refused_total").await, 3);
}

#[tokio::test]
async fn a_renewal_is_small() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let mut agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut client = agent.connect(false).await.unwrap();
    let csr = "x".repeat(20 << 10);
    let refused = client.renew(RenewRequest { csr }).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    agent.renew(key).await.unwrap();
    agent.hello(0, "").await.unwrap().config().await;
}

/// A request with a token moves its own connection to the stage `bearer`, and no other connection of the same client.
#[tokio::test]
async fn a_token_promotes_its_connection() {
    let world = World::start(&[]).await;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(stranger(&world, b"http/1.1").await);
    }
    let gauge = async |stage: &str| metric(&world, &format!("tombolo_connections{{stage=\"{stage}\"}}")).await;
    until("three strangers", async || (gauge("stranger").await == 3).then_some(())).await;
    let bearers = gauge("bearer").await;
    let request = format!(
        "GET /fabric/v1/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        world.token
    );
    strangers[0].write_all(request.as_bytes()).await.unwrap();
    let wrong = "GET /fabric/v1/agents HTTP/1.1\r\nhost: x\r\nauthorization: Bearer nonsense\r\n\r\n";
    strangers[1].write_all(wrong.as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    for (stream, status) in strangers.iter_mut().zip(["200", "401"]) {
        let read = stream.read(&mut buffer).await.unwrap();
        let answer = String::from_utf8_lossy(&buffer[..read]);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    assert_eq!((gauge("bearer").await, gauge("stranger").await), (bearers + 1, 2));
    assert_eq!(world.fabric(Method::GET, "health", None).await.status, 200);
}

/// All agents behind one address can reconnect at once after a restart of the controller, even while another client at
/// that address opens connections as fast as it can.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_agents_behind_one_address_come_back() {
    const AGENTS: usize = 200;
    raise_descriptor_limit();
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    let mut agents = Vec::new();
    for first in (0..AGENTS).step_by(20) {
        let some = (first..first + 20).map(|n| {
            let world = &world;
            async move {
                let nic = format!("nic-{n}");
                world.nic(&nic, "a", &format!("10.1.0.{}", n + 10)).await;
                FakeAgent::join(world, &format!("vm-{n}"), &nic).await
            }
        });
        agents.extend(futures::future::join_all(some).await);
    }
    let port = world.port;
    let flood = tokio::spawn(async move {
        let mut idle = std::collections::VecDeque::new();
        loop {
            idle.extend(TcpStream::connect(("127.0.0.1", port)).await.ok());
            if idle.len() > 3000 {
                idle.pop_front();
            }
        }
    });
    world.kill_and_restart().await;
    let streams = agents.into_iter().map(|agent| async move {
        // A real agent also retries until it has a stream.
        until("a stream and a configuration", async || {
            let mut stream = agent.hello(0, "").await.ok()?;
            stream.next().await.ok().map(|_| stream)
        })
        .await
    });
    let streams: Vec<_> = futures::future::join_all(streams).await;
    assert_eq!(
        metric(&world, "tombolo_agents{state=\"connected\"}").await,
        AGENTS as u64
    );
    flood.abort();
    drop(streams);
    assert!(metric(&world, "tombolo_connections_accepted_total").await > 1000 + AGENTS as u64);
}
