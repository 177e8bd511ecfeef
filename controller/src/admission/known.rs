//! The addresses at which agents are known.

use super::address::Address;
use std::collections::{HashMap, VecDeque};
use tombolo_proto::id::AgentId;

/// Maximum number of addresses that are kept for one agent. An agent may roam, and may have an IPv4 and an IPv6
/// address.
const MAX_ADDRESSES_PER_AGENT: usize = 4;

/// The last few addresses of each agent.
#[derive(Debug, Default)]
pub(super) struct KnownAddresses {
    /// The addresses of each agent, the latest last.
    by_agent: HashMap<AgentId, VecDeque<Address>>,
    /// The number of agents that are known at each address. An address at which no agent is known any more is removed.
    agents: HashMap<Address, usize>,
}

impl KnownAddresses {
    /// Notes an address of an agent. If the agent then has more than [`MAX_ADDRESSES_PER_AGENT`], removes the address
    /// that was noted least recently.
    pub(super) fn add(&mut self, agent: &AgentId, address: Address) {
        let addresses = self.by_agent.entry(agent.clone()).or_default();
        if let Some(at) = addresses.iter().position(|a| *a == address) {
            addresses.remove(at);
        } else {
            *self.agents.entry(address).or_default() += 1;
        }
        addresses.push_back(address);
        if addresses.len() > MAX_ADDRESSES_PER_AGENT
            && let Some(oldest) = addresses.pop_front()
            && let Some(agents) = self.agents.get_mut(&oldest)
        {
            *agents -= 1;
            if *agents == 0 {
                self.agents.remove(&oldest);
            }
        }
    }

    /// The number of agents that are known at an address.
    pub(super) fn agents_at(&self, address: Address) -> usize {
        self.agents.get(&address).copied().unwrap_or_default()
    }
}
