//! A lab with its own name, and assertions about its hosts and resources. Needs root.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::{Duration, Instant};
use tombolo_lab::probe::Ping;
use tombolo_lab::state::dir_of;
use tombolo_lab::{Lab, Options, Topology, check};

/// The interval of pings that must lose nothing: a gap of 10 ms in the traffic loses one.
pub const PING_INTERVAL: Duration = Duration::from_millis(10);

/// A lab that is taken down at the end of its test, also if the test fails.
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

/// The flags of a peering half.
#[derive(Debug, Clone, Copy)]
pub struct Flags {
    pub access: bool,
    pub forwarded: bool,
    pub transit: bool,
    pub remote_gateways: bool,
}

pub const PLAIN: Flags = Flags {
    access: true,
    forwarded: false,
    transit: false,
    remote_gateways: false,
};
pub const FORWARDED: Flags = Flags {
    forwarded: true,
    ..PLAIN
};

/// The built-in hub and spokes with another name, so that labs run side by side.
pub fn hub_spoke(name: &str) -> Topology {
    let mut topology = Topology::load("hub-spoke").expect("the built-in topology");
    topology.name = format!("e2e-{name}");
    topology
}

impl World {
    pub async fn up(name: &str) -> Result<Self> {
        Self::of(&hub_spoke(name)).await
    }

    pub async fn of(topology: &Topology) -> Result<Self> {
        require_root();
        // In the usual folder: leftovers of an aborted run are found there, and so is a concurrent run.
        let options = Options {
            replace: true,
            ..Options::default()
        };
        let lab = Lab::up(topology, options).await?;
        Ok(Self { lab })
    }

    /// The path of a peering half.
    pub fn half(&self, vnet: &str, remote: &str) -> String {
        let vnet = self.group().item("virtualNetworks", vnet);
        format!("{vnet}/virtualNetworkPeerings/to-{remote}")
    }

    /// Creates or changes a peering half.
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

    /// Creates or changes a peering half, and waits until it is in force.
    pub async fn peer(&self, vnet: &str, remote: &str, flags: Flags) -> Result<()> {
        self.put_half(vnet, remote, flags).await?;
        self.in_force().await.map(drop)
    }

    /// Both halves.
    pub async fn join(&self, a: &str, b: &str) -> Result<()> {
        self.put_half(a, b, PLAIN).await?;
        self.peer(b, a, PLAIN).await
    }

    /// Deletes a peering half, and waits until that is in force.
    pub async fn unpeer(&self, vnet: &str, remote: &str) -> Result<()> {
        let was_there = self.client()?.arm_delete(&self.half(vnet, remote)).await?;
        ensure!(was_there, "{vnet} had no half to {remote}");
        self.in_force().await.map(drop)
    }

    /// `peeringState` of a half.
    pub async fn peering_state(&self, vnet: &str, remote: &str) -> Result<String> {
        let half = self.client()?.arm_get(&self.half(vnet, remote)).await?;
        let state = half.pointer("/properties/peeringState").and_then(Value::as_str);
        Ok(state.context("no peeringState")?.to_owned())
    }

    /// A route to `prefix` through a host, in one of the spokes' route tables.
    pub async fn route(&self, table: &str, name: &str, prefix: &str, appliance: &str) -> Result<()> {
        let path = format!("{}/routes/{name}", self.group().item("routeTables", table));
        let body = json!({"properties": {
            "addressPrefix": prefix, "nextHopType": "VirtualAppliance", "nextHopIpAddress": self.address(appliance)?,
        }});
        self.client()?.arm_put(&path, &body).await?;
        self.in_force().await.map(drop)
    }

    /// Every ping must be answered, in both directions.
    pub async fn reach(&self, a: &str, b: &str) -> Result<()> {
        for (from, to) in [(a, b), (b, a)] {
            let host = from.split('/').next().unwrap_or(from);
            let pinged = self.ping(host, to, Ping::REACHABLE).await?;
            ensure!(pinged.all(), "{from} → {to}: {pinged}");
        }
        Ok(())
    }

    /// No ping may be answered, in either direction.
    pub async fn silent(&self, a: &str, b: &str) -> Result<()> {
        for (from, to) in [(a, b), (b, a)] {
            let host = from.split('/').next().unwrap_or(from);
            match self.ping(host, to, Ping::UNREACHABLE).await {
                Ok(pinged) => ensure!(pinged.none(), "{from} → {to} must not answer: {pinged}"),
                // A stopped agent's address is gone with it, so the host cannot send from it.
                Err(error) if format!("{error:#}").contains("Cannot assign requested address") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Pings until all three in a row are answered.
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

    /// Traceroute shows exactly these hosts, the destination included; `*` is a silent hop.
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

    /// Waits until a connection has this status.
    pub async fn connection_is(&self, name: &str, status: &str) -> Result<()> {
        self.connection_is_because(name, status, "").await
    }

    /// Waits until a connection has this status, and its tunnels give a reason that contains `why`. A tunnel that is not
    /// up yet may have another reason at first.
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

    /// Waits until the controller has the current underlay address of a host's agent.
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

    /// No ping may be answered, in this direction only. The host may have lost its own address.
    pub async fn silent_or_down(&self, from: &str, to: &str) -> Result<()> {
        if let Ok(pinged) = self.ping(from, to, Ping::UNREACHABLE).await {
            ensure!(pinged.none(), "{from} → {to} must not answer: {pinged}");
        }
        Ok(())
    }

    /// No ping may be answered, in this direction only. The other host may have no address.
    pub async fn silent_from(&self, from: &str, to: &str) -> Result<()> {
        let pinged = self.ping(from, to, Ping::UNREACHABLE).await?;
        ensure!(pinged.none(), "{from} → {to} must not answer: {pinged}");
        Ok(())
    }

    /// The controller's routes and `explain` equal the agents' tables and live packets.
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

    /// Compares routes, `explain`, tables and packets, takes the lab down, and checks for leftovers.
    pub async fn end(self) -> Result<()> {
        self.agree().await?;
        self.down()
    }

    /// Takes the lab down, and checks for leftovers.
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

pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "end-to-end tests make network namespaces: run them as root"
    );
}

/// The namespaces of a lab.
pub fn namespaces(lab: &str) -> Vec<String> {
    let entries = std::fs::read_dir(Path::new("/run/netns")).into_iter().flatten();
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter(|n| n.starts_with(&format!("tb-{lab}-"))).collect()
}
