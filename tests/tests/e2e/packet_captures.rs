//! Packet captures at running agents (D42): live over the controller, and into files by Azure's API.

use anyhow::{Context, Result, bail, ensure};
use etherparse::TransportSlice;
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tombolo_client::fabric::{CaptureFilterText, LiveCapture};
use tombolo_lab::binary;
use tombolo_lab::echo::{Connection, EchoServer, Port};
use tombolo_tests::live::World;
use tombolo_tests::program::Program;

const OPEN: u16 = 5001;
const DENIED: u16 = 5002;

/// Time for packets to appear in a capture, on a busy machine.
const ARRIVES: Duration = Duration::from_secs(20);

/// A captured packet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    interface: String,
    from: IpAddr,
    to: IpAddr,
    /// ICMP type, or ports of TCP and UDP.
    what: What,
    is_out: bool,
    comment: Option<String>,
    /// Number of bytes that were captured, and that the packet had.
    lengths: (usize, u32),
    nanoseconds: u128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Icmp(u8),
    Tcp(u16, u16),
    Udp(u16, u16),
    Other,
}

/// Reads a file or a stream. An unfinished block at the end is no error if `is_open`.
fn parse(bytes: &[u8], is_open: bool) -> Result<Vec<Packet>> {
    let mut reader = PcapNgReader::new(bytes).context("the beginning")?;
    let (mut packets, mut interfaces) = (Vec::new(), Vec::new());
    while let Some(block) = reader.next_block() {
        let block = match block {
            Ok(block) => block,
            Err(_) if is_open => break,
            Err(e) => bail!("after {} packets: {e}", packets.len()),
        };
        match block {
            Block::InterfaceDescription(interface) => {
                ensure!(interface.linktype == DataLink::RAW, "{:?}", interface.linktype);
                let name = interface.options.iter().find_map(|option| match option {
                    InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                    _ => None,
                });
                interfaces.push(name.context("the name of an interface")?);
            }
            Block::EnhancedPacket(packet) => {
                let mut flags = None;
                let mut comment = None;
                for option in &packet.options {
                    match option {
                        EnhancedPacketOption::Flags(given) => flags = Some(*given),
                        EnhancedPacketOption::Comment(given) => comment = Some(given.to_string()),
                        _ => {}
                    }
                }
                let is_out = match flags {
                    Some(1) => false,
                    Some(2) => true,
                    other => bail!("flags {other:?}"),
                };
                let (from, to, what) = headers(&packet.data)?;
                packets.push(Packet {
                    interface: interfaces[packet.interface_id as usize].clone(),
                    from,
                    to,
                    what,
                    is_out,
                    comment,
                    lengths: (packet.data.len(), packet.original_len),
                    nanoseconds: packet.timestamp.as_nanos(),
                });
            }
            _ => {}
        }
    }
    Ok(packets)
}

fn headers(bytes: &[u8]) -> Result<(IpAddr, IpAddr, What)> {
    let sliced = etherparse::LaxSlicedPacket::from_ip(bytes).map_err(|e| anyhow::anyhow!("{e}"))?;
    let (from, to) = match &sliced.net {
        Some(etherparse::LaxNetSlice::Ipv4(ip)) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
        ),
        Some(etherparse::LaxNetSlice::Ipv6(ip)) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
        ),
        _ => bail!("no IP packet"),
    };
    let what = match &sliced.transport {
        Some(TransportSlice::Icmpv4(icmp)) => What::Icmp(icmp.type_u8()),
        Some(TransportSlice::Tcp(tcp)) => What::Tcp(tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => What::Udp(udp.source_port(), udp.destination_port()),
        _ => What::Other,
    };
    Ok((from, to, what))
}

/// A live capture, whose bytes are collected in the background.
struct Live {
    bytes: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<Result<(), tombolo_client::Error>>,
}

impl Live {
    async fn begin(w: &World, request: LiveCapture) -> Result<Self> {
        let mut stream = w.client()?.capture(&request).await?;
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let collected = bytes.clone();
        let task = tokio::spawn(async move {
            while let Some(more) = stream.next().await? {
                collected.lock().expect("no panic").extend(more);
            }
            Ok(())
        });
        Ok(Self { bytes, task })
    }

    /// Waits until the capture has packets for which `found` is true.
    async fn until(&self, what: &str, found: impl Fn(&[Packet]) -> bool) -> Result<Vec<Packet>> {
        let start = Instant::now();
        loop {
            let bytes = self.bytes.lock().expect("no panic").clone();
            let packets = if bytes.is_empty() {
                Vec::new()
            } else {
                parse(&bytes, true)?
            };
            if found(&packets) {
                return Ok(packets);
            }
            ensure!(start.elapsed() < ARRIVES, "{what}: {packets:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for the end of the capture, and returns the whole stream.
    async fn end(self) -> Result<Vec<u8>> {
        tokio::time::timeout(ARRIVES, self.task).await.context("the end")???;
        Ok(self.bytes.lock().expect("no panic").clone())
    }
}

fn at(target: &str) -> LiveCapture {
    LiveCapture {
        target: target.to_owned(),
        ..LiveCapture::default()
    }
}

/// D42: a live capture has the packets of both directions, and what a rule denies with the reason; a sealed one has the
/// datagrams of the links. The limits hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d42_a_live_capture_has_packets_directions_and_reasons() -> Result<()> {
    let w = World::up("capture").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    deny(&w).await?;
    let (spoke, hub) = (w.address("spoke-a-vm")?, w.address("hub-vm")?);
    let _server = EchoServer::start(&w.hosts().netns("hub-vm"), hub, Port::Tcp(OPEN))?;
    let sender = w.hosts().netns("spoke-a-vm");

    let live = Live::begin(&w, at("hub-vm")).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let mut tcp = Connection::open(&sender, SocketAddr::new(hub, OPEN))?.context("allowed")?;
    tcp.exchange()?;
    ensure!(
        Connection::open(&sender, SocketAddr::new(hub, DENIED))?.is_none(),
        "denied"
    );
    let is = |packet: &Packet, from: IpAddr, is_out: bool| packet.from == from && packet.is_out == is_out;
    let request = |p: &&Packet| is(p, spoke, false) && p.what == What::Icmp(8);
    let reply = |p: &&Packet| is(p, hub, true) && p.what == What::Icmp(0);
    let denied = |p: &&Packet| is(p, spoke, false) && matches!(p.what, What::Tcp(_, DENIED));
    let answer = |p: &&Packet| is(p, hub, true) && matches!(p.what, What::Tcp(OPEN, _));
    let packets = live
        .until("echo, TCP and a denied packet", |all| {
            let has = |test: &dyn Fn(&&Packet) -> bool| all.iter().any(|p| test(&p));
            has(&request) && has(&reply) && has(&denied) && has(&answer)
        })
        .await?;
    live.task.abort();
    for packet in &packets {
        let is_denied = matches!(packet.what, What::Tcp(_, DENIED));
        let expected = is_denied.then(|| "dropped: security_rule".to_owned());
        ensure!(packet.comment == expected, "{packet:?}");
        ensure!(packet.lengths.0 == packet.lengths.1 as usize, "{packet:?}");
    }
    let (first, second) = (packets.iter().find(request), packets.iter().find(reply));
    ensure!(
        first.map(|p| p.nanoseconds) < second.map(|p| p.nanoseconds),
        "the reply comes after the request"
    );
    sealed(&w, spoke, hub).await?;
    limits(&w, hub).await?;
    the_command_line_captures(&w, hub).await?;
    ctrl_c_ends_a_capture_into_a_pipe(&w, hub).await?;
    into_a_file(&w, hub).await?;
    w.end().await
}

/// What leaves the tunnel's end has no packet in clear text: only datagrams of the links.
async fn sealed(w: &World, spoke: IpAddr, hub: IpAddr) -> Result<()> {
    let live = Live::begin(
        w,
        LiveCapture {
            sealed: true,
            ..at("spoke-a-vm")
        },
    )
    .await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let underlay = w.underlay_address("hub-vm")?;
    let packets = live
        .until("datagrams of both directions", |all| {
            let is_link = |p: &Packet| matches!(p.what, What::Udp(..));
            all.iter().any(|p| p.is_out && p.to == underlay && is_link(p))
                && all.iter().any(|p| !p.is_out && p.from == underlay && is_link(p))
        })
        .await?;
    live.task.abort();
    for packet in &packets {
        ensure!(packet.interface == "underlay", "{packet:?}");
        ensure!(
            ![packet.from, packet.to].iter().any(|a| [spoke, hub].contains(a)),
            "{packet:?}"
        );
    }
    Ok(())
}

/// Time, length, bytes of each packet, and filters.
async fn limits(w: &World, hub: IpAddr) -> Result<()> {
    let begin = Instant::now();
    let timed = Live::begin(
        w,
        LiveCapture {
            seconds: Some(1),
            ..at("hub-vm")
        },
    )
    .await?;
    let bytes = timed.end().await?;
    ensure!(begin.elapsed() >= Duration::from_secs(1), "{:?}", begin.elapsed());
    parse(&bytes, false)?;

    let small = LiveCapture {
        total_bytes: Some(1000),
        bytes_per_packet: Some(28),
        filters: vec![CaptureFilterText {
            local_address: Some(hub.to_string()),
            ..CaptureFilterText::default()
        }],
        ..at("hub-vm")
    };
    let small = Live::begin(w, small).await?;
    for _ in 0..5 {
        w.reach("spoke-a-vm", "hub-vm").await?;
    }
    let bytes = small.end().await?;
    ensure!(bytes.len() <= 1000, "{} bytes", bytes.len());
    let packets = parse(&bytes, false)?;
    ensure!(packets.len() > 3, "{packets:?}");
    for packet in packets {
        ensure!(packet.lengths.0 == 28 && packet.lengths.1 > 28, "{packet:?}");
    }
    Ok(())
}

/// The command line writes a file, and filters by port.
async fn the_command_line_captures(w: &World, hub: IpAddr) -> Result<()> {
    let folder = w.controller_dir()?;
    let program = binary::find("tombolo")?.display().to_string();
    let file = folder.join("live.pcapng").display().to_string();
    let [ca, token] = ["ca.pem", "admin.token"].map(|name| folder.join(name).display().to_string());
    let (url, filter) = (w.url(), format!("tcp local-port={OPEN}"));
    let argv = [
        &program,
        "--controller",
        &url,
        "--ca",
        &ca,
        "--token-file",
        &token,
        "capture",
        "hub-vm",
        "-w",
        &file,
        "--seconds",
        "4s",
        "--filter",
        &filter,
    ];
    let sender = w.hosts().netns("spoke-a-vm");
    let traffic = async {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            let opened = Connection::open(&sender, SocketAddr::new(hub, OPEN))?;
            opened.context("allowed")?.exchange()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        anyhow::Ok(())
    };
    let (done, traffic) = tokio::join!(w.exec("hub-fw", &argv, Duration::from_secs(30)), traffic);
    traffic?;
    let done = done?;
    ensure!(done.code == 0 && done.stdout.contains("Saved"), "{done:?}");
    let packets = parse(&fs::read(&file)?, false)?;
    ensure!(packets.len() > 4, "{packets:?}");
    for packet in packets {
        ensure!(
            matches!(
                (packet.is_out, packet.what),
                (true, What::Tcp(OPEN, _)) | (false, What::Tcp(_, OPEN))
            ),
            "{packet:?}"
        );
    }
    Ok(())
}

/// The output until Ctrl-C is a complete file.
async fn ctrl_c_ends_a_capture_into_a_pipe(w: &World, hub: IpAddr) -> Result<()> {
    let file = w.controller_dir()?.join("pipe.pcapng");
    let mut program = Program::tombolo(w, "hub-fw", &["capture", "hub-vm", "-w", "-"], &file)?;
    let begin = Instant::now();
    let is_reply = |p: &Packet| p.is_out && p.from == hub && p.what == What::Icmp(0);
    loop {
        let bytes = program.output()?;
        if !bytes.is_empty() && parse(&bytes, true)?.iter().any(is_reply) {
            break;
        }
        ensure!(begin.elapsed() < ARRIVES, "no packets: {}", program.errors()?);
        w.reach("spoke-a-vm", "hub-vm").await?;
    }
    let status = program.interrupt().await?;
    ensure!(status.code() == Some(0), "{status}: {}", program.errors()?);
    let packets = parse(&program.output()?, false)?;
    ensure!(packets.iter().any(is_reply), "{packets:?}");
    Ok(())
}

/// Azure's resource: a file on the agent's disk, which stays after the deletion.
async fn into_a_file(w: &World, hub: IpAddr) -> Result<()> {
    let client = w.client()?;
    let path = format!(
        "/subscriptions/{}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/\
         NetworkWatcher_region1/packetCaptures/pings",
        w.group().subscription
    );
    let body = json!({"properties": {
        "target": w.group().vm("hub-vm"),
        "storageLocation": {"filePath": "../../etc/passwd"},
        "filters": [{"protocol": "Any", "localIPAddress": hub.to_string()}],
    }});
    let made = client.arm_put(&path, &body).await?;
    ensure!(made["properties"]["timeLimitInSeconds"] == 18_000, "{made}");
    let status = async || client.arm_post(&format!("{path}/queryStatus"), &json!({})).await;
    let start = Instant::now();
    while status().await?["packetCaptureStatus"] != "Running" {
        ensure!(start.elapsed() < ARRIVES, "{}", status().await?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    w.reach("spoke-a-vm", "hub-vm").await?;
    client.arm_post(&format!("{path}/stop"), &json!({})).await?;
    let stopped: Value = status().await?;
    ensure!(
        stopped["packetCaptureStatus"] == "Stopped" && stopped["stopReason"] == "Stopped",
        "{stopped}"
    );
    let file = w.agent_dir("hub-vm")?.join("captures");
    let files: Vec<_> = fs::read_dir(&file)?.collect::<Result<_, _>>()?;
    ensure!(files.len() == 1, "{files:?}");
    let file = files[0].path();
    ensure!(
        stopped["agentFilePath"] == json!(file.display().to_string()),
        "{stopped}"
    );
    client.arm_delete(&path).await?;
    ensure!(client.arm_find(&path).await?.is_none(), "deleted");
    let bytes = fs::read(&file)?;
    ensure!(stopped["bytes"] == bytes.len(), "{stopped}: {}", bytes.len());
    let packets = parse(&bytes, false)?;
    ensure!(stopped["packets"] == packets.len(), "{stopped}: {}", packets.len());
    ensure!(
        packets.iter().any(|p| p.is_out && p.what == What::Icmp(0)),
        "{packets:?}"
    );
    Ok(())
}

/// Attaches a group to `hub-vm` that denies one port.
async fn deny(w: &World) -> Result<()> {
    let group = w.group().item("networkSecurityGroups", "web");
    let client = w.client()?;
    client.arm_put(&group, &json!({"location": "region1"})).await?;
    let rule = json!({"properties": {
        "priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "Tcp",
        "sourceAddressPrefix": "VirtualNetwork", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": DENIED.to_string(),
    }});
    client
        .arm_put(&format!("{group}/securityRules/deny-one-port"), &rule)
        .await?;
    let nic = w.group().item("networkInterfaces", "hub-vm-nic");
    let mut body: Value = client.arm_get(&nic).await?;
    body["properties"]["networkSecurityGroup"] = json!({"id": group});
    client.arm_put(&nic, &body).await?;
    w.in_force().await.map(drop)
}
