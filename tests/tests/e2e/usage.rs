//! Metering, live (Meter-1, Meter-6, D39).

use anyhow::{Context, Result, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde_json::Value;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tombolo_client::fabric::UsageRequest;
use tombolo_lab::host::inside;
use tombolo_tests::live::World;

const PORT: u16 = 5002;
/// Datagrams of a transfer, if `TOMBOLO_DATAGRAMS` does not set another number.
const DATAGRAMS: u64 = 25_000;
/// Bytes of a datagram, with and without the IPv4 and UDP headers.
const PAYLOAD: usize = 1200;
const LENGTH: u64 = PAYLOAD as u64 + 28;
/// Bytes of datagrams that may wait for the receiver.
const RECEIVE_BUFFER: usize = 32 << 20;
/// Time after which a transfer must be in the answer: agents report every 2 s, and the controller records every 10 s.
const RECORDED: Duration = Duration::from_secs(40);
/// Agents write their totals to disk every 10 s.
const WRITTEN: Duration = Duration::from_secs(12);

/// The number of datagrams of a transfer.
fn datagrams() -> u64 {
    let given = std::env::var("TOMBOLO_DATAGRAMS").ok().and_then(|n| n.parse().ok());
    given.unwrap_or(DATAGRAMS)
}

/// Sends datagrams at a rate at which a busy machine loses few of them, and returns when 99.95 % have arrived.
async fn transfer(w: &World, from: &str, to: &str) -> Result<()> {
    let address = SocketAddr::new(w.address(to)?, PORT);
    let receiver = inside(&w.hosts().netns(to), || UdpSocket::bind(address))??;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    // The test may not run for a while on a busy machine. The kernel's limit does not count for root.
    setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER)?;
    let sender = inside(&w.hosts().netns(from), || UdpSocket::bind("0.0.0.0:0"))??;
    let wanted = datagrams();
    let received = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 2 * PAYLOAD];
        let mut count = 0;
        while count < wanted && receiver.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    });
    let sent = tokio::task::spawn_blocking(move || -> Result<()> {
        for number in 0..wanted {
            sender.send_to(&[7; PAYLOAD], address)?;
            if number % 16 == 15 {
                std::thread::sleep(Duration::from_millis(4));
            }
        }
        Ok(())
    });
    sent.await??;
    let received = received.await?;
    let lost = wanted - received;
    ensure!(lost * 2000 <= wanted, "{received} of {wanted} datagrams have arrived");
    Ok(())
}

/// Bytes that came in and went out of a VNet's half of a peering, as far as they are recorded.
async fn recorded(w: &World, half: &str) -> Result<(u64, u64)> {
    let request = UsageRequest {
        from: 0,
        to: u64::from(u32::MAX),
        prices: None,
    };
    let answer = w.client()?.usage(&request).await?;
    let entries = answer["entries"].as_array().context("entries")?;
    let is_it = |entry: &&Value| {
        entry["resource"]
            .as_str()
            .is_some_and(|id| id.eq_ignore_ascii_case(half))
    };
    let entry = entries.iter().find(is_it);
    let bytes = |name: &str| entry.and_then(|entry| entry[name].as_u64()).unwrap_or_default();
    Ok((bytes("ingressBytes"), bytes("egressBytes")))
}

/// Waits until both halves have this many bytes, within 0.1 %.
async fn counts(w: &World, halves: [&str; 2], expected: u64) -> Result<()> {
    let begin = Instant::now();
    loop {
        let (_, sent) = recorded(w, halves[0]).await?;
        let (received, _) = recorded(w, halves[1]).await?;
        let is_right = |bytes: u64| bytes.abs_diff(expected) * 1000 <= expected;
        if is_right(sent) && is_right(received) {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < RECORDED,
            "of {expected} bytes, {sent} are recorded as sent and {received} as received"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The metrics of both halves, by minutes and by hours, have these bytes in all.
async fn metrics_agree(w: &World, halves: [&str; 2], expected: u64) -> Result<()> {
    for (half, metric) in [(halves[0], "XEgressBytes"), (halves[1], "XIngressBytes")] {
        for interval in ["PT1M", "PT5M", "PT1H"] {
            let path = format!("{half}/providers/Microsoft.Insights/metrics");
            let query = [
                ("metricnames", metric),
                ("interval", interval),
                ("aggregation", "Total,Maximum"),
            ];
            let answer = w.client()?.arm_get_with(&path, &query).await?;
            let data = answer["value"][0]["timeseries"][0]["data"].as_array().context("data")?;
            let total: f64 = data.iter().filter_map(|point| point["total"].as_f64()).sum();
            let difference = (total - expected as f64).abs();
            ensure!(
                difference * 1000.0 <= expected as f64,
                "{metric} by {interval}: {total} in place of {expected}: {data:?}"
            );
            ensure!(
                data.iter().any(|point| point["maximum"].as_f64() > Some(0.0)),
                "{data:?}"
            );
        }
    }
    Ok(())
}

/// The entries of the subscription's usage have these bytes, and Azure's price of a peering inside a region (Meter-1).
async fn charges_agree(w: &World, halves: [&str; 2], expected: u64) -> Result<()> {
    let subscription = halves[0].split("/resourceGroups").next().context("id")?;
    let path = format!("{subscription}/providers/Microsoft.Consumption/usageDetails");
    let answer = w.client()?.arm_get(&path).await?;
    let entries = answer["value"].as_array().context("entries")?;
    for (half, direction) in [(halves[0], "Egress"), (halves[1], "Ingress")] {
        let is_it = |entry: &&Value| {
            let text = |name: &str| entry["properties"][name].as_str().unwrap_or_default().to_owned();
            text("instanceId").eq_ignore_ascii_case(half) && text("product").contains(direction)
        };
        let entry = entries.iter().find(is_it).context("no entry")?;
        let figure = |name: &str| entry["properties"][name].as_f64().context("a number");
        let (gigabytes, cost) = (figure("usageQuantity")?, figure("pretaxCost")?);
        let difference = (gigabytes * 1e9 - expected as f64).abs();
        ensure!(difference * 1000.0 <= expected as f64, "{entry}");
        ensure!((cost - gigabytes * 0.01).abs() < 1e-12, "{entry}");
    }
    Ok(())
}

/// What crosses a peering is egress of one side and ingress of the other, byte for byte of IP, and stays so after `kill -9`
/// of both agents and of the controller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meter_1_both_ends_of_a_peering_count_the_same_bytes() -> Result<()> {
    let mut w = World::up("usage").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let halves = [w.half("spoke-a", "hub"), w.half("hub", "spoke-a")];
    let halves = [halves[0].as_str(), halves[1].as_str()];
    transfer(&w, "spoke-a-vm", "hub-vm").await?;
    counts(&w, halves, datagrams() * LENGTH).await?;
    metrics_agree(&w, halves, datagrams() * LENGTH).await?;
    charges_agree(&w, halves, datagrams() * LENGTH).await?;

    tokio::time::sleep(WRITTEN).await;
    w.kill_controller()?;
    for host in ["spoke-a-vm", "hub-vm"] {
        w.kill_agent(host)?;
    }
    w.start_controller().await?;
    for host in ["spoke-a-vm", "hub-vm"] {
        w.start_agent(host)?;
    }
    w.wait_until_ready(Duration::from_secs(30)).await?;
    w.reach_within("spoke-a-vm", "hub-vm", Duration::from_secs(15)).await?;
    transfer(&w, "spoke-a-vm", "hub-vm").await?;
    counts(&w, halves, 2 * datagrams() * LENGTH).await?;
    w.end().await
}
