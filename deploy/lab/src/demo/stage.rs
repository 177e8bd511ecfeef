//! The actions and checks of which the demo's steps consist. Actions change resources through the REST interface.
//! Checks use pings, traces, and the states that the controller reports. A failed check is no error: it is recorded in
//! the report. An error means that an action or check could not be carried out.

use super::report::{Report, seconds};
use crate::check;
use crate::lab::Lab;
use crate::probe::{Ping, path};
use anyhow::{Context, Result};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Longest time that a tunnel may take to come up or to be reported as down. It covers two handshake attempts and the
/// agents' reports about them.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time that a restarted agent may take until it forwards packets again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(20);

/// Time between two requests for a connection's status.
const STATUS_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The lab that the steps change, and the report of what they do.
pub(super) struct Stage<'a> {
    pub(super) lab: &'a mut Lab,
    pub(super) report: &'a mut Report,
}

/// The flags of a peering half that the demo changes. `allowVirtualNetworkAccess` is always set.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flags {
    pub(super) forwarded: bool,
    pub(super) transit: bool,
    pub(super) remote_gateways: bool,
}

/// Returns the name of the peering half that leads to the VNet `remote`.
fn half(remote: &str) -> String {
    format!("to-{remote}")
}

impl<'a> Stage<'a> {
    /// Returns a stage on which steps change `lab` and report to `report`.
    pub(super) fn new(lab: &'a mut Lab, report: &'a mut Report) -> Self {
        Self { lab, report }
    }

    /// Returns the ARM path of the peering half of `vnet` that leads to the VNet `remote`.
    fn peering(&self, vnet: &str, remote: &str) -> String {
        let vnet = self.lab.group().item("virtualNetworks", vnet);
        format!("{vnet}/virtualNetworkPeerings/{}", half(remote))
    }

    /// Creates or changes the peering half of `vnet` to `remote`, and waits until the change is in force.
    pub(super) async fn peer(&mut self, vnet: &str, remote: &str, flags: Flags) -> Result<()> {
        let body = json!({"properties": {
            "remoteVirtualNetwork": {"id": self.lab.group().item("virtualNetworks", remote)},
            "allowVirtualNetworkAccess": true,
            "allowForwardedTraffic": flags.forwarded,
            "allowGatewayTransit": flags.transit,
            "useRemoteGateways": flags.remote_gateways,
        }});
        let mut what = format!("PUT {vnet}/{}", half(remote));
        let set = [
            (flags.forwarded, "allowForwardedTraffic"),
            (flags.transit, "allowGatewayTransit"),
            (flags.remote_gateways, "useRemoteGateways"),
        ];
        let set: Vec<_> = set.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if !set.is_empty() {
            what += &format!(" {{{}}}", set.join(", "));
        }
        self.put(&what, &self.peering(vnet, remote), &body).await
    }

    /// Deletes the peering half of `vnet` to `remote`, and waits until the deletion is in force.
    pub(super) async fn unpeer(&mut self, vnet: &str, remote: &str) -> Result<()> {
        let what = format!("DELETE {vnet}/{}", half(remote));
        self.report.progress().set_activity(&what);
        let start = Instant::now();
        let path = self.peering(vnet, remote);
        self.lab.client()?.arm_delete(&path).await.context(what.clone())?;
        self.wait(&what, start).await
    }

    /// Adds routes to the route table `table`: one for each prefix of the VNet `to` that has the address family of the
    /// appliance's address. Their next hop is the host `appliance`. Waits until the routes are in force.
    pub(super) async fn route(&mut self, table: &str, to: &str, appliance: &str) -> Result<()> {
        let next = self.lab.address(appliance)?;
        for prefix in self.prefixes(to)? {
            if prefix.addr().is_ipv4() != next.is_ipv4() {
                continue;
            }
            let path = self.lab.group().item("routeTables", table);
            let body = json!({"properties": {
                "addressPrefix": prefix, "nextHopType": "VirtualAppliance", "nextHopIpAddress": next,
            }});
            let what = format!("PUT {table}/{} {prefix} → {next}", half(to));
            self.put(&what, &format!("{path}/routes/{}", half(to)), &body).await?;
        }
        Ok(())
    }

    /// Sets a connection's shared key, and waits until the change is in force.
    pub(super) async fn shared_key(&mut self, connection: &str, key: &str) -> Result<()> {
        let path = self.lab.group().item("connections", connection);
        let what = format!("PUT {connection}/sharedkey \"{key}\"");
        self.put(&what, &format!("{path}/sharedkey"), &json!({"value": key}))
            .await
    }

    /// Returns the shared key that the topology gives a connection. Fails if it gives none.
    pub(super) fn key_of(&self, connection: &str) -> Result<String> {
        let found = self.lab.topology().resources.connections.find(connection);
        let key = found.and_then(|c| c.shared_key.clone());
        key.with_context(|| format!("the topology gives connection '{connection}' no shared key"))
    }

    /// Returns the address space that the topology gives a VNet.
    fn prefixes(&self, vnet: &str) -> Result<Vec<IpNet>> {
        let found = self.lab.topology().resources.virtual_networks.find(vnet);
        let found = found.with_context(|| format!("the topology has no VNet '{vnet}'"))?;
        Ok(found.address_space.iter().map(|p| p.0).collect())
    }

    /// Puts a resource, and waits until the change is in force. `what` describes the change in the report.
    pub(super) async fn put(&mut self, what: &str, path: &str, body: &Value) -> Result<()> {
        self.report.progress().set_activity(what);
        let start = Instant::now();
        self.lab
            .client()?
            .arm_put(path, body)
            .await
            .with_context(|| what.to_owned())?;
        self.wait(what, start).await
    }

    /// Waits until the last change is in force, and reports the durations of the change. `start`: when its request was
    /// sent.
    pub(super) async fn wait(&mut self, what: &str, start: Instant) -> Result<()> {
        let answered = start.elapsed();
        self.lab.in_force().await?;
        let total = seconds(start.elapsed());
        self.report.progress().idle();
        self.report
            .act(what, &format!("answered {}, in force {total}", seconds(answered)));
        Ok(())
    }

    /// Checks the `peeringState` of the peering half of `vnet` to `remote`. Does not wait for it.
    pub(super) async fn state_is(&mut self, vnet: &str, remote: &str, state: &str) -> Result<()> {
        let now = self.lab.client()?.arm_get(&self.peering(vnet, remote)).await?;
        let seen = now
            .pointer("/properties/peeringState")
            .and_then(Value::as_str)
            .unwrap_or("?");
        let what = format!("{vnet}/{} is {state}", half(remote));
        self.report
            .check(&what, seen == state, if seen == state { "" } else { seen });
        Ok(())
    }

    /// Checks that `to` answers every ping of the host `from`.
    pub(super) async fn reaches(&mut self, from: &str, to: &str) -> Result<()> {
        let what = format!("{from} → {to} answers");
        self.report.progress().set_activity(&what);
        let pinged = self.lab.ping(from, to, Ping::REACHABLE).await?;
        self.report.check(&what, pinged.all(), &pinged.to_string());
        Ok(())
    }

    /// Checks that the host `to` answers pings of the host `from` again within [`RESTART_TIMEOUT`] after `since`, the
    /// time at which an agent was restarted.
    pub(super) async fn reaches_again(&mut self, from: &str, to: &str, since: Instant) -> Result<()> {
        let what = format!("{from} → {to} answers again");
        self.report.progress().set_activity(&what);
        let once = Ping {
            count: 1,
            timeout: Duration::from_millis(200),
            ..Ping::UNREACHABLE
        };
        loop {
            // An error is no failure yet: until the agent has created its device, the ping's source address does not
            // exist. Ping then fails, which is no answer.
            let good = self.lab.ping(from, to, once).await.is_ok_and(|p| p.all());
            if good || since.elapsed() > RESTART_TIMEOUT {
                let seen = format!("{} after the start", seconds(since.elapsed()));
                self.report.check(&what, good, &seen);
                return Ok(());
            }
        }
    }

    /// Checks that pings are answered in both directions between two hosts.
    pub(super) async fn both_reach(&mut self, a: &str, b: &str) -> Result<()> {
        self.reaches(a, b).await?;
        self.reaches(b, a).await
    }

    /// Checks that `to` answers no ping of the host `from`.
    pub(super) async fn silent(&mut self, from: &str, to: &str) -> Result<()> {
        let what = format!("{from} → {to} does not answer");
        self.report.progress().set_activity(&what);
        let pinged = self.lab.ping(from, to, Ping::UNREACHABLE).await?;
        self.report.check(&what, pinged.none(), &pinged.to_string());
        Ok(())
    }

    /// Checks that the hops of a traceroute are exactly the hosts `via` and then the destination. `*` in `via` is a
    /// silent hop.
    pub(super) async fn path_is(&mut self, from: &str, to: &str, via: &[&str]) -> Result<()> {
        self.report.progress().set_activity(format!("traceroute {from} {to}"));
        let mut expected = Vec::new();
        for hop in via {
            expected.push(if *hop == "*" {
                None
            } else {
                Some(self.lab.address(hop)?)
            });
        }
        expected.push(Some(self.lab.address(to)?));
        let traced = self.lab.traceroute(from, to).await?;
        let names: Vec<_> = via.iter().copied().chain([to]).collect();
        let hops = if expected.len() == 1 { "hop" } else { "hops" };
        let what = format!("traceroute {from}: {} ({} {hops})", names.join(" → "), expected.len());
        let good = traced.hops == expected;
        let seen = if good {
            traced.to_string()
        } else {
            format!("expected {}, saw {traced}", path(&expected))
        };
        self.report.check(&what, good, &seen);
        Ok(())
    }

    /// Checks that `explain` names the rule `rule` as the one that drops the packet from `from` to `to`, or as the one
    /// that drops the reply.
    pub(super) async fn stopped_by(&mut self, from: &str, to: &str, rule: &str) -> Result<()> {
        let request = tombolo_client::fabric::ExplainRequest {
            from: from.to_owned(),
            to: self.lab.address(to)?.to_string(),
            protocol: tombolo_client::fabric::Protocol::Icmp,
            destination_port: None,
            ttl: None,
            design: false,
        };
        let said = self.lab.client()?.explain(&request).await?;
        let stop = [&said["request"]["stop"], &said["reply"]["stop"]]
            .into_iter()
            .find(|s| s.is_object());
        let seen = stop.and_then(|s| s["rule"].as_str()).unwrap_or("nothing");
        let summary = said["summary"].as_str().unwrap_or_default();
        let what = format!("explain {from} {to} names rule {rule}");
        let good = seen.split([',', ' ', '/']).any(|r| r == rule);
        self.report.check(
            &what,
            good,
            &if good {
                String::new()
            } else {
                format!("{seen}: {summary}")
            },
        );
        if good {
            self.report.dim(&format!("        {summary}"));
        }
        Ok(())
    }

    /// Checks that a connection gets the status `status`, with a reason that contains `reason`, within
    /// [`TUNNEL_TIMEOUT`].
    pub(super) async fn connection_is(&mut self, connection: &str, status: &str, reason: &str) -> Result<()> {
        let path = self.lab.group().item("connections", connection);
        let what = format!(
            "connection {connection} is {status}{}",
            if reason.is_empty() { "" } else { ", and says why" }
        );
        self.report.progress().set_activity(format!("waiting: {what}"));
        let start = Instant::now();
        loop {
            let now = self.lab.client()?.arm_get(&path).await?;
            let properties = &now["properties"];
            let seen = properties["connectionStatus"].as_str().unwrap_or("?").to_owned();
            let tunnels = properties["tunnelConnectionStatus"].as_array();
            let why = tunnels.into_iter().flatten().filter_map(|t| t["reason"].as_str());
            let why = why.collect::<Vec<_>>().join("; ");
            let good = seen == status && why.contains(reason);
            if good || start.elapsed() > TUNNEL_TIMEOUT {
                let after = seconds(start.elapsed());
                let seen = match (good, why.as_str()) {
                    (true, "") => after,
                    (true, why) => format!("{why} ({after})"),
                    (false, why) => format!("{seen} {why} after {after}"),
                };
                self.report.check(&what, good, &seen);
                return Ok(());
            }
            tokio::time::sleep(STATUS_POLL_INTERVAL).await;
        }
    }

    /// Checks that the controller's routes agree with the agents' tables, and `explain` with live packets, as
    /// [`check::all`] does.
    pub(super) async fn agrees(&mut self) -> Result<()> {
        self.report
            .progress()
            .set_activity("comparing routes and explain with the agents and with live packets");
        let found = check::all(self.lab).await?;
        let seen = if found.problems.is_empty() {
            format!(
                "{} agents, {} of {} pairs reach",
                found.agents,
                found.reachable(),
                found.pairs.len()
            )
        } else {
            found.problems.join("\n")
        };
        self.report.check(
            "routes and explain equal tables and live packets",
            found.problems.is_empty(),
            &seen,
        );
        Ok(())
    }

    /// Returns the primary overlay address of a host. Fails if the host has none.
    pub(super) fn address(&self, host: &str) -> Result<IpAddr> {
        self.lab.address(host)
    }
}
