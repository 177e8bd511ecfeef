//! What can go wrong between the client and the controller.

use serde::Deserialize;
use std::error::Error as StdError;
use std::fmt;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The controller refused the request and said why.
    #[error("{0}")]
    Api(Box<ApiError>),
    /// Nobody answers at this address.
    #[error("cannot connect to {base}: {reason}")]
    Unreachable {
        /// The controller's address.
        base: String,
        /// In the system's words.
        reason: String,
    },
    /// Somebody answers, but its certificate does not verify.
    #[error("the certificate of {base} is not trusted: {reason}")]
    Certificate {
        /// The controller's address.
        base: String,
        /// In rustls' words.
        reason: String,
    },
    /// No answer in time.
    #[error("{base} did not answer {what} in time")]
    Timeout {
        /// The controller's address.
        base: String,
        /// Method and path.
        what: String,
    },
    /// An answer came that is not what the interface promises.
    #[error("{what}: {reason}")]
    Protocol {
        /// Method and path.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The client was given something that it cannot use: a base URL, a certificate, a path.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// The HTTP status, if the controller answered with an error.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api(e) => Some(e.status),
            _ => None,
        }
    }

    /// The error code (`VnetAddressSpacesOverlap`, …), if the controller answered with one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Api(e) => Some(&e.code),
            _ => None,
        }
    }

    /// The controller says that it does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Sorts a failure of the transport by what the caller can do about it.
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

/// An error of the controller, in ARM's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Azure's code, or an own one that starts with `X`.
    pub code: String,
    /// For people.
    pub message: String,
    /// The field or resource.
    pub target: Option<String>,
    /// All problems of the request; empty when there is one only.
    pub details: Vec<Detail>,
    /// Method and path of the request.
    pub what: String,
}

/// One problem of several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Detail {
    /// As in [`ApiError`].
    #[serde(default)]
    pub code: String,
    /// As in [`ApiError`].
    #[serde(default)]
    pub message: String,
    /// As in [`ApiError`].
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
    /// Reads an error body; whatever cannot be read becomes the message.
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

/// The last error of the chain: the one that says what happened ("Connection refused").
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last: &(dyn StdError + 'static) = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// rustls' complaint about the certificate, if that is what is behind the error.
fn certificate_problem(error: &(dyn StdError + 'static)) -> Option<String> {
    let mut current = Some(error);
    while let Some(e) = current {
        if let Some(tls @ rustls::Error::InvalidCertificate(_)) = e.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        // An I/O error hides what it wraps from `source`, which goes on behind it.
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

    /// The file is one that the controller's tests record.
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
