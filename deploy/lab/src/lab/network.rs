//! Pings and traces between the hosts of a running lab, and changes of the lab's underlay.

use crate::command::{self, CommandOutput};
use crate::host::Hosts;
use crate::lab::Lab;
use crate::probe::{self, BackgroundPing, Ping, PingResult, TraceResult};
use crate::process;
use crate::underlay;
use anyhow::{Context, Result};
use std::net::IpAddr;
use std::time::Duration;

/// Enables forwarding in the kernel of an appliance's host; `enableIPForwarding` of its NIC (R12) does not change the
/// kernel. The kernel then answers every packet whose TTL has expired, and sends no ICMP redirects (D23).
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

/// Removes the rate limits of a host's kernel for ICMP errors, so that the kernel answers every packet whose TTL has
/// expired (D24).
pub(super) fn disable_icmp_rate_limits(hosts: &dyn Hosts, host: &str) -> Result<()> {
    hosts.set_sysctls(
        host,
        &[
            ("ipv4/icmp_ratelimit", "0"),
            // The kernel's global limit cannot be switched off. It does not apply to ICMP types outside of this mask.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ],
    )
}

/// Longest time that one traceroute may take: one second for each of the 8 TTLs, and a margin for a busy machine.
const TRACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest number of runs of `traceroute` for one trace, see [`TraceResult::may_have_missed`].
const MAX_TRACES: u8 = 4;

/// Largest number of runs of `ping` for one result. `ping` is repeated while some but not all echo requests are
/// answered.
const MAX_PINGS: u32 = 3;

impl Lab {
    /// Runs a program on a host to its end, and returns its exit status and output. `argv` is the program and its
    /// arguments, and must not be empty. A non-zero exit status is no error, except 127: this status means that the
    /// program is missing. If the future is dropped, the program runs on, at most for `limit`.
    ///
    /// # Errors
    /// The host or the program does not exist, or the program still runs after `limit`. The process on this machine is
    /// then killed; in a container or virtual machine the program itself may run on.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn exec(&self, host: &str, argv: &[&str], limit: Duration) -> Result<CommandOutput> {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        self.exec_owned(host, &argv, limit).await
    }

    /// As [`Self::exec`], with owned arguments.
    pub(super) async fn exec_owned(&self, host: &str, argv: &[String], limit: Duration) -> Result<CommandOutput> {
        self.require_host(host)?;
        let wrapped = self.wrap(host, argv)?;
        let done = tokio::task::spawn_blocking(move || command::finish(&wrapped, limit)).await??;
        // If the program is missing, a shell or SSH ends with exit status 127, and `ip netns exec` prints a message.
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

    /// Pings from an overlay address of the host `from` to `to`, a host or an address as [`Lab::address`] accepts it.
    /// The source is the first address of `from` in the family of the destination. If some but not all echo requests
    /// are answered, runs `ping` again, up to three times in all. Returns the last result. Lost packets are no error.
    /// If the future is dropped, the present run of `ping` ends by itself.
    ///
    /// # Errors
    /// A host does not exist or has no address of this family, the address of `from` does not exist on its host, or
    /// `ping` is missing or takes longer than [`Ping::limit`].
    pub async fn ping(&self, from: &str, to: &str, how: Ping) -> Result<PingResult> {
        let (source, destination) = self.endpoints(from, to)?;
        let argv = how.argv(source, destination);
        let mut tries = 0;
        loop {
            let done = self.exec_owned(from, &argv, how.limit()).await?;
            let pinged = PingResult::read(&format!("{}{}", done.stdout, done.stderr))
                .with_context(|| format!("ping {from} ({source}) → {to} ({destination})"))?;
            tries += 1;
            // Once a reply has arrived, ping ignores its timeout and waits only two round-trip times for the last
            // reply. A busy machine may answer later. So the ping is repeated if some but not all replies have arrived.
            // This can hide lost packets, so tests that measure losses use [`Self::start_ping`].
            if pinged.all() || pinged.none() || tries == MAX_PINGS {
                return Ok(pinged);
            }
        }
    }

    /// Starts a ping in the background and returns at once. The ping sends an echo request of 56 data bytes every
    /// `interval`, until the returned [`BackgroundPing`] is stopped or dropped, or this program ends. The source and
    /// the destination address are chosen as by [`Self::ping`].
    ///
    /// # Errors
    /// A host does not exist or has no address of this family, or the log cannot be written. That `ping` is missing or
    /// cannot run shows only when the returned value is stopped.
    pub fn start_ping(&self, from: &str, to: &str, interval: Duration) -> Result<BackgroundPing> {
        let (source, destination) = self.endpoints(from, to)?;
        let name = format!("{from} → {to}");
        let log = self.log(&format!("ping-{from}-{destination}-{:x}", log_suffix()))?;
        let argv = probe::endless_ping_argv(source, destination, interval, 56);
        // `BackgroundPing::stop` sends SIGINT, which must reach ping itself: ping prints its summary only then.
        let argv = self.hosts.wrap_with_signals(from, &argv);
        let process = process::start(&argv, &log, &[], true).with_context(|| format!("ping {name}"))?;
        Ok(BackgroundPing {
            process,
            name,
            interval,
        })
    }

    /// Traces the path from an overlay address of the host `from` with ICMP echo requests, one for each TTL up to 8.
    /// `to` is a host or an address, as [`Lab::address`] accepts it; the source has the family of the destination. Runs
    /// `traceroute` again, up to four times in all, if it [may have missed answers](TraceResult::may_have_missed), and
    /// returns the last result. Missing answers are no error.
    ///
    /// # Errors
    /// A host does not exist or has no address of this family, or `traceroute` is missing, prints something unexpected,
    /// or takes more than 30 seconds.
    pub async fn traceroute(&self, from: &str, to: &str) -> Result<TraceResult> {
        self.trace(from, to, 1).await
    }

    /// As [`Self::traceroute`], with `probes` echo requests for each TTL, 1 to 10.
    ///
    /// # Errors
    /// As [`Self::traceroute`], or `probes` is not within 1 to 10.
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

    /// Returns the source and the destination address, of the same family, for packets from the host `from` to `to`.
    fn endpoints(&self, from: &str, to: &str) -> Result<(IpAddr, IpAddr)> {
        let destination = self.address(to)?;
        let family = if destination.is_ipv4() { 4 } else { 6 };
        Ok((self.address(&format!("{from}/{family}"))?, destination))
    }

    /// Disconnects a host from the underlay, in both directions and without ICMP errors. The host's device keeps its
    /// carrier. A second call has no effect. [`Self::readdress`] into another segment undoes the cut.
    ///
    /// # Errors
    /// The host does not exist or has no link to the underlay, or a command fails.
    pub fn cut(&self, host: &str) -> Result<()> {
        underlay::cut(&*self.hosts, &self.topology, host)
    }

    /// Undoes [`Self::cut`] of a host. Undoes only a [`Self::cut`] of this host, and no [`Self::cut_pair`]. Has no
    /// effect on a host that is not cut.
    ///
    /// # Errors
    /// The host does not exist or has no link to the underlay, or a command fails.
    pub fn restore(&self, host: &str) -> Result<()> {
        underlay::restore(&*self.hosts, &self.topology, host)
    }

    /// Cuts the underlay's path between two hosts, in both directions and without ICMP errors. Both hosts still reach
    /// all other hosts. The cut applies to the present addresses of the two hosts, not to those of a later
    /// [`Self::readdress`]. A second call for the same addresses has no effect.
    ///
    /// # Errors
    /// A host does not exist or has no link to the underlay, or a command fails. One direction may then be cut.
    pub fn cut_pair(&self, a: &str, b: &str) -> Result<()> {
        let (first, second) = (self.underlay_address(a)?, self.underlay_address(b)?);
        underlay::cut_pair(&*self.hosts, (a, first), (b, second))
    }

    /// Undoes [`Self::cut_pair`] of these two hosts, and no other cut. Without such a cut it has no effect.
    ///
    /// # Errors
    /// A host does not exist, or a command fails. One direction may then still be cut.
    pub fn restore_pair(&self, a: &str, b: &str) -> Result<()> {
        underlay::restore_pair(&*self.hosts, a, b)
    }

    /// Replaces a host's underlay address by another of the same family, in any segment, and records it. The family is
    /// not checked, nor is it checked whether another host has the address. The old address is removed at once. If the
    /// new address is in another segment, a [`Self::cut`] of the host is undone. The lab does not tell the host's
    /// agent, which has to notice the change itself.
    ///
    /// # Errors
    /// The host does not exist or has no link to the underlay, the record cannot be written, the address is in no
    /// segment, or a command fails. If the host exists, the new address is recorded nevertheless. After a failed
    /// command the host may have no underlay address.
    pub fn readdress(&self, host: &str, address: IpAddr) -> Result<()> {
        self.underlay_address(host)?;
        self.change(|s| {
            s.moved.insert(host.to_owned(), address);
        })?;
        underlay::readdress(&*self.hosts, &self.topology, host, address)
    }
}

/// Returns a number for the name of a ping's log, so that the logs of several pings between the same hosts differ.
fn log_suffix() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() << 8)
}
