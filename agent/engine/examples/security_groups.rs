//! Measures the cost of security groups for the first packets of flows, in one core, without encryption.
//!
//! `security_groups first` prints the time of the first packet of each of 100,000 flows at a NIC with two groups of
//! 1,000 rules and 4,000 addresses: median and 99th percentile.
//!
//! `security_groups connections` prints how many TCP connections a second the groups of such a NIC let pass, with three
//! packets for each: SYN, SYN with ACK, and ACK; with an empty flow table and with a full one.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program for measurements: it may stop at anything unexpected, and brings the clock along"
)]

#[path = "common/large_groups.rs"]
mod large_groups;

use etherparse::PacketBuilder;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Instant;
use tombolo_engine::packet::parse;
use tombolo_engine::security::{Admission, AtNic, Balanced, FROM_HOST, FlowGate, FlowTable, NicRules};
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_proto::config::{AgentConfig, Direction};

/// Number of flows of one measurement.
const FLOWS: u32 = 100_000;

/// Number of measurements, of which the median counts.
const ROUNDS: usize = 21;

/// The address of the NIC.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 4);

/// The tables of a machine with one NIC and [`large_groups::security`].
fn tables() -> Tables {
    let mut config: AgentConfig = serde_json::from_value(serde_json::json!({
        "agent": "vm", "vnet": "/vnet", "addressSpace": ["10.0.0.0/16"], "mtu": 1420,
        "role": {"type": "vm", "served": [], "nics": [
            {"id": "/nic", "subnet": "/s", "addresses": [format!("{OWN}/24")], "ipForwarding": false},
        ]},
        "subnets": [{"id": "/s", "prefixes": ["10.0.0.0/24"], "routes": []}],
        "spaces": [{"vnet": "/vnet", "kind": {"type": "local"}, "prefixes": ["10.0.0.0/16"], "owners": []}],
        "links": [],
    }))
    .unwrap();
    config.security = Some(large_groups::security("/nic", "/s", OWN.into()));
    Tables::build(&config, &RoutingState::default()).unwrap()
}

#[derive(Clone, Copy)]
enum Flags {
    Syn,
    SynAck,
    Ack,
}

/// A segment of flow `number` towards the NIC, or from the NIC for [`Flags::SynAck`].
fn segment(number: u32, flags: Flags) -> Vec<u8> {
    // Addresses and ports are spread, as those of strangers are: neighbouring flows share no cache lines.
    let mixed = number.wrapping_mul(0x9e37_79b1);
    let remote = Ipv4Addr::from(0xac10_0000 | mixed & 0x000f_ffff);
    let (far, near) = ((mixed >> 16) as u16 | 1024, 1024 + (mixed >> 20) as u16 % 8000);
    let mut bytes = Vec::new();
    match flags {
        Flags::Syn => PacketBuilder::ipv4(remote.octets(), OWN.octets(), 64)
            .tcp(far, near, 1, 1000)
            .syn(),
        Flags::SynAck => PacketBuilder::ipv4(OWN.octets(), remote.octets(), 64)
            .tcp(near, far, 1, 1000)
            .syn()
            .ack(2),
        Flags::Ack => PacketBuilder::ipv4(remote.octets(), OWN.octets(), 64)
            .tcp(far, near, 2, 1000)
            .ack(2),
    }
    .write(&mut bytes, &[])
    .unwrap();
    bytes
}

/// The NIC's rules and flows.
struct Nic<'r> {
    rules: &'r NicRules,
    table: FlowTable,
    gate: FlowGate,
}

impl<'r> Nic<'r> {
    fn new(rules: &'r NicRules) -> Self {
        Self {
            rules,
            table: FlowTable::new(1_000_000, 16, 7),
            gate: FlowGate::new(7, 0),
        }
    }

    fn admit(&mut self, packet: &[u8], direction: Direction) -> Admission {
        let info = parse(packet).unwrap();
        let at = AtNic {
            packet,
            info: &info,
            nic: 0,
            direction,
            link: match direction {
                Direction::Inbound => 0,
                Direction::Outbound => FROM_HOST,
            },
            now: 1,
            idle_timeout: 240,
            balanced: Balanced::No,
            ends_idle: false,
            is_logged: false,
        };
        self.gate.admit(&self.table, self.rules, &at, |_| ())
    }

    /// Lets the three first packets of a connection pass.
    fn connect(&mut self, packets: &[Vec<u8>; 3]) {
        self.admit(&packets[0], Direction::Inbound);
        self.admit(&packets[1], Direction::Outbound);
        self.admit(&packets[2], Direction::Inbound);
    }
}

fn first(rules: &NicRules) {
    let packets: Vec<_> = (0..FLOWS).map(|n| segment(n, Flags::Syn)).collect();
    let others: Vec<_> = (FLOWS..4 * FLOWS)
        .map(|n| [Flags::Syn, Flags::SynAck, Flags::Ack].map(|flags| segment(n, flags)))
        .collect();
    // The kernel allocates a new table page by page, when a flow needs a page for the first time.
    for (name, before) in [("a new table", &[][..]), ("a table in use", &others[..])] {
        let mut rounds = Vec::new();
        let mut allowed = 0;
        for _ in 0..ROUNDS {
            let mut nic = Nic::new(rules);
            before.iter().for_each(|packets| nic.connect(packets));
            let mut times: Vec<u128> = Vec::with_capacity(packets.len());
            allowed = 0;
            for packet in &packets {
                let begin = Instant::now();
                let admission = nic.admit(packet, Direction::Inbound);
                times.push(begin.elapsed().as_nanos());
                allowed += usize::from(matches!(admission, Admission::Allowed(_)));
            }
            times.sort_unstable();
            rounds.push((times[times.len() / 2], times[times.len() * 99 / 100]));
        }
        let mut medians: Vec<_> = rounds.iter().map(|r| r.0).collect();
        let mut p99s: Vec<_> = rounds.iter().map(|r| r.1).collect();
        medians.sort_unstable();
        p99s.sort_unstable();
        println!(
            "first packet of {FLOWS} flows in {name}, {allowed} allowed: median {} ns, p99 {} ns (medians of {ROUNDS} rounds)",
            medians[ROUNDS / 2],
            p99s[ROUNDS / 2]
        );
    }
}

fn connections(rules: &NicRules) {
    let packets: Vec<_> = (0..FLOWS)
        .map(|n| [Flags::Syn, Flags::SynAck, Flags::Ack].map(|flags| segment(n, flags)))
        .collect();
    let full: Vec<_> = (FLOWS..12 * FLOWS)
        .map(|n| [Flags::Syn, Flags::SynAck, Flags::Ack].map(|flags| segment(n, flags)))
        .collect();
    for (name, before) in [("empty", &[][..]), ("full", &full[..])] {
        let mut rates: Vec<f64> = Vec::new();
        let mut held = 0;
        for _ in 0..ROUNDS {
            let mut nic = Nic::new(rules);
            before.iter().for_each(|packets| nic.connect(packets));
            held = nic.table.len();
            let begin = Instant::now();
            packets.iter().for_each(|packets| nic.connect(packets));
            rates.push(f64::from(FLOWS) / begin.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        println!(
            "new connections a second, table with {held} flows ({name}): {:.0} (median of {ROUNDS} rounds)",
            rates[ROUNDS / 2]
        );
    }
}

fn main() -> ExitCode {
    let tables = tables();
    let rules = tables.security().and_then(|nics| nics.rules(0)).unwrap();
    match std::env::args().nth(1).as_deref() {
        Some("first") => first(rules),
        Some("connections") => connections(rules),
        _ => {
            eprintln!("security_groups first|connections");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
