//! Tests the client with a server that sends scripted answers: long-running operations, pages, errors, certificates
//! (sections 1 and 5 of the REST contract).
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, ServerConfig};
use tombolo_client::{Client, Error};
use tombolo_proto::id::Revision;

/// One answer: status, headers and body. `{base}` in headers and body is replaced by the server's URL; a null body is
/// sent as an empty body.
type Answer = (u16, &'static [(&'static str, &'static str)], Value);

struct ScriptedServer {
    base: String,
    ca: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl ScriptedServer {
    /// Returns method, path, token and body of each request so far.
    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn client(&self) -> Client {
        Client::new(&self.base, Some("secret\n"), Some(&self.ca)).unwrap()
    }
}

/// Starts a server that reads one request on each connection, and sends the next of `answers`. After the last answer,
/// the server closes new connections without an answer.
async fn play(answers: Vec<Answer>) -> ScriptedServer {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let base = format!("https://{address}");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (log, own) = (Arc::clone(&seen), base.clone());
    tokio::spawn(async move {
        let mut answers = answers.into_iter();
        while let Ok((stream, _)) = listener.accept().await {
            // The handshake fails for a client that does not trust the certificate.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let Some(request) = read_request(&mut stream).await else {
                continue;
            };
            log.lock().unwrap().push(request);
            let Some((status, headers, body)) = answers.next() else {
                continue;
            };
            let body = if body.is_null() {
                String::new()
            } else {
                body.to_string().replace("{base}", &own)
            };
            let mut text = format!(
                "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n",
                body.len()
            );
            for (name, value) in headers {
                text += &format!("{name}: {}\r\n", value.replace("{base}", &own));
            }
            text += &format!("\r\n{body}");
            stream.write_all(text.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    ScriptedServer {
        base,
        ca: certificate.pem(),
        seen,
    }
}

/// Reads a request and returns it as `METHOD path token body`; `None` if the connection ends before the request is
/// complete.
async fn read_request(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<String> {
    let mut data = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).await.ok().filter(|n| *n > 0)?;
        data.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&data).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let header = |name: &str| {
            head.lines().find_map(|l| {
                l.split_once(": ")
                    .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                    .map(|(_, v)| v)
            })
        };
        let length: usize = header("content-length").map_or(0, |v| v.parse().unwrap());
        if body.len() >= length {
            let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
            return Some(
                format!("{line} {} {body}", header("authorization").unwrap_or("-"))
                    .trim_end()
                    .to_owned(),
            );
        }
    }
}

const OPERATION: &[(&str, &str)] = &[
    ("azure-asyncoperation", "{base}/operations/1?api-version=x"),
    ("location", "{base}/results/1?api-version=x"),
    ("retry-after", "1"),
];

#[tokio::test]
async fn an_inline_put_is_one_request() {
    let server = play(vec![(201, &[("x-tombolo-revision", "7")], json!({"name": "v"}))]).await;
    let client = server.client();
    assert_eq!(client.last_revision(), Revision(0));
    assert_eq!(
        client.arm_put("/a/v", &json!({"x": 1})).await.unwrap(),
        json!({"name": "v"})
    );
    assert_eq!(client.last_revision(), Revision(7));
    assert_eq!(
        server.seen(),
        [r#"PUT /a/v?api-version=2024-05-01 Bearer secret {"x":1}"#]
    );
}

#[tokio::test]
async fn an_asynchronous_put_is_polled_and_then_read() {
    let server = play(vec![
        (201, OPERATION, json!({"properties": {"provisioningState": "Updating"}})),
        (200, &[("retry-after", "1")], json!({"status": "InProgress"})),
        (200, &[], json!({"status": "Succeeded"})),
        (200, &[], json!({"properties": {"provisioningState": "Succeeded"}})),
    ])
    .await;
    let started = Instant::now();
    let body = server
        .client()
        .arm_put_with("/a/v", &[("syncRemoteAddressSpace", "true")], &json!({}))
        .await
        .unwrap();
    assert_eq!(body["properties"]["provisioningState"], "Succeeded");
    assert!(
        started.elapsed() >= Duration::from_millis(900),
        "Retry-After is honoured"
    );
    let seen = server.seen();
    assert!(
        seen[0].starts_with("PUT /a/v?api-version=2024-05-01&syncRemoteAddressSpace=true "),
        "{seen:?}"
    );
    assert!(seen[1].starts_with("GET /operations/1?api-version=x "), "{seen:?}");
    assert!(seen[3].starts_with("GET /a/v?api-version=2024-05-01 "), "{seen:?}");
}

#[tokio::test]
async fn an_operation_that_fails_later_is_an_error() {
    let failed = json!({"status": "Failed", "error": {"code": "RemoteVnetHasNoGateways", "message": "m"}});
    let server = play(vec![(200, OPERATION, json!({})), (200, &[], failed)]).await;
    let error = server.client().arm_put("/a/v", &json!({})).await.unwrap_err();
    assert_eq!(error.code(), Some("RemoteVnetHasNoGateways"));
}

#[tokio::test]
async fn an_action_has_its_result_at_location_only() {
    let server = play(vec![
        (202, OPERATION, Value::Null),
        (200, &[], json!({"status": "Succeeded"})),
        (202, &[("location", "{base}/results/2")], Value::Null),
        (200, &[], json!({"value": [1]})),
    ])
    .await;
    assert_eq!(
        server.client().arm_post("/a/act", &json!({})).await.unwrap(),
        json!({"value": [1]})
    );
    assert!(server.seen()[3].starts_with("GET /results/2 "), "{:?}", server.seen());
}

#[tokio::test]
async fn a_delete_says_whether_it_was_there() {
    let not_found = json!({"error": {"code": "ParentResourceNotFound", "message": "m"}});
    let in_use = json!({"error": {"code": "InUseSubnetCannotBeDeleted", "message": "m"}});
    let server = play(vec![
        (200, &[], Value::Null),
        (204, &[], Value::Null),
        (404, &[], not_found),
        (202, &[("location", "{base}/results/1")], Value::Null),
        (204, &[], Value::Null),
        (400, &[], in_use),
    ])
    .await;
    let client = server.client();
    for there in [true, false, false, true] {
        assert_eq!(client.arm_delete("/a/v").await.unwrap(), there);
    }
    assert_eq!(client.arm_delete("/a/v").await.unwrap_err().status(), Some(400));
}

#[tokio::test]
async fn lists_follow_their_pages() {
    let server = play(vec![
        (200, &[], json!({"value": [1, 2], "nextLink": "{base}/page?n=2"})),
        (200, &[], json!({"value": [3]})),
        (
            200,
            &[],
            json!({"value": [], "nextLink": "https://elsewhere.example/page"}),
        ),
    ])
    .await;
    let client = server.client();
    assert_eq!(client.arm_list("/a").await.unwrap(), [1, 2, 3]);
    let error = client.arm_list("/a").await.unwrap_err();
    assert!(
        matches!(&error, Error::Invalid(text) if text.contains("elsewhere")),
        "the token stays here: {error}"
    );
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn errors_keep_the_controllers_messages() {
    let body = json!({"error": {"code": "A", "message": "one", "target": "t", "details": [
        {"code": "A", "message": "one"}, {"code": "B", "message": "two"}]}});
    let server = play(vec![
        (400, &[], body),
        (404, &[], json!({"error": {"code": "NotFound", "message": "n"}})),
    ])
    .await;
    let client = server.client();
    let Error::Api(e) = client.arm_put("/a", &json!({})).await.unwrap_err() else {
        panic!("not an API error")
    };
    assert_eq!(
        (e.status, &*e.code, &*e.message, e.target.as_deref()),
        (400, "A", "one", Some("t"))
    );
    assert_eq!(e.details.len(), 2);
    assert_eq!(client.arm_find("/a").await.unwrap(), None);
}

#[tokio::test]
async fn an_unknown_certificate_is_an_error_of_its_own() {
    let server = play(vec![]).await;
    let other = play(vec![]).await;
    let client = Client::new(&server.base, Some("secret"), Some(&other.ca)).unwrap();
    let error = client.health().await.unwrap_err();
    assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
    assert!(server.seen().is_empty(), "no token was sent");
}

/// Somebody who records today's traffic must not be able to decrypt tokens and shared keys with a quantum computer
/// later.
#[tokio::test]
async fn the_key_exchange_is_post_quantum() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}", listener.local_addr().unwrap());
    let client = Client::new(&base, None, Some(&certificate.pem())).unwrap();
    let asking = tokio::spawn(async move { client.health().await });
    let (stream, _) = listener.accept().await.unwrap();
    let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
    let session = stream.get_ref().1;
    let group = session.negotiated_key_exchange_group().map(|g| g.name());
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
    drop(stream);
    assert!(asking.await.unwrap().is_err(), "nobody answered");
}
