//! The rules of join tokens (D7).

use crate::draft::Draft;
use crate::path::shown;
use crate::resource::JoinToken;
use std::sync::Arc;

impl Draft<'_> {
    /// Adds a join token. Checks that no token has the same id, that no agent has the name of the token's agent, and
    /// that the resources of its binding exist and are not bound to another agent. Always true, because the token is
    /// new.
    pub(crate) fn put_token(&mut self, token: &JoinToken) -> bool {
        if token.id.is_empty() || self.topology.tokens.contains_key(&token.id) {
            self.problems.add_status(
                409,
                "XTokenExists",
                None::<String>,
                format!("A join token '{}' exists already.", shown(&token.id)),
            );
        }
        self.check_agent_is_new(&token.agent);
        let binding = self.check_binding(&token.binding);
        let mut token = token.clone();
        token.binding = binding;
        self.topology.tokens.insert(token.id.clone(), Arc::new(token));
        true
    }
}
