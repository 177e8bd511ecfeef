//! Computes which addresses reach which, by which protocols and ports, for a whole topology.
//!
//! The answer is exact: for every pair of addresses and every port it says what [`explain`](crate::explain) would say if
//! all agents had joined and all links and back ends were up. It is computed with the agents' own code. Addresses with
//! the same paths form a class, and one walk there and back stands for all pairs of two classes. The rules of the
//! security groups on the way are then evaluated for all ports at once.
//!
//! If a load balancer is on the way, the answer has the traffic that arrives whichever back end is chosen.
//!
//! * `design`: the topology with all agents.
//! * `sets`: the result, and how it is computed.
//! * `ends`: the addresses, and their classes.
//! * `survey`: the walks between classes.
//! * `path`: what a walk has found, kept for changes of rules.
//! * `update`: the result after a change, from the one before.
//! * `rule_paths`: the paths on which rules decide.
//! * `checks`: the security groups on a walk, and what they admit.
//! * `cell`: the traffic between groups of addresses.
//! * `memo`: sets of traffic, each kept once.
//! * `answer`: the answer in its JSON form.
//! * `difference`: what two answers connect and cut.
//! * `select`: resolves names to addresses.
//! * `assertion`: what must and must not be reachable.

mod answer;
mod assertion;
mod cell;
mod checks;
mod design;
mod difference;
mod ends;
mod memo;
mod path;
mod rule_paths;
mod select;
mod sets;
mod survey;
mod update;

pub use answer::{EndGroup, EndView, ReachAnswer, ReachEntry, TrafficView};
pub use assertion::{Violation, check_assertions};
pub use design::with_all_agents as as_designed;
pub use difference::{ChangedTraffic, Difference, difference};
pub use ends::End;
pub use sets::{Reach, Run, in_order};
