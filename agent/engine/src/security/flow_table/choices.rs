//! Changes of the choices that load balancers have made for a flow (L4, R11).

use super::entry::CHOICES;
use super::{FlowRef, FlowTable};
use std::sync::atomic::Ordering;

impl FlowTable {
    /// Replaces the choices of load balancers for a flow. Does nothing if another lane has removed the flow meanwhile.
    pub fn set_choices(&self, flow: &FlowRef, choices: u64) {
        if self.is_current(flow) {
            // If another lane replaces the flow at this moment, the new flow gets a choice of another rule, with which no
            // packet is translated.
            self.words_of(flow.slot as usize)[CHOICES].store(choices, Ordering::Relaxed);
        }
    }

    /// Does the same as [`set_choices`](Self::set_choices), unless another lane has changed the choices since the flow was
    /// looked up.
    pub fn change_choices(&self, flow: &FlowRef, choices: u64) {
        if self.is_current(flow) {
            let word = &self.words_of(flow.slot as usize)[CHOICES];
            // If it fails, the next packet that is looked up brings the change.
            let _ = word.compare_exchange(flow.choices, choices, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether the table still has the flow.
    fn is_current(&self, flow: &FlowRef) -> bool {
        self.has(&flow.counted())
    }
}
