//! The demo: changes the peerings, routes and keys of a hub with spokes step by step, or the security groups of three
//! tiers, or the health of two servers behind a load balancer, and checks each step with real packets. If a topology does
//! not have the hosts that the demo needs, but has expectations, the lab checks these expectations instead.

mod appliances;
mod balancing;
mod global;
mod policy;
mod ports;
mod report;
mod stage;
mod steps;

use crate::check::report::check_all;
use crate::host::Runtime;
use crate::invocation;
use crate::lab::{Lab, Options};
use crate::progress::Progress;
use crate::topology::{CONTROLLER, Topology};
use anyhow::{Context, Result, bail};
use report::{Report, seconds};
use stage::Stage;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The options of a run of the demo.
#[derive(Debug, Clone, Default)]
pub struct Demo {
    /// Output of progress messages and of the report.
    pub progress: Progress,
    /// Whether the lab stays up at the end. The demo then prints how to use it.
    pub keep: bool,
    /// Whether hosts are namespaces, containers or virtual machines.
    pub runtime: Runtime,
    /// Folder of the lab's state. None is `/run/tombolo-lab/<name>`.
    pub state_dir: Option<PathBuf>,
}

/// The steps of a demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    /// Peerings, routes, gateways and keys.
    HubSpoke,
    /// Network security groups, and appliances behind a load balancer.
    Policy,
    /// A load balancer in another region.
    Global,
}

/// Takes down an earlier lab with the same state folder, brings the lab up, runs the demo, and takes the lab down.
/// Returns whether all checks succeeded. If one failed, the last lines of the logs were printed. Dropping the future,
/// as Ctrl-C does, takes the lab down too, even with `keep`.
///
/// # Errors
/// The lab could not be brought up, as for [`Lab::up`], or taken down; or the topology has neither the demo's hosts and
/// resources nor expectations. A step that cannot be carried out is no error but a failed check.
pub async fn run(topology: &Topology, demo: Demo) -> Result<bool> {
    let progress = demo.progress;
    let missing = steps::missing(topology);
    let script = if missing.is_empty() {
        Some(Script::HubSpoke)
    } else if policy::missing(topology).is_empty() {
        Some(Script::Policy)
    } else {
        global::missing(topology).is_empty().then_some(Script::Global)
    };
    if script.is_none() && topology.expected.is_empty() {
        bail!(
            "the demo needs the hosts and resources of hub-spoke, of policy or of global, or a topology with expectations; \
             '{}' has no {} and no expectations: use 'tombolo lab up', which accepts any topology",
            topology.name,
            missing.join(", no ")
        );
    }
    if matches!(script, Some(Script::Policy | Script::Global)) && demo.runtime == Runtime::Vm {
        bail!(
            "the demos of security groups and of load balancers start servers in the hosts' network namespaces, which \
             virtual machines do not have: use --runtime netns or --runtime docker"
        );
    }
    let mut report = Report::new(progress.clone());
    let dir = demo.state_dir.as_deref();
    let agents = topology.agents().count();
    report.title(&format!("Tombolo: {} on real tunnels, on this machine", topology.name));
    report.dim(&description(demo.runtime, agents));
    let start = Instant::now();
    let options = Options {
        state_dir: demo.state_dir.clone(),
        // A lab that is kept must outlive this program.
        detached: demo.keep,
        replace: true,
        runtime: demo.runtime,
        progress: progress.clone(),
    };
    let lab = Lab::up(topology, options).await?;
    // Until the demo has ended, every exit from this function must take the lab down, even with `keep`.
    let mut lab = LabGuard(Some(lab), progress.clone());
    report.act("the lab is up, every agent runs its policy", &seconds(start.elapsed()));

    let walked = match (lab.get(), script) {
        (Some(inner), Some(script)) => {
            let mut stage = Stage::new(inner, &mut report);
            match script {
                Script::HubSpoke => steps::walk(&mut stage).await,
                Script::Policy => policy::walk(&mut stage).await,
                Script::Global => global::walk(&mut stage).await,
            }
        }
        (Some(inner), None) => {
            report.step("Which hosts reach each other, and over which hops");
            check_all(inner, true, &progress).await.map(|good| {
                report.check("every row of the table, in every phase, is as expected", good, "");
            })
        }
        (None, _) => Ok(()),
    };
    let stopped = walked.is_err();
    if let Err(e) = walked {
        report.check("all steps can be carried out", false, &format!("{e:#}"));
    }
    let good = report.finish();
    progress.idle();
    if demo.keep {
        if let Some(lab) = lab.0.take() {
            how_to_use(&lab, dir, &report);
        }
    } else {
        progress.set_activity("taking the lab down");
        if !good && let Some(lab) = lab.get() {
            report.line(&logs(lab, stopped));
        }
        if let Some(inner) = lab.0.take() {
            inner
                .down()
                .with_context(|| format!("'{} down {}' tries again", invocation::command(dir), topology.name))?;
        }
        report.dim(removal(demo.runtime));
    }
    progress.finish();
    Ok(good)
}

/// Describes the processes of the lab in one sentence.
fn description(runtime: Runtime, agents: usize) -> String {
    match runtime {
        Runtime::Netns => {
            format!(
                "{agents} agents and a controller, each a process in a network namespace of its own, joined by an underlay alone."
            )
        }
        Runtime::Docker => {
            format!(
                "{agents} agents and a controller, each a container with a network of its own, joined by an underlay alone."
            )
        }
        Runtime::Vm => format!(
            "{agents} agents, each a virtual machine with a kernel of its own, and a controller, joined by an underlay alone."
        ),
    }
}

/// Returns a sentence that says what was removed with the lab.
const fn removal(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Netns => "The lab is gone: no namespace, process or file is left.",
        Runtime::Docker => "The lab is gone: no container, namespace, process or file is left.",
        Runtime::Vm => "The lab is gone: no virtual machine, namespace, process or file is left.",
    }
}

/// A lab that is taken down when this value is dropped, even if the lab is detached.
struct LabGuard(Option<Lab>, Progress);

impl LabGuard {
    fn get(&mut self) -> Option<&mut Lab> {
        self.0.as_mut()
    }
}

impl Drop for LabGuard {
    fn drop(&mut self) {
        if let Some(lab) = self.0.take()
            && let Err(e) = lab.down()
        {
            self.1.warn(&format!("taking the lab down: {e:#}"));
        }
    }
}

/// Returns the last lines of the controller's and the agents' logs, which are removed with the lab: of each log 12
/// lines if `many` is set, otherwise 4.
fn logs(lab: &Lab, many: bool) -> String {
    let lines = if many { 12 } else { 4 };
    let mut text = String::from("\nThe last lines of the logs:");
    let names = std::iter::once(CONTROLLER).chain(lab.topology().agents().map(|(name, _)| name));
    for name in names {
        if let Ok(log) = lab.log(name) {
            text += &format!("\n--- {name}\n{}", crate::process::tail(&log, lines));
        }
    }
    text
}

/// Prints the commands for a lab that stays up.
fn how_to_use(lab: &Lab, dir: Option<&Path>, report: &Report) {
    let name = &lab.topology().name;
    let host = lab.topology().agents().next().map_or(CONTROLLER, |(host, _)| host);
    let (hosts, data) = (lab.hosts(), lab.controller_dir().unwrap_or_default());
    let (sudo, program, command) = (invocation::sudo(), invocation::program(), invocation::command(dir));
    let group = &lab.group().name;
    report.line("");
    report.title("The lab stays up.");
    report.line(&format!(
        "  a shell on a host        {sudo}{}",
        hosts.shell_command(host)
    ));
    report.line(&format!("  what is there            {command} status"));
    report.line("  the command line, from the controller's host:");
    report.line(&format!("    {sudo}{}", hosts.shell_command(CONTROLLER)));
    report.line(&format!("    export TOMBOLO_CONTROLLER={}", lab.url()));
    report.line(&format!("    export TOMBOLO_CA={}", data.join("ca.pem").display()));
    report.line(&format!(
        "    export TOMBOLO_TOKEN_FILE={}",
        data.join("admin.token").display()
    ));
    report.line(&format!("    export TOMBOLO_RESOURCE_GROUP={group}"));
    // The shell that the lines above open is root's, so sudo is not needed there.
    report.line(&format!("    {} status", program.trim_start_matches("sudo ")));
    report.line(&format!("  take it down             {command} down {name}"));
}
