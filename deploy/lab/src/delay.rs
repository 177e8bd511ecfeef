//! Lines with a constant delay in user space, for kernels without netem. The kernel sends a packet to a line's TUN
//! device, and after the delay it receives the packet again from the same device. Packets stay in order.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_tun::Tun;

/// Name of the hidden command `tombolo lab delay-line LINE…`. Each LINE is written as `device:milliseconds:loss`.
pub const COMMAND: &str = "delay-line";

/// Largest number of packets in flight on one line; further packets are dropped. 20,000 packets of 1500 bytes are what
/// a line with a delay of 50 ms holds at about 5 Gbit/s.
const MAX_QUEUED: usize = 20_000;
/// Largest size, in bytes, of a packet that a TUN device may deliver.
const MAX_PACKET: usize = 65_536;

/// A delay line: its device, its delay and its loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Name of the line's TUN device. If the device does not exist, the kernel creates it, but no route leads to the
    /// new device.
    pub device: String,
    /// Delay of each packet, the same in both directions.
    pub one_way: Duration,
    /// Fraction of the packets that are lost, 0 to 1, in each direction.
    pub loss: f64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.device, self.one_way.as_secs_f64() * 1e3, self.loss)
    }
}

impl FromStr for Line {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let [device, ms, loss] = text.split(':').collect::<Vec<_>>()[..] else {
            bail!("'{text}' must be written as device:milliseconds:loss");
        };
        Ok(Self {
            device: device.to_owned(),
            one_way: Duration::try_from_secs_f64(ms.parse::<f64>()? / 1e3)?,
            loss: loss.parse()?,
        })
    }
}

/// Carries packets over these lines. Returns only when one of the lines fails, or at once if `lines` is empty. The
/// values of the lines are not checked: with a loss below 0 no packet is lost, with one above 1 all are. When the
/// function returns or its future is dropped, all lines end and the packets in flight are lost. A device that the
/// kernel has created for a line disappears then.
///
/// # Errors
/// A device cannot be opened, for which root is needed, or was removed.
///
/// # Panics
/// Outside of a Tokio runtime with I/O and time enabled.
pub async fn run(lines: Vec<Line>) -> Result<()> {
    futures::future::try_join_all(lines.into_iter().map(carry))
        .await
        .map(drop)
}

/// Carries packets over one line. Packets of both directions share one queue. This works because both directions have
/// the same delay.
async fn carry(line: Line) -> Result<()> {
    let device = || format!("device {}", line.device);
    let tuns = Tun::builder().name(&line.device).build().with_context(device)?;
    let tun = tuns.into_iter().next().with_context(device)?;
    let (sender, queue) = mpsc::channel(MAX_QUEUED);
    tokio::try_join!(read(&tun, &line, sender), write(&tun, queue))
        .with_context(device)
        .map(drop)
}

/// A packet, and the time at which it is to leave the line.
type Queued = (Instant, Vec<u8>);

async fn read(tun: &Tun, line: &Line, queue: mpsc::Sender<Queued>) -> Result<()> {
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let length = tun.recv(&mut buffer).await?;
        if rand::random::<f64>() >= line.loss
            && let Some(packet) = buffer.get(..length)
        {
            // A full queue drops the packet, as a router does.
            let _ = queue.try_send((Instant::now() + line.one_way, packet.to_vec()));
        }
    }
}

async fn write(tun: &Tun, mut queue: mpsc::Receiver<Queued>) -> Result<()> {
    while let Some((due, packet)) = queue.recv().await {
        sleep_until(due).await;
        // The kernel refuses packets that are not IP, and all packets while the device is down. These are lost, as on a
        // real line.
        let _ = tun.send(&packet).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_and_read() {
        let line = Line {
            device: "delay0".into(),
            one_way: Duration::from_micros(33_500),
            loss: 0.01,
        };
        assert_eq!(line.to_string(), "delay0:33.5:0.01");
        assert_eq!(line.to_string().parse::<Line>().unwrap(), line);
        for wrong in ["delay0", "delay0:x:0", "delay0:-1:0", "a:b:c:d"] {
            assert!(wrong.parse::<Line>().is_err(), "{wrong}");
        }
    }
}
