//! Network security groups: which rule decides about a packet, and the flows that rules have allowed.

mod address_sets;
mod classifier;
mod flow_key;
mod flow_table;

pub use address_sets::{AddressSets, SetId};
pub use classifier::{Classifier, FieldMatches, RuleKey};
pub use flow_key::{Belongs, Fragment, Segment, belongs_to, fragment_of};
pub use flow_table::{CAPACITY, Evictions, FROM_HOST, FlowKey, FlowRef, FlowStatus, FlowTable, Full, TcpFlags};
