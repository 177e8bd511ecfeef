//! Tests the agent's side of the control stream against a fake controller: mutual TLS, Hello, valid and invalid
//! configurations, reconnection, renewal of certificates, and probes.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Wire, config, eventually, signed_by_authority};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tombolo_agent::state::file;
use tombolo_proto::config::digest;
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::control_server::{Control, ControlServer};
use tombolo_proto::control_stream::controller_message::Message as ToAgent;
use tombolo_proto::control_stream::{
    AgentMessage, Config, ControllerMessage, Hello, Part, Piece, Probe, RenewReply, RenewRequest, UpToDate, piece,
};
use tombolo_proto::probe::{ProbeKind, ProbeReport, ProbeRequest};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

type Outbox = tokio::sync::mpsc::Sender<Result<ControllerMessage, Status>>;

#[derive(Clone)]
struct Fake {
    inbox: mpsc::Sender<FromAgent>,
    outbox: Arc<Mutex<Option<Outbox>>>,
    renewals: Arc<AtomicU32>,
    /// The number of renewals that the controller refuses before it grants one.
    failures: u32,
    renewed: String,
}

#[tonic::async_trait]
impl Control for Fake {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn sync(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Self::SyncStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        *self.outbox.lock().unwrap() = Some(sender);
        let (mut messages, inbox) = (request.into_inner(), self.inbox.clone());
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                let _ = inbox.send(message.message.unwrap());
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        assert!(request.into_inner().csr.contains("CERTIFICATE REQUEST"));
        if self.renewals.fetch_add(1, Ordering::Relaxed) < self.failures {
            return Err(Status::unavailable("not now"));
        }
        Ok(Response::new(RenewReply {
            certificate: self.renewed.clone(),
        }))
    }
}

/// A fake controller in a namespace. Dropping the value stops it.
struct Controller {
    fake: Fake,
    inbox: mpsc::Receiver<FromAgent>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Controller {
    fn start(ns: &str, host: &Host, verify_clients: bool) -> Self {
        Self::renewing(ns, host, verify_clients, 0, host.issue_own(false))
    }

    /// A controller that refuses `failures` renewals, and then answers renewals with the certificate `renewed`.
    fn renewing(ns: &str, host: &Host, verify_clients: bool, failures: u32, renewed: String) -> Self {
        let (sender, inbox) = mpsc::channel();
        let fake = Fake {
            inbox: sender,
            outbox: Arc::default(),
            renewals: Arc::default(),
            failures,
            renewed,
        };
        let (key, certificate) = signed_by_authority(host, "tombolo-controller");
        let authority = String::from_utf8(host.state.read(file::CA).unwrap().unwrap()).unwrap();
        let mut tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
        if verify_clients {
            tls = tls.client_ca_root(Certificate::from_pem(authority));
        }
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ns, service) = (format!("/var/run/netns/{ns}"), ControlServer::new(fake.clone()));
        let thread = std::thread::spawn(move || {
            let ns = std::fs::File::open(ns).unwrap();
            nix::sched::setns(ns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = Server::builder().tls_config(tls).unwrap().add_service(service);
                tokio::select! {
                    r = server.serve("192.0.2.2:8443".parse().unwrap()) => r.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self {
            fake,
            inbox,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn send(&self, message: ToAgent) {
        let outbox = self.fake.outbox.lock().unwrap().clone().unwrap();
        outbox
            .blocking_send(Ok(ControllerMessage { message: Some(message) }))
            .unwrap();
    }

    fn config(&self, revision: u64, bytes: &[u8]) {
        self.send(ToAgent::Config(Config {
            revision,
            digest: digest(bytes),
            config: bytes.to_vec(),
            ..Config::default()
        }));
    }

    /// Waits for the agent's next message, and skips status messages.
    fn next(&self) -> FromAgent {
        loop {
            match self
                .inbox
                .recv_timeout(Duration::from_secs(10))
                .expect("a message from the agent")
            {
                FromAgent::Status(_) => {}
                other => return other,
            }
        }
    }

    /// Waits for the agent's next message, which must be a Hello.
    fn hello(&self) -> Hello {
        match self.next() {
            FromAgent::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the agent's next message, which must be a rejection of a configuration. Returns the revision and the
    /// reason.
    fn rejection(&self) -> (u64, String) {
        match self.next() {
            FromAgent::Rejected(r) => (r.revision, r.reason),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the agent's next message, which must say that a configuration is applied. Returns the revision.
    fn applied(&self) -> u64 {
        match self.next() {
            FromAgent::Applied(a) => a.revision,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The number of TCP connections that a host has accepted.
fn accepted(wire: &Wire, host: usize) -> u64 {
    // The file `/proc/net/snmp` has a line of names, followed by a line of values.
    let text = wire.run(host, "cat /proc/net/snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    let accepted = counters.find(|(name, _)| *name == "PassiveOpens");
    accepted.unwrap().1.parse().unwrap()
}

/// Two hosts whose agents use the controller that runs on the second host.
fn hosts(wire: &Wire) -> [Host; 2] {
    let mut hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    for host in &mut hosts {
        host.config.controller = "https://192.0.2.2:8443".into();
        host.config.save(&host.state).unwrap();
    }
    hosts
}

#[test]
fn applies_rejects_and_reconnects() {
    let wire = Wire::new("ctl");
    let mut hosts = hosts(&wire);
    let controller = Controller::start(&wire.ns[1], &hosts[0], true);
    (hosts[0].config.quic_port, hosts[0].config.lanes) = (Some(443), 3);
    hosts[0].config.save(&hosts[0].state).unwrap();
    hosts[0].start();

    let hello = controller.hello();
    assert_eq!((hello.quic_endpoint.as_str(), hello.lanes), ("0.0.0.0:443", 3));
    assert_eq!(
        (hello.agent.as_str(), hello.revision, hello.digest.as_str()),
        ("vm-a", 0, "")
    );
    assert_eq!(hello.endpoints, ["0.0.0.0:51820"]);

    let good = config(0, [&hosts[0], &hosts[1]]);
    controller.config(1, &good.to_bytes());
    assert_eq!(controller.applied(), 1);
    assert!(wire.run(0, "ip -4 addr show tl-vm-a").contains("10.1.0.4/32"));
    // The controller sends the same configuration again, as it would if the agent's confirmation had been lost.
    controller.config(2, &good.to_bytes());
    assert_eq!(controller.applied(), 2);

    // The agent rejects a configuration with an unknown field: if it ignored the field, it might enforce only a part of
    // the policy.
    controller.config(
        3,
        &String::from_utf8(good.to_bytes())
            .unwrap()
            .replacen('{', "{\"colour\":1,", 1)
            .into_bytes(),
    );
    let (revision, reason) = controller.rejection();
    assert!(revision == 3 && reason.contains("colour"), "{reason}");
    let mut foreign = good.clone();
    foreign.agent = hosts[1].config.agent.clone();
    foreign.links.clear();
    controller.config(4, &foreign.to_bytes());
    assert!(controller.rejection().1.contains("vm-b"));
    // D22: the agent rejects a configuration with a prefix that overlaps the network of the host.
    let mut overlapping = good.clone();
    overlapping.subnets[0].routes[0].prefix = "192.0.2.0/25".parse().unwrap();
    controller.config(5, &overlapping.to_bytes());
    assert!(controller.rejection().1.contains("192.0.2.0/24"));
    let damaged = Config {
        revision: 6,
        digest: digest(b"x"),
        config: good.to_bytes(),
        ..Config::default()
    };
    controller.send(ToAgent::Config(damaged));
    assert!(controller.rejection().1.contains("digest"));
    assert!(
        wire.run(0, "ip -4 addr show tl-vm-a").contains("10.1.0.4/32"),
        "the configuration before stays"
    );

    controller.send(ToAgent::UpToDate(UpToDate { revision: 9 }));
    eventually("revision 9 by status", || {
        hosts[0].status().unwrap()["status"]["applied"] == 9
    });

    let request = ProbeRequest {
        source: "10.1.0.4".parse().unwrap(),
        destination: "10.1.0.4".parse().unwrap(),
        kind: ProbeKind::Ping,
        count: 2,
        interval_ms: 10,
        timeout_ms: 1000,
        max_ttl: 64,
        port: None,
    };
    let probe = |id, request: &ProbeRequest| -> ProbeReport {
        controller.send(ToAgent::Probe(Probe {
            id,
            request: serde_json::to_vec(request).unwrap(),
        }));
        let FromAgent::ProbeResult(result) = controller.next() else {
            panic!("no probe result")
        };
        assert_eq!(result.id, id);
        serde_json::from_slice(&result.report).unwrap()
    };
    let pinged = probe(77, &request);
    assert_eq!((pinged.received, pinged.error), (2, None));
    // M5: no program listens at port 1.
    let connect = ProbeRequest {
        kind: ProbeKind::Connect,
        port: Some(1),
        ..request
    };
    let connected = probe(78, &connect);
    assert_eq!((connected.sent, connected.refused, connected.error), (2, 2, None));

    // When the controller has restarted, it learns from the agent's Hello which configuration the agent has applied. So
    // it need not send the configuration again.
    drop(controller);
    eventually("loss noticed", || hosts[0].status().unwrap()["connected"] == false);
    let controller = Controller::start(&wire.ns[1], &hosts[0], true);
    let hello = controller.hello();
    assert_eq!((hello.revision, hello.digest), (9, digest(&good.to_bytes())));

    // When the agent has restarted, it still has the configuration, and its Hello has the digest of this configuration.
    assert!(hosts[0].stop(nix::sys::signal::Signal::SIGTERM));
    hosts[0].start();
    assert_eq!(controller.hello().digest, digest(&good.to_bytes()));

    // D27: a configuration can be sent as a change of the one in force.
    let mut changed = good.clone();
    changed.mtu = 1400;
    let (base, new) = (good.to_bytes(), changed.to_bytes());
    let same = base.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let piece = |content| Piece { content: Some(content) };
    let change = |revision, base: &[u8]| {
        ToAgent::Config(Config {
            revision,
            digest: digest(&new),
            base: digest(base),
            pieces: vec![
                piece(piece::Content::Part(Part {
                    offset: 0,
                    len: u32::try_from(same).unwrap(),
                })),
                piece(piece::Content::Data(new[same..].to_vec())),
            ],
            ..Config::default()
        })
    };
    controller.send(change(10, &base));
    assert_eq!(controller.applied(), 10);
    eventually("the new MTU", || {
        wire.run(0, "ip link show tl-vm-a").contains("mtu 1400")
    });
    // A change of another configuration is refused: the agent asks for whole ones.
    controller.send(change(11, b"another"));
    let hello = controller.hello();
    assert!(!hello.features.contains(&"configDelta".to_owned()), "{hello:?}");
    assert_eq!(hello.digest, digest(&new));
}

/// D21: an agent can renew a certificate that has expired.
#[test]
fn an_expired_certificate_is_renewed() {
    let wire = Wire::new("renew");
    let mut hosts = hosts(&wire);
    hosts[0]
        .state
        .write(file::CERTIFICATE, hosts[0].issue_own(true).as_bytes())
        .unwrap();
    // The fake controller does not verify clients here, because its TLS library would refuse the expired certificate.
    // The real controller has a verifier of its own, which lets such an agent renew its certificate.
    let controller = Controller::start(&wire.ns[1], &hosts[0], false);
    hosts[0].start();
    controller.hello();
    assert_eq!(controller.fake.renewals.load(Ordering::Relaxed), 1);
    let stored = hosts[0].state.read(file::CERTIFICATE).unwrap().unwrap();
    assert_eq!(stored, controller.fake.renewed.as_bytes());
}

/// If a renewal of the certificate fails, the agent retries it on the same control stream, also while messages keep
/// arriving.
#[test]
fn a_failed_renewal_is_tried_again() {
    let wire = Wire::new("again");
    let mut hosts = hosts(&wire);
    let expired = hosts[0].issue_own(true);
    hosts[0].state.write(file::CERTIFICATE, expired.as_bytes()).unwrap();
    let renewed = hosts[0].issue_own(false);
    let controller = Controller::renewing(&wire.ns[1], &hosts[0], false, 2, renewed.clone());
    hosts[0].start();
    controller.hello();
    for revision in 1.. {
        // Regression: in an earlier version each message from the controller restarted the agent's wait before it
        // retries the renewal. While messages kept arriving, the retry never came.
        controller.send(ToAgent::UpToDate(UpToDate { revision }));
        std::thread::sleep(Duration::from_millis(200));
        if hosts[0].state.read(file::CERTIFICATE).unwrap().unwrap() == renewed.as_bytes() {
            break;
        }
        assert!(revision < 75, "no other attempt in 15 seconds");
    }
    assert_eq!(controller.fake.renewals.load(Ordering::Relaxed), 3);
}

/// If a renewed certificate is for another key, the agent rejects it and keeps the old certificate: with the new one it
/// could not authenticate.
#[test]
fn a_renewed_certificate_must_fit_the_key() {
    let wire = Wire::new("unfit");
    let mut hosts = hosts(&wire);
    let expired = hosts[0].issue_own(true);
    hosts[0].state.write(file::CERTIFICATE, expired.as_bytes()).unwrap();
    let foreign = hosts[1].issue_own(false);
    let controller = Controller::renewing(&wire.ns[1], &hosts[0], false, 0, foreign);
    hosts[0].start();
    controller.hello();
    assert!(controller.fake.renewals.load(Ordering::Relaxed) >= 1);
    let stored = hosts[0].state.read(file::CERTIFICATE).unwrap().unwrap();
    assert_eq!(stored, expired.as_bytes());
    assert!(hosts[0].log().contains("not renewed"), "{}", hosts[0].log());
}

/// If the controller's name has two addresses, and packets to the first one are lost, the agent connects to the second.
#[test]
fn an_address_that_swallows_packets_does_not_hide_the_next() {
    let wire = Wire::new("hole");
    let etc = std::path::PathBuf::from("/etc/netns").join(&wire.ns[0]);
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("hosts"), "192.0.2.3 ctl.test\n192.0.2.2 ctl.test\n").unwrap();
    // A permanent neighbour entry with a MAC address that no host has makes the network lose packets without an ICMP
    // error.
    let (ok, text) = wire.exec(0, "ip neigh add 192.0.2.3 lladdr 02:00:00:00:00:99 dev wire0");
    assert!(ok, "{text}");
    let mut hosts = hosts(&wire);
    hosts[0].config.controller = "https://ctl.test:8443".into();
    hosts[0].config.save(&hosts[0].state).unwrap();
    let controller = Controller::start(&wire.ns[1], &hosts[0], true);
    hosts[0].start();
    let hello = controller.hello();
    // A failed removal does no harm: the files apply only to a namespace with this name.
    let _ = std::fs::remove_dir_all(&etc);
    assert_eq!(hello.agent, "vm-a");
}

/// The agent refuses a controller whose certificate was issued by another authority than the agent's own.
#[test]
fn another_authority_is_refused() {
    let wire = Wire::new("trust");
    let mut hosts = hosts(&wire);
    let controller = Controller::start(&wire.ns[1], &hosts[1], false);
    hosts[0].start();
    // When the agent connects a second time, its first attempt has failed.
    eventually("another attempt", || accepted(&wire, 1) >= 2);
    assert!(controller.inbox.try_recv().is_err());
    assert_eq!(hosts[0].status().unwrap()["connected"], false);
}
