//! Live captures of packets.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::time::Duration;
use tombolo_proto::capture::MAX_SECONDS;
use tombolo_proto::fabric::{ListResponse, LiveCapture};

/// Time that a live capture may take in addition to its own, to start and to pass on its last bytes.
const MARGIN: Duration = Duration::from_secs(60);

/// The path of the request, for messages.
const PATH: &str = "/fabric/v1/capture";

/// A live capture: a stream in pcapng. When it is dropped, the capture ends.
#[derive(Debug)]
pub struct CaptureStream {
    base: String,
    response: Response,
}

impl Client {
    /// Begins a live capture. Returns when the agent captures.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with status 400 if the target is unknown, a value is out of range, or the
    /// agent is not connected or too old, and with 409 if it makes too many captures already.
    pub async fn capture(&self, request: &LiveCapture) -> Result<CaptureStream, Error> {
        let given = request.seconds.filter(|seconds| *seconds > 0);
        let time = Duration::from_secs(given.unwrap_or(MAX_SECONDS).into());
        let body = json!(request);
        let response = self
            .send(Method::POST, PATH, &[], Body::Json(&body), Some(time + MARGIN))
            .await?;
        Ok(CaptureStream {
            base: self.base().to_owned(),
            response,
        })
    }

    /// Returns the packet captures of all watchers in ARM's form, ordered by id. The field `status` of each is the answer to
    /// its action `queryStatus`.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn captures(&self) -> Result<Vec<Value>, Error> {
        let response = self.fabric(Method::GET, "captures", Body::None).await?;
        Ok(self.typed::<ListResponse<Value>>(response).await?.value)
    }
}

impl CaptureStream {
    /// The next bytes. `None`: the capture has ended at one of its limits. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Unreachable`]: the stream broke off, because the controller or the agent has gone.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let chunk = self.response.chunk().await;
        let chunk = chunk.map_err(|e| Error::transport(&self.base, PATH, &e))?;
        Ok(chunk.map(|bytes| bytes.to_vec()))
    }
}
