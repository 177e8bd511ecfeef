//! Packet captures: requests for agents and for the controller, and reports.

use super::{id, ip};
use tombolo_golden::{all_of, golden};
use tombolo_proto::capture::{
    AddressRange, CaptureDelivery, CaptureError, CaptureFilter, CaptureLayer, CaptureProtocol, CaptureReport,
    CaptureRequest, CaptureState, CaptureStop,
};
use tombolo_proto::config::PortRange;
use tombolo_proto::fabric::{CaptureFilterText, LiveCapture};

#[test]
fn requests_for_captures() {
    let layers = all_of!(CaptureLayer { Packets, Datagrams });
    let deliveries = all_of!(CaptureDelivery { File, Stream });
    let protocols = all_of!(CaptureProtocol { Any, Tcp, Udp });
    let range = |first: &str, last: &str| AddressRange {
        first: ip(first),
        last: ip(last),
    };
    let ports = |first, last| PortRange { first, last };
    let full = CaptureFilter {
        protocol: CaptureProtocol::Tcp,
        local_addresses: vec![range("10.0.0.4", "10.0.0.4")],
        local_ports: vec![ports(1, 65_535)],
        remote_addresses: vec![range("10.1.0.0", "10.1.0.9"), range("fd00::1", "fd00::1")],
        remote_ports: vec![ports(80, 90), ports(443, 443)],
    };
    let of = |protocol| CaptureFilter {
        protocol,
        ..CaptureFilter::default()
    };
    let request = |layer, delivery, filters| CaptureRequest {
        name: "web".into(),
        nics: vec![id("networkInterfaces/vm-nic")],
        layer,
        filters,
        bytes_per_packet: 128,
        total_bytes: 1_073_741_824,
        seconds: 18_000,
        delivery,
    };
    let minimal = CaptureRequest {
        nics: Vec::new(),
        ..request(layers[1], deliveries[1], Vec::new())
    };
    let all = [full].into_iter().chain(protocols.into_iter().map(of)).collect();
    golden!().cases(
        "capture_request",
        &[("full", request(layers[0], deliveries[0], all)), ("minimal", minimal)],
    );
}

#[test]
fn reports_about_captures() {
    let states = all_of!(CaptureState {
        NotStarted,
        Running,
        Stopped,
        Error
    });
    let reasons = all_of!(CaptureStop {
        TimeExceeded,
        TotalBytesExceeded,
        Stopped
    });
    let errors = all_of!(CaptureError {
        InternalError,
        AgentStopped,
        CaptureFailed,
        LocalFileFailed
    });
    let report = |state, stop_reason, error: Option<CaptureError>| CaptureReport {
        state,
        stop_reason,
        error,
        message: error.map(|_| "no space left".to_owned()),
        started_ms: 1_800_000_000_123,
        packets: 10,
        bytes: 2000,
        lost: 1,
        file: Some("/var/lib/tombolo-agent/captures/web.pcapng".into()),
    };
    let mut cases = vec![("minimal".to_owned(), CaptureReport::default())];
    cases.extend(states.iter().map(|s| (format!("state{s:?}"), report(*s, None, None))));
    let stopped = |reason: &CaptureStop| {
        (
            format!("{reason:?}"),
            report(CaptureState::Stopped, Some(*reason), None),
        )
    };
    cases.extend(reasons.iter().map(stopped));
    let failed = |error: &CaptureError| (format!("{error:?}"), report(CaptureState::Error, None, Some(*error)));
    cases.extend(errors.iter().map(failed));
    let cases: Vec<_> = cases
        .iter()
        .map(|(name, report)| (name.as_str(), report.clone()))
        .collect();
    golden!().cases("capture_report", &cases);
}

#[test]
fn live_captures() {
    let given = |text: &str| Some(text.to_owned());
    let full = LiveCapture {
        target: "web-vm".into(),
        sealed: true,
        filters: vec![
            CaptureFilterText {
                protocol: given("TCP"),
                local_address: given("10.0.0.4"),
                local_port: given("1-65535"),
                remote_address: given("10.1.0.0-10.1.0.9;fd00::1"),
                remote_port: given("80-90;443"),
            },
            CaptureFilterText::default(),
        ],
        bytes_per_packet: Some(128),
        total_bytes: Some(1_000_000),
        seconds: Some(60),
    };
    let minimal = LiveCapture {
        target: "web-vm".into(),
        ..LiveCapture::default()
    };
    golden!().cases("live_capture", &[("full", full), ("minimal", minimal)]);
}
