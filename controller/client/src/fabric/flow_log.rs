//! Tails of flow logs.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::{Method, Response};
use serde_json::json;
use std::collections::VecDeque;
use std::time::Duration;
use tombolo_proto::fabric::{FlowLogTail, TailLine};

/// Longest time of a tail: a year. A request without a limit is not possible.
const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Longest time without a line. The controller sends an empty one every 15 s.
const SILENCE: Duration = Duration::from_secs(60);

/// Longest line in bytes. The controller accepts lines of agents with 4,096.
const MAX_LINE: usize = 64 << 10;

/// The path of the request.
const PATH: &str = "/fabric/v1/flow-logs/tail";

/// The records of flow logs, as the controller gets them. When it is dropped, the agents stop sending.
#[derive(Debug)]
pub struct FlowTailStream {
    base: String,
    response: Response,
    lines: VecDeque<TailLine>,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Client {
    /// Begins to follow flow logs.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with status 400 if a log does not exist, is not enabled, or is in another
    /// region, and with 409 if too many tails run at the controller.
    pub async fn tail_flow_logs(&self, request: &FlowLogTail) -> Result<FlowTailStream, Error> {
        let body = json!(request);
        let response = self
            .send(Method::POST, PATH, &[], Body::Json(&body), Some(MAX_TIME))
            .await?;
        Ok(FlowTailStream {
            base: self.base().to_owned(),
            response,
            lines: VecDeque::new(),
            rest: Vec::new(),
        })
    }
}

impl FlowTailStream {
    /// The next line. `None`: the controller has ended the tail, because it stops. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Unreachable`]: the stream broke off. [`Error::Timeout`]: the controller has sent nothing for a minute.
    /// [`Error::Protocol`]: a line is malformed.
    pub async fn next(&mut self) -> Result<Option<TailLine>, Error> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Ok(Some(line));
            }
            let chunk = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| Error::Timeout {
                base: self.base.clone(),
                what: PATH.to_owned(),
            })?;
            let Some(chunk) = chunk.map_err(|e| Error::transport(&self.base, PATH, &e))? else {
                return Ok(None);
            };
            let read = read(&mut self.rest, &chunk, &mut self.lines);
            read.map_err(|reason| Error::Protocol {
                what: PATH.to_owned(),
                reason,
            })?;
        }
    }
}

/// Adds the lines that end in `bytes` to `lines`; `rest` has the beginning of the first one, and then that of the next. Empty
/// lines are left out.
fn read(rest: &mut Vec<u8>, bytes: &[u8], lines: &mut VecDeque<TailLine>) -> Result<(), String> {
    for part in bytes.split_inclusive(|byte| *byte == b'\n') {
        if rest.len() + part.len() > MAX_LINE {
            return Err(format!("a line is longer than {MAX_LINE} bytes"));
        }
        rest.extend(part);
        if rest.last() != Some(&b'\n') {
            continue;
        }
        let line = std::mem::take(rest);
        if line.len() > 1 {
            // The message of the parser may repeat texts of the line.
            let line =
                serde_json::from_slice(&line).map_err(|e| format!("a line is malformed at column {}", e.column()));
            lines.push_back(line?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d38_lines_of_a_tail_are_read_from_any_parts() {
        let text = b"\n{\"type\":\"agents\",\"count\":2}\n\n{\"type\":\"dropped\",\"agent\":\"a\",\"records\":3}\n{";
        for size in [1, 5, 1000] {
            let (mut rest, mut lines) = (Vec::new(), VecDeque::new());
            for part in text.chunks(size) {
                read(&mut rest, part, &mut lines).unwrap();
            }
            assert_eq!(lines.len(), 2);
            assert_eq!(lines[0], TailLine::Agents { count: 2 });
            assert_eq!(rest, b"{");
        }
        let mut lines = VecDeque::new();
        let long = vec![b' '; MAX_LINE + 1];
        assert!(read(&mut Vec::new(), &long, &mut lines).unwrap_err().contains("longer"));
        let bad = read(&mut Vec::new(), b"\"\x1b[2J\"\n", &mut lines).unwrap_err();
        assert!(bad.ends_with("column 2"), "{bad}");
    }
}
