//! The controller answers malformed input with a client error (4xx), and its process never ends because of the input.

use crate::world::{GROUP, World, answer};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn bodies_that_are_no_good() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let before = world.fabric(Method::GET, "health", None).await.body;
    let url = world.url(&format!(
        "{GROUP}/providers/Microsoft.Network/virtualNetworks/v?api-version=2024-05-01"
    ));
    let put = async |body: Vec<u8>| {
        answer(
            world
                .client
                .put(&url)
                .bearer_auth(&world.token)
                .header(CONTENT_TYPE, "application/json")
                .body(body),
        )
        .await
    };
    let deep = format!("{{\"location\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    for body in [
        &b"{"[..],
        b"[]",
        b"1",
        b"\"x\"",
        b"{}{}",
        b"{\"location\":\"r\",\"location\":\"r\"}",
        b"{\"properties\":{\"addressSpace\":{\"addressPrefixes\":[],\"addressPrefixes\":[]}}}",
        b"\xff\xfe",
        b"{\"location\":\"r\",\"properties\":7}",
        b"{\"location\":7}",
        b"{\"location\":\"r\",\"properties\":{\"addressSpace\":{\"addressPrefixes\":\"10.0.0.0/8\"}}}",
        b"{\"location\":\"r\",\"properties\":{\"addressSpace\":{\"addressPrefixes\":[1]}}}",
        b"{\"location\":\"r\",\"properties\":{\"addressSpace\":{\"addressPrefixes\":[\"10.0.0.1/8\"]}}}",
        b"{\"location\":\"r\",\"properties\":{\"addressSpace\":{\"addressPrefixes\":[\"10.0.0.0/99\"]}}}",
        deep.as_bytes(),
    ] {
        let refused = put(body.to_vec()).await;
        let text = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(refused.status, 400, "{text}: {refused:?}");
        assert!(
            !refused.code().is_empty() && !refused.body["error"]["message"].as_str().unwrap().is_empty(),
            "{text}"
        );
    }
    let huge = put(vec![b' '; (4 << 20) + 1]).await;
    assert_eq!((huge.status.as_u16(), huge.code()), (413, "RequestContentTooLarge"));
    let many: Vec<String> = (0..40_000)
        .map(|n| format!("10.{}.{}.0/24", n / 256 % 256, n % 256))
        .collect();
    let many = json!({"location": "r", "properties": {"addressSpace": {"addressPrefixes": many}}});
    assert_eq!(put(many.to_string().into_bytes()).await.status, 400);
    // The response reports all problems of the request at once, and nothing was changed.
    let two = json!({"location": "r", "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.1/8", "x"]}}});
    let refused = put(two.to_string().into_bytes()).await;
    assert!(
        refused.body["error"]["details"].as_array().unwrap().len() >= 2,
        "{refused:?}"
    );
    assert_eq!(world.fabric(Method::GET, "health", None).await.body, before);
}

#[tokio::test]
async fn requests_that_are_no_good() {
    let world = World::start(&[]).await;
    let send = async |method: Method, path: &str| {
        answer(world.client.request(method, world.url(path)).bearer_auth(&world.token)).await
    };
    let none = "00000000-0000-0000-0000-000000000001";
    for (method, path, status, code) in [
        (Method::GET, "/".to_owned(), 400, "MissingApiVersionParameter"),
        (
            Method::GET,
            format!("/subscriptions/{none}/resourceGroups/g"),
            400,
            "MissingApiVersionParameter",
        ),
        (
            Method::GET,
            "/subscriptions?api-version=soon".into(),
            400,
            "InvalidApiVersionParameter",
        ),
        (
            Method::GET,
            "/subscriptions/x/locations?api-version=2024-05-01".into(),
            400,
            "InvalidSubscriptionId",
        ),
        (Method::GET, "/nothing?api-version=2024-05-01".into(), 404, "NotFound"),
        (
            Method::GET,
            format!("/subscriptions/{none}/resourceGroups/g/providers?api-version=2024-05-01"),
            404,
            "NotFound",
        ),
        (
            Method::GET,
            "/a%00b?api-version=2024-05-01".into(),
            400,
            "InvalidRequestUri",
        ),
        (
            Method::GET,
            "/%ff?api-version=2024-05-01".into(),
            400,
            "InvalidRequestUri",
        ),
        (
            Method::POST,
            "/subscriptions?api-version=2024-05-01".into(),
            405,
            "MethodNotAllowed",
        ),
        (
            Method::POST,
            format!("/subscriptions/{none}/resourceGroups/g?api-version=2024-05-01"),
            405,
            "MethodNotAllowed",
        ),
        (Method::PUT, "/fabric/v1/agents".into(), 405, "MethodNotAllowed"),
        (
            Method::GET,
            "/fabric/v1/nothing".into(),
            400,
            "MissingApiVersionParameter",
        ),
        (
            Method::GET,
            "/fabric/v1/revisions/x/wait".into(),
            400,
            "InvalidRequestFormat",
        ),
        (
            Method::GET,
            "/fabric/v1/revisions/1/wait?timeout=1".into(),
            400,
            "InvalidRequestFormat",
        ),
    ] {
        let refused = send(method.clone(), &path).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (status, code),
            "{method} {path}: {refused:?}"
        );
    }
    for path in [
        format!("/{}", "x".repeat(5000)),
        format!(
            "/subscriptions/{none}/resourceGroups/{}?api-version=2024-05-01",
            "g".repeat(3000)
        ),
    ] {
        let refused = send(Method::GET, &path).await;
        assert!((400..500).contains(&refused.status.as_u16()), "{refused:?}");
    }
}

#[tokio::test]
async fn noise_on_the_port_harms_nobody() {
    let world = World::start(&[]).await;
    for noise in [
        vec![],
        vec![0; 10_000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        (0..=255).cycle().take(70_000).collect(),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
        // The write may fail, because the controller may close the connection before all bytes are written.
        let _ = stream.write_all(&noise).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    assert_eq!(world.fabric(Method::GET, "health", None).await.status, 200);
    assert!(!world.log().contains("panicked"), "{}", world.log());
}
