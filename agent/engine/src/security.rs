//! Network security groups: which rule decides about a packet, and the flows that rules have allowed.

mod address_sets;
mod classifier;
mod flow_gate;
mod flow_key;
mod flow_table;
mod guard;
mod nic_rules;
mod secured_nics;

pub use address_sets::{AddressSets, SetContent, SetId};
pub use classifier::{Classifier, FieldMatches, RuleKey};
pub use flow_gate::{Admission, AtNic, FlowGate};
pub use flow_key::{Belongs, Fragment, Segment, belongs_to, fragment_of};
pub use flow_table::{CAPACITY, Evictions, FROM_HOST, FlowKey, FlowRef, FlowStatus, FlowTable, Full, TcpFlags};
pub(crate) use guard::Guard;
pub use guard::{DEFAULT_FLOWS, Flows};
pub use nic_rules::{Attachment, GroupExplanation, GroupRules, Judgement, NicRules, RuleRef};
pub use secured_nics::{Passage, RuleName, SecuredNics};
