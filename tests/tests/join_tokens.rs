//! Join tokens that the command line creates: the agents' names, and user-data for cloud-init that downloads the agent's
//! package from the controller. The test performs the same download as a new machine. `make vm-test` runs cloud-init
//! itself with such user-data.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use reqwest::{Certificate, Client};
use serde_json::json;
use serde_norway::Value;
use std::path::Path;
use std::process::Output;
use tombolo_tests::binary::binary;
use tombolo_tests::controller::Controller;

const NAME: &str = "tombolo-agent_0.1.0-1_amd64.deb";
const GROUPS: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups";

/// Starts a controller, and creates one VNet with a NIC.
async fn controller(data: &Path, packages: &Path) -> Controller {
    let arguments = ["--packages-dir", packages.to_str().unwrap()];
    let controller = Controller::start_with(data, None, &arguments).await;
    add_group(&controller, "lab").await;
    controller
}

/// Creates a resource group with one VNet and a NIC.
async fn add_group(controller: &Controller, name: &str) {
    let rest = controller.rest();
    let group = format!("{GROUPS}/{name}");
    let network = format!("{group}/providers/Microsoft.Network");
    let vnet = json!({"location": "region1", "properties": {
        "addressSpace": {"addressPrefixes": ["10.1.0.0/16"]},
        "subnets": [{"name": "w", "properties": {"addressPrefix": "10.1.0.0/24"}}],
    }});
    let subnet = format!("{network}/virtualNetworks/hub/subnets/w");
    let nic = json!({"location": "region1", "properties": {"ipConfigurations": [{"name": "ipconfig1", "properties": {
        "subnet": {"id": subnet}, "privateIPAllocationMethod": "Static", "privateIPAddress": "10.1.0.4",
    }}]}});
    for (path, body) in [
        (group, json!({"location": "region1"})),
        (format!("{network}/virtualNetworks/hub"), vnet),
        (format!("{network}/networkInterfaces/left-nic"), nic),
    ] {
        let (status, answer) = rest.put(&path, &body).await.unwrap();
        assert!(status.is_success(), "{path}: {answer}");
    }
}

/// Runs `tombolo token create --cloud-init` with further options.
async fn create(controller: &Controller, home: &Path, options: &[&str]) -> Output {
    create_in(controller, "lab", home, &[&["--cloud-init"], options].concat()).await
}

/// Runs `tombolo token create` for the machine of a resource group.
async fn create_in(controller: &Controller, group: &str, home: &Path, options: &[&str]) -> Output {
    tokio::process::Command::new(binary("tombolo"))
        .args(["--controller", &controller.base(), "-g", group, "--ca"])
        .arg(controller.certificate())
        .args(["token", "create", "--vm", "left-vm", "--nic", "left-nic"])
        .args(options)
        .env_clear()
        .env("HOME", home)
        .env("TOMBOLO_TOKEN", controller.token())
        .output()
        .await
        .unwrap()
}

/// Machines of two resource groups may have one name, and names of agents are unique.
#[tokio::test]
async fn the_second_machine_of_a_name_has_its_group_in_the_agents_name() {
    let data = tempfile::tempdir().unwrap();
    let controller = controller(data.path(), data.path()).await;
    add_group(&controller, "Second_Lab").await;
    for (group, name) in [
        ("lab", "left-vm"),
        ("Second_Lab", "left-vm.second-lab"),
        // A further token for the first machine replaces none, and is for the same agent.
        ("lab", "left-vm"),
    ] {
        let made = create_in(&controller, group, data.path(), &["-o", "json"]).await;
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let token: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        assert_eq!(token["agent"], name, "{group}");
    }
}

async fn tokens(controller: &Controller) -> usize {
    let (_, body) = controller.rest().get("/fabric/v1/tokens").await.unwrap();
    body["value"].as_array().unwrap().len()
}

#[tokio::test]
async fn user_data_names_the_package_of_the_controller() {
    let (data, packages) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(packages.path().join(NAME), b"abc").unwrap();
    let controller = controller(data.path(), packages.path()).await;
    let made = create(&controller, data.path(), &[]).await;
    let text = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let user_data: Value = serde_norway::from_str(&text).unwrap();
    let install: Vec<&str> = user_data["runcmd"][0]
        .as_sequence()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let (url, sha256) = (install[4], install[5]);
    assert_eq!(url, format!("{}/packages/{NAME}", controller.base()));
    // The package's content is "abc", whose SHA-256 is a test vector of RFC 6234.
    assert_eq!(
        sha256,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );

    // As a new machine, the test trusts only the authority in the user-data, and has no token for REST.
    let authority = user_data["write_files"][1]["content"].as_str().unwrap();
    let authority = Certificate::from_pem(authority.as_bytes()).unwrap();
    let machine = Client::builder()
        .no_proxy()
        .tls_certs_only([authority])
        .build()
        .unwrap();
    let got = machine.get(url).send().await.unwrap();
    assert_eq!(got.bytes().await.unwrap(), b"abc".as_slice());
}

#[tokio::test]
async fn without_a_package_it_says_what_to_do_and_makes_no_token() {
    let (data, packages) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = packages.path().join("none");
    let controller = controller(data.path(), &folder).await;
    let refused = create(&controller, data.path(), &[]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    for part in [
        folder.to_str().unwrap(),
        "tombolo-controller",
        "--package-url",
        "--no-package",
    ] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    assert_eq!(tokens(&controller).await, 0, "a token is left over");

    let image_has_it = create(&controller, data.path(), &["--no-package"]).await;
    assert!(image_has_it.status.success());
    assert!(!String::from_utf8_lossy(&image_has_it.stdout).contains("apt"));
    assert_eq!(tokens(&controller).await, 1);
}
