//! A lab with its own name, and assertions about its hosts and resources. Needs root.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, Instant};
use tombolo_lab::probe::Ping;
use tombolo_lab::state::dir_of;
use tombolo_lab::{Lab, Options, Topology, check};

/// The interval of pings that must lose nothing. With it, an outage of 10 ms or longer loses a ping.
pub const PING_INTERVAL: Duration = Duration::from_millis(10);

/// A lab of real processes. Dropping it takes the lab down, also if the test fails; [`World::down`] reports leftovers too.
///
/// Methods that read or change resources fail if the controller does not answer or refuses the request.
pub struct World {
    lab: Lab,
}

impl Deref for World {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}
impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

/// The flags of a peering half (P5): `allowVirtualNetworkAccess`, `allowForwardedTraffic`, `allowGatewayTransit` and
/// `useRemoteGateways`.
#[derive(Debug, Clone, Copy)]
pub struct Flags {
    pub access: bool,
    pub forwarded: bool,
    pub transit: bool,
    pub remote_gateways: bool,
}

/// The flags that Azure sets by default: `allowVirtualNetworkAccess` is on, and all other flags are off.
pub const PLAIN: Flags = Flags {
    access: true,
    forwarded: false,
    transit: false,
    remote_gateways: false,
};
/// Azure's default flags with `allowForwardedTraffic` on.
pub const FORWARDED: Flags = Flags {
    forwarded: true,
    ..PLAIN
};

/// The built-in topology `hub-spoke` with the name `e2e-NAME`. Labs with different names run side by side. `name` has 1
/// to 20 of `a-z`, `0-9` and `-`, and does not end in `-`; a bring-up checks this.
pub fn hub_spoke(name: &str) -> Topology {
    let mut topology = Topology::load("hub-spoke").expect("the built-in topology");
    topology.name = format!("e2e-{name}");
    topology
}

impl World {
    /// Brings up [`hub_spoke`] with this name, as [`World::of`] does.
    ///
    /// # Errors
    /// As [`World::of`].
    ///
    /// # Panics
    /// As [`World::of`].
    pub async fn up(name: &str) -> Result<Self> {
        Self::of(&hub_spoke(name)).await
    }

    /// Brings up a lab, and waits until its agents have their configurations in force. Replaces leftovers of a lab with
    /// the same name. If the future is dropped, all that was made is taken down.
    ///
    /// # Errors
    /// As [`Lab::up`], for example if another program runs a lab with the same name.
    ///
    /// # Panics
    /// If the caller is not root, or outside of a Tokio runtime.
    pub async fn of(topology: &Topology) -> Result<Self> {
        require_root();
        // The lab uses the usual folder of its name, not a temporary one: only in that folder `replace` finds the
        // leftovers of an aborted run, and only because of that folder a concurrent run with the same name is refused.
        let options = Options {
            replace: true,
            ..Options::default()
        };
        let lab = Lab::up(topology, options).await?;
        Ok(Self { lab })
    }

    /// The ARM path of the peering half `to-REMOTE` of a VNet. Whether it exists is not checked.
    pub fn half(&self, vnet: &str, remote: &str) -> String {
        let vnet = self.group().item("virtualNetworks", vnet);
        format!("{vnet}/virtualNetworkPeerings/to-{remote}")
    }

    /// Creates or changes the peering half `to-REMOTE` of a VNet. Returns when the controller has answered, before
    /// agents apply the change.
    ///
    /// # Errors
    /// The controller does not answer or refuses the request.
    pub async fn put_half(&self, vnet: &str, remote: &str, flags: Flags) -> Result<(), tombolo_client::Error> {
        let body = json!({"properties": {
            "remoteVirtualNetwork": {"id": self.group().item("virtualNetworks", remote)},
            "allowVirtualNetworkAccess": flags.access,
            "allowForwardedTraffic": flags.forwarded,
            "allowGatewayTransit": flags.transit,
            "useRemoteGateways": flags.remote_gateways,
        }});
        let client = self.client().expect("the controller runs");
        client.arm_put(&self.half(vnet, remote), &body).await.map(drop)
    }

    /// Creates or changes a peering half, and waits until the change is in force at every connected agent. Fails if
    /// that takes more than ten seconds; the change then stays.
    pub async fn peer(&self, vnet: &str, remote: &str, flags: Flags) -> Result<()> {
        self.put_half(vnet, remote, flags).await?;
        self.in_force().await.map(drop)
    }

    /// Creates both halves of a peering with [`PLAIN`] flags, first the half of `a`, and waits until both are in force
    /// at every connected agent. Fails if that takes more than ten seconds. Halves that exist get these flags.
    pub async fn join(&self, a: &str, b: &str) -> Result<()> {
        self.put_half(a, b, PLAIN).await?;
        self.peer(b, a, PLAIN).await
    }

    /// Deletes a peering half, and waits until the deletion is in force at every connected agent. Fails if the half
    /// does not exist, or if that takes more than ten seconds; the half then stays deleted.
    pub async fn unpeer(&self, vnet: &str, remote: &str) -> Result<()> {
        let was_there = self.client()?.arm_delete(&self.half(vnet, remote)).await?;
        ensure!(was_there, "{vnet} had no half to {remote}");
        self.in_force().await.map(drop)
    }

    /// The property `peeringState` of a peering half, such as `Connected` (P13). Fails if the half does not exist.
    pub async fn peering_state(&self, vnet: &str, remote: &str) -> Result<String> {
        let half = self.client()?.arm_get(&self.half(vnet, remote)).await?;
        let state = half.pointer("/properties/peeringState").and_then(Value::as_str);
        Ok(state.context("no peeringState")?.to_owned())
    }

    /// Creates or changes a route to `prefix` in an existing route table, and waits until it is in force at every
    /// connected agent. Fails if that takes more than ten seconds; the route then stays. `table` and `name` are the
    /// names of the table and the route. The next hop is the overlay address of `appliance`, a host or an address as
    /// [`Lab::address`] accepts it.
    pub async fn route(&self, table: &str, name: &str, prefix: &str, appliance: &str) -> Result<()> {
        let path = format!("{}/routes/{name}", self.group().item("routeTables", table));
        let body = json!({"properties": {
            "addressPrefix": prefix, "nextHopType": "VirtualAppliance", "nextHopIpAddress": self.address(appliance)?,
        }});
        self.client()?.arm_put(&path, &body).await?;
        self.in_force().await.map(drop)
    }

    /// Pings in each direction between two hosts, with three echo requests. Fails unless all are answered within two
    /// seconds each. If only some are answered, the ping is repeated, up to three times in all, and the last result
    /// counts. `HOST/6` means the host's IPv6 address.
    pub async fn reach(&self, a: &str, b: &str) -> Result<()> {
        for (from, to) in [(a, b), (b, a)] {
            let host = from.split('/').next().unwrap_or(from);
            let pinged = self.ping(host, to, Ping::REACHABLE).await?;
            ensure!(pinged.all(), "{from} → {to}: {pinged}");
        }
        Ok(())
    }

    /// Pings in each direction between two hosts, with three echo requests. Fails if one is answered within 0.7 s. If
    /// only some are answered, the ping is repeated, up to three times in all, and the last result counts. A direction
    /// in which the sender has lost its overlay address counts as silent. `HOST/6` means the host's IPv6 address.
    pub async fn silent(&self, a: &str, b: &str) -> Result<()> {
        for (from, to) in [(a, b), (b, a)] {
            let host = from.split('/').next().unwrap_or(from);
            match self.ping(host, to, Ping::UNREACHABLE).await {
                Ok(pinged) => ensure!(pinged.none(), "{from} → {to} must not answer: {pinged}"),
                // If the agent of `from` is stopped, its overlay address is gone, so ping cannot send from that
                // address.
                Err(error) if format!("{error:#}").contains("Cannot assign requested address") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends pings, three at a time, until all three are answered. Returns the time that this took. Fails if this is
    /// not so at the end of the first attempt that ends after `limit`; an attempt that cannot ping is repeated like one
    /// that loses pings. `from` is a host; `to` is a host or an address as [`Lab::address`] accepts it.
    pub async fn reach_within(&self, from: &str, to: &str, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let how = Ping {
            timeout: Duration::from_millis(300),
            ..Ping::REACHABLE
        };
        loop {
            let pinged = self.ping(from, to, how).await;
            if pinged.as_ref().is_ok_and(tombolo_lab::probe::PingResult::all) {
                return Ok(start.elapsed());
            }
            ensure!(
                start.elapsed() < limit,
                "{from} → {to} not within {limit:?}: {pinged:?}"
            );
        }
    }

    /// Traces from the host `from` to the last of `hops`, which must not be `*`. Fails unless the trace shows the
    /// addresses of exactly these hosts, in this order; `*` is a silent hop. A trace that may have missed answers is
    /// repeated, as [`Lab::traceroute`] does.
    pub async fn trace_is(&self, from: &str, hops: &[&str]) -> Result<()> {
        let to = hops.last().context("a trace has a destination")?;
        let mut expected = Vec::new();
        for hop in hops {
            expected.push(if *hop == "*" { None } else { Some(self.address(hop)?) });
        }
        let traced = self.traceroute(from, to).await?;
        ensure!(traced.hops == expected, "{from}: expected {hops:?}, saw {traced}");
        Ok(())
    }

    /// Waits until a connection has this `connectionStatus`, such as `Connected`. `name` is the name of the connection
    /// in the lab's resource group. Fails after 30 s.
    pub async fn connection_is(&self, name: &str, status: &str) -> Result<()> {
        self.connection_is_because(name, status, "").await
    }

    /// Waits until a connection has this `connectionStatus`, and one of the connection's tunnels has a reason for its
    /// status that contains `why`. Waiting is necessary because a tunnel that has not come up yet may first give
    /// another reason. Fails after 30 s. With an empty `why`, no reason is needed.
    pub async fn connection_is_because(&self, name: &str, status: &str, why: &str) -> Result<()> {
        let path = self.group().item("connections", name);
        let start = Instant::now();
        loop {
            let now = self.client()?.arm_get(&path).await?;
            let properties = &now["properties"];
            let tunnels = properties["tunnelConnectionStatus"].as_array();
            let mut reasons = tunnels.into_iter().flatten().filter_map(|t| t["reason"].as_str());
            if properties["connectionStatus"] == status && (why.is_empty() || reasons.any(|r| r.contains(why))) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(30),
                "{name} is not {status} {why}: {properties}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the controller knows the current underlay address of a host's agent as the agent's first endpoint.
    /// Fails after 60 s. Fails at once if the controller does not know the agent.
    pub async fn wait_for_known_endpoint(&self, host: &str) -> Result<()> {
        let (address, start) = (self.underlay_address(host)?, Instant::now());
        loop {
            let agent = self.client()?.agent(host).await?;
            if agent.endpoints.first().is_some_and(|e| e.ip() == address) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "{host} is at {address}, the controller knows {:?}",
                agent.endpoints
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Pings in this direction, with three echo requests. Fails if one is answered within 0.7 s; if only some are
    /// answered, the ping is repeated, up to three times in all, and the last result counts. Succeeds also if ping
    /// cannot run, for whatever reason: because `from` has lost its overlay address, but also because a host does not
    /// exist.
    pub async fn silent_or_down(&self, from: &str, to: &str) -> Result<()> {
        if let Ok(pinged) = self.ping(from, to, Ping::UNREACHABLE).await {
            ensure!(pinged.none(), "{from} → {to} must not answer: {pinged}");
        }
        Ok(())
    }

    /// Pings in this direction only, with three echo requests. Fails if one is answered within 0.7 s, or if ping cannot
    /// run. If only some are answered, the ping is repeated, up to three times in all, and the last result counts.
    /// Unlike [`Self::silent`] it does not also ping in the other direction, so `to` may be an address that no host
    /// has.
    pub async fn silent_from(&self, from: &str, to: &str) -> Result<()> {
        let pinged = self.ping(from, to, Ping::UNREACHABLE).await?;
        ensure!(pinged.none(), "{from} → {to} must not answer: {pinged}");
        Ok(())
    }

    /// Compares the controller's routes and `explain` with the agents' tables and with live packets. Fails if they
    /// differ, with an error that lists all differences. Also fails if there was nothing to compare. Otherwise returns
    /// what was compared.
    pub async fn agree(&self) -> Result<check::Agreement> {
        let found = check::all(&self.lab).await?;
        ensure!(
            found.problems.is_empty(),
            "disagreements:\n{}",
            found.problems.join("\n")
        );
        ensure!(found.agents > 0 && !found.pairs.is_empty(), "nothing was compared");
        Ok(found)
    }

    /// Ends a test: [`Self::agree`], then [`Self::down`]. After a disagreement the lab is taken down without a check for
    /// leftovers.
    pub async fn end(self) -> Result<()> {
        self.agree().await?;
        self.down()
    }

    /// Takes the lab down. Fails if the lab's state folder, one of its namespaces or one of its processes remains. If
    /// another error occurs, these checks are not made.
    pub fn down(self) -> Result<()> {
        let name = self.lab.topology().name.clone();
        let processes: Vec<_> = self.lab.snapshot().processes.into_values().collect();
        self.lab.down()?;
        ensure!(!dir_of(None, &name).exists(), "the state folder remains");
        ensure!(
            namespaces(&name).is_empty(),
            "namespaces remain: {:?}",
            namespaces(&name)
        );
        ensure!(!processes.iter().any(|p| p.alive()), "processes remain");
        Ok(())
    }
}

/// Panics unless the caller is root.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "end-to-end tests make network namespaces: run them as root"
    );
}

/// The names of the network namespaces of a lab with this name, in no order. Empty if there are none. The names of a
/// lab whose name begins with `LAB-` are included too, because they begin in the same way.
pub fn namespaces(lab: &str) -> Vec<String> {
    let entries = std::fs::read_dir(Path::new("/run/netns")).into_iter().flatten();
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter(|n| n.starts_with(&format!("tb-{lab}-"))).collect()
}
