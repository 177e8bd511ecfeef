//! The rules of agents: joining, endpoints, keys, revocation (D7, D16).

use crate::draft::Draft;
use crate::resource::{Agent, Reach};
use std::net::SocketAddr;
use std::sync::Arc;
use tombolo_proto::config::MAX_LANES;
use tombolo_proto::id::AgentId;

/// The maximum number of underlay endpoints of an agent. It bounds the size of an agent's document. Peers get only the
/// first endpoint, so nobody needs more than a few.
const MAX_ENDPOINTS: usize = 16;

impl Draft<'_> {
    /// Checks the name of a new agent. No other agent may have it, not even a revoked one, and it must not begin like
    /// the names of sites' devices (D16).
    pub(super) fn check_agent_is_new(&mut self, agent: &AgentId) {
        if agent.as_str().starts_with(AgentId::SITE) {
            let message = format!(
                "agent: '{agent}' cannot be an agent's name: names that begin with '{}' are those of sites' devices (D16)",
                AgentId::SITE
            );
            self.problems.add("XReservedAgentName", "agent", message);
        }
        if let Some(old) = self.topology.agents.get(agent) {
            let state = if old.revoked { "revoked" } else { "in use" };
            self.problems.add_status(
                409,
                "XAgentExists",
                "agent",
                format!("agent: '{agent}' exists already and is {state}. Delete it first, or choose another name."),
            );
        }
    }

    /// Adds an agent that joins with the token `token`, and removes the token. Checks that the agent has the name and
    /// binding of the token, that its name, binding and keys are unused (D7, D16), and that its endpoints are valid.
    /// The token's secret and its expiry are not checked here. False: the token does not exist.
    pub(crate) fn join(&mut self, token: &str, agent: &Agent) -> bool {
        let Some(found) = self.topology.tokens.get(token).cloned() else {
            self.problems.add(
                "XTokenInvalid",
                "token",
                "token: it does not exist, was used already, or was deleted; create a new one".to_owned(),
            );
            return false;
        };
        if found.agent != agent.id || found.binding != agent.binding {
            self.problems.add(
                "XTokenInvalid",
                "token",
                format!(
                    "token: it is valid for agent '{}' with its binding only, not for agent '{}'",
                    found.agent, agent.id
                ),
            );
        }
        self.check_agent_is_new(&agent.id);
        let binding = self.check_binding(&found.binding);
        self.check_reach(&agent.reach);
        for other in self.topology.agents.values() {
            let same_key = other.public_key == agent.public_key;
            if same_key || other.certificate_key.eq_ignore_ascii_case(&agent.certificate_key) {
                let what = if same_key { "publicKey" } else { "csr" };
                self.problems.add_status(
                    409,
                    "XKeyInUse",
                    what,
                    format!(
                        "{what}: agent '{}' has the same key; every agent must generate its own",
                        other.id
                    ),
                );
                break;
            }
        }
        let mut sites = self.topology.local_gateways.values();
        if let Some(site) = sites.find(|s| s.public_key == Some(agent.public_key)) {
            let message = format!(
                "publicKey: the device of local network gateway {} has the same key; every agent must generate its own",
                site.envelope.id
            );
            self.problems.add_status(409, "XKeyInUse", "publicKey", message);
        }
        // If there is a problem, the whole draft is discarded, so the stored token can still be used.
        self.topology.tokens.remove(token);
        let mut agent = agent.clone();
        agent.binding = binding;
        agent.revoked = false;
        self.topology.agents.insert(agent.id.clone(), Arc::new(agent));
        true
    }

    /// Checks the endpoints and the number of lanes that an agent reports: at most 16 endpoints, which pass
    /// [`Self::check_endpoint`], and 1 to [`MAX_LANES`] lanes.
    fn check_reach(&mut self, reach: &Reach) {
        let Reach {
            endpoints,
            quic_endpoint,
            lanes,
            many_routes: _,
        } = reach;
        if endpoints.len() > MAX_ENDPOINTS {
            self.problems.add(
                "XTooManyItems",
                "endpoints",
                format!(
                    "endpoints: {} of them, at most {MAX_ENDPOINTS} are allowed",
                    endpoints.len()
                ),
            );
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            self.check_endpoint(&format!("endpoints[{i}]"), *endpoint);
        }
        if let Some(endpoint) = quic_endpoint {
            self.check_endpoint("quicEndpoint", *endpoint);
        }
        if !(1..=MAX_LANES).contains(lanes) {
            let message = format!("lanes: {lanes} is not within 1 to {MAX_LANES}");
            self.problems.add("XInvalidLanes", "lanes", message);
        }
    }

    /// Refuses an endpoint with the unspecified address, a multicast address or port 0. Private and loopback addresses
    /// are allowed, because the controller does not know the underlay.
    fn check_endpoint(&mut self, what: &str, endpoint: SocketAddr) {
        let ip = endpoint.ip();
        if ip.is_unspecified() || ip.is_multicast() || endpoint.port() == 0 {
            let message = format!("{what}: {endpoint} is not a unicast address with a port other than 0");
            self.problems.add("XInvalidEndpoint", what, message);
        }
    }

    /// Sets the endpoints and lanes of an agent. If the agent does not exist or is revoked, this adds a problem. Always
    /// false, because nothing is created.
    pub(crate) fn set_reach(&mut self, id: &AgentId, reach: &Reach) -> bool {
        self.check_reach(reach);
        self.edit_agent(id, true, |agent| agent.reach = reach.clone());
        false
    }

    /// Sets the key of a renewed certificate. This adds a problem if the agent does not exist or is revoked, if its
    /// present key is not `expected`, or if another agent has the new key. Always false, because nothing is created.
    pub(crate) fn set_certificate_key(&mut self, id: &AgentId, expected: &str, key: &str) -> bool {
        let known = self.topology.agents.get(id).filter(|a| !a.revoked);
        if known.is_some_and(|a| !a.certificate_key.eq_ignore_ascii_case(expected)) {
            self.problems.add_status(
                409,
                "XAgentHasOtherKey",
                "csr",
                format!("csr: agent '{id}' has another key by now; use its present one"),
            );
            return false;
        }
        let same = |a: &&Arc<Agent>| a.id != *id && a.certificate_key.eq_ignore_ascii_case(key);
        if let Some(other) = self.topology.agents.values().find(same) {
            self.problems.add_status(
                409,
                "XKeyInUse",
                "csr",
                format!(
                    "csr: agent '{}' has the same key; every agent must generate its own",
                    other.id
                ),
            );
        }
        self.edit_agent(id, true, |agent| key.clone_into(&mut agent.certificate_key));
        false
    }

    /// Revokes an agent. If the agent does not exist, this adds a problem. A revoked agent stays revoked. Always false,
    /// because nothing is created.
    pub(crate) fn revoke(&mut self, id: &AgentId) -> bool {
        self.edit_agent(id, false, |agent| agent.revoked = true);
        false
    }

    /// Changes the agent `id`. Adds a problem if the agent does not exist, and with `must_be_trusted` also if it is
    /// revoked.
    fn edit_agent(&mut self, id: &AgentId, must_be_trusted: bool, edit: impl FnOnce(&mut Agent)) {
        let Some(old) = self.topology.agents.get(id) else {
            self.problems
                .add_status(404, "NotFound", None::<String>, format!("Agent '{id}' not found."));
            return;
        };
        if must_be_trusted && old.revoked {
            self.problems.add_status(
                409,
                "XAgentRevoked",
                None::<String>,
                format!("Agent '{id}' is revoked."),
            );
            return;
        }
        let mut new = (**old).clone();
        edit(&mut new);
        if new != **old {
            self.topology.agents.insert(id.clone(), Arc::new(new));
        }
    }
}
