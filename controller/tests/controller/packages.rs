//! Tests of the agent packages that the controller serves to new machines.

use crate::world::{World, answer, until};
use reqwest::{Client, Method, StatusCode};
use serde_json::json;
use std::path::Path;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const NAME: &str = "tombolo-agent_0.1.0-1_amd64.deb";
/// Size of a package in bytes. It is larger than all socket buffers between two programs together, so that the download
/// cannot complete while the client does not read.
const LARGE_PACKAGE: usize = 16 << 20;

async fn serving(folder: &Path) -> World {
    World::start(&["--packages-dir", folder.to_str().unwrap()]).await
}

/// Sends a GET without a token. Returns status and body.
async fn fetch(client: &Client, world: &World, path: &str) -> (StatusCode, Vec<u8>) {
    let response = client.get(world.url(path)).send().await.unwrap();
    (response.status(), response.bytes().await.unwrap().to_vec())
}

/// The present value of the metric that counts package downloads with this `result`.
async fn counted(world: &World, result: &str) -> u64 {
    let response = world.client.get(world.url("/metrics")).bearer_auth(&world.token).send();
    let text = response.await.unwrap().text().await.unwrap();
    let name = format!("tombolo_package_downloads_total{{result=\"{result}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

#[tokio::test]
async fn packages_are_served_to_anybody_and_nothing_else_is() {
    let around = tempfile::tempdir().unwrap();
    let folder = around.path().join("packages");
    std::fs::create_dir(&folder).unwrap();
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(folder.join(NAME), &content).unwrap();
    std::fs::write(folder.join("secret.txt"), b"secret").unwrap();
    std::fs::write(around.path().join("tombolo-agent_outside.deb"), b"secret").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.join("tombolo-agent_2_amd64.deb")).unwrap();
    let world = serving(&folder).await;

    let path = format!("/packages/{NAME}");
    let got = fetch(&world.client, &world, &path).await;
    assert!(got.0 == 200 && got.1 == content, "{}", got.0);
    let head = world.client.head(world.url(&path)).send().await.unwrap();
    assert_eq!(
        (head.status(), head.headers()["content-length"].to_str().unwrap()),
        (StatusCode::OK, "300000")
    );
    for bad in [
        "secret.txt",
        "tombolo-agent_2_amd64.deb",
        "tombolo-agent_3_amd64.deb",
        "..%2ftombolo-agent_outside.deb",
        "tombolo-agent_%2f..%2fsecret.deb",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "tombolo-agent_%00.deb",
    ] {
        let (status, body) = fetch(&world.client, &world, &format!("/packages/{bad}")).await;
        let text = String::from_utf8_lossy(&body);
        assert!(
            status == 404 && text.contains("XPackageNotFound"),
            "{bad}: {status} {text}"
        );
    }
    let (status, _) = fetch(&world.client, &world, "/packages/").await;
    assert_ne!(status, 200, "the folder is not listed");
    let put = world.client.put(world.url(&path)).body("x").send().await.unwrap();
    assert_eq!(put.status(), 405);
    assert_eq!(std::fs::read(folder.join(NAME)).unwrap(), content);
    assert_eq!(
        (counted(&world, "complete").await, counted(&world, "not_found").await),
        (1, 7)
    );
}

#[tokio::test]
async fn the_list_needs_a_token_and_names_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let world = serving(folder.path()).await;
    let empty = world.fabric(Method::GET, "packages", None).await;
    assert_eq!(empty.body, json!({"folder": folder.path(), "value": []}));
    std::fs::write(folder.path().join(NAME), b"abc").unwrap();
    let listed = world.fabric(Method::GET, "packages", None).await;
    // RFC 6234's test vector for "abc".
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(
        listed.body["value"],
        json!([{"name": NAME, "size": 3, "sha256": sha256}])
    );
    let stranger = answer(world.client.get(world.url("/fabric/v1/packages"))).await;
    assert_eq!(stranger.status, 401);
}

/// A client that does not read can keep only as many downloads open as the limit for one address allows. The downloads
/// end when the client closes its connections.
#[tokio::test]
async fn downloads_at_a_time_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join(NAME)).unwrap();
    file.set_len(LARGE_PACKAGE as u64).unwrap();
    let world = serving(folder.path()).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = crate::port::stranger(&world, b"http/1.1").await;
        let request = format!("GET /packages/{NAME} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut begin = [0; 15];
        stream.read_exact(&mut begin).await.unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200 OK");
        slow.push(stream);
    }
    let path = format!("/packages/{NAME}");
    let response = world.client.get(world.url(&path)).send().await.unwrap();
    assert_eq!(
        (response.status(), response.headers()["retry-after"].to_str().unwrap()),
        (StatusCode::SERVICE_UNAVAILABLE, "2")
    );
    // Other requests of that address are served meanwhile.
    assert_eq!(world.fabric(Method::GET, "health", None).await.status, 200);
    drop(slow);
    let got = until("a download is free", async || {
        let (status, body) = fetch(&world.client, &world, &path).await;
        (status == 200).then_some(body.len())
    })
    .await;
    assert_eq!(got, LARGE_PACKAGE);
    assert_eq!(counted(&world, "complete").await, 1);
    until("all others are counted", async || {
        (counted(&world, "incomplete").await == 8).then_some(())
    })
    .await;
    assert!(counted(&world, "busy").await >= 1);
}
