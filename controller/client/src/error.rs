//! Errors of calls to the controller.

use serde::Deserialize;
use std::error::Error as StdError;
use std::fmt;

/// The reason why a call of the client failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller refused the request with an error response.
    #[error("{0}")]
    Api(Box<ApiError>),
    /// A connection to the controller could not be established, or it broke.
    #[error("cannot connect to {base}: {reason}")]
    Unreachable {
        /// URL of the controller.
        base: String,
        /// The system's error message.
        reason: String,
    },
    /// The server's certificate does not verify.
    #[error("the certificate of {base} is not trusted: {reason}")]
    Certificate {
        /// URL of the controller.
        base: String,
        /// The error message of rustls.
        reason: String,
    },
    /// The request or the long-running operation did not end before its timeout.
    #[error("{base} did not answer {what} in time")]
    Timeout {
        /// URL of the controller.
        base: String,
        /// Method and path of the request.
        what: String,
    },
    /// The answer does not follow the REST interface.
    #[error("{what}: {reason}")]
    Protocol {
        /// Method and path of the request.
        what: String,
        /// The difference from the interface.
        reason: String,
    },
    /// A base URL, CA certificate or path that the client cannot use.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Returns the HTTP status of an error response; `None` for other errors.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api(e) => Some(e.status),
            _ => None,
        }
    }

    /// Returns the error code (`VnetAddressSpacesOverlap`, …) of an error response; `None` for other errors. If the
    /// response is not in ARM's format, the code is `Http` followed by the status, such as `Http502`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Api(e) => Some(&e.code),
            _ => None,
        }
    }

    /// Whether the controller answered with status 404; false for other errors.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Returns the error for a request that failed without a response of the controller. The variant depends on what a
    /// user can do about the failure. `base`: URL of the controller. `what`: method and path of the request.
    pub(crate) fn transport(base: &str, what: &str, error: &reqwest::Error) -> Self {
        let base = base.to_owned();
        let reason = innermost(error);
        if let Some(reason) = certificate_problem(error) {
            Self::Certificate { base, reason }
        } else if error.is_connect() {
            Self::Unreachable { base, reason }
        } else if error.is_timeout() {
            Self::Timeout {
                base,
                what: what.to_owned(),
            }
        } else if error.is_request() || error.is_body() {
            Self::Unreachable { base, reason }
        } else {
            Self::Protocol {
                what: what.to_owned(),
                reason,
            }
        }
    }
}

/// An error response of the controller, in ARM's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status of the response.
    pub status: u16,
    /// A code that Azure defines, or a code that only Tombolo has, which starts with `X`.
    pub code: String,
    /// The controller's message for people.
    pub message: String,
    /// The field or resource that the error is about.
    pub target: Option<String>,
    /// All problems of the request; empty if there is only one problem, which the other fields then describe.
    pub details: Vec<Detail>,
    /// Method and path of the request.
    pub what: String,
}

/// One of several problems of a request. Each field means the same as the field of this name in [`ApiError`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Detail {
    /// The code of this problem, in the form of [`ApiError::code`].
    #[serde(default)]
    pub code: String,
    /// The message about this problem, for people.
    #[serde(default)]
    pub message: String,
    /// The field or resource that this problem is about.
    #[serde(default)]
    pub target: Option<String>,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}) {}", self.code, self.message)?;
        for other in self.details.iter().filter(|d| d.message != self.message) {
            write!(f, "\n({}) {}", other.code, other.message)?;
        }
        Ok(())
    }
}

impl ApiError {
    /// Parses the body of an error response. If the body has another format, the message is the first 200 characters of
    /// the body, and the code is `Http` followed by the status, e.g. `Http502`.
    pub(crate) fn read(status: u16, what: &str, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Outer {
            error: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
            #[serde(default)]
            target: Option<String>,
            #[serde(default)]
            details: Option<Vec<Detail>>,
        }
        match serde_json::from_slice::<Outer>(body) {
            Ok(Outer { error }) => Self {
                status,
                code: error.code,
                message: error.message,
                target: error.target,
                details: error.details.unwrap_or_default(),
                what: what.to_owned(),
            },
            Err(_) => Self {
                status,
                code: format!("Http{status}"),
                message: format!(
                    "{what}: {}",
                    String::from_utf8_lossy(body).chars().take(200).collect::<String>()
                ),
                target: None,
                details: Vec::new(),
                what: what.to_owned(),
            },
        }
    }
}

/// Returns the text of the last error in the chain of sources, which names the cause ("Connection refused").
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// Returns the message of rustls if the error was caused by an invalid certificate.
fn certificate_problem(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut current = Some(error);
    while let Some(e) = current {
        if let Some(tls @ rustls::Error::InvalidCertificate(_)) = e.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        // `source` of an I/O error does not return the wrapped error but the source of the wrapped error, so the
        // wrapped error is read by `get_ref`.
        let wrapped = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        current = match wrapped {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => e.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_body_is_read_with_its_details() {
        let body = br#"{"error":{"code":"A","message":"first","target":null,"details":[
            {"code":"A","message":"first"},{"code":"B","message":"second","target":"x"}]}}"#;
        let e = ApiError::read(400, "PUT /x", body);
        assert_eq!((e.status, e.code.as_str(), e.details.len()), (400, "A", 2));
        assert_eq!(e.to_string(), "(A) first\n(B) second");
    }

    /// The client can read the error responses that the controller's tests have recorded in a golden file.
    #[test]
    fn golden_errors_of_the_controller_are_read() {
        let golden: serde_json::Value = tombolo_golden::golden!().read("../../../tests/golden/errors");
        for (case, details) in [("one", 0), ("several", 2)] {
            let e = ApiError::read(400, "PUT /x", golden[case].to_string().as_bytes());
            assert!(!e.code.is_empty() && !e.message.is_empty(), "{case}: {e:?}");
            assert!(e.target.is_some() && e.details.len() == details, "{case}: {e:?}");
        }
    }

    #[test]
    fn a_body_that_is_no_error_object_is_shown_as_it_is() {
        let e = ApiError::read(502, "GET /x", b"<html>bad gateway");
        assert_eq!(e.code, "Http502");
        assert!(e.message.contains("bad gateway"));
        assert!(
            ApiError::read(500, "GET /x", br#"{"error":{"code":"A","message":"m","details":null}}"#)
                .details
                .is_empty()
        );
    }
}
