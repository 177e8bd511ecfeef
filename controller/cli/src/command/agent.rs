//! Agents, the programs that carry packets on machines, gateways and edges.

use crate::context::Context;
use crate::output::{bytes, state};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::json;
use tombolo_client::fabric::{AgentView, Binding};

#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    /// List the agents
    List,
    /// Show an agent with its packet counters and links
    Show {
        /// Name of the agent
        agent: tombolo_proto::id::AgentId,
    },
    /// Revoke an agent: the controller and all agents refuse it at once; no other agent can have its name until it is
    /// deleted
    Revoke {
        /// Name of the agent
        agent: tombolo_proto::id::AgentId,
    },
    /// Delete an agent, so that another one can join for the same machine, gateway instance or edge
    Delete {
        /// Name of the agent
        agent: tombolo_proto::id::AgentId,
    },
    /// Print the configuration that the controller has compiled for an agent, without secrets
    Config {
        /// Name of the agent
        agent: tombolo_proto::id::AgentId,
    },
}

impl Agent {
    /// Prints agents or the configuration of an agent. To revoke or delete an agent, first asks the user, and does
    /// nothing if the answer is no, which is not an error.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::List => {
                let all = c.client.agents().await?;
                if c.out.is_json() {
                    c.out.json(&all)
                } else {
                    table(c, &all);
                    Ok(())
                }
            }
            Self::Show { agent } => {
                let one = c.client.agent(agent.as_str()).await?;
                if c.out.is_json() {
                    c.out.json(&one)
                } else {
                    show(c, &one);
                    Ok(())
                }
            }
            Self::Revoke { agent } => {
                if !c.confirm(&format!("Revoke agent {agent}?"))? {
                    return c.report(&json!({"revoked": false}), "Nothing was changed.").await;
                }
                c.client.revoke_agent(agent.as_str()).await?;
                c.report(&json!({"revoked": true}), &format!("Revoked agent {agent}."))
                    .await
            }
            Self::Delete { agent } => {
                if !c.confirm(&format!("Delete agent {agent}?"))? {
                    return c.report(&json!({"deleted": false}), "Nothing was changed.").await;
                }
                c.client.delete_agent(agent.as_str()).await?;
                c.report(&json!({"deleted": true}), &format!("Deleted agent {agent}."))
                    .await
            }
            Self::Config { agent } => c.out.json(&c.client.agent_config(agent.as_str()).await?),
        }
    }
}

/// Formats the binding of an agent, such as `VM web (web-nic)`.
pub(crate) fn binding(binding: &Binding) -> String {
    match binding {
        Binding::Vm { vm, nics, served } => {
            let nics: Vec<_> = nics.iter().map(tombolo_proto::id::ResourceId::name).collect();
            let served = if served.is_empty() {
                String::new()
            } else {
                format!(" +{} subnet(s)", served.len())
            };
            format!("VM {} ({}){served}", vm.name(), nics.join(", "))
        }
        Binding::Gateway {
            gateway,
            ip_configuration,
        } => format!("gateway {} ({ip_configuration})", gateway.name()),
        Binding::Edge { circuit, link } => format!("circuit {} ({})", circuit.name(), link.name()),
        Binding::Site { attachments, address } => {
            let names: Vec<_> = attachments.iter().map(tombolo_proto::id::ResourceId::name).collect();
            format!("site {} ({address})", names.join(", "))
        }
    }
}

/// Returns the state of an agent in one word: `revoked`; `away`: its control stream is down; `rejects`: it has rejected
/// its configuration; `ok`: its desired configuration is in force, or it is a site probe, which gets none; `behind`: it
/// runs another configuration or none.
pub(crate) fn condition(agent: &AgentView) -> &'static str {
    if agent.revoked {
        "revoked"
    } else if !agent.connected {
        "away"
    } else if agent.rejected.is_some() {
        "rejects"
    } else if matches!(agent.binding, Binding::Site { .. })
        || (agent.applied_digest.is_some() && agent.applied_digest == agent.desired_digest)
    {
        "ok"
    } else {
        "behind"
    }
}

/// Prints a table of agents with their binding, state, revision and endpoint. Prints a table even if the output format
/// is JSON.
pub(crate) fn table(c: &Context, agents: &[AgentView]) {
    let rows = agents
        .iter()
        .map(|a| {
            vec![
                Cell::new(&a.id),
                Cell::new(binding(&a.binding)),
                state(condition(a)),
                Cell::new(a.applied_revision.map(|r| r.to_string()).unwrap_or_default()),
                Cell::new(a.endpoints.first().map(ToString::to_string).unwrap_or_default()),
                Cell::new(
                    a.rejected
                        .as_ref()
                        .map(|r| format!("{} (revision {})", r.reason, r.revision))
                        .unwrap_or_default(),
                ),
            ]
        })
        .collect();
    let titles = ["Agent", "Binding", "State", "Revision", "Endpoint", "Rejected"];
    c.out.table(
        &titles,
        rows,
        "No agents. Let one join: tombolo token create --vm NAME --nic NIC",
    );
}

fn show(c: &Context, agent: &AgentView) {
    table(c, std::slice::from_ref(agent));
    let Some(status) = &agent.status else { return };
    let t = &status.totals;
    c.out.title("\nPackets since the agent's start");
    let totals = [
        ("from the device", t.tun_in),
        ("to the device", t.tun_out),
        ("from links", t.link_in),
        ("to links", t.link_out),
        ("answered by the agent", t.replied),
        ("dropped", t.dropped),
    ];
    c.out.table(
        &["What", "Count"],
        totals.iter().map(|(n, v)| vec![Cell::new(n), Cell::new(v)]).collect(),
        "",
    );
    c.out.title("\nDrops");
    let drops = status
        .drops
        .iter()
        .map(|(n, v)| vec![Cell::new(n), Cell::new(v)])
        .collect();
    c.out.table(&["Reason", "Packets"], drops, "none");
    if !status.refused_routes.is_empty() {
        c.out.title("\nReceived routes that are not used");
        let refused = status.refused_routes.iter().map(|r| {
            vec![
                Cell::new(r.sender.as_deref().unwrap_or("any, at its host")),
                Cell::new(&r.reason),
                Cell::new(r.count),
                Cell::new(r.example),
            ]
        });
        c.out
            .table(&["Sender", "Reason", "Routes", "First"], refused.collect(), "none");
    }
    c.out.title("\nLinks");
    let links = status.links.iter().map(|l| {
        vec![
            Cell::new(&l.peer),
            super::link::state_cell(l.state),
            Cell::new(bytes(l.rx_bytes)),
            Cell::new(bytes(l.tx_bytes)),
        ]
    });
    c.out.table(&["Peer", "State", "In", "Out"], links.collect(), "none");
}
