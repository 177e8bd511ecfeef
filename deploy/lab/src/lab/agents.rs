//! The agents of a lab: how they join, start and stop, and what they report.

use crate::command;
use crate::lab::Lab;
use crate::private::write_private;
use crate::site::EDGE_LINE;
use crate::topology::Host;
use crate::topology::site::{Attachment, Machine};
use anyhow::{Context, Result, bail};
use futures::TryStreamExt as _;
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt as _;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tombolo_client::fabric::Binding;
use tombolo_proto::id::{AgentId, ResourceId, Revision};
use tombolo_proto::installed::{Installed, InstalledTables};
use tombolo_proto::status::AgentStatus;

/// Longest time that `tombolo-agent join` may take. It allows for an emulated machine.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two requests for the agents' revisions. The value of [`Ready::took`] may be too large by this time.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time that an agent has to end after SIGTERM, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// Longest time that a change may take until it is in force at all agents.
const IN_FORCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that an agent may take to answer on its local socket.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A revision that all agents have in force, and the time until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// Revision of the controller's state that is in force.
    pub revision: Revision,
    /// Time from the call of the function that returned this value until the revision was found to be in force.
    pub took: Duration,
}

impl Lab {
    /// Runs `tombolo-agent join` on every host with an agent or a site probe, each with a join token of its own and several
    /// at a time, and then starts all agents. Returns when all agents have been started, and does not wait until they have a
    /// configuration in force.
    pub(super) async fn join_agents(&self, tied: bool) -> Result<()> {
        let mut agents = Vec::new();
        for (name, host) in self.topology.agents() {
            let mut options = Vec::new();
            if let Some(port) = host.listen_port {
                options.extend(["--listen-port".to_owned(), port.to_string()]);
            }
            if host.edge.is_some() {
                options.extend(["--customer-interface".to_owned(), EDGE_LINE.to_owned()]);
            }
            agents.push((name.to_owned(), self.binding(name, host)?, options));
        }
        for (machine, address, _) in self.topology.probes() {
            agents.push((machine.host.clone(), self.probe_binding(&machine, address)?, Vec::new()));
        }
        self.progress
            .set_activity(format!("{} agents are joining", agents.len()));
        let joins = agents
            .iter()
            .map(|(name, binding, options)| Ok(self.join(name, binding, options)));
        futures::stream::iter(joins)
            .try_buffer_unordered(self.hosts.max_concurrent())
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        for (name, ..) in agents {
            self.launch_agent(&name, tied)?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn join(&self, name: &str, binding: &Binding, options: &[String]) -> Result<()> {
        let id = AgentId::new(name)?;
        let token = self.client()?.create_token(&id, binding, None).await;
        let token = token.with_context(|| format!("a token for {name}"))?.token;
        let mut argv = self.agent_argv("join", name)?;
        // The token is written to the agent's state folder, because a container sees no other folder of this machine.
        let folder = self.agent_dir(name)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let token_file = folder.join("token");
        write_private(&token_file, &token)?;
        self.hosts.copy_file(name, &token_file)?;
        argv.extend(["--controller".to_owned(), self.url()]);
        argv.extend(["--token-file".to_owned(), token_file.display().to_string()]);
        argv.extend_from_slice(options);
        let argv = self.hosts.wrap(name, &argv);
        let done = tokio::task::spawn_blocking(move || command::finish(&argv, JOIN_TIMEOUT)).await??;
        if done.code != 0 {
            bail!("{name} cannot join: {}{}", done.stdout, done.stderr);
        }
        Ok(())
    }

    fn agent_argv(&self, verb: &str, name: &str) -> Result<Vec<String>> {
        let dir = self.agent_dir(name)?;
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent)?;
        }
        let program = self.hosts.program(name, "tombolo-agent")?;
        Ok(vec![
            program,
            verb.to_owned(),
            "--state-dir".to_owned(),
            dir.display().to_string(),
        ])
    }

    fn launch_agent(&self, name: &str, tied: bool) -> Result<()> {
        let mut argv = self.agent_argv("run", name)?;
        if self.topology.probes().any(|(machine, ..)| machine.host == name) {
            // A site probe needs CAP_NET_RAW and nothing else (M10).
            let only = ["setpriv", "--bounding-set=-all,+net_raw", "--inh-caps=-all", "--"];
            argv.splice(0..0, only.map(str::to_owned));
        }
        self.launch_with_common_run(name, name, &argv, tied).map(drop)
    }

    /// Returns what the agent of a host is bound to: a VM, an instance of a gateway, or a line of a circuit (D7). Fails
    /// for a host without an agent, and for a host of a gateway with several instances that does not name one of them.
    fn binding(&self, name: &str, host: &Host) -> Result<Binding> {
        let group = &self.group;
        if let Some(vm) = &host.vm {
            let served = vm.serves.iter().map(|s| group.resolve_subnet(s).map(ResourceId::new));
            return Ok(Binding::Vm {
                vm: group.vm(name),
                nics: vm
                    .nics
                    .iter()
                    .map(|n| ResourceId::new(group.resolve("networkInterfaces", n)))
                    .collect(),
                served: served.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?,
            });
        }
        if let Some(edge) = &host.edge {
            return Ok(Binding::Edge {
                circuit: ResourceId::new(group.resolve("expressRouteCircuits", &edge.circuit)),
                link: edge.link,
            });
        }
        let gateway = host
            .gateway
            .as_ref()
            .with_context(|| format!("host '{name}' has no agent"))?;
        let instance = self.topology.instance_of(gateway);
        Ok(Binding::Gateway {
            gateway: ResourceId::new(group.resolve("virtualNetworkGateways", &gateway.name)),
            ip_configuration: instance.with_context(|| format!("gateway '{}' has several instances", gateway.name))?,
        })
    }

    /// Returns what a site probe is bound to: the circuits of the site's lines, and the local network gateways of its
    /// tunnels (M10). Fails if a tunnel's connection is not in the resources.
    fn probe_binding(&self, machine: &Machine<'_>, address: Ipv4Addr) -> Result<Binding> {
        let mut attachments = Vec::new();
        for attachment in machine.site.attachments() {
            let id = match &attachment {
                Attachment::Circuit(circuit) => self.group.resolve("expressRouteCircuits", circuit),
                Attachment::Connection(connection) => {
                    let device = self.topology.device(connection);
                    let device = device.with_context(|| format!("connection '{connection}' leads to no site"))?;
                    self.group.resolve("localNetworkGateways", &device.name)
                }
            };
            attachments.push(ResourceId::new(id));
        }
        Ok(Binding::Site {
            attachments,
            address: address.into(),
        })
    }

    /// Records the agents' overlay addresses. The controller allocates the addresses that the topology does not give,
    /// so the addresses of VMs and gateways are read from the controller.
    pub(super) async fn read_addresses(&self) -> Result<()> {
        for (name, host) in self.topology.agents() {
            let mut all = Vec::new();
            if let Some(vm) = &host.vm {
                for nic in &vm.nics {
                    let path = self.group.resolve("networkInterfaces", nic);
                    all.extend(private_addresses(&self.client()?.arm_get(&path).await?, None));
                }
            } else if let Some(gateway) = &host.gateway {
                let path = self.group.resolve("virtualNetworkGateways", &gateway.name);
                let instance = self.topology.instance_of(gateway);
                all.extend(private_addresses(
                    &self.client()?.arm_get(&path).await?,
                    instance.as_deref(),
                ));
            }
            if let Some(edge) = &host.edge {
                let addresses = self.topology.line_addresses(&edge.circuit, edge.link);
                all.extend(addresses.map(|a| IpAddr::V4(a.edge.addr())));
            }
            if all.is_empty() {
                bail!("the controller shows no private address for {name}");
            }
            self.change(|s| {
                s.addresses.insert(name.to_owned(), all);
            })?;
        }
        Ok(())
    }

    /// Waits until every agent whose process runs at the call is connected, and has its desired configuration in force.
    /// Returns the controller's desired revision at that time. If no agent runs, one answer of the controller is
    /// enough.
    ///
    /// # Errors
    /// The controller was never started or does not answer, or an agent is not ready after `limit`. In the last case
    /// the message contains the reason if the agent rejected its configuration, and the last lines of the agent's log.
    pub async fn wait_until_ready(&self, limit: Duration) -> Result<Ready> {
        let start = Instant::now();
        let probes = self.topology.probes().map(|(machine, ..)| machine.host);
        let agents = self.topology.agents().map(|(name, _)| name.to_owned());
        let running: Vec<_> = agents.chain(probes).filter(|n| self.agent_runs(n)).collect();
        loop {
            let revisions = self.client()?.revisions().await?;
            let ready = |name: &String| {
                let found = revisions.agents.iter().find(|a| a.agent.as_str() == name);
                found.is_some_and(|a| a.connected && a.up_to_date)
            };
            let missing: Vec<_> = running.iter().filter(|n| !ready(n)).collect();
            if missing.is_empty() {
                return Ok(Ready {
                    revision: revisions.desired,
                    took: start.elapsed(),
                });
            }
            if start.elapsed() > limit {
                let mut text = format!("not up to date after {} s:", limit.as_secs());
                for name in missing {
                    let rejected = revisions.agents.iter().find(|a| a.agent.as_str() == name);
                    let rejected = rejected
                        .and_then(|a| a.rejected.as_ref())
                        .map(|r| format!(" (rejected: {})", r.reason));
                    let tail = self.process(name).map(|p| p.tail(6)).unwrap_or_default();
                    text += &format!("\n  {name}{}\n{tail}", rejected.unwrap_or_default());
                }
                bail!(text);
            }
            let done = running.len() - missing.len();
            self.progress
                .set_activity(format!("{done} of {} agents are up to date", running.len()));
            tokio::time::sleep(READY_POLL_INTERVAL).await;
        }
    }

    /// Waits until the last change that was made through [`Lab::client`] is in force at every connected agent (D2).
    /// Other clients' changes are not waited for. [`Lab::start_controller`] replaces the client, so changes before it
    /// are not waited for either.
    ///
    /// # Errors
    /// The controller was never started or does not answer, or the change is not in force after ten seconds. In the
    /// last case the message names the agents at which the change is not in force.
    pub async fn in_force(&self) -> Result<Ready> {
        let (start, client) = (Instant::now(), self.client()?);
        let revision = client.last_revision();
        let waited = client.wait_in_force(revision, IN_FORCE_TIMEOUT).await?;
        if waited.in_force {
            return Ok(Ready {
                revision,
                took: start.elapsed(),
            });
        }
        let names: Vec<_> = waited.waiting_for.iter().map(ToString::to_string).collect();
        bail!("revision {revision} is not in force after 10 s at {}", names.join(", "))
    }

    /// Whether the agent's process runs; false also if it was never started or the host does not exist. Does not ask
    /// the agent. `host` must be a host with an agent: for the host of a site's router, the result concerns the routing
    /// daemon.
    #[must_use]
    pub fn agent_runs(&self, host: &str) -> bool {
        self.process(host).is_ok_and(|p| p.alive())
    }

    /// Kills a host's agent with SIGKILL, and blocks the thread until the process has ended. An agent that has ended
    /// before is no error. For a virtual machine this is the process that represents the agent on this machine; the
    /// agent itself ends a moment later.
    ///
    /// # Errors
    /// The agent was never started or the host does not exist, the kernel refuses the signal, or the process still runs
    /// five seconds after the signal.
    pub fn kill_agent(&self, host: &str) -> Result<()> {
        self.process(host)?.kill()
    }

    /// Sends SIGTERM to a host's agent, and SIGKILL if it still runs after ten seconds. Blocks the thread until the
    /// process has ended. Returns true if the agent ended without SIGKILL, or had ended before the call.
    ///
    /// # Errors
    /// The agent was never started or the host does not exist, the kernel refuses a signal, or the agent still runs
    /// five seconds after SIGKILL.
    pub fn stop_agent(&self, host: &str) -> Result<bool> {
        self.process(host)?.stop(STOP_GRACE)
    }

    /// Starts a host's agent again. The agent uses the identity and configuration in its state folder. Does not wait
    /// until the agent has its configuration in force. The agent ends with this program unless the lab is detached.
    ///
    /// `host` must be a host whose agent has joined. This is not checked: otherwise the started process ends at once.
    ///
    /// # Errors
    /// The agent runs already, or its program is missing or does not start.
    pub fn start_agent(&self, host: &str) -> Result<()> {
        if self.agent_runs(host) {
            bail!("the agent of {host} runs already");
        }
        self.launch_agent(host, !self.detached)
    }

    /// Returns the status of a host's agent, read from its local socket.
    ///
    /// # Errors
    /// The agent does not run or does not answer within five seconds, or its answer has another format.
    pub async fn agent_status(&self, host: &str) -> Result<AgentStatus> {
        let mut view: Value = serde_json::from_slice(&self.ask_agent(host, "/status").await?)?;
        serde_json::from_value(view["status"].take()).with_context(|| format!("status of {host}"))
    }

    /// Returns the complete answer to `/status` of a host's agent, which `tombolo-agent status --json` prints.
    ///
    /// # Errors
    /// The agent does not run or does not answer within five seconds, or its answer is no JSON.
    pub async fn agent_view(&self, host: &str) -> Result<Value> {
        let view = self.ask_agent(host, "/status").await?;
        serde_json::from_slice(&view).with_context(|| format!("status of {host}"))
    }

    /// Returns the number of configurations that a host's agent has received from the controller since the agent's
    /// start.
    ///
    /// # Errors
    /// The agent does not run or does not answer within five seconds, or its answer has no such number.
    pub async fn configurations_received(&self, host: &str) -> Result<u64> {
        let view: Value = serde_json::from_slice(&self.ask_agent(host, "/status").await?)?;
        view["configurationsReceived"]
            .as_u64()
            .with_context(|| format!("status of {host}"))
    }

    /// Returns what a host's agent has installed in its engine, and what it has recorded as installed in the kernel. It
    /// is read from the agent's local socket.
    ///
    /// # Errors
    /// The agent does not run or does not answer within five seconds, or its answer has another format.
    pub async fn agent_installed(&self, host: &str) -> Result<Installed> {
        serde_json::from_slice(&self.ask_agent(host, "/tables").await?).with_context(|| format!("tables of {host}"))
    }

    /// Returns the tables of the engine of a host's agent: the part `tables` of [`Self::agent_installed`].
    ///
    /// # Errors
    /// As [`Self::agent_installed`], or the agent has no configuration in force yet.
    pub async fn agent_tables(&self, host: &str) -> Result<InstalledTables> {
        let installed = self.agent_installed(host).await?;
        installed.tables.with_context(|| format!("{host} has no tables"))
    }

    /// Sends a GET request to a host's agent on its local socket. Returns the body of the answer, without its headers.
    ///
    /// # Errors
    /// The agent does not answer within [`ADMIN_TIMEOUT`], or with another status than 200.
    async fn ask_agent(&self, host: &str, path: &str) -> Result<Vec<u8>> {
        let socket = self.hosts.socket(host, &self.agent_dir(host)?.join("admin.sock"))?;
        let ask = async {
            let mut stream = UnixStream::connect(&socket).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).await?;
            Ok::<_, std::io::Error>(reply)
        };
        let reply = tokio::time::timeout(ADMIN_TIMEOUT, ask).await;
        let reply = reply
            .context("no answer")
            .and_then(|r| Ok(r?))
            .with_context(|| format!("the agent of {host}"))?;
        let end = reply
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .context("the agent's answer is not HTTP")?;
        let (head, body) = reply.split_at(end + 4);
        if !head.starts_with(b"HTTP/1.1 200 ") {
            bail!("the agent of {host}, {path}: {}", String::from_utf8_lossy(head).trim());
        }
        Ok(body.to_vec())
    }
}

/// Returns the private addresses of a resource's `ipConfigurations` in their order. If `only` is set, returns only the
/// address of the configuration with this name. Upper and lower case letters are not distinguished.
fn private_addresses(resource: &Value, only: Option<&str>) -> Vec<IpAddr> {
    let configurations = resource
        .pointer("/properties/ipConfigurations")
        .and_then(Value::as_array);
    configurations
        .into_iter()
        .flatten()
        .filter(|c| only.is_none_or(|name| c["name"].as_str().is_some_and(|n| n.eq_ignore_ascii_case(name))))
        .filter_map(|c| c.pointer("/properties/privateIPAddress")?.as_str()?.parse().ok())
        .collect()
}
