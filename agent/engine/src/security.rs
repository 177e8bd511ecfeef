//! Network security groups: which rule decides about a packet, and the flows that rules have allowed.

mod address_sets;
mod classifier;
mod flow_gate;
mod flow_key;
mod flow_table;
mod nic_rules;

pub use address_sets::{AddressSets, SetId};
pub use classifier::{Classifier, FieldMatches, RuleKey};
pub use flow_gate::{Admission, AtNic, FlowGate};
pub use flow_key::{Belongs, Fragment, Segment, belongs_to, fragment_of};
pub use flow_table::{CAPACITY, Evictions, FROM_HOST, FlowKey, FlowRef, FlowStatus, FlowTable, Full, TcpFlags};
pub use nic_rules::{Attachment, GroupExplanation, GroupRules, Judgement, NicRules, RuleRef};
