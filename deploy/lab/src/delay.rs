//! A line with a constant delay, in user space: what the kernel hands to a TUN device comes back from it some time
//! later, in the same order. For kernels without netem.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_tun::Tun;

/// The hidden command: `tombolo lab delay-line LINE…`, each as `device:milliseconds:loss`.
pub const COMMAND: &str = "delay-line";

/// Packets that may be under way on one line; more are lost. 50 ms at 5 Gbit/s.
const BOUND: usize = 20_000;
/// The longest packet of a TUN device, bytes.
const LONGEST: usize = 65_536;

/// What one line is like.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The TUN device; it exists.
    pub device: String,
    /// How long a packet is under way, in either direction.
    pub one_way: Duration,
    /// How many packets are lost, 0 to 1.
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

/// Carries packets over these lines until one of them ends.
///
/// # Errors
/// A device that cannot be opened, or that went away.
pub async fn run(lines: Vec<Line>) -> Result<()> {
    futures::future::try_join_all(lines.into_iter().map(carry))
        .await
        .map(drop)
}

/// Carries packets over one line. One queue serves both directions: the delay is the same, so first in is first out.
async fn carry(line: Line) -> Result<()> {
    let device = || format!("device {}", line.device);
    let tuns = Tun::builder().name(&line.device).build().with_context(device)?;
    let tun = tuns.into_iter().next().with_context(device)?;
    let (sender, queue) = mpsc::channel(BOUND);
    tokio::try_join!(read(&tun, &line, sender), write(&tun, queue))
        .with_context(device)
        .map(drop)
}

/// A packet, and when it arrives.
type Queued = (Instant, Vec<u8>);

async fn read(tun: &Tun, line: &Line, queue: mpsc::Sender<Queued>) -> Result<()> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = tun.recv(&mut buffer).await?;
        if rand::random::<f64>() >= line.loss
            && let Some(packet) = buffer.get(..length)
        {
            // A full line loses what comes next, as a full router does.
            let _ = queue.try_send((Instant::now() + line.one_way, packet.to_vec()));
        }
    }
}

async fn write(tun: &Tun, mut queue: mpsc::Receiver<Queued>) -> Result<()> {
    while let Some((due, packet)) = queue.recv().await {
        sleep_until(due).await;
        // The kernel refuses what is not IP, and everything while the device is down: lost, as on any line.
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
