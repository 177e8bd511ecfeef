//! Tails of flow logs: requests for agents and for the controller, and their lines.

use super::{agent, id, ip};
use tombolo_golden::{all_of, every_variant, golden};
use tombolo_proto::config::{Direction, FlowLogFormat};
use tombolo_proto::fabric::{FlowLogTail, TailLine, TailState};
use tombolo_proto::flow_tail::{FlowEncryption, FlowRecord, FlowState, TailEntry, TailRequest};

fn record(format: FlowLogFormat, state: FlowState) -> FlowRecord {
    FlowRecord {
        time_ms: 1_800_000_000_123,
        log: id("networkWatchers/w/flowLogs/web"),
        format,
        nic: id("networkInterfaces/vm-nic"),
        mac_address: "0200DEADBEEF".into(),
        source: ip("10.1.0.4"),
        source_port: 40_000,
        destination: ip("10.0.0.4"),
        destination_port: 443,
        protocol: 6,
        direction: Direction::Inbound,
        state,
        group: Some(id("networkSecurityGroups/web")),
        rule: Some("UserRule_https".into()),
        encryption: None,
        packets_sent: 4,
        bytes_sent: 300,
        packets_received: 3,
        bytes_received: 200,
    }
}

fn records() -> Vec<(String, FlowRecord)> {
    let states = all_of!(FlowState {
        Begin,
        Continue,
        End,
        Denied
    });
    let encryptions = all_of!(FlowEncryption {
        Encrypted,
        NotSent,
        Local
    });
    let formats = all_of!(FlowLogFormat {
        Group1,
        Group2,
        Network4
    });
    let mut all: Vec<_> = states
        .iter()
        .map(|state| (format!("state{state:?}"), record(FlowLogFormat::Group2, *state)))
        .collect();
    all.extend(formats.iter().map(|f| (format!("{f:?}"), record(*f, FlowState::Begin))));
    all.extend(encryptions.iter().map(|encryption| {
        let record = FlowRecord {
            source: ip("fd00::1"),
            destination: ip("fd00::2"),
            direction: Direction::Outbound,
            group: None,
            rule: None,
            encryption: Some(*encryption),
            ..record(FlowLogFormat::Network4, FlowState::End)
        };
        (format!("{encryption:?}"), record)
    }));
    all
}

#[test]
fn requests_for_tails() {
    let request = |logs| TailRequest { logs, window: 8192 };
    let one = vec![id("networkWatchers/w/flowLogs/web")];
    golden!().cases(
        "tail_request",
        &[("one", request(one.clone())), ("all", request(Vec::new()))],
    );
    let full = FlowLogTail {
        logs: one,
        region: Some("region1".into()),
    };
    golden!().cases("flow_log_tail", &[("full", full), ("minimal", FlowLogTail::default())]);
}

#[test]
fn lines_of_tails() {
    let mut entries: Vec<_> = records()
        .into_iter()
        .map(|(name, record)| (name, TailEntry::Record(record)))
        .collect();
    entries.push(("dropped".into(), TailEntry::Dropped(7)));
    every_variant!(TailEntry { Record, Dropped }, entries.iter().map(|(_, entry)| entry));
    let entries: Vec<_> = entries
        .iter()
        .map(|(name, entry)| (name.as_str(), entry.clone()))
        .collect();
    golden!().cases("tail_entry", &entries);

    let states = all_of!(TailState {
        Following,
        Waiting,
        Failed
    });
    let of = |state, message: Option<&str>| TailLine::Agent {
        agent: agent("hub-vm"),
        state,
        message: message.map(str::to_owned),
    };
    let lines = [
        ("agents", TailLine::Agents { count: 3 }),
        ("following", of(states[0], None)),
        ("waiting", of(states[1], Some("agent hub-vm is not connected"))),
        ("failed", of(states[2], Some("agent hub-vm is too old"))),
        (
            "record",
            TailLine::Record {
                agent: agent("hub-vm"),
                record: record(FlowLogFormat::Group2, FlowState::Denied),
            },
        ),
        (
            "dropped",
            TailLine::Dropped {
                agent: agent("hub-vm"),
                records: 7,
            },
        ),
    ];
    every_variant!(
        TailLine {
            Agents,
            Agent,
            Record,
            Dropped
        },
        lines.iter().map(|(_, line)| line)
    );
    golden!().cases("tail_line", &lines);
}
