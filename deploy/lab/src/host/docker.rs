//! Hosts that are Docker containers.
//!
//! ```text
//! tb-LAB-HOST            the machine: keeps the network namespace, and runs commands (`docker exec`)
//! tb-LAB-HOST.program    the controller or agent, in that network namespace, with the capabilities of compose.yaml
//! ```
//! A host has two containers because tests kill and restart agents: the first container keeps the host's network while
//! the second one, with the program, is gone. The container's network namespace also has a name for iproute2, so that
//! the module `underlay` handles it like the namespace of any other host. Machines of sites and the underlay's router
//! are plain namespaces.

use super::{Hosts, Namespaces, inside, sysctl};
use crate::command::{self, run};
use crate::process::{self, Process};
use crate::topology::{CONTROLLER, Topology};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Environment variable that names the image; if it is not set, the image is [`DEFAULT_IMAGE`].
const IMAGE: &str = "TOMBOLO_IMAGE";

/// Name that `make image` gives to its image.
const DEFAULT_IMAGE: &str = "tombolo:latest";

/// Longest time that a container may take to start or to be removed. It allows for a busy machine.
const CONTAINER_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two checks whether a container's process exists.
const START_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Linux capabilities of an agent's container: `NET_ADMIN` for the TUN device, `NET_RAW` for probes, and the others so
/// that BIRD can listen on port 179 and run as another user.
const AGENT_CAPABILITIES: [&str; 8] = [
    "NET_ADMIN",
    "NET_RAW",
    "NET_BIND_SERVICE",
    "CHOWN",
    "SETUID",
    "SETGID",
    "SETPCAP",
    "KILL",
];

/// Group of BIRD's user in the image. BIRD's control socket, which the agent uses, belongs to this group.
const BIRD_GROUP: &str = "bird";

/// Capabilities of commands that people and the lab run on a host, such as `ip`, `nft` and `ping`.
const HOST_CAPABILITIES: [&str; 2] = ["NET_ADMIN", "NET_RAW"];

/// The hosts of one lab. The controller's host and the hosts with an agent are containers, all others are namespaces.
#[derive(Debug, Clone)]
pub struct Docker {
    namespaces: Namespaces,
    dir: PathBuf,
    image: String,
    /// Hosts that are containers; all others are namespaces.
    own: BTreeSet<String>,
}

impl Docker {
    /// Returns the hosts of a lab with this topology and with the state folder `dir`, as containers. Creates nothing.
    /// The image is the one that the environment variable `TOMBOLO_IMAGE` names now, otherwise `tombolo:latest`.
    #[must_use]
    pub fn new(topology: &Topology, dir: &Path) -> Self {
        let agents = topology.agents().map(|(name, _)| name.to_owned());
        Self {
            namespaces: Namespaces::new(&topology.name),
            dir: dir.to_owned(),
            image: image(),
            own: agents.chain([CONTROLLER.to_owned()]).collect(),
        }
    }

    /// Checks that the Docker engine runs and has the image. Blocks for at most twice
    /// [`HELPER_TIMEOUT`](command::HELPER_TIMEOUT): once for the engine, once for the image.
    ///
    /// # Errors
    /// The engine or the image is missing; the message says how to get it.
    pub(super) fn check() -> Result<()> {
        let server = ["docker", "version", "--format", "{{.Server.Version}}"];
        run(&server).context("--runtime docker needs a running Docker engine: install one and start it")?;
        let image = image();
        run(&["docker", "image", "inspect", "--format", "{{.Id}}", &image])
            .with_context(|| format!("there is no image {image}: 'make image' makes it, or {IMAGE} names another"))?;
        Ok(())
    }

    fn is_own(&self, host: &str) -> bool {
        self.own.contains(host)
    }

    fn machine(&self, host: &str) -> String {
        self.namespaces.name(host)
    }

    fn program_container(&self, host: &str) -> String {
        format!("{}.program", self.machine(host))
    }

    /// Returns the options that both containers of a host have, and creates the host's state folder. The state folder
    /// is the only folder of this machine that the containers see.
    fn common(&self, host: &str, capabilities: &[&str]) -> Result<Vec<String>> {
        let state = match host {
            CONTROLLER => self.dir.join(CONTROLLER),
            _ => self.dir.join("agents").join(host),
        };
        let mut folder = fs::DirBuilder::new();
        folder.recursive(true).mode(0o700).create(&state)?;
        let state = state.display();
        let mut all = vec![
            "--read-only".to_owned(),
            "--tmpfs=/run".to_owned(),
            "--tmpfs=/tmp".to_owned(),
            "--security-opt=no-new-privileges".to_owned(),
            "--user=0:0".to_owned(),
            "--cap-drop=ALL".to_owned(),
            format!("--mount=type=bind,source={state},target={state}"),
        ];
        all.extend(capabilities.iter().map(|c| format!("--cap-add={c}")));
        if host != CONTROLLER {
            all.push("--device=/dev/net/tun".to_owned());
        }
        Ok(all)
    }

    fn remove_container(&self, name: &str) -> Result<()> {
        let argv = ["docker", "rm", "--force", "--volumes", name].map(str::to_owned);
        let done = command::finish(&argv, CONTAINER_TIMEOUT)?;
        // If the container does not exist, or Docker is removing it already, this is no error.
        let is_gone = done.stderr.contains("No such container") || done.stderr.contains("is already in progress");
        if done.code != 0 && !is_gone {
            bail!("removing container {name}: {}", done.stderr.trim());
        }
        Ok(())
    }

    /// Returns the process id, on this machine, of a container's first process; `None` if the container does not exist
    /// or does not run.
    fn pid(&self, name: &str) -> Option<i32> {
        let found = run(&[
            "docker",
            "inspect",
            "--type",
            "container",
            "--format",
            "{{.State.Pid}}",
            name,
        ]);
        found.ok()?.trim().parse().ok().filter(|pid| *pid > 0)
    }
}

fn image() -> String {
    std::env::var(IMAGE).unwrap_or_else(|_| DEFAULT_IMAGE.to_owned())
}

impl Hosts for Docker {
    fn create(&self, host: &str) -> Result<()> {
        if !self.is_own(host) {
            return self.namespaces.create(host);
        }
        let name = self.machine(host);
        let mut argv = vec!["docker".to_owned(), "run".to_owned(), "--detach".to_owned()];
        argv.extend([
            format!("--name={name}"),
            format!("--hostname={host}"),
            "--network=none".to_owned(),
        ]);
        argv.extend(self.common(host, &HOST_CAPABILITIES)?);
        argv.extend([
            "--entrypoint=sleep".to_owned(),
            self.image.clone(),
            "infinity".to_owned(),
        ]);
        let done = command::finish(&argv, CONTAINER_TIMEOUT)?;
        if done.code != 0 {
            bail!("container {name}: {}", done.stderr.trim());
        }
        let pid = self
            .pid(&name)
            .with_context(|| format!("container {name} does not run"))?;
        run(&["ip", "netns", "attach", &name, &pid.to_string()])?;
        let netns = self.netns(host);
        inside(&netns, || run(&["ip", "link", "set", "lo", "up"]))??;
        // `/proc/sys` is read-only in a container, so the agent cannot set these sysctls, and the lab sets them from
        // outside. The agent's TUN device inherits the values under `conf/default` when it is created.
        sysctl(
            &netns,
            &[
                ("ipv4/conf/all/rp_filter", "2"),
                ("ipv4/conf/default/rp_filter", "2"),
                ("ipv4/conf/all/send_redirects", "0"),
                ("ipv4/conf/default/send_redirects", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv6/conf/default/addr_gen_mode", "1"),
                // Docker disables IPv6 in a container that is in no IPv6 network of Docker, so it is enabled here.
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/disable_ipv6", "0"),
            ],
        )
    }

    fn remove(&self, host: &str) -> Result<()> {
        if self.is_own(host) {
            self.remove_container(&self.program_container(host))?;
            self.remove_container(&self.machine(host))?;
        }
        self.namespaces.remove(host)
    }

    fn exists(&self, host: &str) -> bool {
        self.namespaces.exists(host)
    }

    fn netns(&self, host: &str) -> PathBuf {
        self.namespaces.netns(host)
    }

    fn wrap(&self, host: &str, argv: &[String]) -> Vec<String> {
        if !self.is_own(host) {
            return self.namespaces.wrap(host, argv);
        }
        let mut all = vec!["docker".to_owned(), "exec".to_owned(), self.machine(host)];
        all.extend_from_slice(argv);
        all
    }

    fn wrap_with_signals(&self, host: &str, argv: &[String]) -> Vec<String> {
        self.namespaces.wrap(host, argv)
    }

    fn program(&self, host: &str, name: &str) -> Result<String> {
        if self.is_own(host) {
            return Ok(name.to_owned());
        }
        self.namespaces.program(host, name)
    }

    fn start(
        &self,
        host: &str,
        argv: &[String],
        environment: &[(String, String)],
        log: &Path,
        tied: bool,
    ) -> Result<Process> {
        let (program, arguments) = argv.split_first().context("an empty command")?;
        if !self.is_own(host) {
            return self.namespaces.start(host, argv, environment, log, tied);
        }
        let name = self.program_container(host);
        // Docker removes the container of a killed program (`--rm`) some time after the program's end. Until then the
        // container's name cannot be used again.
        self.remove_container(&name)?;
        let mut run = vec!["docker".to_owned(), "run".to_owned(), "--rm".to_owned()];
        run.extend([
            format!("--name={name}"),
            format!("--network=container:{}", self.machine(host)),
        ]);
        match host {
            CONTROLLER => run.extend(self.common(host, &[])?),
            _ => {
                run.extend(self.common(host, &AGENT_CAPABILITIES)?);
                run.push(format!("--group-add={BIRD_GROUP}"));
            }
        }
        run.extend(environment.iter().map(|(name, value)| format!("--env={name}={value}")));
        run.extend([format!("--entrypoint={program}"), self.image.clone()]);
        run.extend_from_slice(arguments);
        // The lab records the program's process, not the process of the Docker client. The client keeps running,
        // because it writes the program's output to the log.
        let client = process::start(&run, log, &[], tied)?;
        let deadline = Instant::now() + CONTAINER_TIMEOUT;
        loop {
            if let Some(process) = self.pid(&name).and_then(|pid| Process::from_pid(pid, log)) {
                return Ok(process);
            }
            if !client.alive() || Instant::now() > deadline {
                bail!("container {name} does not start:\n{}", client.tail(10));
            }
            std::thread::sleep(START_POLL_INTERVAL);
        }
    }

    fn processes(&self, host: &str) -> Vec<i32> {
        self.namespaces.processes(host)
    }

    fn shell_command(&self, host: &str) -> String {
        if self.is_own(host) {
            return format!("docker exec -it {} bash", self.machine(host));
        }
        self.namespaces.shell_command(host)
    }
}
