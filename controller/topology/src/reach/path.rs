//! The path between two classes of ends: what a walk there and back has found, kept so that changed rules need no new walk.

use super::cell::Cell;
use super::checks::Checks;
use super::ends::{Class, End};
use super::memo::Memo;
use std::collections::HashMap;
use std::sync::Arc;
use tombolo_engine::security::{NicRules, Traffic};

/// The path from one class to another.
#[derive(Debug, Clone)]
pub(super) struct Path {
    /// Position of the class that sends.
    from: usize,
    /// Position of the class that receives.
    to: usize,
    /// The parts of the traffic that take different ways, and the network interfaces that decide about each.
    parts: Vec<(Traffic, Checks)>,
    /// What arrives.
    cells: Vec<Cell>,
}

impl Path {
    /// Evaluates the rules on a path. What passes those of one part arrives.
    pub(super) fn new(
        (from, to): (usize, usize),
        parts: Vec<(Traffic, Checks)>,
        (ends, classes): (&[End], &[Class]),
        memo: &Memo,
    ) -> Self {
        let evaluate = |(limit, checks): &(Traffic, Checks)| {
            let mut cells = Vec::new();
            checks.cells(ends, &classes[from], &classes[to], memo, limit, &mut cells);
            cells
        };
        let cells = match parts.as_slice() {
            [single] => evaluate(single),
            several => memo.merged(several.iter().map(evaluate).collect()),
        };
        Self { from, to, parts, cells }
    }

    /// What arrives.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The rules of all network interfaces on the path.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<NicRules>> {
        self.parts.iter().flat_map(|(_, checks)| checks.rules())
    }

    /// The path with other rules; see [`Checks::with`]. `None`: none of the changed rules is on the path.
    pub(super) fn with(
        &self,
        changed: &HashMap<usize, Arc<NicRules>>,
        of: (&[End], &[Class]),
        memo: &Memo,
    ) -> Option<Self> {
        let new: Vec<Option<Checks>> = self.parts.iter().map(|(_, checks)| checks.with(changed)).collect();
        new.iter().any(Option::is_some).then(|| {
            let parts = self.parts.iter().zip(new);
            let parts = parts.map(|((limit, old), new)| (limit.clone(), new.unwrap_or_else(|| old.clone())));
            Self::new((self.from, self.to), parts.collect(), of, memo)
        })
    }
}
