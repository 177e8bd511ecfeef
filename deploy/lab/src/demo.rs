//! The walk through hub and spoke: every step is announced, done live, and asserted before and after with real packets. A
//! topology with a table of what it expects is tried by that instead.

mod report;
mod stage;
mod steps;

use crate::cli::{check, words};
use crate::host::Runtime;
use crate::lab::{Lab, Options};
use crate::progress::Progress;
use crate::topology::{CONTROLLER, Topology};
use anyhow::{Context, Result, bail};
use report::{Report, seconds};
use stage::Stage;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How to run the demo.
#[derive(Debug, Clone, Default)]
pub struct Demo {
    /// Where progress goes.
    pub progress: Progress,
    /// Leave the lab up at the end, and say how to use it.
    pub keep: bool,
    /// What its hosts are.
    pub runtime: Runtime,
    /// Folder for the lab's state.
    pub state_dir: Option<PathBuf>,
}

/// Brings the lab up, walks through it, and takes it down. Returns whether everything was as announced. Dropped
/// meanwhile (Ctrl-C), the lab is taken down as well.
///
/// # Errors
/// The lab could not be brought up or something did not answer at all. Nothing stays behind.
pub async fn run(topology: &Topology, demo: Demo) -> Result<bool> {
    let progress = demo.progress;
    let missing = steps::missing(topology);
    let walks = missing.is_empty();
    if !walks && topology.expected.is_empty() {
        bail!(
            "the demo walks through hub and spokes, or tries what a topology expects, and '{}' has no {} and expects nothing: \
             'tombolo lab up' takes any topology",
            topology.name,
            missing.join(", no ")
        );
    }
    let mut report = Report::new(progress.clone());
    let dir = demo.state_dir.as_deref();
    let agents = topology.agents().count();
    report.title(&format!("Tombolo: {} on real tunnels, on this machine", topology.name));
    report.dim(&match demo.runtime {
        Runtime::Netns => {
            format!("{agents} agents and a controller, each a process in a network namespace of its own, joined by an underlay alone.")
        }
        Runtime::Docker => {
            format!("{agents} agents and a controller, each a container with a network of its own, joined by an underlay alone.")
        }
        Runtime::Vm => format!(
            "{agents} agents, each a virtual machine with a kernel of its own, and a controller, joined by an underlay alone."
        ),
    });
    let start = Instant::now();
    let options = Options {
        state_dir: demo.state_dir.clone(),
        // Kept, it must outlive this program.
        detached: demo.keep,
        replace: true,
        runtime: demo.runtime,
        progress: progress.clone(),
    };
    let lab = Lab::up(topology, options).await?;
    // Until the walk has ended well enough to be kept, whatever happens takes the lab down.
    let mut lab = TakenDown(Some(lab), progress.clone());
    report.act("the lab is up, every agent runs its policy", &seconds(start.elapsed()));

    let walked = match lab.get() {
        Some(inner) if walks => {
            let mut stage = Stage::new(inner, &mut report);
            steps::walk(&mut stage).await
        }
        Some(inner) => {
            report.step("What reaches what, and by which way");
            check::all(inner, true, &progress).await.map(|good| {
                report.check("every row of the table, in every phase, is as expected", good, "");
            })
        }
        None => Ok(()),
    };
    let stopped = walked.is_err();
    if let Err(e) = walked {
        report.check("the walk goes to its end", false, &format!("{e:#}"));
    }
    let good = report.finish();
    progress.idle();
    if demo.keep {
        if let Some(lab) = lab.0.take() {
            how_to_use(&lab, dir, &report);
        }
    } else {
        progress.doing("taking the lab down");
        if !good && let Some(lab) = lab.get() {
            report.line(&logs(lab, stopped));
        }
        if let Some(inner) = lab.0.take() {
            inner
                .down()
                .with_context(|| format!("'{} down {}' tries again", words::command(dir), topology.name))?;
        }
        report.dim(match demo.runtime {
            Runtime::Netns => "The lab is gone: no namespace, process or file is left.",
            Runtime::Docker => "The lab is gone: no container, namespace, process or file is left.",
            Runtime::Vm => "The lab is gone: no virtual machine, namespace, process or file is left.",
        });
    }
    progress.finish();
    Ok(good)
}

/// A lab that does not outlive this value, `detached` or not.
struct TakenDown(Option<Lab>, Progress);

impl TakenDown {
    fn get(&mut self) -> Option<&mut Lab> {
        self.0.as_mut()
    }
}

impl Drop for TakenDown {
    fn drop(&mut self) {
        if let Some(lab) = self.0.take()
            && let Err(e) = lab.down()
        {
            self.1.warn(&format!("taking the lab down: {e:#}"));
        }
    }
}

/// The last lines of the logs, before they go.
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

/// What to do with a lab that was kept.
fn how_to_use(lab: &Lab, dir: Option<&Path>, report: &Report) {
    let name = &lab.topology().name;
    let host = lab.topology().agents().next().map_or(CONTROLLER, |(host, _)| host);
    let (hosts, data) = (lab.hosts(), lab.controller_dir().unwrap_or_default());
    let (sudo, program, command) = (words::sudo(), words::program(), words::command(dir));
    let group = &lab.group().name;
    report.line("");
    report.title("The lab stays up.");
    report.line(&format!("  a shell on a host        {sudo}{}", hosts.enter(host)));
    report.line(&format!("  what is there            {command} status"));
    report.line("  the command line, from the controller's host:");
    report.line(&format!("    {sudo}{}", hosts.enter(CONTROLLER)));
    report.line(&format!("    export TOMBOLO_CONTROLLER={}", lab.url()));
    report.line(&format!("    export TOMBOLO_CA={}", data.join("ca.pem").display()));
    report.line(&format!(
        "    export TOMBOLO_TOKEN_FILE={}",
        data.join("admin.token").display()
    ));
    report.line(&format!("    export TOMBOLO_RESOURCE_GROUP={group}"));
    // The shell above is root's already.
    report.line(&format!("    {} status", program.trim_start_matches("sudo ")));
    report.line(&format!("  take it down             {command} down {name}"));
}
