//! Measures what a flow log costs at 10,000 new flows a second (D38): the lane, which decides and counts, and the writer,
//! which makes records and appends them to files. All times are CPU times of one thread.
//!
//! `flow_log DIRECTORY` writes the files into DIRECTORY, which must not exist, and removes it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for measurements: it may stop at anything unexpected"
)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tombolo_agent::flow_log::batch::Batch;
use tombolo_agent::flow_log::files::LogFiles;
use tombolo_engine::buffer::Collected;
use tombolo_engine::engine::Engine;
use tombolo_engine::link::PlainLinks;
use tombolo_engine::security::{DEFAULT_FLOWS, Flows};
use tombolo_engine::tables::{NicIndex, RoutingState, Tables};
use tombolo_proto::config::{AgentConfig, FlowLogs};
use tombolo_proto::id::AgentId;

/// New flows in each step.
const FLOWS: u32 = 1000;
/// A step is 100 ms.
const STEP: Duration = Duration::from_millis(100);
/// Steps of a minute.
const STEPS: u32 = 600;

fn config(logged: bool) -> AgentConfig {
    let rules = serde_json::json!([
        {"name": "securityRules/out", "priority": 100, "direction": "Outbound", "access": "Allow", "protocol": "*",
         "source": "any", "sourcePorts": [{"first": 0, "last": 65535}],
         "destination": "any", "destinationPorts": [{"first": 0, "last": 65535}]},
    ]);
    let logs = serde_json::json!({
        "logs": [{"id": "/networkWatchers/w/flowLogs/log", "guid": "00000000-0000-4000-8000-000000000001",
            "target": "/nic", "format": "network4", "nics": ["/nic"]}],
        "nics": [{"id": "/nic", "mac": "020000000001"}],
        "groups": [{"id": "/web", "guid": "00000000-0000-4000-8000-000000000002"}],
    });
    let mut security = serde_json::json!({
        "groups": [{"id": "/web", "rules": rules}],
        "nics": [{"id": "/nic", "prefixes": ["10.0.0.1/32"], "subnet": "/subnet", "nicGroup": "/web"}],
    });
    if logged {
        security["flowLogs"] = logs;
    }
    serde_json::from_value(serde_json::json!({
        "agent": "vm", "vnet": "/vnet", "addressSpace": ["10.0.0.0/8"], "mtu": 1420,
        "role": {"type": "vm", "served": [], "nics": [
            {"id": "/nic", "subnet": "/subnet", "addresses": ["10.0.0.1/24"], "ipForwarding": false}]},
        "subnets": [{"id": "/subnet", "prefixes": ["10.0.0.0/8"], "routes": [
            {"source": "Default", "state": "Active", "prefix": "10.0.0.0/8", "nextHop": {"type": "VnetLocal"}}]}],
        "spaces": [{"vnet": "/vnet", "kind": {"type": "local"}, "prefixes": ["10.0.0.0/8"], "owners": [
            {"prefix": "10.0.0.1/32", "agent": "vm"}, {"prefix": "10.1.0.0/16", "agent": "peer"}]}],
        "links": [{"peer": "peer", "publicKey": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "alwaysOn": true,
            "initiator": false, "relation": {"type": "vnetLocal"}, "foreign": "none", "sources": ["10.1.0.0/16"]}],
        "security": security,
    }))
    .unwrap()
}

/// A TCP segment of flow `number`, without data: SYN, or RST. Its checksums are 0, which the engine does not check.
fn segment(number: u32, is_first: bool) -> Vec<u8> {
    const LENGTH: u8 = 40;
    let destination = (0x0a01_0000 + (number >> 14) % 0xffff).to_be_bytes();
    let port = 10_000 + (number & 0x3fff) as u16;
    let mut packet = vec![0x45, 0, 0, LENGTH, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1];
    packet.extend(destination);
    packet.extend(port.to_be_bytes());
    packet.extend(443u16.to_be_bytes());
    packet.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0x50,
        if is_first { 0x02 } else { 0x04 },
        4,
        0,
        0,
        0,
        0,
        0,
    ]);
    packet
}

/// The time that the calling thread has run on a CPU.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Runs two minutes, and returns the CPU times of the second one: of the lane, and of the writer.
fn run(logged: bool, directory: &std::path::Path) -> (Duration, Duration) {
    let config = config(logged);
    let flows = Arc::new(Flows::new(DEFAULT_FLOWS, 9));
    let mut engine = Engine::new(PlainLinks::new(AgentId::new("vm").unwrap()), 1);
    engine.share_flows(flows.clone());
    let mut now = Instant::now();
    let tables = Tables::build(&config, &RoutingState::default()).unwrap();
    engine.install(Arc::new(tables), &config.links, now);
    let logs: Option<Arc<FlowLogs>> = config.security.and_then(|security| security.flow_logs).map(Arc::new);
    let mut files = logs.as_ref().map(|_| LogFiles::open(directory, 1 << 34).unwrap());
    let mut batch = logs.clone().map(Batch::new);
    let mut number = 0;
    let (mut lane, mut writer, mut tuples, mut bytes) = (Duration::ZERO, Duration::ZERO, 0, 0);
    for step in 0..2 * STEPS {
        let mut packets: Vec<Vec<u8>> = (number..number + FLOWS)
            .flat_map(|n| [segment(n, true), segment(n, false)])
            .collect();
        number += FLOWS;
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        let begun = cpu();
        for packet in &mut packets {
            engine.handle_tun(NicIndex::FIRST, packet, now, &mut tx, &mut rx);
        }
        engine.handle_timeout(now, &mut tx);
        let after = cpu();
        if let (Some(batch), Some(logs), Some(files)) = (&mut batch, &logs, &mut files) {
            let at = SystemTime::now();
            let log = flows.log();
            log.drain(|event| {
                batch.add(&event, at, |number| log.rule(number), |_| {});
            });
            if batch.bytes() >= 4 << 20 || (step + 1) % STEPS == 0 {
                for written in batch.records(at) {
                    bytes += written.record.len();
                    files.append(&written.path, &written.record).unwrap();
                }
                tuples += batch.tuples();
                *batch = Batch::new(logs.clone());
                log.begin_batch();
            }
        }
        let end = cpu();
        if step >= STEPS {
            lane += after - begun;
            writer += end - after;
        }
        now += STEP;
    }
    if logged {
        println!("{tuples} tuples, {bytes} bytes, {} events lost", flows.log().lost());
    }
    (lane, writer)
}

fn main() {
    let directory = std::path::PathBuf::from(std::env::args().nth(1).expect("flow_log DIRECTORY"));
    let minute = STEP * STEPS;
    let share = |time: Duration| time.as_secs_f64() / minute.as_secs_f64() * 100.0;
    for _ in 0..3 {
        let (off, _) = run(false, &directory);
        let (on, writer) = run(true, &directory);
        std::fs::remove_dir_all(&directory).unwrap();
        println!(
            "lane without log {:.2} % of a core, with log {:.2} %; writer {:.2} %; the log costs {:.2} % at 10,000 new flows/s",
            share(off),
            share(on),
            share(writer),
            share(on) - share(off) + share(writer)
        );
    }
}
