//! Packet captures (D42): what an agent is asked to record, and what it reports about that.

use crate::config::{MAX_VM_NICS, PortRange};
use crate::id::ResourceId;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Largest number of captures that run at an agent at a time.
pub const MAX_RUNNING: usize = 4;
/// Largest number of filters of a capture.
pub const MAX_FILTERS: usize = 16;
/// Largest number of ranges in each list of a filter.
pub const MAX_RANGES: usize = 64;
/// Longest capture in seconds: five hours, as in Azure.
pub const MAX_SECONDS: u32 = 18_000;
/// Largest file or stream of a capture in bytes, as in Azure.
pub const MAX_BYTES: u64 = 4_294_967_295;
/// Largest number of bytes of a live capture that the controller has not passed on yet. The agent then waits, and loses
/// the copies of further packets.
pub const STREAM_WINDOW: usize = 256 << 10;
/// Largest number of bytes in one message of a live capture.
pub const STREAM_CHUNK: usize = 16 << 10;

/// A capture that an agent is asked to make. The agent refuses values out of the given ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureRequest {
    /// A name for people, of which the agent uses the safe characters for the name of its file.
    pub name: String,
    /// The NICs whose packets are captured. Empty: all packets of the agent.
    pub nics: Vec<ResourceId>,
    /// Where the packets are captured.
    pub layer: CaptureLayer,
    /// A packet is captured if one of the filters matches, or if there is none. At most [`MAX_FILTERS`].
    pub filters: Vec<CaptureFilter>,
    /// Number of bytes that are kept of each packet; 0 means all.
    pub bytes_per_packet: u32,
    /// Largest length of the file or stream in bytes, 1 to [`MAX_BYTES`].
    pub total_bytes: u64,
    /// Longest time in seconds, 1 to [`MAX_SECONDS`].
    pub seconds: u32,
    /// Where the captured packets go.
    pub delivery: CaptureDelivery,
}

/// Where packets are captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CaptureLayer {
    /// IP packets at the TUN device, before they are sealed and after they are opened.
    #[default]
    Packets,
    /// The datagrams of the links in the underlay, which have sealed packets.
    Datagrams,
}

/// Where captured packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CaptureDelivery {
    /// Into a file on the agent's disk.
    File,
    /// To the controller, over the control stream.
    Stream,
}

/// Matches packets by protocol, addresses and ports. The local end is this host, in both directions. An empty list
/// matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureFilter {
    /// The protocol.
    pub protocol: CaptureProtocol,
    /// Addresses of the local end. Each list has at most [`MAX_RANGES`] entries.
    pub local_addresses: Vec<AddressRange>,
    /// Ports of the local end. Packets without ports match only an empty list.
    pub local_ports: Vec<PortRange>,
    /// Addresses of the other end.
    pub remote_addresses: Vec<AddressRange>,
    /// Ports of the other end.
    pub remote_ports: Vec<PortRange>,
}

/// The protocols that a filter matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CaptureProtocol {
    /// Every protocol.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Addresses from `first` to `last`, both included and of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddressRange {
    /// The lowest address.
    pub first: IpAddr,
    /// The highest address; not below `first`.
    pub last: IpAddr,
}

impl AddressRange {
    /// Whether the range has the address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        // The order of `IpAddr` has all IPv4 addresses before all IPv6 addresses.
        (self.first..=self.last).contains(&address)
    }
}

impl CaptureRequest {
    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// A text that names the first wrong field and its value.
    pub fn check(&self) -> Result<(), String> {
        if self.filters.len() > MAX_FILTERS {
            let count = self.filters.len();
            return Err(format!("filters: {count} entries; at most {MAX_FILTERS} are possible"));
        }
        if !(1..=MAX_SECONDS).contains(&self.seconds) {
            return Err(format!("seconds: {} is not within 1 to {MAX_SECONDS}", self.seconds));
        }
        if !(1..=MAX_BYTES).contains(&self.total_bytes) {
            return Err(format!(
                "totalBytes: {} is not within 1 to {MAX_BYTES}",
                self.total_bytes
            ));
        }
        if self.nics.len() > MAX_VM_NICS {
            let count = self.nics.len();
            return Err(format!("nics: {count} entries; at most {MAX_VM_NICS} are possible"));
        }
        self.filters.iter().try_for_each(CaptureFilter::check)
    }
}

impl CaptureFilter {
    fn check(&self) -> Result<(), String> {
        for (name, list) in [
            ("localAddresses", &self.local_addresses),
            ("remoteAddresses", &self.remote_addresses),
        ] {
            check_length(name, list.len())?;
            let is_wrong =
                |range: &&AddressRange| range.first > range.last || range.first.is_ipv4() != range.last.is_ipv4();
            if let Some(AddressRange { first, last }) = list.iter().find(is_wrong) {
                return Err(format!(
                    "filters.{name}: {first} to {last} is not a range of one address family"
                ));
            }
        }
        for (name, list) in [("localPorts", &self.local_ports), ("remotePorts", &self.remote_ports)] {
            check_length(name, list.len())?;
            if let Some(PortRange { first, last }) = list.iter().find(|range| range.first > range.last) {
                return Err(format!("filters.{name}: {first} to {last} is not a range"));
            }
        }
        Ok(())
    }
}

fn check_length(name: &str, length: usize) -> Result<(), String> {
    if length <= MAX_RANGES {
        return Ok(());
    }
    Err(format!(
        "filters.{name}: {length} entries; at most {MAX_RANGES} are possible"
    ))
}

/// The state of a capture, as its agent reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaptureReport {
    /// Whether the capture runs.
    pub state: CaptureState,
    /// Why the capture has ended. `None`: it runs, or it has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<CaptureStop>,
    /// What has failed. `None`: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<CaptureError>,
    /// The error in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The time of the start in milliseconds of Unix time; 0 before the start.
    pub started_ms: u64,
    /// Number of packets in the file or stream.
    pub packets: u64,
    /// Length of the file or stream in bytes.
    pub bytes: u64,
    /// Number of packets that are missing, because their copies found no room.
    pub lost: u64,
    /// The path of the file on the agent's host. `None`: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

impl CaptureReport {
    /// Whether the capture has ended.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self.state, CaptureState::Stopped | CaptureState::Error)
    }
}

/// Whether a capture runs, in Azure's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureState {
    /// The agent has not begun yet.
    #[default]
    NotStarted,
    /// Packets are captured.
    Running,
    /// The capture has ended as it should.
    Stopped,
    /// The capture has failed.
    Error,
}

/// Why a capture has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureStop {
    /// Its time is over.
    TimeExceeded,
    /// Its file or stream has reached its largest length.
    TotalBytesExceeded,
    /// Somebody has stopped it.
    Stopped,
}

/// What has failed, in Azure's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CaptureError {
    /// A fault of the agent.
    InternalError,
    /// The agent has stopped during the capture, or is not connected.
    AgentStopped,
    /// The capture cannot be made as requested.
    CaptureFailed,
    /// The file cannot be written.
    LocalFileFailed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CaptureRequest {
        CaptureRequest {
            name: "web".into(),
            nics: Vec::new(),
            layer: CaptureLayer::Packets,
            filters: vec![CaptureFilter::default()],
            bytes_per_packet: 0,
            total_bytes: MAX_BYTES,
            seconds: MAX_SECONDS,
            delivery: CaptureDelivery::File,
        }
    }

    fn range(first: &str, last: &str) -> AddressRange {
        AddressRange {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        }
    }

    #[test]
    fn d42_values_out_of_range_are_refused_by_field() {
        assert_eq!(request().check(), Ok(()));
        type Change = fn(&mut CaptureRequest);
        let wrong: [(&str, Change); 8] = [
            ("seconds: 0 ", |r| r.seconds = 0),
            ("seconds: 18001 ", |r| r.seconds = MAX_SECONDS + 1),
            ("totalBytes: 0 ", |r| r.total_bytes = 0),
            ("filters: 17 entries", |r| {
                r.filters = vec![CaptureFilter::default(); 17]
            }),
            ("filters.localAddresses: 10.0.0.2 to 10.0.0.1", |r| {
                r.filters[0].local_addresses = vec![range("10.0.0.2", "10.0.0.1")];
            }),
            ("filters.remoteAddresses: 10.0.0.2 to ::1", |r| {
                r.filters[0].remote_addresses = vec![range("10.0.0.2", "::1")];
            }),
            ("filters.remotePorts: 2 to 1", |r| {
                r.filters[0].remote_ports = vec![PortRange { first: 2, last: 1 }];
            }),
            ("filters.localPorts: 65 entries", |r| {
                r.filters[0].local_ports = vec![PortRange { first: 1, last: 1 }; 65];
            }),
        ];
        for (expected, change) in wrong {
            let mut request = request();
            change(&mut request);
            let refused = request.check().unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }

    #[test]
    fn a_range_has_addresses_of_its_family_only() {
        let all = range("0.0.0.0", "255.255.255.255");
        assert!(all.contains("255.255.255.255".parse().unwrap()) && !all.contains("::".parse().unwrap()));
    }
}
