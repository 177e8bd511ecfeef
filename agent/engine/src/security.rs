//! Network security groups: finds the rule that decides about a packet, and keeps the flows that rules have allowed.
//!
//! A flow is one TCP connection, or the packets of another protocol between the same two addresses and ports, in both
//! directions. To admit a packet means to let it pass a NIC. Each lane has a `Guard`, which applies the groups to
//! packets. The guard's `FlowGate` looks up the flow of a packet in the `FlowTable`, which all lanes share. If the
//! table does not have the flow, the `NicRules` of the NIC decide. After a change of routes or rules, `Recheck` marks
//! the affected flows, and the rules decide about each of them again.

mod address_sets;
mod classifier;
mod flow_gate;
mod flow_key;
mod flow_log;
mod flow_memory;
mod flow_table;
mod flows;
mod guard;
mod local_flows;
mod nic_rules;
mod prepared_groups;
mod recheck;
mod secured_nics;
mod traffic;

pub use address_sets::{AddressSets, SetContent, SetId};
pub use classifier::{Classifier, FieldMatches, RuleKey, RuleSet};
pub use flow_gate::{Admission, AtNic, Balanced, FlowGate, FlowObserver, Outcome};
pub use flow_key::{Belongs, Fragment, Segment, belongs_to, fragment_of};
pub use flow_log::{FlowEvent, FlowEventKind, FlowLog, LoggedRule};
pub use flow_table::{
    BootTime, CAPACITY, Count, Counted, CountedFlow, Evictions, FROM_HOST, FlowKey, FlowRef, FlowReport, FlowStatus,
    FlowTable, Full, MAX_SAVED_AGE, RECORD_INTERVAL, TcpFlags, Unusable,
};
pub use flows::{DEFAULT_FLOWS, Flows};
pub(crate) use guard::Guard;
pub(crate) use local_flows::LocalFlow;
pub use nic_rules::{Attachment, GroupExplanation, GroupRules, Judgement, NicRules, RuleRef};
pub use prepared_groups::PreparedGroups;
pub(crate) use secured_nics::Reuse;
pub use secured_nics::{Passage, RuleName, SecuredNics};
pub use traffic::{Interval, PortPairs, Ports, Traffic};
