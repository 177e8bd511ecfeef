//! The stock `az` drives the controller of a running lab.

use anyhow::{Result, ensure};
use std::time::Duration;
use tombolo_lab::echo::{EchoServer, Port};
use tombolo_tests::live::World;
use tombolo_tests::stock_client;

/// Some hundred commands of a second each, on a machine with other work.
const TIME: Duration = Duration::from_secs(600);

/// Commands for networks, load balancers, gateways, Network Watcher and records, with answers of running agents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_az_drives_a_running_lab() -> Result<()> {
    let program = tokio::task::spawn_blocking(stock_client::azure_cli).await?;
    let w = World::up("az").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    w.reach("hub-vm", "branch-vm").await?;
    let _server = EchoServer::start(&w.hosts().netns("hub-vm"), w.address("hub-vm")?, Port::Tcp(5001))?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sdk/azure-cli/commands.py");
    let configuration = tempfile::tempdir()?;
    let folder = w.controller_dir()?;
    let files = ["ca.pem", "admin.token"].map(|name| folder.join(name).display().to_string());
    let (program, configuration) = (
        program.display().to_string(),
        configuration.path().display().to_string(),
    );
    let argv = [
        "python3",
        script,
        &program,
        &w.url(),
        &files[0],
        &files[1],
        &configuration,
    ];
    let done = w.exec("hub-fw", &argv, TIME).await?;
    ensure!(done.code == 0, "{}\n{}", done.stdout, done.stderr);
    println!("{}", done.stdout);
    w.down()
}
