//! The unmodified Python client of Azure (`azure-mgmt-network` from PyPI) creates, lists, reads and deletes the topology of
//! the demo, over HTTPS with a certificate of the controller's own authority.

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tombolo_tests::arm::SUBSCRIPTION;
use tombolo_tests::binary::binary;
use tombolo_tests::controller::Controller;

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
    let run = |command: &mut Command| {
        let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {said}");
    };
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
    let controller = Controller::start(data.path(), None).await;
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/sdk");
    let body = json!({"location": "region1"});
    let (status, answer) = controller.rest().put(&group, &body).await.expect("group");
    assert!(status.is_success(), "{answer}");

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/topology.py");
    let output = tokio::process::Command::new(python)
        .arg(script)
        .arg(controller.base())
        .arg(controller.certificate())
        .arg(data.path().join("admin.token"))
        .output()
        .await
        .expect("python");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(
        output.status.success(),
        "{}\n{}\n{}",
        text(&output.stdout),
        text(&output.stderr),
        controller.log()
    );
}
