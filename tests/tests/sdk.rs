//! Unmodified clients of Azure create, list, read and delete topologies, over HTTPS with a certificate of the
//! controller's own authority. The Python client (`azure-mgmt-network` from PyPI) creates the topology of the demo. The
//! JavaScript client (`@azure/arm-network` from npm) creates a smaller one.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tombolo_tests::arm::SUBSCRIPTION;
use tombolo_tests::binary::binary;
use tombolo_tests::controller::Controller;

/// Runs a program that prepares an environment. Panics with its output if it fails.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
}

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

/// The Python program of a virtual environment with the client. Creates the environment in `folder` at the first call,
/// and again if `requirements.txt` has changed; both need the network.
fn environment(folder: &Path) -> PathBuf {
    let python = folder.join("bin/python");
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/requirements.txt");
    let stamp = folder.join("requirements.txt");
    let wanted = std::fs::read(&requirements).expect("requirements");
    // The environment's Python is a symbolic link to the system's Python, which an upgrade may have removed. `exists`
    // follows the link, and then is false.
    if python.exists() && std::fs::read(&stamp).is_ok_and(|done| done == wanted) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
    let quiet = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(Command::new(&python).args(quiet).arg(&requirements));
    std::fs::write(stamp, wanted).expect("stamp");
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_python_client_drives_the_whole_topology() {
    let built = binary("tombolo-controller");
    let python = environment(&built.parent().expect("build folder").join("sdk-venv"));
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
    run(Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(folder));
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
