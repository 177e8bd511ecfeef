//! TCP through the tunnels: transfers are complete, and segments fit the MTU.

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;
use tombolo_lab::host::inside;
use tombolo_proto::config::DEFAULT_MTU;
use tombolo_tests::live::{FORWARDED, World};

const PORT: u16 = 5001;
/// The bytes of a transfer: enough for thousands of segments, and few enough for a fraction of a second.
const BYTES: usize = 16 << 20;
/// Bytes of the IPv4 and TCP headers of a segment without options.
const HEADERS: u32 = 40;
/// Bytes of the IPv4 and ICMP headers of a ping.
const PING_HEADERS: u16 = 28;

/// D20: large transfers are complete across a peering, through an appliance and through VPN gateways. No segment exceeds
/// the device's MTU, even if hosts assume a larger one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_arrive_whole() -> Result<()> {
    let w = World::up("stream").await?;
    w.join("hub", "spoke-a").await?;
    w.join("hub", "spoke-b").await?;
    w.route("spoke-a-routes", "b", "10.3.0.0/16", "hub-fw").await?;
    w.route("spoke-b-routes", "a", "10.2.0.0/16", "hub-fw").await?;
    w.peer("spoke-a", "hub", FORWARDED).await?;
    w.peer("spoke-b", "hub", FORWARDED).await?;
    w.connection_is("hub-to-branch", "Connected").await?;

    // The largest packet that the device accepts must pass in one piece, and a packet with one byte more must not.
    let fits = DEFAULT_MTU - PING_HEADERS;
    for (from, to) in [("spoke-a-vm", "hub-vm"), ("spoke-a-vm", "spoke-b-vm")] {
        ensure!(
            in_one_piece(&w, from, to, fits).await?,
            "{from} → {to}: {DEFAULT_MTU} bytes fit"
        );
        ensure!(
            !in_one_piece(&w, from, to, fits + 1).await?,
            "{from} → {to}: {DEFAULT_MTU} + 1 bytes do not fit"
        );
    }

    for (from, to) in [
        ("spoke-a-vm", "hub-vm"),
        ("spoke-a-vm", "spoke-b-vm"),
        ("hub-vm", "branch-vm"),
    ] {
        let largest = transfer(&w, from, to).await.with_context(|| format!("{from} → {to}"))?;
        ensure!(
            largest <= u32::from(DEFAULT_MTU) - HEADERS,
            "{from} → {to}: segments of {largest}"
        );
    }

    // With an MTU of 9000 the hosts announce a larger MSS. The agents' engines must clamp it in the hosts' SYN
    // segments.
    for host in ["spoke-a-vm", "hub-vm"] {
        let script = "for d in $(ip -o tuntap show | cut -d: -f1); do ip link set $d mtu 9000; done";
        let done = w.exec(host, &["sh", "-c", script], Duration::from_secs(5)).await?;
        ensure!(done.code == 0, "{}", done.stderr);
    }
    let largest = transfer(&w, "spoke-a-vm", "hub-vm").await?;
    ensure!(
        largest <= u32::from(DEFAULT_MTU) - HEADERS,
        "segments of {largest} after an MTU of 9000"
    );
    w.end().await
}

/// Whether all three pings with this many bytes of payload and DF set are answered.
async fn in_one_piece(w: &World, from: &str, to: &str, size: u16) -> Result<bool> {
    let (source, target) = (w.address(from)?.to_string(), w.address(to)?.to_string());
    let size = size.to_string();
    let ping = [
        "ping", "-n", "-c", "3", "-i", "0.1", "-W", "2", "-M", "do", "-s", &size, "-I", &source, &target,
    ];
    let done = w.exec(from, &ping, Duration::from_secs(15)).await?;
    Ok(done.stdout.contains(" 3 received"))
}

/// Sends [`BYTES`] by TCP from one host to another, and checks every byte at the receiver. Returns the MSS that the sender uses.
async fn transfer(w: &World, from: &str, to: &str) -> Result<u32> {
    let (source, target) = (w.hosts().netns(from), w.hosts().netns(to));
    let address = SocketAddr::new(w.address(to)?, PORT);
    let listener = inside(&target, || TcpListener::bind(address))?.context("listening")?;
    let receiver = tokio::task::spawn_blocking(move || receive(&listener));
    let sender = tokio::task::spawn_blocking(move || send(source, address));
    let (largest, received) = tokio::try_join!(sender, receiver)?;
    let (largest, received) = (largest?, received?);
    ensure!(received == BYTES, "{received} of {BYTES} bytes arrived");
    Ok(largest)
}

/// The byte at a position of the stream. The period, 251, is prime, so a segment at a wrong position shows as wrong bytes.
fn byte(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or_default()
}

fn send(netns: PathBuf, address: SocketAddr) -> Result<u32> {
    let mut stream = inside(&netns, || TcpStream::connect_timeout(&address, Duration::from_secs(10)))??;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    let data: Vec<u8> = (0..BYTES).map(byte).collect();
    let largest = SockRef::from(&stream).tcp_mss()?;
    stream.write_all(&data)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // The receiver closes its end after the last byte, so this read waits until the transfer is complete.
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(largest)
}

fn receive(listener: &TcpListener) -> Result<usize> {
    listener.set_nonblocking(true)?;
    let start = std::time::Instant::now();
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                ensure!(start.elapsed() < Duration::from_secs(12), "nobody connects");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e.into()),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(at);
        }
        let whole = buffer[..n].iter().enumerate().all(|(i, b)| *b == byte(at + i));
        ensure!(whole, "wrong bytes after {at}");
        at += n;
    }
}
