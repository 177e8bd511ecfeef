//! Network security groups: which rule decides about a packet, and the flows that rules have allowed.

mod address_sets;
mod classifier;

pub use address_sets::{AddressSets, SetId};
pub use classifier::{Classifier, FieldMatches, RuleKey};
