//! Features of configurations that older agents do not understand.
//!
//! An agent refuses a configuration with an unknown field, because it would otherwise enforce only a part of the policy.
//! So the controller may send such a field only to agents that have named its feature in their Hello.

use super::AgentConfig;
use std::collections::BTreeSet;

/// A part of a configuration that agents of version 0.1 do not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// [`AgentConfig::security`].
    SecurityGroups,
}

impl Feature {
    /// All features that this version understands.
    pub const ALL: &'static [Self] = &[Self::SecurityGroups];

    /// The name in the agent's Hello. It must not change.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SecurityGroups => "securityGroups",
        }
    }

    /// The features with these names. Names of later versions are left out.
    #[must_use]
    pub fn of_names(names: &[String]) -> BTreeSet<Self> {
        let known = Self::ALL.iter().copied();
        known.filter(|f| names.iter().any(|n| n == f.name())).collect()
    }
}

impl AgentConfig {
    /// The features that an agent needs to understand the configuration.
    #[must_use]
    pub fn needs(&self) -> BTreeSet<Feature> {
        self.security.iter().map(|_| Feature::SecurityGroups).collect()
    }

    /// The configuration for an agent that does not have all features that it [`needs`](Self::needs): without the parts
    /// that the agent does not understand, and without links, so that no packet passes which these parts might forbid.
    #[must_use]
    pub fn isolated(&self) -> Self {
        Self {
            security: None,
            links: Vec::new(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_later_versions_are_left_out() {
        let names = ["securityGroups".to_owned(), "later".to_owned()];
        assert_eq!(Feature::of_names(&names), [Feature::SecurityGroups].into());
        assert!(Feature::of_names(&[]).is_empty());
    }
}
