//! What can be done to a lab's network, and seen of it, while it runs.

use crate::command::{self, Finished};
use crate::host::Hosts;
use crate::lab::Lab;
use crate::probe::{self, Ping, Pinged, Pinger, Traced};
use crate::process;
use crate::underlay;
use anyhow::{Context, Result};
use std::net::IpAddr;
use std::time::Duration;

/// What an appliance's kernel needs beside `enableIPForwarding` (R12): it routes, answers every expired packet and sends
/// no redirects (D23).
pub(super) fn forwarding(hosts: &dyn Hosts, host: &str) -> Result<()> {
    answering(hosts, host)?;
    hosts.set(
        host,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ],
    )
}

/// The kernel answers every expired packet that it routes (D24).
pub(super) fn answering(hosts: &dyn Hosts, host: &str) -> Result<()> {
    hosts.set(
        host,
        &[
            ("ipv4/icmp_ratelimit", "0"),
            // The limit for all answers together knows no other way to be off.
            ("ipv4/icmp_ratemask", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ],
    )
}

/// Longest that a traceroute takes.
const TRACE_LIMIT: Duration = Duration::from_secs(30);

/// Most traces that are run for one.
const TRACES: u8 = 4;

/// Pings in a row of which one must be answered as a whole.
const TRIES: u32 = 3;

impl Lab {
    /// Runs a program on a host to its end; a non-zero exit is not an error here.
    ///
    /// # Errors
    /// No such host, no such program, or it does not end within `limit`.
    pub async fn exec(&self, host: &str, argv: &[&str], limit: Duration) -> Result<Finished> {
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        self.exec_owned(host, &argv, limit).await
    }

    pub(super) async fn exec_owned(&self, host: &str, argv: &[String], limit: Duration) -> Result<Finished> {
        self.known(host)?;
        let wrapped = self.wrap(host, argv)?;
        let done = tokio::task::spawn_blocking(move || command::finish(&wrapped, limit)).await??;
        // A shell exits with 127 when a program is not there; `ip netns exec` says it.
        if done.code == 127 || done.stderr.contains("exec of \"") {
            anyhow::bail!(
                "cannot run '{}' on {host}: is it installed? {}",
                argv.join(" "),
                done.stderr.trim()
            );
        }
        Ok(done)
    }

    fn known(&self, host: &str) -> Result<()> {
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

    /// Pings from a host's overlay address to a host or an address (as [`Lab::address`] takes it).
    ///
    /// # Errors
    /// No such host, or ping cannot run. Silence is no error.
    pub async fn ping(&self, from: &str, to: &str, how: Ping) -> Result<Pinged> {
        let (source, destination) = self.ends(from, to)?;
        let argv = how.argv(source, destination);
        let mut tries = 0;
        loop {
            let done = self.exec_owned(from, &argv, how.limit()).await?;
            let pinged = Pinged::read(&format!("{}{}", done.stdout, done.stderr))
                .with_context(|| format!("ping {from} ({source}) → {to} ({destination})"))?;
            tries += 1;
            // Once anything has answered, ping waits for its last echo two round trips and no longer, whatever it was told:
            // some milliseconds, in which a busy machine answers too late. Lasting pings are what losses are counted by.
            if pinged.all() || pinged.none() || tries == TRIES {
                return Ok(pinged);
            }
        }
    }

    /// Starts a ping that runs beside other things until it is stopped.
    ///
    /// # Errors
    /// No such host, or ping cannot run.
    pub fn pinger(&self, from: &str, to: &str, interval: Duration) -> Result<Pinger> {
        let (source, destination) = self.ends(from, to)?;
        let name = format!("{from} → {to}");
        let log = self.log(&format!("ping-{from}-{destination}-{:x}", rand_suffix()))?;
        let argv = probe::endless(source, destination, interval, 56);
        // It is ended by a signal.
        let argv = self.hosts.wrap_signalled(from, &argv);
        let process = process::start(&argv, &log, &[], true).with_context(|| format!("ping {name}"))?;
        Ok(Pinger {
            process,
            name,
            interval,
        })
    }

    /// Traces from a host's overlay address to a host or an address, with one probe a TTL.
    ///
    /// # Errors
    /// No such host, or traceroute cannot run. Silence is no error.
    pub async fn traceroute(&self, from: &str, to: &str) -> Result<Traced> {
        self.trace(from, to, 1).await
    }

    /// [`Self::traceroute`] with several probes a TTL. Traces again what `traceroute` itself [may have
    /// missed](Traced::may_have_missed).
    ///
    /// # Errors
    /// As there.
    pub async fn trace(&self, from: &str, to: &str, probes: u8) -> Result<Traced> {
        let (source, destination) = self.ends(from, to)?;
        let argv = probe::trace_argv(source, destination, probes);
        let mut tries = 0;
        loop {
            let done = self.exec_owned(from, &argv, TRACE_LIMIT).await?;
            let traced = Traced::read(&done, destination).with_context(|| format!("traceroute {from} → {to}"))?;
            tries += 1;
            if tries >= TRACES || !traced.may_have_missed() {
                return Ok(traced);
            }
        }
    }

    /// Source and destination of one family.
    fn ends(&self, from: &str, to: &str) -> Result<(IpAddr, IpAddr)> {
        let destination = self.address(to)?;
        let family = if destination.is_ipv4() { 4 } else { 6 };
        Ok((self.address(&format!("{from}/{family}"))?, destination))
    }

    /// Cuts a host off the underlay, silently, in both directions.
    ///
    /// # Errors
    /// No such host.
    pub fn cut(&self, host: &str) -> Result<()> {
        underlay::cut(&*self.hosts, &self.topology, host)
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Errors
    /// No such host.
    pub fn restore(&self, host: &str) -> Result<()> {
        underlay::restore(&*self.hosts, &self.topology, host)
    }

    /// Cuts the path between two hosts, silently, in both directions; both still reach everybody else.
    ///
    /// # Errors
    /// No such host.
    pub fn cut_pair(&self, a: &str, b: &str) -> Result<()> {
        let (first, second) = (self.underlay_address(a)?, self.underlay_address(b)?);
        underlay::cut_pair(&*self.hosts, (a, first), (b, second))
    }

    /// Undoes [`Self::cut_pair`] of these two, and no other cut.
    ///
    /// # Errors
    /// No such host.
    pub fn restore_pair(&self, a: &str, b: &str) -> Result<()> {
        underlay::restore_pair(&*self.hosts, a, b)
    }

    /// Gives a host another underlay address; the old one is gone at once.
    ///
    /// # Errors
    /// No such host, or the address is in no segment.
    pub fn readdress(&self, host: &str, address: IpAddr) -> Result<()> {
        self.underlay_address(host)?;
        self.change(|s| {
            s.moved.insert(host.to_owned(), address);
        })?;
        underlay::readdress(&*self.hosts, &self.topology, host, address)
    }
}

/// Keeps logs of several pings between the same pair apart.
fn rand_suffix() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() << 8)
}
