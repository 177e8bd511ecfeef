//! A lab whose controller is attacked by strangers: clients without a certificate (the program `stranger`).

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tombolo_client::fabric::Binding;
use tombolo_lab::private::write_private;
use tombolo_lab::{Topology, binary};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_tests::live::World;

/// Timeout of each wait and each command.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Two agents of one VNet, and a NIC for a third agent, which joins during the attack.
fn topology(name: &str) -> Topology {
    let text = format!(
        "
name: attack-{name}
underlay:
  mtu: 1500
  segments:
    internet: {{prefix: 203.0.113.0/24}}
  controller: {{address: 203.0.113.10, port: 8443}}
hosts:
  a: {{address: 203.0.113.11, vm: {{nics: [a-nic]}}}}
  b: {{address: 203.0.113.12, vm: {{nics: [b-nic]}}}}
resources:
  resourceGroup: lab
  location: region1
  virtualNetworks:
    v:
      addressSpace: [10.1.0.0/16]
      subnets:
        w: {{addressPrefix: 10.1.0.0/24}}
  networkInterfaces:
    a-nic: {{subnet: v/w, privateIPAddress: 10.1.0.4}}
    b-nic: {{subnet: v/w, privateIPAddress: 10.1.0.5}}
    late-nic: {{subnet: v/w, privateIPAddress: 10.1.0.6}}
"
    );
    Topology::parse(&text).expect("the topology of this test")
}

/// A lab whose controller is attacked. The value also counts the address prefixes of the lab's VNet, because each call
/// of [`Self::others_work`] adds one.
pub(crate) struct Attacked {
    pub(crate) world: World,
    prefixes: u8,
}

impl Attacked {
    /// Brings up the lab `attack-NAME`, and waits until its two agents run.
    pub(crate) async fn up(name: &str) -> Result<Self> {
        let world = World::of(&topology(name)).await?;
        Ok(Self { world, prefixes: 1 })
    }

    /// Starts the program `stranger` in a host's namespace, with further arguments separated by spaces. The program
    /// attacks until its `--seconds` are over or the returned value is dropped.
    pub(crate) fn stranger(&self, host: &str, arguments: &str) -> Result<Stranger> {
        let mut argv = vec![env!("CARGO_BIN_EXE_stranger").to_owned(), "--to".to_owned()];
        argv.push("203.0.113.10:8443".to_owned());
        argv.extend(arguments.split_whitespace().map(str::to_owned));
        let argv = self.world.hosts().wrap(host, &argv);
        let log = self
            .world
            .path()?
            .join(format!("stranger-{}.log", arguments.replace(['/', ' '], "_")));
        let out = std::fs::File::create(&log)?;
        let child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()
            .context("starting a stranger")?;
        Ok(Stranger { child, log })
    }

    /// Checks that legitimate clients can use the controller during an attack. Agent `b` is killed and started, and must get a
    /// configuration that changed meanwhile; the command line and REST must answer; a new agent must be able to join.
    pub(crate) async fn others_work(&mut self) -> Result<()> {
        let world = &self.world;
        world.kill_agent("b")?;
        self.prefixes += 1;
        let prefixes: Vec<String> = (1..=self.prefixes).map(|n| format!("10.{n}.0.0/16")).collect();
        let body = json!({"location": "region1", "properties": {
            "addressSpace": {"addressPrefixes": prefixes},
            "subnets": [{"name": "w", "properties": {"addressPrefix": "10.1.0.0/24"}}],
        }});
        let vnet = world.group().item("virtualNetworks", "v");
        let changed = world.client()?.arm_put(&vnet, &body).await;
        changed.context("REST: a change of the VNet")?;
        world.start_agent("b")?;
        let start = Instant::now();
        while world.configurations_received("b").await.unwrap_or(0) == 0 {
            ensure!(start.elapsed() < TIMEOUT, "agent b did not get its new configuration");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.in_force().await.context("the change at both agents")?;

        let controller = world.controller_dir()?;
        let file = |name: &str| controller.join(name).display().to_string();
        let (program, token, ca) = (
            binary::find("tombolo")?.display().to_string(),
            file("admin.token"),
            file("ca.pem"),
        );
        let url = world.url();
        let listed = [
            program.as_str(),
            "--controller",
            &url,
            "--token-file",
            &token,
            "--ca",
            &ca,
            "agent",
            "list",
        ];
        let listed = world.exec("b", &listed, TIMEOUT).await?;
        ensure!(
            listed.code == 0 && listed.stdout.contains('b'),
            "the command line: {listed:?}"
        );

        let id = AgentId::new(format!("late-{}", self.prefixes))?;
        let binding = Binding::Vm {
            vm: world.group().vm("late"),
            nics: vec![ResourceId::new(world.group().item("networkInterfaces", "late-nic"))],
            served: Vec::new(),
        };
        let token = world
            .client()?
            .create_token(&id, &binding, None)
            .await
            .context("REST: a join token")?;
        let state = world.path()?.join(id.as_str()).display().to_string();
        let token_file = format!("{state}.token");
        write_private(Path::new(&token_file), &token.token)?;
        let agent = binary::find("tombolo-agent")?.display().to_string();
        let join = [
            agent.as_str(),
            "join",
            "--state-dir",
            &state,
            "--controller",
            &url,
            "--token-file",
            &token_file,
        ];
        let joined = world.exec("b", &join, TIMEOUT).await?;
        ensure!(joined.code == 0, "a new agent cannot join: {joined:?}");
        world
            .client()?
            .delete_agent(id.as_str())
            .await
            .context("REST: deleting the new agent")?;
        Ok(())
    }

    /// The resident memory of the controller's process, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let controller = &self.world.snapshot().processes[tombolo_lab::topology::CONTROLLER];
        let status = std::fs::read_to_string(format!("/proc/{}/status", controller.pid))?;
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib << 10)
    }
}

/// A stranger's report of its own connections.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// The connections that the stranger has open now.
    pub(crate) held: u64,
    /// The connections that the stranger has tried to open since its start.
    pub(crate) attempts: u64,
    /// The requests that the controller has refused since the stranger's start.
    pub(crate) refused: u64,
}

/// A running stranger. Dropping the value kills the process.
pub(crate) struct Stranger {
    child: Child,
    log: PathBuf,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stranger {
    /// The stranger's last report; all zero before the first one.
    pub(crate) fn report(&self) -> Report {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut reports = text.lines().rev().filter_map(|l| serde_json::from_str(l).ok());
        reports.next().unwrap_or_default()
    }

    /// Waits until a report satisfies a condition, and returns that report. Fails after [`TIMEOUT`], or if the stranger ends.
    pub(crate) async fn until(&mut self, condition: impl Fn(&Report) -> bool) -> Result<Report> {
        let start = Instant::now();
        loop {
            let report = self.report();
            if condition(&report) {
                return Ok(report);
            }
            ensure!(
                start.elapsed() < TIMEOUT && self.child.try_wait()?.is_none(),
                "a stranger ended or does not get that far: {report:?}, {}",
                std::fs::read_to_string(&self.log).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
