//! Join tokens: with each, one agent can join once.

mod cloud_init;

use crate::command::agent::binding;
use crate::command::gateway::CONFIGURATIONS;
use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{duration, name, reference, subnet};
use crate::output::{at, items};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tombolo_client::fabric::{Binding, NewToken};
use tombolo_client::path::last;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, ResourceId};

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Create a token for one machine, one gateway instance, one line of a circuit or one probe in a site, and print the
    /// commands to join with it
    Create(Box<Create>),
    /// List the tokens that were not used yet
    List,
    /// Delete a token, so that no agent can join with it
    Delete {
        /// Id of the token, as `list` shows it
        #[arg(value_parser = name)]
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the virtual machine that the agent runs on
    #[arg(long, value_name = "NAME", value_parser = name, requires = "nics", required_unless_present_any = ["gateway", "circuit", "site_probe"])]
    vm: Option<String>,
    /// Network interfaces of the machine, by name or id, the primary one first
    #[arg(long = "nic", value_name = "NIC", value_parser = reference, num_args = 1.., value_delimiter = ',', requires = "vm")]
    nics: Vec<String>,
    /// Subnets (VNET/SUBNET) whose other machines have no agent and are reached through this machine
    #[arg(long = "served", value_name = "SUBNET", value_parser = subnet, num_args = 1.., value_delimiter = ',', requires = "vm")]
    served: Vec<String>,
    /// Gateway that the agent is an instance of, by name or id
    #[arg(long, value_name = "GATEWAY", value_parser = reference, conflicts_with = "vm")]
    gateway: Option<String>,
    /// Circuit, by name or id; the agent is the provider edge of one of the circuit's two lines
    #[arg(long, value_name = "CIRCUIT", value_parser = reference, conflicts_with_all = ["vm", "gateway"], requires = "link")]
    circuit: Option<String>,
    /// Link of the circuit
    #[arg(long, value_enum, requires = "circuit")]
    link: Option<LinkArg>,
    /// Address of a host inside a site; the agent only sends the probes of checks from there
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["vm", "gateway", "circuit"], requires = "attachments")]
    site_probe: Option<IpAddr>,
    /// What attaches the site of the probe, the preferred one first: NAME or id of a local network gateway, or
    /// circuit/NAME or id of a circuit
    #[arg(long = "attachment", value_name = "ATTACHMENT", value_parser = attachment, num_args = 1.., value_delimiter = ',', requires = "site_probe")]
    attachments: Vec<String>,
    /// Name of the gateway instance's ipConfiguration; required if the gateway has several
    #[arg(long, value_name = "NAME", requires = "gateway")]
    ip_configuration: Option<String>,
    /// Name of the agent [default: derived from the machine, gateway, circuit or attachment; with the resource group if another agent has that name]
    #[arg(long, value_name = "NAME")]
    agent: Option<AgentId>,
    /// Lifetime of the token, such as 30m or 24h [default: chosen by the controller]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    ttl: Option<Duration>,
    /// Write the token or the user-data to this new file, with mode 0600, instead of printing it
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print user-data for cloud-init; a machine that is created with it installs the agent and joins
    #[arg(long)]
    cloud_init: bool,
    /// File name of the controller's package that the machine installs; required if the controller has several
    #[arg(long, value_name = "NAME", requires = "cloud_init", conflicts_with_all = ["package_url", "no_package"])]
    package: Option<String>,
    /// Download no package, because the machine's image contains tombolo-agent
    #[arg(long, requires = "cloud_init", conflicts_with = "package_url")]
    no_package: bool,
    /// URL from which the machine downloads the package tombolo-agent, instead of downloading it from the controller
    #[arg(long, value_name = "URL", value_parser = cloud_init::url, requires_all = ["cloud_init", "package_sha256"])]
    package_url: Option<String>,
    /// SHA-256 of the package at --package-url, in hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = cloud_init::sha256, requires = "package_url")]
    package_sha256: Option<String>,
}

/// What an attachment begins with that is the name of a circuit.
const CIRCUIT: &str = "circuit/";

/// Checks the name of a local network gateway, or of a circuit after `circuit/`, and returns the text unchanged. A text that
/// begins with `/` is a full id and is not checked.
fn attachment(text: &str) -> Result<String, String> {
    reference(text.strip_prefix(CIRCUIT).unwrap_or(text))?;
    Ok(text.to_owned())
}

/// A link of a circuit, as an option's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkArg {
    Primary,
    Secondary,
}

impl From<LinkArg> for CircuitLink {
    fn from(link: LinkArg) -> Self {
        match link {
            LinkArg::Primary => Self::Primary,
            LinkArg::Secondary => Self::Secondary,
        }
    }
}

impl Token {
    /// Creates, lists or deletes join tokens. A new token is printed or saved, and cannot be shown again. The commands
    /// that let the machine's agent join are printed too.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create(create) => create.run(c).await,
            Self::List => {
                let all = c.client.tokens().await?;
                if c.out.is_json() {
                    return c.out.json(&all);
                }
                let row = |t: &tombolo_client::fabric::Token| {
                    vec![
                        Cell::new(&t.id),
                        Cell::new(&t.agent),
                        Cell::new(binding(&t.binding)),
                        Cell::new(validity(t.expires)),
                    ]
                };
                let titles = ["Id", "Agent", "Binding", "Expires"];
                c.out.table(&titles, all.iter().map(row).collect(), "No unused tokens.");
                Ok(())
            }
            Self::Delete { id } => {
                c.client.delete_token(id).await?;
                c.report(&json!({"deleted": true}), &format!("Deleted token {id}."))
                    .await
            }
        }
    }
}

/// The name of an agent without `--agent`: `own_name`, or `own_name.GROUP` if an agent or an unused token of another
/// machine, gateway or circuit has that name. Names of agents are unique within a controller, but two resource groups
/// may have machines of one name.
async fn default_agent(c: &Context, own_name: &str, binding: &Binding) -> Result<AgentId> {
    let valid = |name: &str| {
        AgentId::new(name.to_ascii_lowercase().replace('_', "-"))
            .with_context(|| format!("'{name}' cannot be an agent's name: set one with --agent NAME"))
    };
    let name = valid(own_name)?;
    let (agents, tokens) = (c.client.agents().await?, c.client.tokens().await?);
    let mut taken = agents
        .iter()
        .map(|agent| (&agent.id, &agent.binding))
        .chain(tokens.iter().map(|token| (&token.agent, &token.binding)));
    if taken.any(|(agent, of)| *agent == name && of != binding) {
        return valid(&format!("{own_name}.{}", c.group()?.name));
    }
    Ok(name)
}

impl Create {
    async fn run(&self, c: &Context) -> Result<()> {
        let (own_name, binding) = self.binding(c).await?;
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => default_agent(c, &own_name, &binding).await?,
        };
        // The steps that may fail come before the creation of the token, so that no unused token remains after a
        // failure.
        let package = self.package(c).await?;
        let file = self.save.as_deref().map(new_private).transpose()?;
        let token = match c.client.create_token(&agent, &binding, self.ttl).await {
            Ok(token) => token,
            Err(refused) => {
                if let Some(path) = &self.save {
                    // If the empty file cannot be removed, that error is ignored, because the controller's refusal is
                    // the error to report.
                    let _ = std::fs::remove_file(path);
                }
                return Err(refused.into());
            }
        };
        let secret = if self.cloud_init {
            cloud_init::user_data(agent.as_str(), c.client.base(), &token.token, package.as_ref())?
        } else {
            format!("{}\n", token.token)
        };
        if let (Some(mut file), Some(path)) = (file, &self.save) {
            file.write_all(secret.as_bytes())
                .with_context(|| format!("--save {}", path.display()))?;
        }
        self.print(c, &token, &secret)?;
        c.wait_if_requested().await
    }

    /// Prints the token or the user-data, or the path of the file that contains it. Also prints the commands that let
    /// the machine's agent join; with `--cloud-init`, prints these only in JSON format.
    fn print(&self, c: &Context, token: &NewToken, secret: &str) -> Result<()> {
        let agent = &token.agent;
        let join = Join::new(agent, c.client.base(), self.save.as_deref());
        if c.out.is_json() {
            let mut answer = json!({
                "id": token.id, "agent": token.agent, "expires": token.expires,
                "join": join.join, "enable": join.enable, "run": join.run,
            });
            let (content, file) = if self.cloud_init {
                ("userData", "userDataFile")
            } else {
                ("token", "tokenFile")
            };
            match &self.save {
                Some(path) => answer[file] = json!(path),
                None => answer[content] = json!(secret.trim_end()),
            }
            return c.out.json(&answer);
        }
        let what = format!(
            "Token {} for agent {agent}, good once, {}",
            token.id,
            validity(token.expires)
        );
        match (&self.save, self.cloud_init) {
            // Nothing but the user-data is printed, so that the output can be redirected into a file.
            (None, true) => c.out.line(secret.trim_end()),
            (Some(path), true) => c
                .out
                .line(&format!("{what}: the user-data in {} uses it.", path.display())),
            (Some(path), false) => {
                c.out.line(&format!(
                    "{what}, is in {}. Copy the file to the machine, and there, as root:\n",
                    path.display()
                ));
                join.print(c);
            }
            (None, false) => {
                c.out.line(&format!("{what}:\n\n  {secret}"));
                c.out
                    .line("On the machine, as root; the first command asks for the token, or reads it from a file of mode 0600:\n");
                join.print(c);
            }
        }
        Ok(())
    }

    /// Returns the package that the user-data installs. `None` with `--no-package`, because the machine's image
    /// contains the package then, and `None` without `--cloud-init`.
    async fn package(&self, c: &Context) -> Result<Option<cloud_init::Package>> {
        if let (Some(url), Some(sha256)) = (&self.package_url, &self.package_sha256) {
            let (url, sha256) = (url.clone(), sha256.clone());
            return Ok(Some(cloud_init::Package { url, sha256, ca: None }));
        }
        if !self.cloud_init || self.no_package {
            return Ok(None);
        }
        let served = c.client.packages().await?;
        let package = cloud_init::choose(&served, self.package.as_deref())?;
        Ok(Some(cloud_init::Package {
            url: format!("{}/packages/{}", c.client.base(), package.name),
            sha256: package.sha256.clone(),
            ca: Some(c.client.ca().await?),
        }))
    }

    /// Returns the name that the agent gets if `--agent` is not given, and the agent's binding.
    async fn binding(&self, c: &Context) -> Result<(String, Binding)> {
        let group = c.group()?;
        if let Some(address) = self.site_probe {
            let id = |text: &String| match text.strip_prefix(CIRCUIT) {
                Some(circuit) => group.resolve("expressRouteCircuits", circuit),
                None => group.resolve("localNetworkGateways", text),
            };
            let ids: Vec<_> = self.attachments.iter().map(id).collect();
            let name = format!("{}-probe", ids.first().map_or("site", |id| last(id)));
            let attachments = ids.into_iter().map(ResourceId::new).collect();
            return Ok((name, Binding::Site { attachments, address }));
        }
        if let (Some(circuit), Some(link)) = (&self.circuit, self.link) {
            let id = group.resolve("expressRouteCircuits", circuit);
            let link = CircuitLink::from(link);
            let name = format!("{}-{}", last(&id), link.name());
            let circuit = ResourceId::new(id);
            return Ok((name, Binding::Edge { circuit, link }));
        }
        if let Some(gateway) = &self.gateway {
            let id = group.resolve("virtualNetworkGateways", gateway);
            let instance = self.instance(c, &id).await?;
            let several = self.ip_configuration.is_some();
            let name = if several {
                format!("{}-{instance}", last(&id))
            } else {
                last(&id).to_owned()
            };
            let gateway = ResourceId::new(id);
            let ip_configuration = instance;
            return Ok((
                name,
                Binding::Gateway {
                    gateway,
                    ip_configuration,
                },
            ));
        }
        let name = self.vm.clone().unwrap_or_default();
        let nics = self.nics.iter().map(|n| group.resolve("networkInterfaces", n));
        let served: Result<Vec<_>, String> = self
            .served
            .iter()
            .map(|s| group.resolve_subnet(s).map(ResourceId::new))
            .collect();
        let binding = Binding::Vm {
            vm: group.vm(&name),
            nics: nics.map(ResourceId::new).collect(),
            served: served.map_err(anyhow::Error::msg)?,
        };
        Ok((name, binding))
    }

    /// Returns the name of the gateway's instance that the user has named, or of the only instance.
    ///
    /// # Errors
    /// [`UsageError`]: the gateway has several instances, or none, and no name is given.
    async fn instance(&self, c: &Context, gateway: &str) -> Result<String> {
        if let Some(given) = &self.ip_configuration {
            return Ok(given.clone());
        }
        let gateway = c.client.arm_get(gateway).await?;
        let names: Vec<_> = items(&gateway, CONFIGURATIONS).map(|c| at(c, "/name")).collect();
        match names.as_slice() {
            [only] => Ok(only.clone()),
            _ => {
                let hint = format!("add --ip-configuration with one of: {}", names.join(", "));
                Err(UsageError::new("the gateway has several instances", hint).into())
            }
        }
    }
}

/// The commands that an administrator runs on a machine: the first one makes the machine's agent join the controller,
/// and the others start the agent.
struct Join {
    join: String,
    enable: String,
    run: String,
}

impl Join {
    fn new(agent: &AgentId, controller: &str, saved: Option<&Path>) -> Self {
        // The systemd unit tombolo-agent@ uses this folder.
        let folder = format!("/var/lib/tombolo-agent/{agent}");
        // The token itself must not be an argument, because every user of the machine sees the arguments of all
        // processes.
        let from = saved.and_then(Path::file_name).unwrap_or("-".as_ref()).display();
        Self {
            join: format!("tombolo-agent join --state-dir {folder} --controller {controller} --token-file {from}"),
            enable: format!("systemctl enable --now tombolo-agent@{agent}"),
            run: format!("tombolo-agent run --state-dir {folder}"),
        }
    }

    fn print(&self, c: &Context) {
        c.out.line(&format!("  {}", self.join));
        c.out.line(&format!("  {}", self.enable));
        c.out
            .line(&format!("\nWithout systemd, instead of the second: {}", self.run));
    }
}

/// Creates a file with mode 0600. An existing file is an error and is not overwritten, because it may contain a token
/// that is still valid.
fn new_private(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).with_context(|| format!("--save {}", path.display()))
}

/// Formats the time from now until `expires` (Unix seconds), such as `for 60 min`; `expired` if it has passed.
fn validity(expires: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let remaining = expires.saturating_sub(now);
    match remaining {
        0 => "expired".to_owned(),
        1..=119 => format!("for {remaining} s"),
        120..=7199 => format!("for {} min", remaining / 60),
        _ => format!("for {} h", remaining / 3600),
    }
}
