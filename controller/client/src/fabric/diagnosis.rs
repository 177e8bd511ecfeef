//! Explanations, ping and trace, and connectivity checks.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tombolo_proto::fabric::{
    Assertion, CheckRequest, ExplainRequest, ListResponse, MonitorView, Probe, ProbeAnswer, ReachDiffRequest,
    ReachRequest, StoredAssertions,
};
use tombolo_proto::probe::ProbeKind;

/// Time that a request may take in addition to the time of the probe itself, for the network, the controller and the
/// agent.
const PROBE_MARGIN: Duration = Duration::from_secs(20);
/// Time that a check may take: three probes of an agent that is slow to report, and their computation.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// Time that the controller may take to compute the reachability of a whole network, twice.
const REACH_LIMIT: Duration = Duration::from_secs(300);
/// Values for fields that [`Probe`] omits: each is at least the controller's default. They serve only to compute how
/// long the client waits for the answer.
const DEFAULT_COUNT: u32 = 5;
const DEFAULT_INTERVAL_MS: u32 = 1000;
const DEFAULT_TIMEOUT_MS: u32 = 1000;
const DEFAULT_MAX_TTL: u8 = 30;

impl Client {
    /// Returns the decisions that the agents would make about a packet and about its reply, hop by hop. No packet is
    /// sent. The result is a JSON object; its fields `reachable` and `summary` say whether the reply arrives, and why
    /// not.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with status 400 if the source or the destination is unknown or ambiguous,
    /// the source has no agent, the two have no address family in common, or the TTL is 0.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<Value, Error> {
        let response = self
            .fabric(Method::POST, "explain", Body::Json(&json!(request)))
            .await?;
        self.json(response).await
    }

    /// Returns which addresses reach which, by which protocols and ports, as if all agents had joined. The result is a
    /// JSON object with `groups` and `entries`. The controller may need some seconds in a large network.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with status 400 if a name means nothing that sends or receives.
    pub async fn reach(&self, request: &ReachRequest) -> Result<Value, Error> {
        let body = json!(request);
        let response = self
            .send(
                Method::POST,
                "/fabric/v1/reach",
                &[],
                Body::Json(&body),
                Some(REACH_LIMIT),
            )
            .await?;
        self.json(response).await
    }

    /// Returns what changes would connect and cut, and which assertions would not hold after them. Changes nothing. The
    /// result is a JSON object with `connects`, `cuts`, `violations`, and `refused`: the reasons for which stored assertions
    /// would refuse the changes.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with the status and the error that the first change would get which the
    /// controller would refuse, or with status 400 if an assertion names something that does not exist.
    pub async fn reach_diff(&self, request: &ReachDiffRequest) -> Result<Value, Error> {
        let body = json!(request);
        let response = self
            .send(
                Method::POST,
                "/fabric/v1/reach/diff",
                &[],
                Body::Json(&body),
                Some(REACH_LIMIT),
            )
            .await?;
        self.json(response).await
    }

    /// Returns the stored assertions, and the reasons for those that do not hold now, as a JSON object with `assertions` and
    /// `violations`.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn assertions(&self) -> Result<Value, Error> {
        let path = "/fabric/v1/assertions";
        let response = self.send(Method::GET, path, &[], Body::None, Some(REACH_LIMIT)).await?;
        self.json(response).await
    }

    /// Replaces all stored assertions. The controller then refuses every change of resources or settings after which one
    /// of them would no longer hold.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with status 400 if an assertion names nothing, and with status 409 if one does
    /// not hold now. The stored assertions then stay as they were.
    pub async fn put_assertions(&self, assertions: Vec<Assertion>) -> Result<Value, Error> {
        let body = json!(StoredAssertions { assertions });
        let path = "/fabric/v1/assertions";
        let response = self
            .send(Method::PUT, path, &[], Body::Json(&body), Some(REACH_LIMIT))
            .await?;
        self.json(response).await
    }

    /// Returns the smallest sets of changes that let a packet arrive and its reply come back. Changes nothing. The result is
    /// a JSON object with `reachable`, `repairs`, `byHand` and `summary`.
    ///
    /// # Errors
    /// As for [`explain`](Self::explain), but the source needs no agent.
    pub async fn repair(&self, request: &ExplainRequest) -> Result<Value, Error> {
        let body = json!(request);
        let response = self
            .send(
                Method::POST,
                "/fabric/v1/repair",
                &[],
                Body::Json(&body),
                Some(REACH_LIMIT),
            )
            .await?;
        self.json(response).await
    }

    /// Returns the path of a resource that somebody has changed, created or deleted since these changes of a repair were computed.
    /// The changes would then overwrite that. `None`: there is no such resource.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn changed_since(&self, changes: &[Value]) -> Result<Option<String>, Error> {
        for change in changes {
            let path = change.get("path").and_then(Value::as_str).unwrap_or_default();
            let path = path.strip_suffix("/sharedkey").unwrap_or(path);
            let etag = change.get("etag").and_then(Value::as_str);
            let is_new = change.get("isNew").and_then(Value::as_bool) == Some(true);
            if etag.is_none() && !is_new {
                continue;
            }
            let present = self.arm_find(path).await?;
            let found = present.as_ref().map(|resource| resource["etag"].as_str());
            if found != etag.map(Some) {
                return Ok(Some(path.to_owned()));
            }
        }
        Ok(None)
    }

    /// Makes one change of a repair, which is an entry of `changes` in the answer of [`repair`](Self::repair). A shared key that
    /// is copied passes through this client, and is not shown.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with the status and the error of the refused write, and an [`Error::Protocol`] if the
    /// change is of a kind that this version does not know.
    pub async fn make_change(&self, change: &Value) -> Result<(), Error> {
        let text = |name: &str| change.get(name).and_then(Value::as_str);
        let is_set = |name: &str| change.get(name).and_then(Value::as_bool) == Some(true);
        let path = text("path").unwrap_or_default();
        if is_set("generateKey") {
            self.arm_post(&format!("{path}/reset"), &json!({})).await?;
        } else if let Some(from) = text("copyFrom") {
            let key = self.arm_get(from).await?;
            self.arm_put(path, &json!({"value": key["value"]})).await?;
        } else if let Some(body) = change.get("body") {
            let query: &[_] = match is_set("syncRemoteAddressSpace") {
                true => &[("syncRemoteAddressSpace", "true")],
                false => &[],
            };
            self.arm_put_with(path, query, body).await?;
        } else if is_set("delete") {
            self.arm_delete(path).await?;
        } else {
            return Err(Error::Protocol {
                what: path.to_owned(),
                reason: "the change is of a kind that this program does not know; update it".into(),
            });
        }
        Ok(())
    }

    /// Checks a connection: the agent of the source sends real packets, and the controller compares the result with
    /// [`explain`](Self::explain). Takes some seconds. The result is a JSON object with the fields of ARM's
    /// `ConnectivityInformation`, and `explained`, `summary` and `difference`. A destination that is not reached is no
    /// error.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with status 400 if a value is out of range, the source or the destination is
    /// unknown, or the source's agent is not connected or too old. The status is 409 if the agent does not report in time.
    pub async fn check(&self, request: &CheckRequest) -> Result<Value, Error> {
        let body = json!(request);
        let response = self
            .send(
                Method::POST,
                "/fabric/v1/check",
                &[],
                Body::Json(&body),
                Some(CHECK_LIMIT),
            )
            .await?;
        self.json(response).await
    }

    /// Returns the connection monitors with the results of their tests, ordered by id. The controller keeps results in memory
    /// only.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn monitors(&self) -> Result<Vec<MonitorView>, Error> {
        let response = self.fabric(Method::GET, "monitors", Body::None).await?;
        Ok(self.typed::<ListResponse<MonitorView>>(response).await?.value)
    }

    /// Pings, traces or connects: the agent of the source sends real packets. Returns when the agent has reported the results of
    /// all packets. The controller waits for the report for at most 120 s. Dropping the future does not stop the
    /// packets. A probe without any reply is not an error.
    ///
    /// # Errors
    /// Any [`Error`]. It is an [`Error::Api`] with status 400 if a number of `probe` is out of range, or the source or
    /// the destination is unknown. The status is 409 if the source's agent is not connected or does not report in time.
    pub async fn probe(&self, probe: &Probe) -> Result<ProbeAnswer, Error> {
        let each = |given: Option<u32>, default: u32| u64::from(given.unwrap_or(default));
        let count = each(probe.count, DEFAULT_COUNT);
        let timeout = each(probe.timeout_ms, DEFAULT_TIMEOUT_MS);
        let longest = match probe.kind {
            ProbeKind::Ping | ProbeKind::Connect => count * each(probe.interval_ms, DEFAULT_INTERVAL_MS) + timeout,
            ProbeKind::Trace => u64::from(probe.max_ttl.unwrap_or(DEFAULT_MAX_TTL)) * count * timeout,
        };
        let limit = Some(Duration::from_millis(longest) + PROBE_MARGIN);
        let body = json!(probe);
        let response = self
            .send(Method::POST, "/fabric/v1/probe", &[], Body::Json(&body), limit)
            .await?;
        self.typed(response).await
    }
}
