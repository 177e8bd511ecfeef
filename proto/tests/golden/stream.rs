//! Records the encoded messages of the control stream. The format consists of the numbers and types of fields, not of
//! their names.

use prost::Message;
use std::fmt::{Debug, Write as _};
use tombolo_golden::{every_variant, golden};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{
    AgentMessage, Applied, Capture, CaptureData, CaptureRead, CaptureReport, Captures, Config, ControllerMessage, Down,
    Health, Hello, Owner, Part, Piece, Probe, ProbeResult, Rejected, RenewReply, RenewRequest, Status, UpToDate, piece,
};

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// Returns the recorded line of a message, and panics unless its bytes decode to the same message.
fn line<M: Message + PartialEq + Default + Debug>(name: &str, message: &M) -> String {
    let bytes = message.encode_to_vec();
    assert_eq!(M::decode(&*bytes).as_ref(), Ok(message), "{name}");
    format!("{name} {}\n", hex(&bytes))
}

#[test]
fn messages_of_the_control_stream() {
    let from_agent = [
        FromAgent::Hello(Hello {
            agent: "hub-vm".into(),
            revision: 7,
            digest: "ab".into(),
            endpoints: vec!["192.0.2.7:51820".into(), "[::]:51820".into()],
            version: "0.1.0".into(),
            quic_endpoint: "192.0.2.7:443".into(),
            lanes: 4,
            features: vec!["securityGroups".into()],
        }),
        FromAgent::Applied(Applied {
            revision: 7,
            digest: "ab".into(),
        }),
        FromAgent::Rejected(Rejected {
            revision: 7,
            digest: "ab".into(),
            reason: "mtu".into(),
        }),
        FromAgent::Status(Status {
            status: b"{}".to_vec(),
            endpoints: vec!["192.0.2.7:51820".into()],
        }),
        FromAgent::ProbeResult(ProbeResult {
            id: 9,
            report: b"{}".to_vec(),
        }),
        FromAgent::CaptureReport(CaptureReport {
            id: "c1".into(),
            report: b"{}".to_vec(),
        }),
        FromAgent::CaptureData(CaptureData {
            id: "c1".into(),
            data: vec![10, 13],
            end: true,
        }),
    ];
    every_variant!(
        FromAgent {
            Hello,
            Applied,
            Rejected,
            Status,
            ProbeResult,
            CaptureReport,
            CaptureData
        },
        &from_agent
    );
    let from_controller = [
        FromController::Config(Config {
            revision: 7,
            digest: "ab".into(),
            config: b"{}".to_vec(),
            ..Config::default()
        }),
        FromController::Config(Config {
            revision: 8,
            digest: "cd".into(),
            base: "ab".into(),
            pieces: vec![
                Piece {
                    content: Some(piece::Content::Part(Part { offset: 0, len: 1 })),
                },
                Piece {
                    content: Some(piece::Content::Data(b"}".to_vec())),
                },
            ],
            ..Config::default()
        }),
        FromController::UpToDate(UpToDate { revision: 7 }),
        FromController::Probe(Probe {
            id: 9,
            request: b"{}".to_vec(),
        }),
        FromController::Health(Health {
            down: vec![Down {
                probe: "/lb/probe".into(),
                address: "10.1.0.4".into(),
            }],
            owners: vec![Owner {
                agent: "hub-vm".into(),
                start: 1000,
                change: 3,
            }],
            has_owners: true,
        }),
        FromController::Captures(Captures {
            captures: vec![
                Capture {
                    id: "c1".into(),
                    request: b"{}".to_vec(),
                    tail: Vec::new(),
                },
                Capture {
                    id: "t1".into(),
                    request: Vec::new(),
                    tail: b"{}".to_vec(),
                },
            ],
        }),
        FromController::CaptureRead(CaptureRead {
            id: "c1".into(),
            bytes: 300,
        }),
    ];
    every_variant!(
        FromController {
            Config,
            UpToDate,
            Probe,
            Health,
            Captures,
            CaptureRead
        },
        &from_controller
    );

    let names = [
        "hello",
        "applied",
        "rejected",
        "status",
        "probeResult",
        "captureReport",
        "captureData",
    ];
    let mut text = String::new();
    // The names of the methods are part of the format too.
    let definition = include_str!("../../tombolo/v1/control.proto").lines();
    for line in definition.filter(|l| {
        ["package ", "service ", "  rpc "]
            .iter()
            .any(|start| l.starts_with(start))
    }) {
        writeln!(text, "{}", line.trim_end_matches(" {")).unwrap();
    }
    for (name, message) in names.into_iter().zip(from_agent) {
        text += &line(name, &AgentMessage { message: Some(message) });
    }
    let names = [
        "config",
        "configChange",
        "upToDate",
        "probe",
        "health",
        "captures",
        "captureRead",
    ];
    for (name, message) in names.into_iter().zip(from_controller) {
        text += &line(name, &ControllerMessage { message: Some(message) });
    }
    text += &line("renewRequest", &RenewRequest { csr: "csr".into() });
    text += &line(
        "renewReply",
        &RenewReply {
            certificate: "certificate".into(),
        },
    );
    golden!().text("control_stream.txt", &text);
}
