//! From the results of probes to the health of a target.

use super::Target;

/// Why a probe has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("the address or the port cannot be probed")]
    Unaddressable,
    #[error("no answer in time")]
    Timeout,
    #[error("the back end refuses the connection")]
    Refused,
    #[error("the back end has closed the connection without a response")]
    Closed,
    #[error("the TLS handshake or a TLS record is invalid")]
    Tls,
    #[error("the response is not HTTP/1")]
    Malformed,
    #[error("the header of the response is too long")]
    TooLong,
    #[error("the status is {0}, not 200")]
    Status(u16),
}

/// The health of a target.
#[derive(Debug, Default)]
pub(super) struct Status {
    up: bool,
    /// Whether there was a result. The first one decides the health without regard to the threshold.
    probed: bool,
    /// Number of consecutive results that contradict `up`.
    contradictions: u16,
}

impl Status {
    pub(super) fn is_up(&self) -> bool {
        self.up
    }

    /// Adds the result of a probe. Returns whether the health has changed.
    pub(super) fn record(&mut self, target: &Target, result: Result<(), Failure>) -> bool {
        let up = result.is_ok();
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
