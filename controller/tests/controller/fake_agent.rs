//! A fake agent: it joins and speaks the control protocol, but carries no packets.

use crate::world::{EVENT_TIMEOUT, GROUP, World};
use hyper_util::rt::TokioIo;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use reqwest::Method;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tombolo_proto::config::{AgentConfig, digest};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::control_client::ControlClient;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{
    self, AgentMessage, Applied, Config, ControllerMessage, Hello, RenewRequest, piece,
};
use tombolo_proto::delta::{Piece, decode};
use tombolo_proto::id::PublicKey;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// An agent that has joined: its key and certificate, and the TCP port of its controller.
pub(crate) struct FakeAgent {
    pub(crate) id: String,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    port: u16,
}

/// An open control stream of a fake agent, on which Hello has been sent.
pub(crate) struct Stream {
    pub(crate) outgoing: mpsc::Sender<AgentMessage>,
    incoming: Streaming<ControllerMessage>,
    /// The last configuration that arrived, of which the controller may send a change.
    last: Vec<u8>,
}

fn piece(piece: &control_stream::Piece) -> Piece<'_> {
    match piece.content.as_ref().unwrap() {
        piece::Content::Data(data) => Piece::Data(data),
        piece::Content::Part(part) => {
            let start = part.offset as usize;
            Piece::Base(start..start + part.len as usize)
        }
    }
}

/// A certificate signing request for a key (PKCS #10, PEM), with an empty subject.
pub(crate) fn csr(key: &KeyPair) -> String {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

/// The binding of an agent to a VM with one NIC, in the JSON of the fabric API.
pub(crate) fn vm(name: &str, nic: &str) -> Value {
    json!({
        "type": "vm",
        "vm": format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/{name}"),
        "nics": [format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/{nic}")],
    })
}

impl FakeAgent {
    /// Creates a join token for a VM with one NIC, and joins with it.
    pub(crate) async fn join(world: &World, id: &str, nic: &str) -> Self {
        Self::join_as(world, id, vm(id, nic)).await
    }

    /// Creates a join token for a binding, and joins with it.
    pub(crate) async fn join_as(world: &World, id: &str, binding: Value) -> Self {
        let body = json!({"agent": id, "binding": binding});
        let token = world.fabric(Method::POST, "tokens", Some(body)).await;
        assert_eq!(token.status, 201, "{token:?}");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let body = json!({
            "token": token.body["token"], "csr": csr(&key), "publicKey": PublicKey(rand::random()), "endpoints": ["0.0.0.0:51820"],
        });
        // The request has no API token: the join token is its only credential.
        let joined = crate::world::answer(world.client.post(world.url("/fabric/v1/join")).json(&body)).await;
        assert_eq!(joined.status, 200, "{joined:?}");
        let pem =
            |field: &str| CertificateDer::from_pem_slice(joined.body[field].as_str().unwrap().as_bytes()).unwrap();
        Self {
            id: id.into(),
            key,
            certificate: pem("certificate"),
            authority: pem("ca"),
            port: world.port,
        }
    }

    /// Connects over HTTP/2 and TLS, with the client certificate unless `anonymous`.
    pub(crate) async fn connect(&self, anonymous: bool) -> Result<ControlClient<Channel>, tonic::transport::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = if anonymous {
            builder.with_no_client_auth()
        } else {
            let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
            builder
                .with_client_auth_cert(vec![self.certificate.clone()], key)
                .unwrap()
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        let port = self.port;
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let stream = TcpStream::connect(("127.0.0.1", port)).await?;
                let name = ServerName::try_from("tombolo-controller").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        });
        let channel = Endpoint::from_static("http://controller")
            .connect_with_connector(connector)
            .await?;
        Ok(ControlClient::new(channel))
    }

    /// Opens a stream, and sends Hello with the revision and digest that the agent claims to run.
    pub(crate) async fn hello(&self, revision: u64, digest: &str) -> Result<Stream, Status> {
        self.open_stream(Hello {
            agent: self.id.clone(),
            revision,
            digest: digest.into(),
            endpoints: vec!["0.0.0.0:51820".into()],
            version: "test".into(),
            ..Hello::default()
        })
        .await
    }

    /// Opens a control stream with the agent's certificate, and sends this Hello.
    pub(crate) async fn open_stream(&self, hello: Hello) -> Result<Stream, Status> {
        let mut client = self
            .connect(false)
            .await
            .map_err(|e| Status::unavailable(format!("{e:?}")))?;
        let (outgoing, messages) = mpsc::channel(16);
        let message = AgentMessage {
            message: Some(FromAgent::Hello(hello)),
        };
        outgoing.send(message).await.unwrap();
        let incoming = client.sync(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Stream {
            outgoing,
            incoming,
            last: Vec::new(),
        })
    }

    /// Renews the certificate over a new connection. The new certificate is for `key`, which the agent uses from now
    /// on.
    pub(crate) async fn renew(&mut self, key: KeyPair) -> Result<(), Status> {
        let mut client = self
            .connect(false)
            .await
            .map_err(|e| Status::unavailable(format!("{e:?}")))?;
        let reply = client.renew(RenewRequest { csr: csr(&key) }).await?.into_inner();
        self.certificate = CertificateDer::from_pem_slice(reply.certificate.as_bytes()).unwrap();
        self.key = key;
        Ok(())
    }

    /// The end of the certificate's validity, in Unix seconds.
    pub(crate) fn certificate_end(&self) -> i64 {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.certificate).unwrap();
        parsed.validity().not_after.timestamp()
    }

    /// Replaces the agent's certificate by one that has expired, with the same authority, name and key. The authority's
    /// key is read from the store.
    pub(crate) fn expire_certificate(&mut self, world: &World) {
        let authority = world.document("own/authority");
        let key = KeyPair::from_pem(authority["key"].as_str().unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(authority["certificate"].as_str().unwrap(), key).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.id.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - Duration::HOUR * 2, now - Duration::HOUR);
        self.certificate = params.signed_by(&self.key, &issuer).unwrap().der().clone();
    }

    /// Opens a stream that the controller must refuse, and returns the code of the error.
    pub(crate) async fn refused(&self) -> Code {
        match self.hello(0, "").await {
            Err(status) => status.code(),
            Ok(mut stream) => loop {
                match stream.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the stream ended without a reason"),
                    Err(status) => return status.code(),
                }
            },
        }
    }
}

impl Stream {
    /// The next message; `None` if the controller has closed the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<FromController>, Status> {
        let next = tokio::time::timeout(EVENT_TIMEOUT, self.incoming.message())
            .await
            .expect("no message in time");
        Ok(next?.map(|m| m.message.expect("an empty message")))
    }

    /// The next message, which must be a configuration with a correct digest. If it was sent as a change of the last
    /// one, the result has the whole configuration too.
    pub(crate) async fn config(&mut self) -> (Config, AgentConfig) {
        match self.next().await.unwrap().unwrap() {
            FromController::Config(mut config) => {
                if !config.base.is_empty() {
                    assert_eq!((config.config.len(), &config.base), (0, &digest(&self.last)));
                    config.config = decode(&self.last, config.pieces.iter().map(piece), 1 << 20).unwrap();
                }
                self.last.clone_from(&config.config);
                assert_eq!(digest(&config.config), config.digest);
                let parsed = AgentConfig::from_bytes(&config.config).unwrap();
                (config, parsed)
            }
            other => panic!("expected a configuration: {other:?}"),
        }
    }

    /// Whether no message arrives for 300 ms. No event would prove that the controller sends nothing, so this method
    /// waits for a fixed time. If the controller sends a configuration, it does so within milliseconds of the change.
    pub(crate) async fn quiet(&mut self) -> bool {
        let wait = std::time::Duration::from_millis(300);
        tokio::time::timeout(wait, self.incoming.message()).await.is_err()
    }

    /// Sends a message to the controller over the stream.
    pub(crate) async fn send(&self, message: FromAgent) {
        self.outgoing
            .send(AgentMessage { message: Some(message) })
            .await
            .unwrap();
    }

    /// Tells the controller that this configuration is in force.
    pub(crate) async fn applied(&self, config: &Config) {
        let (revision, digest) = (config.revision, config.digest.clone());
        self.send(FromAgent::Applied(Applied { revision, digest })).await;
    }
}

impl FakeAgent {
    /// A copy of the agent's key and certificate, as a thief of the agent's state directory would have it.
    pub(crate) fn clone_identity(&self) -> Self {
        Self {
            id: self.id.clone(),
            key: KeyPair::from_pem(&self.key.serialize_pem()).unwrap(),
            certificate: self.certificate.clone(),
            authority: self.authority.clone(),
            port: self.port,
        }
    }
}
