//! Captures from the taps of a lane to the file and the stream, without devices.

use super::flow::Direction;
use super::tap::Taps;
use super::*;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_statistics::InterfaceStatisticsOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::cell::RefCell;
use std::time::Instant;
use tombolo_engine::buffer::Outcome;
use tombolo_engine::decide::Ingress;
use tombolo_engine::tables::{LinkIndex, NicIndex};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::capture::{CaptureFilter, CaptureProtocol, CaptureStop, MAX_BYTES, STREAM_WINDOW};
use tombolo_proto::config::PortRange;
use tombolo_proto::id::ResourceId;

const TUN: Ingress = Ingress::Tun(NicIndex(1));
const LINK: Ingress = Ingress::Link(LinkIndex(0));

fn config() -> AgentConfig {
    serde_json::from_value(serde_json::json!({
        "agent": "vm", "vnet": "/v", "addressSpace": [], "mtu": 1420, "subnets": [], "spaces": [], "links": [],
        "role": {"type": "vm", "served": [], "nics": [
            {"id": "/nics/one", "subnet": "/s", "addresses": ["10.0.0.4/24"], "ipForwarding": false},
            {"id": "/nics/two", "subnet": "/s", "addresses": ["10.0.0.5/24"], "ipForwarding": false},
        ]},
    }))
    .unwrap()
}

fn request(delivery: CaptureDelivery) -> CaptureRequest {
    CaptureRequest {
        name: "web".into(),
        nics: Vec::new(),
        layer: CaptureLayer::Packets,
        filters: Vec::new(),
        bytes_per_packet: 0,
        total_bytes: MAX_BYTES,
        seconds: 3600,
        delivery,
    }
}

/// A UDP packet between two hosts of 10.0.0.0/24, with some padding after its end.
fn packet(from: u8, to: u8, port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .udp(1000, port)
        .write(&mut packet, b"hello")
        .unwrap();
    packet.extend([0xee; 3]);
    packet
}

/// An agent with one lane.
struct World {
    folder: tempfile::TempDir,
    captures: Captures,
    taps: RefCell<Taps>,
    log_taps: RefCell<Vec<LogTap>>,
    config: AgentConfig,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let captures = Captures::new(folder.path().join("captures"), &CaptureSettings::default());
        let config = config();
        let mut taps = Taps::new(51_820, None);
        taps.configure(&config);
        Self {
            folder,
            captures,
            taps: RefCell::new(taps),
            log_taps: RefCell::default(),
            config,
        }
    }

    fn set(&self, wanted: Vec<(Uuid, CaptureRequest)>) {
        let wanted = wanted.into_iter().map(|(id, request)| (id, Wanted::Capture(request)));
        self.set_all(wanted.collect());
    }

    fn set_all(&self, wanted: Vec<(Uuid, Wanted)>) {
        let add_taps = |taps: Vec<Tap>| {
            taps.into_iter().for_each(|tap| self.taps.borrow_mut().add(tap));
            true
        };
        let host = CaptureHost {
            config: Some(&self.config),
            device: &|number| format!("tm{number}"),
            lanes: 1,
            add_taps: &add_taps,
            add_log_tap: &|tap| {
                self.log_taps.borrow_mut().push(tap);
                true
            },
        };
        let wanted = wanted.into_iter().map(|(id, request)| (id, Ok(request))).collect();
        self.captures.set(wanted, &host);
    }

    /// Waits for a report that is final.
    fn ended(&self, id: Uuid) -> CaptureReport {
        let begin = Instant::now();
        loop {
            let report = self.captures.all().get(&id).map(|capture| capture.shared.report());
            if let Some(report) = report.filter(CaptureReport::is_final) {
                return report;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "the capture does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The engine handles a packet, and delivers it to a NIC or not.
    fn handle(&self, ingress: Ingress, bytes: &[u8], delivered: Option<NicIndex>, outcome: Outcome) {
        let mut taps = self.taps.borrow_mut();
        taps.arrived(ingress, bytes);
        if let Some(nic) = delivered {
            taps.delivered(nic, bytes);
        }
        taps.finished(outcome);
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("captures")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// Interface, direction, destination's last byte and port, and comment of each packet; and the number of lost ones.
type Read = (Vec<(u32, Direction, (u8, u16), Option<String>)>, u64);

fn read(bytes: &[u8]) -> Read {
    let mut reader = PcapNgReader::new(bytes).unwrap();
    let (mut packets, mut lost) = (Vec::new(), 0);
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::EnhancedPacket(packet) => {
                let direction = match packet.options[0] {
                    EnhancedPacketOption::Flags(1) => Direction::In,
                    EnhancedPacketOption::Flags(2) => Direction::Out,
                    _ => panic!("{packet:?}"),
                };
                let comment = packet.options.get(1).map(|option| match option {
                    EnhancedPacketOption::Comment(text) => text.to_string(),
                    _ => panic!("{packet:?}"),
                });
                let port = u16::from_be_bytes([packet.data[22], packet.data[23]]);
                assert_eq!(packet.original_len, 33, "without the padding");
                packets.push((packet.interface_id, direction, (packet.data[19], port), comment));
            }
            Block::InterfaceStatistics(statistics) => {
                let InterfaceStatisticsOption::IsbOsDrop(dropped) = statistics.options[0] else {
                    panic!("{statistics:?}")
                };
                lost += dropped;
            }
            _ => {}
        }
    }
    (packets, lost)
}

/// D42: the file has each packet once, at its NIC, with its direction and the reason why it was dropped.
#[test]
fn d42_each_packet_is_captured_once_with_its_outcome() {
    let world = World::new();
    let id = Uuid::new_v4();
    world.set(vec![(id, request(CaptureDelivery::File))]);
    let denied = Outcome::Dropped(DropReason::SecurityRule);
    world.handle(TUN, &packet(5, 9, 1), None, Outcome::Done);
    world.handle(TUN, &packet(5, 9, 2), None, denied);
    world.handle(LINK, &packet(9, 5, 3), Some(NicIndex(1)), Outcome::Done);
    world.handle(LINK, &packet(9, 5, 4), None, denied);
    world.handle(LINK, &packet(9, 77, 5), None, denied);
    world.handle(LINK, &packet(9, 5, 6), None, Outcome::Redirected);
    // The engine answers a packet of the host.
    world.handle(TUN, &packet(5, 9, 7), Some(NicIndex(1)), Outcome::Done);
    world.set(Vec::new());
    let begin = Instant::now();
    while world.taps.borrow_mut().prune() {
        assert!(begin.elapsed() < Duration::from_secs(20), "the tap stays");
        std::thread::sleep(Duration::from_millis(2));
    }
    world.captures.finish();
    let files = world.files();
    assert_eq!(files, [world.captures.files.path(id, "web")]);
    let (packets, lost) = read(&std::fs::read(&files[0]).unwrap());
    let dropped = || Some("dropped: security_rule".to_owned());
    assert_eq!(
        packets,
        [
            (1, Direction::Out, (9, 1), None),
            (1, Direction::Out, (9, 2), dropped()),
            (1, Direction::In, (5, 3), None),
            (1, Direction::In, (5, 4), dropped()),
            (0, Direction::In, (77, 5), dropped()),
            (1, Direction::Out, (9, 7), None),
            (1, Direction::In, (9, 7), None),
        ]
    );
    assert_eq!(lost, 0);
}

/// D42: filters and NICs choose packets; a NIC whose position changes is still the same.
#[test]
fn d42_filters_and_nics_choose_packets() {
    let mut world = World::new();
    let id = Uuid::new_v4();
    let ports = |first, last| PortRange { first, last };
    let wanted = CaptureRequest {
        nics: vec![ResourceId::new("/nics/two")],
        filters: vec![CaptureFilter {
            protocol: CaptureProtocol::Udp,
            remote_ports: vec![ports(1, 2), ports(5, 5)],
            ..CaptureFilter::default()
        }],
        ..request(CaptureDelivery::File)
    };
    world.set(vec![(id, wanted.clone())]);
    for port in 1..=6 {
        world.handle(TUN, &packet(5, 9, port), None, Outcome::Done);
        world.handle(Ingress::Tun(NicIndex(0)), &packet(4, 9, port), None, Outcome::Done);
    }
    let Role::Vm { nics, .. } = &mut world.config.role else {
        panic!("a machine")
    };
    nics.swap(0, 1);
    world.taps.borrow_mut().configure(&world.config);
    world.handle(Ingress::Tun(NicIndex(0)), &packet(5, 9, 5), None, Outcome::Done);
    world.handle(TUN, &packet(4, 9, 5), None, Outcome::Done);
    world.captures.finish();
    let (packets, _) = read(&std::fs::read(&world.files()[0]).unwrap());
    let ports: Vec<u16> = packets.iter().map(|(_, _, (_, port), _)| *port).collect();
    assert_eq!(ports, [1, 2, 5, 5]);

    let unknown = CaptureRequest {
        nics: vec![ResourceId::new("/nics/three")],
        ..wanted
    };
    let other = Uuid::new_v4();
    world.set(vec![(other, unknown)]);
    let report = world.ended(other);
    assert_eq!(report.error, Some(CaptureError::CaptureFailed));
    assert!(report.message.unwrap().contains("/nics/three"));
}

/// D42: neither the length nor the time of a capture is exceeded, and a capture that has ended does not start again.
#[test]
fn d42_the_limits_of_a_capture_hold() {
    let world = World::new();
    let [long, short, tiny] = [(); 3].map(|()| Uuid::new_v4());
    let of = |total_bytes, seconds| CaptureRequest {
        total_bytes,
        seconds,
        ..request(CaptureDelivery::File)
    };
    let all = vec![(long, of(MAX_BYTES, 1)), (short, of(2000, 3600)), (tiny, of(20, 3600))];
    let begin = Instant::now();
    world.set(all.clone());
    for port in 0..500 {
        world.handle(TUN, &packet(5, 9, port), None, Outcome::Done);
    }
    let reports = [long, short, tiny].map(|id| world.ended(id));
    assert!(begin.elapsed() >= Duration::from_millis(990));
    let reasons = reports.each_ref().map(|report| report.stop_reason);
    let exceeded = Some(CaptureStop::TotalBytesExceeded);
    assert_eq!(reasons, [Some(CaptureStop::TimeExceeded), exceeded, exceeded]);
    let lengths = [long, short, tiny].map(|id| std::fs::read(world.captures.files.path(id, "web")).unwrap());
    assert_eq!(
        reports.each_ref().map(|r| r.bytes),
        lengths.each_ref().map(|l| l.len() as u64)
    );
    assert!(
        lengths[1].len() <= 2000 && lengths[2].is_empty(),
        "{} {}",
        lengths[1].len(),
        lengths[2].len()
    );
    assert_eq!(read(&lengths[0]).0.len(), 500);
    let (packets, _) = read(&lengths[1]);
    assert!(packets.len() > 10 && packets.len() as u64 == reports[1].packets);
    world.set(all);
    assert_eq!(world.files().len(), 3);

    // After a restart of the agent, the file is there already.
    let again = World {
        folder: world.folder,
        ..World::new()
    };
    let again = World {
        captures: Captures::new(again.folder.path().join("captures"), &CaptureSettings::default()),
        ..again
    };
    again.set(vec![(long, of(MAX_BYTES, 1))]);
    assert_eq!(again.ended(long).error, Some(CaptureError::AgentStopped));
}

/// D42: an agent makes four captures at a time.
#[test]
fn d42_an_agent_makes_four_captures_at_a_time() {
    let world = World::new();
    let all: Vec<_> = (0..5)
        .map(|_| (Uuid::new_v4(), request(CaptureDelivery::File)))
        .collect();
    world.set(all.clone());
    let refused = world.ended(all[4].0);
    assert_eq!(refused.error, Some(CaptureError::CaptureFailed));
    assert_eq!(world.files().len(), 4);
    world.captures.finish();
}

/// D42: a live capture sends no more than the window before the controller has read; what finds no room is counted, and
/// the stream stays valid.
#[tokio::test]
async fn d42_a_live_capture_waits_for_its_reader() {
    let world = World::new();
    let id = Uuid::new_v4();
    world.set(vec![(id, request(CaptureDelivery::Stream))]);
    let mut stream = Vec::new();
    let quiet = Duration::from_millis(200);
    // Far more than the window and the ring.
    for port in 0..60_000 {
        world.handle(TUN, &packet(5, 9, port), None, Outcome::Done);
    }
    while let Ok(Some(data)) = tokio::time::timeout(quiet, world.captures.next_data()).await {
        assert_eq!(data.id, id);
        stream.extend(data.data);
    }
    assert!(stream.len() <= STREAM_WINDOW, "{} bytes", stream.len());
    assert!(stream.len() > STREAM_WINDOW / 2, "{} bytes", stream.len());
    let mut is_stopped = false;
    loop {
        world.captures.read(id, stream.len() as u64);
        let next = tokio::time::timeout(quiet, world.captures.next_data()).await;
        match next {
            Ok(Some(data)) if data.end => break,
            Ok(Some(data)) => stream.extend(data.data),
            Ok(None) => panic!("the queue ended"),
            Err(_) if is_stopped => panic!("the stream does not end"),
            Err(_) => {
                is_stopped = true;
                world.captures.all()[&id].shared.stop();
            }
        }
    }
    let report = world.ended(id);
    let (packets, lost) = read(&stream);
    assert_eq!(
        (report.packets, report.bytes),
        (packets.len() as u64, stream.len() as u64)
    );
    assert_eq!((report.lost, packets.len() as u64 + lost), (lost, 60_000));
    assert!(lost > 0, "the ring has room for all");
    let ports: Vec<u16> = packets.iter().map(|(_, _, (_, port), _)| *port).collect();
    assert!(ports.is_sorted());
}

/// Nobody receives the bytes of a live capture after the control stream has ended.
#[test]
fn a_live_capture_ends_with_the_control_stream() {
    let world = World::new();
    let id = Uuid::new_v4();
    world.set(vec![(id, request(CaptureDelivery::Stream))]);
    world.captures.stop_streams();
    let begin = Instant::now();
    assert_eq!(world.ended(id).stop_reason, Some(CaptureStop::Stopped));
    assert!(begin.elapsed() < Duration::from_secs(10));
}

/// D38: an agent follows four tails at a time, beside its captures, and refuses requests that are out of range. A tail ends when
/// the controller does not list it any more.
#[test]
fn d38_an_agent_follows_four_tails_at_a_time() {
    let world = World::new();
    let tail = |window| {
        Wanted::Tail(TailRequest {
            logs: Vec::new(),
            window,
        })
    };
    let capture = || Wanted::Capture(request(CaptureDelivery::File));
    let mut wanted: Vec<_> = (0..4).map(|_| (Uuid::new_v4(), capture())).collect();
    let bad = Uuid::new_v4();
    wanted.push((bad, tail(1)));
    let tails: Vec<Uuid> = (0..5).map(|_| Uuid::new_v4()).collect();
    wanted.extend(tails.iter().map(|id| (*id, tail(8192))));
    world.set_all(wanted.clone());
    let failed = |id| {
        let report = world.ended(id);
        assert_eq!(report.error, Some(CaptureError::CaptureFailed), "{report:?}");
        report.message.unwrap()
    };
    assert!(failed(bad).starts_with("window: 1 "), "{}", failed(bad));
    assert!(
        failed(tails[4]).starts_with("4 tails of flow logs run"),
        "{}",
        failed(tails[4])
    );
    assert_eq!(world.log_taps.borrow().len(), 4);
    wanted.retain(|(id, _)| !tails[..2].contains(id));
    world.set_all(wanted.clone());
    for id in &tails[..2] {
        assert_eq!(world.ended(*id).stop_reason, Some(CaptureStop::Stopped));
    }
    let more = Uuid::new_v4();
    wanted.push((more, tail(8192)));
    world.set_all(wanted);
    assert!(!world.captures.all()[&more].shared.report().is_final());
    world.captures.stop_streams();
    for id in [tails[2], tails[3], more] {
        assert_eq!(world.ended(id).stop_reason, Some(CaptureStop::Stopped));
    }
    let reports = world.captures.take_reports();
    let running = reports.iter().filter(|(_, report)| !report.is_final()).count();
    assert_eq!(running, 4, "captures into files go on");
}
