//! From the results of probes to the health of a target.

use super::Target;

pub(super) use tombolo_proto::status::ProbeFailure as Failure;

/// The health of a target.
#[derive(Debug, Default)]
pub(super) struct Status {
    up: bool,
    /// Why the last probe that failed did so.
    failure: Option<Failure>,
    /// Whether there was a result. The first one decides the health without regard to the threshold.
    probed: bool,
    /// Number of consecutive results that contradict `up`.
    contradictions: u16,
}

impl Status {
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Why the target is down: the reason for which the last probe failed, or that no probe has ended yet. `None`: it is up.
    pub(super) fn failure(&self) -> Option<Failure> {
        (!self.up).then(|| self.failure.unwrap_or(Failure::NotProbed))
    }

    /// Adds the result of a probe. Returns whether the health has changed.
    pub(super) fn record(&mut self, target: &Target, result: Result<(), Failure>) -> bool {
        let up = result.is_ok();
        self.failure = result.err().or(self.failure);
        let first = !std::mem::replace(&mut self.probed, true);
        if up == self.up {
            self.contradictions = 0;
        } else {
            self.contradictions = self.contradictions.saturating_add(1);
        }
        let changed = up != self.up && (first || self.contradictions >= target.probe.threshold);
        if changed {
            self.up = up;
            self.contradictions = 0;
        }
        if changed || first {
            let endpoint = target.endpoint();
            match result {
                Ok(()) => tracing::debug!("back end {endpoint} answers health probes"),
                Err(failure) => tracing::debug!("back end {endpoint} fails health probes: {failure}"),
            }
        }
        changed
    }
}
