//! The choice of a back end, and the word in which the flow table keeps the choices for both directions of a flow (L4,
//! R11, D35).

use super::mix;

/// A rule and one of its back ends: the choice that was made for a flow. The value stays the same in later
/// configurations that have the same rule and back end. It is never 0, and its lowest 16 bits are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice(pub u64);

impl Choice {
    /// The choice of a back end by the rule with this hash.
    pub(super) fn of(rule: u64, back_end: u64) -> Self {
        Self((mix(rule ^ back_end) & !FOR_REPLIES).max(FOR_REPLIES + 1))
    }

    /// The part of the choice that the flow table keeps if the choice is for replies. Never 0. Choices of two back ends can
    /// have the same part.
    pub(super) const fn part(self) -> u16 {
        match (self.0 >> 48) as u16 {
            0 => 1,
            part => part,
        }
    }
}

/// The bits of [`KeptChoices`] for replies.
const FOR_REPLIES: u64 = 0xffff;

/// The choices for both directions of a flow, in the word that the flow table has for them. The upper 48 bits are the
/// choice for the packets of the end that began the flow; 0: none. The lower 16 bits are a part of the choice for the
/// packets of the other end, the replies; 0: none.
///
/// At the agent of a back end, a flow can have both: the replies are translated by the first, and a route sends them
/// through the appliance of the second (R11). The choice for replies was made for packets with the source that the first
/// gives them, so it holds no longer than the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptChoices(pub u64);

impl KeptChoices {
    /// The choice for the packets of the end that began the flow.
    pub(crate) fn forward(self) -> Option<Choice> {
        let choice = self.0 & !FOR_REPLIES;
        (choice != 0).then_some(Choice(choice))
    }

    /// The part of the choice for replies.
    #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are the part")]
    pub(super) const fn for_replies(self) -> Option<u16> {
        match self.0 as u16 {
            0 => None,
            part => Some(part),
        }
    }

    /// The same choice for the packets of the end that began the flow, and this one for replies.
    pub(crate) const fn with_replies(self, choice: Choice) -> Self {
        Self(self.0 & !FOR_REPLIES | choice.part() as u64)
    }
}
