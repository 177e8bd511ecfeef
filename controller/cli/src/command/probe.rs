//! `tombolo ping` and `tombolo trace`: the source's agent sends real packets.

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::duration;
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
use std::time::Duration;
use tombolo_client::fabric::{Probe, ProbeAnswer};
use tombolo_proto::probe::ProbeKind;

#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// Source: a machine, network interface or agent, by name or id
    from: String,
    /// Destination: a machine, network interface or agent, by name or id, or an address
    to: String,
    /// Number of echo requests
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    count: u32,
    /// Time between two echo requests
    #[arg(short, long, value_name = "TIME", default_value = "200ms", value_parser = duration)]
    interval: Duration,
    /// Longest time to wait for the reply to an echo request
    #[arg(short = 'W', long = "answer-timeout", value_name = "TIME", default_value = "1s", value_parser = duration)]
    answer: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// Source: a machine, network interface or agent, by name or id
    from: String,
    /// Destination: a machine, network interface or agent, by name or id, or an address
    to: String,
    /// Number of probes for each TTL
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10))]
    count: u32,
    /// Largest TTL that is probed
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..=64))]
    max_ttl: u8,
    /// Longest time to wait for the answer to a probe
    #[arg(short = 'W', long = "answer-timeout", value_name = "TIME", default_value = "1s", value_parser = duration)]
    answer: Duration,
}

impl Ping {
    /// Lets the source's agent ping the destination, waits for the agent's report, and prints it. The exit code is 1 if
    /// no reply arrived.
    pub(crate) async fn run(&self, c: &Context) -> Result<ExitCode> {
        let probe = Probe {
            from: self.from.clone(),
            to: self.to.clone(),
            kind: ProbeKind::Ping,
            count: Some(self.count),
            interval_ms: Some(milliseconds(self.interval)?),
            timeout_ms: Some(milliseconds(self.answer)?),
            max_ttl: None,
            port: None,
        };
        let probed = c.progress("pinging", c.client.probe(&probe)).await?;
        let report = &probed.report;
        if c.out.is_json() {
            c.out.json(&probed)?;
        } else {
            c.out.line(&format!("ping {}", ends(&self.from, &self.to, &probed)));
            for (index, rtt) in report.rtts_ms.iter().enumerate() {
                c.out.line(&format!("  answer {}: {rtt:.2} ms", index + 1));
            }
            let lost = report.sent.saturating_sub(report.received);
            c.out.line(&format!(
                "{} sent, {} received, {lost} lost{}",
                report.sent,
                report.received,
                spread(&report.rtts_ms)
            ));
            if report.received == 0 {
                c.out.line(&format!("why: tombolo explain {} {}", self.from, self.to));
            }
        }
        finish(&probed, report.received > 0)
    }
}

impl Trace {
    /// Lets the source's agent trace the path to the destination, waits for the agent's report, and prints it. The exit
    /// code is 1 if the destination did not answer.
    pub(crate) async fn run(&self, c: &Context) -> Result<ExitCode> {
        let probe = Probe {
            from: self.from.clone(),
            to: self.to.clone(),
            kind: ProbeKind::Trace,
            count: Some(self.count),
            interval_ms: None,
            timeout_ms: Some(milliseconds(self.answer)?),
            max_ttl: Some(self.max_ttl),
            port: None,
        };
        let probed = c.progress("tracing", c.client.probe(&probe)).await?;
        let report = &probed.report;
        if c.out.is_json() {
            c.out.json(&probed)?;
        } else {
            c.out.line(&format!("trace {}", ends(&self.from, &self.to, &probed)));
            for (index, hop) in report.hops.iter().enumerate() {
                let who = hop.address.map_or_else(|| "*".to_owned(), |a| a.to_string());
                let times: Vec<_> = hop.rtts_ms.iter().map(|t| format!("{t:.2} ms")).collect();
                c.out
                    .line(format!("{:>3}  {who:<24} {}", index + 1, times.join("  ")).trim_end());
            }
            if report.received == 0 {
                c.out.line(&format!(
                    "it did not arrive; why: tombolo explain {} {}",
                    self.from, self.to
                ));
            }
        }
        finish(&probed, report.received > 0)
    }
}

fn milliseconds(time: Duration) -> Result<u32> {
    u32::try_from(time.as_millis())
        .map_err(|_| UsageError::new(format!("{time:?} is too long"), "set a time of at most 49 days").into())
}

fn ends(from: &str, to: &str, probed: &ProbeAnswer) -> String {
    let end = |name: &str, address: Option<std::net::IpAddr>| match address {
        Some(address) if address.to_string() != name => format!("{name} ({address})"),
        _ => name.to_owned(),
    };
    format!("{} → {}", end(from, probed.from), end(to, probed.to))
}

fn spread(rtts: &[f64]) -> String {
    if rtts.is_empty() {
        return String::new();
    }
    let min = rtts.iter().copied().fold(f64::INFINITY, f64::min);
    let max = rtts.iter().copied().fold(0.0, f64::max);
    #[expect(clippy::cast_precision_loss, reason = "at most 100 answers")]
    let mean = rtts.iter().sum::<f64>() / rtts.len() as f64;
    format!("; min {min:.2}, mean {mean:.2}, max {max:.2} ms")
}

fn finish(probed: &ProbeAnswer, arrived: bool) -> Result<ExitCode> {
    if let Some(error) = &probed.report.error {
        anyhow::bail!("the agent could not send: {error}");
    }
    Ok(if arrived { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
