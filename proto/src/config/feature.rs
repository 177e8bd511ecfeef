//! Features of configurations that older agents do not understand.
//!
//! An agent refuses a configuration with an unknown field, because it would otherwise enforce only a part of the
//! policy. So the controller may send such a field only to agents that have named its feature in their Hello.

use super::AgentConfig;
use std::collections::BTreeSet;

/// A part of a configuration that agents of version 0.1 do not understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// [`AgentConfig::security`].
    SecurityGroups,
    /// [`Security::reevaluate`](super::Security::reevaluate).
    Reevaluate,
}

impl Feature {
    /// All features that this version understands.
    pub const ALL: &'static [Self] = &[Self::SecurityGroups, Self::Reevaluate];

    /// The name of the feature in an agent's Hello. The name must not change, because programs of other versions use it
    /// too.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SecurityGroups => "securityGroups",
            Self::Reevaluate => "reevaluate",
        }
    }

    /// The features with these names. Names that this version does not know are left out.
    #[must_use]
    pub fn of_names(names: &[String]) -> BTreeSet<Self> {
        let known = Self::ALL.iter().copied();
        known.filter(|f| names.iter().any(|n| n == f.name())).collect()
    }
}

impl AgentConfig {
    /// The features that an agent must have to understand the configuration.
    #[must_use]
    pub fn needs(&self) -> BTreeSet<Feature> {
        let Some(security) = &self.security else {
            return BTreeSet::new();
        };
        let reevaluate = security.reevaluate.then_some(Feature::Reevaluate);
        reevaluate.into_iter().chain([Feature::SecurityGroups]).collect()
    }

    /// The configuration for an agent that lacks one of the features that the configuration [`needs`](Self::needs). It
    /// has neither the parts that such an agent does not understand nor any link, so that no packet passes that these
    /// parts might forbid.
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
