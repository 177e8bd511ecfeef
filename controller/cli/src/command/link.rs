//! `tombolo link`: the encrypted links between agents, as the agents report them.

use crate::context::Context;
use crate::output::{bytes, state};
use anyhow::Result;
use clap::Args;
use comfy_table::Cell;
use serde_json::json;
use tombolo_client::fabric::AgentView;
use tombolo_proto::id::AgentId;
use tombolo_proto::status::{Carrier, LinkState, LinkStatus};

#[derive(Debug, Args)]
pub(crate) struct Link {
    /// Agent whose links are shown [default: all agents]
    agent: Option<AgentId>,
}

impl Link {
    /// Prints the links of one agent or of all agents, from the agents' last status reports. Links of an agent that has
    /// not reported are missing.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let agents = match &self.agent {
            Some(agent) => vec![c.client.agent(agent.as_str()).await?],
            None => c.client.agents().await?,
        };
        let of = |a: &AgentView| a.status.as_ref().map(|s| s.links.clone()).unwrap_or_default();
        let all: Vec<(AgentId, LinkStatus)> = agents
            .iter()
            .flat_map(|a| of(a).into_iter().map(|l| (a.id.clone(), l)))
            .collect();
        if c.out.is_json() {
            let list: Vec<_> = all
                .iter()
                .map(|(agent, link)| json!({"agent": agent, "link": link}))
                .collect();
            return c.out.json(&list);
        }
        let rows = all
            .iter()
            .map(|(agent, l)| {
                vec![
                    Cell::new(agent),
                    Cell::new(&l.peer),
                    state_cell(l.state),
                    Cell::new(match l.transport {
                        Carrier::WireGuard => "WireGuard",
                        Carrier::Quic => "QUIC",
                    }),
                    Cell::new(l.endpoint.map(|e| e.to_string()).unwrap_or_default()),
                    Cell::new(l.handshake_age.map(|s| format!("{s:.0} s ago")).unwrap_or_default()),
                    Cell::new(l.rtt_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default()),
                    Cell::new(
                        l.loss
                            .map(|share| format!("{:.0} %", share * 100.0))
                            .unwrap_or_default(),
                    ),
                    Cell::new(l.mtu.map(|bytes| bytes.to_string()).unwrap_or_default()),
                    Cell::new(bytes(l.rx_bytes)),
                    Cell::new(bytes(l.tx_bytes)),
                    Cell::new(l.reason.clone().unwrap_or_default()),
                ]
            })
            .collect();
        let titles = [
            "Agent",
            "Peer",
            "State",
            "Over",
            "Endpoint",
            "Handshake",
            "RTT",
            "Loss",
            "MTU",
            "In",
            "Out",
            "Reason",
        ];
        c.out.table(
            &titles,
            rows,
            "No links: the first packet between two machines establishes one.",
        );
        Ok(())
    }
}

/// Returns a table cell with a link's state in words. [`state`] chooses the colour.
pub(crate) fn state_cell(link: LinkState) -> Cell {
    state(match link {
        LinkState::Idle => "idle",
        LinkState::Connecting => "connecting",
        LinkState::Up => "up",
        LinkState::Unreachable => "unreachable",
        LinkState::AuthenticationFailed => "authentication failed",
        LinkState::NoEndpoint => "no endpoint",
    })
}
