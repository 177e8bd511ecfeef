//! An agent that joins when it is first run, as in a container. The agent starts before its token file and its
//! controller exist.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tombolo_client::fabric::Binding;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_tests::live::World;

const HOST: &str = "spoke-a-vm";
/// The time limit of each step. Starts, joins and handshakes take a few seconds at most.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Starts the agent in its host's namespace, with all settings in the environment.
fn start(w: &World, token: &Path, log: &Path) -> Result<Child> {
    let netns = w.hosts().netns(HOST);
    let netns = netns.file_name().context("a namespace has a name")?;
    let child = Command::new("ip")
        .args(["netns", "exec"])
        .arg(netns)
        .arg(tombolo_lab::binary::find("tombolo-agent")?)
        .arg("run")
        .env("TOMBOLO_STATE_DIR", w.agent_dir(HOST)?)
        .env("TOMBOLO_CONTROLLER", w.url())
        .env("TOMBOLO_JOIN_TOKEN_FILE", token)
        .env("TOMBOLO_LOG_FORMAT", "json")
        .stdin(Stdio::null())
        .stderr(File::options().create(true).append(true).open(log)?)
        .spawn();
    Ok(child?)
}

/// Waits until the agent's process has ended, and returns its exit status. After [`TIMEOUT`] it kills the process and fails.
async fn ended(child: &mut Child) -> Result<std::process::ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > TIMEOUT {
            child.kill()?;
            anyhow::bail!("the agent does not end");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the agent's log contains a text. Fails after [`TIMEOUT`].
async fn logs(log: &Path, text: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let said = std::fs::read_to_string(log)?;
        if said.contains(text) {
            return Ok(());
        }
        ensure!(begun.elapsed() < TIMEOUT, "'{text}' is not logged: {said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn terminate(child: &Child) -> Result<()> {
    Ok(kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_waits_for_its_token_and_its_controller_and_joins() -> Result<()> {
    let mut w = World::up("firstjoin").await?;
    w.join("hub", "spoke-a").await?;
    ensure!(w.stop_agent(HOST)?, "the agent had to be killed");
    w.client()?.delete_agent(HOST).await?;
    std::fs::remove_dir_all(w.agent_dir(HOST)?)?;
    let folder = tempfile::tempdir()?;
    let (token_file, log) = (folder.path().join("token"), folder.path().join("log"));

    let binding = Binding::Vm {
        vm: w.group().vm(HOST),
        nics: vec![ResourceId::new(
            w.group().resolve("networkInterfaces", "spoke-a-vm-nic"),
        )],
        served: Vec::new(),
    };
    let token = w
        .client()?
        .create_token(&AgentId::new(HOST)?, &binding, None)
        .await?
        .token;
    w.kill_controller()?;

    // SIGTERM must end even an agent that still waits for its token; otherwise the agent's container could be stopped
    // only with SIGKILL.
    let mut agent = start(&w, &token_file, &log)?;
    logs(&log, "the token file").await?;
    terminate(&agent)?;
    ensure!(ended(&mut agent).await?.success(), "SIGTERM ends waiting");

    let mut agent = start(&w, &token_file, &log)?;
    std::fs::write(&token_file, &token)?;
    logs(&log, &format!("asking {} for its authority", w.url())).await?;
    w.start_controller().await?;
    logs(&log, "\"message\":\"joined\"").await?;
    w.reach_within("hub-vm", HOST, TIMEOUT).await?;
    terminate(&agent)?;
    ensure!(ended(&mut agent).await?.success(), "SIGTERM ends the agent");

    // The agent has an identity now, so its next start must need neither token nor controller.
    std::fs::remove_file(&token_file)?;
    w.kill_controller()?;
    let mut agent = start(&w, &token_file, &log)?;
    w.reach_within("hub-vm", HOST, TIMEOUT).await?;
    terminate(&agent)?;
    ensure!(ended(&mut agent).await?.success(), "SIGTERM ends the agent");

    // D7: a token works once, so an agent with another state directory cannot join with the same token. The agent must
    // end at once, because joining again with a used token never succeeds.
    w.start_controller().await?;
    std::fs::write(&token_file, &token)?;
    let kept = w.agent_dir(HOST)?.with_extension("kept");
    std::fs::rename(w.agent_dir(HOST)?, &kept)?;
    let begun = Instant::now();
    let mut agent = start(&w, &token_file, &log)?;
    ensure!(!ended(&mut agent).await?.success(), "a used token is refused");
    ensure!(begun.elapsed() < Duration::from_secs(5), "it is refused at once");
    logs(&log, "the controller refused").await?;
    std::fs::remove_dir_all(w.agent_dir(HOST)?)?;
    std::fs::rename(&kept, w.agent_dir(HOST)?)?;

    w.start_agent(HOST)?;
    w.wait_until_ready(Duration::from_secs(30)).await?;
    w.reach_within("hub-vm", HOST, TIMEOUT).await?;
    w.end().await
}
