//! Pings, traces, and changes of a running lab's network.

use crate::command::{self, CommandOutput};
use crate::host::Hosts;
use crate::lab::Lab;
use crate::probe::{self, BackgroundPing, Ping, PingResult, TraceResult};
use crate::process;
use crate::underlay;
use anyhow::{Context, Result};
use std::net::IpAddr;
use std::time::Duration;

/// Enables forwarding in an appliance's kernel, which `enableIPForwarding` (R12) does not. The kernel answers every
/// expired packet and sends no redirects (D23).
pub(super) fn enable_forwarding(hosts: &dyn Hosts, host: &str) -> Result<()> {
    disable_icmp_rate_limits(hosts, host)?;
    hosts.set_sysctls(
        host,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ],
    )
}

/// Removes the kernel's rate limits for ICMP errors, so that it answers every expired packet (D24).
pub(super) fn disable_icmp_rate_limits(hosts: &dyn Hosts, host: &str) -> Result<()> {
    hosts.set_sysctls(
        host,
        &[
            ("ipv4/icmp_ratelimit", "0"),
            // The global limit has no off switch, but does not apply to types outside of the mask.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ],
    )
}

/// Longest that a traceroute may take: 8 TTLs with a timeout of one second each, and room for a busy machine.
const TRACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Most runs of `traceroute` for one trace, see [`TraceResult::may_have_missed`].
const MAX_TRACES: u8 = 4;

/// Most runs of `ping` for one result, if some but not all echo requests are answered.
const MAX_PINGS: u32 = 3;

impl Lab {
    /// Runs a program on a host to its end. A non-zero exit status is no error.
    ///
    /// # Errors
    /// The host or the program does not exist, or the program does not end within `limit`.
    pub async fn exec(&self, host: &str, argv: &[&str], limit: Duration) -> Result<CommandOutput> {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        self.exec_owned(host, &argv, limit).await
    }

    pub(super) async fn exec_owned(&self, host: &str, argv: &[String], limit: Duration) -> Result<CommandOutput> {
        self.require_host(host)?;
        let wrapped = self.wrap(host, argv)?;
        let done = tokio::task::spawn_blocking(move || command::finish(&wrapped, limit)).await??;
        // A missing program shows as exit status 127 of a shell, or as a message of `ip netns exec`.
        if done.code == 127 || done.stderr.contains("exec of \"") {
            anyhow::bail!(
                "cannot run '{}' on {host}: is it installed? {}",
                argv.join(" "),
                done.stderr.trim()
            );
        }
        Ok(done)
    }

    fn require_host(&self, host: &str) -> Result<()> {
        let state = self.state();
        if state.hosts.iter().any(|h| h == host) {
            return Ok(());
        }
        anyhow::bail!(
            "there is no host '{host}' in lab {}: there are {}",
            self.topology.name,
            state.hosts.join(", ")
        )
    }

    /// Pings from a host's overlay address to a host or an address, as [`Lab::address`] accepts it.
    ///
    /// # Errors
    /// The host does not exist, or ping cannot run. Lost packets are no error.
    pub async fn ping(&self, from: &str, to: &str, how: Ping) -> Result<PingResult> {
        let (source, destination) = self.endpoints(from, to)?;
        let argv = how.argv(source, destination);
        let mut tries = 0;
        loop {
            let done = self.exec_owned(from, &argv, how.limit()).await?;
            let pinged = PingResult::read(&format!("{}{}", done.stdout, done.stderr))
                .with_context(|| format!("ping {from} ({source}) → {to} ({destination})"))?;
            tries += 1;
            // After the first reply, ping ignores its timeout and waits only two round-trip times for the last reply. A
            // busy machine answers later than that, so a partial result is repeated. Losses are measured with
            // [`Self::start_ping`].
            if pinged.all() || pinged.none() || tries == MAX_PINGS {
                return Ok(pinged);
            }
        }
    }

    /// Starts a ping in the background, which runs until it is stopped.
    ///
    /// # Errors
    /// The host does not exist, or ping cannot run.
    pub fn start_ping(&self, from: &str, to: &str, interval: Duration) -> Result<BackgroundPing> {
        let (source, destination) = self.endpoints(from, to)?;
        let name = format!("{from} → {to}");
        let log = self.log(&format!("ping-{from}-{destination}-{:x}", log_suffix()))?;
        let argv = probe::endless_ping_argv(source, destination, interval, 56);
        // `BackgroundPing::stop` sends SIGINT, which must reach ping itself.
        let argv = self.hosts.wrap_with_signals(from, &argv);
        let process = process::start(&argv, &log, &[], true).with_context(|| format!("ping {name}"))?;
        Ok(BackgroundPing {
            process,
            name,
            interval,
        })
    }

    /// Traces the path from a host's overlay address to a host or an address, with one probe per TTL.
    ///
    /// # Errors
    /// The host does not exist, or traceroute cannot run. Missing answers are no error.
    pub async fn traceroute(&self, from: &str, to: &str) -> Result<TraceResult> {
        self.trace(from, to, 1).await
    }

    /// As [`Self::traceroute`], with several probes per TTL. Repeats a trace in which `traceroute` itself [may have
    /// missed answers](TraceResult::may_have_missed).
    ///
    /// # Errors
    /// As [`Self::traceroute`].
    pub async fn trace(&self, from: &str, to: &str, probes: u8) -> Result<TraceResult> {
        let (source, destination) = self.endpoints(from, to)?;
        let argv = probe::trace_argv(source, destination, probes);
        let mut tries = 0;
        loop {
            let done = self.exec_owned(from, &argv, TRACE_TIMEOUT).await?;
            let traced = TraceResult::read(&done, destination).with_context(|| format!("traceroute {from} → {to}"))?;
            tries += 1;
            if tries >= MAX_TRACES || !traced.may_have_missed() {
                return Ok(traced);
            }
        }
    }

    /// Returns source and destination addresses of the same family.
    fn endpoints(&self, from: &str, to: &str) -> Result<(IpAddr, IpAddr)> {
        let destination = self.address(to)?;
        let family = if destination.is_ipv4() { 4 } else { 6 };
        Ok((self.address(&format!("{from}/{family}"))?, destination))
    }

    /// Disconnects a host from the underlay, in both directions and without ICMP errors.
    ///
    /// # Errors
    /// The host does not exist.
    pub fn cut(&self, host: &str) -> Result<()> {
        underlay::cut(&*self.hosts, &self.topology, host)
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    /// The host does not exist.
    pub fn restore(&self, host: &str) -> Result<()> {
        underlay::restore(&*self.hosts, &self.topology, host)
    }

    /// Cuts the path between two hosts, in both directions and without ICMP errors. Both still reach all other hosts.
    ///
    /// # Errors
    /// A host does not exist.
    pub fn cut_pair(&self, a: &str, b: &str) -> Result<()> {
        let (first, second) = (self.underlay_address(a)?, self.underlay_address(b)?);
        underlay::cut_pair(&*self.hosts, (a, first), (b, second))
    }

    /// Undoes [`Self::cut_pair`] of these two hosts, and no other cut.
    ///
    /// # Errors
    /// A host does not exist.
    pub fn restore_pair(&self, a: &str, b: &str) -> Result<()> {
        underlay::restore_pair(&*self.hosts, a, b)
    }

    /// Replaces a host's underlay address. The old one is removed at once.
    ///
    /// # Errors
    /// The host does not exist, or the address is in no segment.
    pub fn readdress(&self, host: &str, address: IpAddr) -> Result<()> {
        self.underlay_address(host)?;
        self.change(|s| {
            s.moved.insert(host.to_owned(), address);
        })?;
        underlay::readdress(&*self.hosts, &self.topology, host, address)
    }
}

/// Returns a suffix that distinguishes the logs of several pings between the same hosts.
fn log_suffix() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() << 8)
}
