//! Why a health probe of a back end has failed.

use serde::{Deserialize, Serialize};

/// Why a back end is down (L6). In JSON it is a word, such as `timeout`; for [`Status`](Self::Status) it is `status` and the
/// number, such as `status503`. A word that this version does not know is read as [`Other`](Self::Other), so an agent of a later
/// version may report further reasons.
///
/// The text form completes the sentence "The back end is down: …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(from = "String", into = "String")]
pub enum ProbeFailure {
    /// No probe has ended yet.
    #[error("no probe has ended yet")]
    NotProbed,
    /// The address or the port is 0.
    #[error("the address or the port cannot be probed")]
    Unaddressable,
    /// There was no answer in time.
    #[error("there was no answer to the probe in time")]
    Timeout,
    /// The back end refused the connection.
    #[error("the back end refuses the connection")]
    Refused,
    /// The back end closed the connection before it responded.
    #[error("the back end has closed the connection without a response")]
    Closed,
    /// The TLS handshake failed, or a TLS record is invalid.
    #[error("the TLS handshake or a TLS record is invalid")]
    Tls,
    /// The response is not HTTP/1.
    #[error("the response is not HTTP/1")]
    Malformed,
    /// The header of the response is too long.
    #[error("the header of the response is too long")]
    TooLong,
    /// The response has this HTTP status instead of 200.
    #[error("the HTTP status of the response is {0}, not 200")]
    Status(u16),
    /// A reason that this version does not know.
    #[error("the probe failed for a reason that this version does not know")]
    Other,
}

/// The start of the word for [`ProbeFailure::Status`].
const STATUS: &str = "status";

/// The words of the other reasons.
const WORDS: [(ProbeFailure, &str); 9] = [
    (ProbeFailure::NotProbed, "notProbed"),
    (ProbeFailure::Unaddressable, "unaddressable"),
    (ProbeFailure::Timeout, "timeout"),
    (ProbeFailure::Refused, "refused"),
    (ProbeFailure::Closed, "closed"),
    (ProbeFailure::Tls, "tls"),
    (ProbeFailure::Malformed, "malformed"),
    (ProbeFailure::TooLong, "tooLong"),
    (ProbeFailure::Other, "other"),
];

impl From<ProbeFailure> for String {
    fn from(failure: ProbeFailure) -> Self {
        if let ProbeFailure::Status(status) = failure {
            return format!("{STATUS}{status}");
        }
        let word = WORDS.iter().find(|(known, _)| *known == failure);
        word.map_or("other", |(_, word)| word).to_owned()
    }
}

impl From<String> for ProbeFailure {
    fn from(word: String) -> Self {
        if let Some(status) = word.strip_prefix(STATUS).and_then(|number| number.parse().ok()) {
            return Self::Status(status);
        }
        let known = WORDS.iter().find(|(_, known)| *known == word);
        known.map_or(Self::Other, |(failure, _)| *failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_word_and_unknown_words_are_read() {
        let all = WORDS.iter().map(|(failure, _)| *failure);
        for failure in all.chain([ProbeFailure::Status(503), ProbeFailure::Status(0)]) {
            let json = serde_json::to_string(&failure).unwrap();
            assert_eq!(serde_json::from_str::<ProbeFailure>(&json).unwrap(), failure, "{json}");
            assert_eq!(json == "\"other\"", failure == ProbeFailure::Other);
        }
        for word in ["later", "", "status", "status70000", "statusx", "Timeout", "status-1"] {
            assert_eq!(ProbeFailure::from(word.to_owned()), ProbeFailure::Other, "{word}");
        }
    }
}
