//! The choices of load balancers in a run. The specification does not say which hash they use, but it says which choices
//! agree with each other (L4).

use crate::model::balancing::{Choice, Fresh};
use crate::operation::Protocol;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The fields by which a rule has chosen, with the name of the rule.
type Fields = ((String, String), [(IpAddr, u16); 2], Option<Protocol>);

/// The last choice of each rule for each value of the fields on which it depends, with the back ends among which the
/// rule has chosen.
#[derive(Debug, Default)]
pub(super) struct Choices(BTreeMap<Fields, (Choice, Vec<IpAddr>)>);

impl Choices {
    /// Notes a choice.
    ///
    /// # Errors
    /// It does not agree with the last choice for the same fields: a rule chooses the same back end again as long as
    /// the back end is there, and else a back end that was not there before.
    pub(super) fn note(&mut self, fresh: &Fresh) -> Result<(), String> {
        let (ends, protocol) = fresh.fields;
        let fields = (fresh.choice.rule.clone(), ends, protocol);
        let now = (fresh.choice.clone(), fresh.among.clone());
        let Some((before, among)) = self.0.insert(fields, now) else {
            return Ok(());
        };
        let (chosen, last) = (fresh.choice.member, before.member);
        let is_new = !among.contains(&chosen);
        if chosen == last || is_new || !fresh.among.contains(&last) {
            return Ok(());
        }
        Err(format!(
            "rule {:?} chose {last} before, and {chosen} now",
            fresh.choice.rule
        ))
    }
}
