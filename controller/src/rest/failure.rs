//! Error responses with ARM's error object, and the other JSON responses.

use crate::agents::capture::CaptureRefusal;
use crate::agents::probe::ProbeError;
use crate::connectivity::CheckError;
pub(crate) use crate::excerpt::excerpt;
use crate::writer::WriteError;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use serde_json::{Value, json};
use tombolo_proto::id::Revision;
use tombolo_topology::change::Rejection;

/// The header that every response to a successful write has. Its value is the revision of the state that contains the
/// write.
pub(crate) const REVISION_HEADER: &str = "x-tombolo-revision";

/// An error response: a status, and a body with ARM's error object.
#[derive(Debug, Clone)]
pub(crate) struct Failure(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    status: StatusCode,
    code: String,
    message: String,
    target: Option<String>,
    details: Vec<Value>,
    challenge: Option<String>,
}

impl Failure {
    /// An error with a code of Azure's, or a code that only this controller has (`X…`), and a message for the user.
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            status,
            code: code.to_owned(),
            message: message.into(),
            target: None,
            details: Vec::new(),
            challenge: None,
        }))
    }

    /// An error with the status 400 (Bad Request), a code and a message as for [`Self::new`].
    pub(crate) fn bad(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// An error with the status 404 (Not Found), a code and a message as for [`Self::new`].
    pub(crate) fn missing(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 405 Method Not Allowed, for a method that the path does not serve.
    pub(crate) fn method(method: &http::Method, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!("The method {method} is not supported at '{}'.", excerpt(path)),
        )
    }

    /// Sets the `target` of the error object: the name of the field at fault, or the id of the resource.
    pub(crate) fn at(mut self, target: impl Into<String>) -> Self {
        self.0.target = Some(target.into());
        self
    }

    /// Sets the header `WWW-Authenticate`. The header is left out if `challenge` has characters that a header must not
    /// have.
    pub(crate) fn challenge(mut self, challenge: String) -> Self {
        self.0.challenge = Some(challenge);
        self
    }

    /// The error object: the value of the field `error` in the response's body.
    pub(crate) fn object(&self) -> Value {
        json!({
            "code": self.0.code,
            "message": self.0.message,
            "target": self.0.target,
            "details": self.0.details,
            "additionalInfo": [],
        })
    }
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        let status = StatusCode::from_u16(rejection.status).unwrap_or(StatusCode::BAD_REQUEST);
        let detail =
            |p: &tombolo_topology::change::Problem| json!({"code": p.code, "message": p.message, "target": p.target});
        let details = rejection.problems.iter().map(detail).collect();
        let first = rejection.problems.first();
        Self(Box::new(Parts {
            status,
            code: first.map_or("InvalidRequestContent", |p| p.code).to_owned(),
            message: first.map_or_else(String::new, |p| p.message.clone()),
            target: first.and_then(|p| p.target.clone()),
            details,
            challenge: None,
        }))
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Rejected(rejection) => rejection.into(),
            WriteError::Store(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string()),
        }
    }
}

impl From<CaptureRefusal> for Failure {
    fn from(refusal: CaptureRefusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            CaptureRefusal::NotConnected(_) => Self::bad("XAgentNotConnected", message),
            CaptureRefusal::NotSupported(_) => Self::bad("XAgentTooOld", message),
            CaptureRefusal::TooMany(_) => Self::new(StatusCode::CONFLICT, "XAgentCaptureLimitReached", message),
        }
    }
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        let message = error.to_string();
        match error {
            CheckError::Invalid(field, _) => Self::bad("InvalidRequestFormat", message).at(field),
            CheckError::Unresolved(_) => Self::bad("InvalidResourceReference", message),
            CheckError::Probe(ProbeError::NotConnected(_)) => Self::bad("XAgentNotConnected", message),
            CheckError::Probe(ProbeError::NotSupported(_)) => Self::bad("XAgentTooOld", message),
            CheckError::Probe(ProbeError::NoReport(_)) => Self::new(StatusCode::CONFLICT, "XAgentNotReached", message),
            CheckError::Internal(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message),
        }
    }
}

/// The error object of a response: an extension of each response with an error.
#[derive(Debug, Clone)]
pub(crate) struct ErrorObject(pub(crate) Value);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let object = self.object();
        let mut response = reply(self.0.status, &json!({"error": object}));
        response.extensions_mut().insert(ErrorObject(object));
        let challenge = self.0.challenge.and_then(|c| HeaderValue::from_str(&c).ok());
        if let Some(challenge) = challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// A response with a JSON body.
pub(crate) fn reply(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// 200 OK with a JSON body.
pub(crate) fn ok(body: &Value) -> Response {
    reply(StatusCode::OK, body)
}

/// A response with this status and without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Adds the header [`REVISION_HEADER`] to the response to a write.
pub(crate) fn at_revision(mut response: Response, revision: Revision) -> Response {
    response.headers_mut().insert(REVISION_HEADER, revision.0.into());
    response
}
