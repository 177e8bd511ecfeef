//! The results of connection monitors, which the controller keeps in memory.

use crate::id::ResourceId;
use serde::{Deserialize, Serialize};

/// A connection monitor with the results of its tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorView {
    /// The id of the monitor.
    pub id: ResourceId,
    /// Whether its tests run.
    pub running: bool,
    /// The tests, in the order of their groups.
    pub tests: Vec<MonitorTestView>,
}

/// A test of a monitor: one configuration from one source to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorTestView {
    /// The name of the test group.
    pub group: String,
    /// The name of the test configuration.
    pub configuration: String,
    /// The name of the source endpoint.
    pub source: String,
    /// The name of the destination endpoint.
    pub destination: String,
    /// The results of the last checks, the newest last. Empty: no check has ended since the controller started.
    pub history: Vec<MonitorResult>,
}

/// The result of one check of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorResult {
    /// The time of the end of the check, in seconds of Unix time.
    pub time: u64,
    /// Whether the test has passed.
    pub outcome: MonitorOutcome,
    /// The share of failed probes in percent, 0 to 100. `None`: no probe could be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks_failed_percent: Option<u8>,
    /// The mean of the round-trip times in whole milliseconds, at least 1. `None`: no probe was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_time_ms: Option<u32>,
    /// Why no probe could be sent, in words. `None`: probes were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a test has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MonitorOutcome {
    /// The thresholds of the test configuration are kept.
    Pass,
    /// Too many probes failed, or they took too long.
    Fail,
    /// No probe could be sent.
    Indeterminate,
}
