//! Discovery and login as stock clients use them.

use crate::world::{World, answer};
use reqwest::Method;
use serde_json::json;

#[tokio::test]
async fn discovery_needs_no_token() {
    let world = World::start(&[]).await;
    let base = world.url("");
    let get = async |path: &str| answer(world.client.get(world.url(path))).await;
    let metadata = get("/metadata/endpoints?api-version=2022-09-01").await;
    assert_eq!(metadata.status, 200);
    assert_eq!(metadata.body["authentication"]["loginEndpoint"], format!("{base}/adfs"));
    assert_eq!(metadata.body["resourceManager"], format!("{base}/"));
    assert!(metadata.body["suffixes"].is_object());
    let old = get("/metadata/endpoints?api-version=2019-05-01").await;
    assert_eq!(old.body, json!([metadata.body]));
    for path in [
        "/adfs/.well-known/openid-configuration",
        "/organizations/v2.0/.well-known/openid-configuration",
        "/common/v2.0/.well-known/openid-configuration",
        "/adfs/00000000-0000-0000-0000-000000000009/.well-known/openid-configuration",
        "/adfs/contoso.example/v2.0/.well-known/openid-configuration",
    ] {
        let document = get(path).await;
        assert_eq!(document.status, 200, "{path}");
        let endpoint = document.body["token_endpoint"].as_str().unwrap();
        let token = answer(world.client.post(endpoint).form(&[("grant_type", "password")])).await;
        assert_eq!(
            (token.status.as_u16(), &token.body["error"]),
            (400, &json!("unsupported_grant_type")),
            "{path}"
        );
    }
    let named = get("/adfs/contoso.example/v2.0/.well-known/openid-configuration").await;
    let tenant = metadata.body["authentication"]["tenant"].as_str().unwrap();
    assert_eq!(named.body["issuer"], format!("{base}/{tenant}"));
    for path in [
        "/subscriptions?api-version=2022-12-01",
        "/fabric/v1/agents",
        "/nothing",
        "/metadata",
    ] {
        let refused = get(path).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (401, "AuthenticationFailed"),
            "{path}"
        );
        let challenge = refused.header("www-authenticate").unwrap();
        assert!(
            challenge.contains(&format!("authorization_uri=\"{base}/")),
            "{challenge}"
        );
        assert!(refused.header("x-ms-request-id").is_some());
    }
}

#[tokio::test]
async fn a_service_principal_logs_in() {
    let mut world = World::start(&[]).await;
    let made = world
        .fabric(Method::POST, "api-tokens", Some(json!({"name": "az"})))
        .await;
    let (id, secret) = (
        made.body["id"].as_str().unwrap().to_owned(),
        made.body["token"].as_str().unwrap().to_owned(),
    );
    let base = world.url("");
    let scope = format!("{base}/.default");
    let form = |id: &str, secret: &str| {
        [
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
            ("scope", &scope),
            ("client_info", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let wrong = answer(
        world
            .client
            .post(world.url("/adfs/oauth2/token"))
            .form(&form(&id, "wrong")),
    )
    .await;
    assert_eq!(
        (wrong.status.as_u16(), &wrong.body["error_codes"]),
        (401, &json!([7_000_215]))
    );
    let other = answer(
        world
            .client
            .post(world.url("/adfs/oauth2/token"))
            .form(&form("admin", &secret)),
    )
    .await;
    assert_eq!(other.status, 401, "the id and the text must belong to the same token");
    let mut logins = Vec::new();
    for path in [
        "/adfs/oauth2/token",
        "/adfs/oauth2/token/",
        "/a-tenant/oauth2/v2.0/token",
        "/adfs/a-tenant/oauth2/v2.0/token",
    ] {
        let login = answer(world.client.post(world.url(path)).form(&form(&id, &secret))).await;
        assert_eq!(login.status, 200, "{path}: {login:?}");
        assert_eq!(
            (&login.body["token_type"], &login.body["expires_in"]),
            (&json!("Bearer"), &json!(3599))
        );
        logins.push(login.body["access_token"].as_str().unwrap().to_owned());
    }
    let ask = async |world: &World, token: &str| {
        answer(
            world
                .client
                .get(world.url("/subscriptions?api-version=2022-12-01"))
                .bearer_auth(token),
        )
        .await
    };
    for login in &logins {
        assert_eq!(ask(&world, login).await.status, 200);
    }
    let broken = format!("{}x", logins[0]);
    assert_eq!(ask(&world, &broken).await.status, 401);
    // Clients store login tokens on disk. A login token stays valid when the controller restarts, and becomes invalid
    // when its API token is deleted.
    world.kill_and_restart().await;
    assert_eq!(ask(&world, &logins[0]).await.status, 200);
    world.fabric(Method::DELETE, &format!("api-tokens/{id}"), None).await;
    assert_eq!(ask(&world, &logins[0]).await.status, 401);
    // The admin token always has the same id. If it gets a new text, login tokens that were issued for the old text
    // become invalid.
    let admin = form("admin", &world.token);
    let login = answer(world.client.post(world.url("/adfs/oauth2/token")).form(&admin)).await;
    let login = login.body["access_token"].as_str().unwrap().to_owned();
    assert_eq!(ask(&world, &login).await.status, 200);
    world.terminate();
    std::fs::remove_file(world.data().join("admin.token")).unwrap();
    world.restart().await;
    assert_eq!(ask(&world, &login).await.status, 401);
}

#[tokio::test]
async fn who_has_no_token_sends_little() {
    let world = World::start(&[]).await;
    let large = "x".repeat(65 << 10);
    let join = json!({"token": large, "csr": "", "publicKey": "", "endpoints": []});
    let joined = answer(world.client.post(world.url("/fabric/v1/join")).json(&join)).await;
    assert_eq!((joined.status.as_u16(), joined.code()), (413, "RequestContentTooLarge"));
    let form = [("grant_type", "client_credentials"), ("client_secret", &large)];
    let login = answer(world.client.post(world.url("/adfs/oauth2/token")).form(&form)).await;
    assert_eq!(login.status, 413);
}
