//! Unmodified clients of Azure create, list, read and delete topologies, over HTTPS with a certificate of the
//! controller's own authority. The Python client (`azure-mgmt-network` from PyPI) creates the topology of the demo. The
//! JavaScript client (`@azure/arm-network` from npm) creates a smaller one.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tombolo_tests::arm::SUBSCRIPTION;
use tombolo_tests::binary::binary;
use tombolo_tests::controller::Controller;
use tombolo_tests::stock_client;

/// Starts a controller with its state in `data`, and creates a resource group.
async fn controller(data: &Path, group: &str) -> Controller {
    let controller = Controller::start(data, None).await;
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}");
    let body = json!({"location": "region1"});
    let (status, answer) = controller.rest().put(&group, &body).await.expect("group");
    assert!(status.is_success(), "{answer}");
    controller
}

/// Prints what a client has written. Panics with its errors and the controller's log if it failed.
fn check(output: &Output, controller: &Controller) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", controller.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_python_client_drives_the_whole_topology() {
    let python = stock_client::python();
    let data = tempfile::tempdir().expect("folder");
    let controller = controller(data.path(), "sdk").await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/topology.py");
    let output = tokio::process::Command::new(python)
        .arg(script)
        .arg(controller.base())
        .arg(controller.certificate())
        .arg(data.path().join("admin.token"))
        .output()
        .await
        .expect("python");
    check(&output, &controller);
}

/// A folder with the script and the packages of `tests/sdk/javascript`. Installs the packages at the first call, and
/// again if their list has changed; both need the network.
fn packages(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/javascript");
    std::fs::create_dir_all(folder).expect("folder");
    let stamp = folder.join("installed.json");
    let wanted = std::fs::read(source.join("package-lock.json")).expect("packages");
    for file in ["package.json", "package-lock.json", "topology.js"] {
        std::fs::copy(source.join(file), folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    if std::fs::read(&stamp).is_ok_and(|done| done == wanted) {
        return folder.join("topology.js");
    }
    stock_client::run(
        Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(folder),
    );
    std::fs::write(stamp, wanted).expect("stamp");
    folder.join("topology.js")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_javascript_client_drives_a_topology() {
    let built = binary("tombolo-controller");
    let script = packages(&built.parent().expect("build folder").join("sdk-node"));
    let data = tempfile::tempdir().expect("folder");
    let controller = controller(data.path(), "sdk-js").await;
    let output = tokio::process::Command::new("node")
        .arg(script)
        .arg(controller.base())
        .arg(data.path().join("admin.token"))
        .env("NODE_EXTRA_CA_CERTS", controller.certificate())
        .output()
        .await
        .expect("node");
    check(&output, &controller);
}
