//! Actions and checks for steps about ports and network security groups: checks of open and closed ports, changes of rules,
//! and checks of the counters of rules.

use super::report::seconds;
use super::stage::Stage;
use crate::echo::{self, Connection, Port};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tombolo_client::fabric::{ExplainRequest, Protocol};

/// Longest time until the controller must have an agent's counters. Agents report every 2 s.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time between two requests for the agents' reports.
const REPORT_POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Stage<'_> {
    /// Checks that the server at a port of `to` answers the host `from`, and that `explain` predicts an answer.
    pub(super) async fn opens(&mut self, from: &str, to: &str, port: Port) -> Result<()> {
        self.port_is(from, to, port, true).await
    }

    /// Checks that the server at a port of `to` does not answer the host `from`, and that `explain` predicts no answer.
    pub(super) async fn closed(&mut self, from: &str, to: &str, port: Port) -> Result<()> {
        self.port_is(from, to, port, false).await
    }

    async fn port_is(&mut self, from: &str, to: &str, port: Port, expected: bool) -> Result<()> {
        let what = format!(
            "{from} → {to} {port} {}",
            if expected { "is open" } else { "does not answer" }
        );
        self.report.progress().set_activity(&what);
        let (netns, address) = (self.lab.hosts().netns(from), self.address(to)?);
        let answered = tokio::task::spawn_blocking(move || echo::attempt(&netns, address, port)).await??;
        let said = self.explain_port(from, to, port).await?;
        let predicted = said["reachable"].as_bool() == Some(true);
        let seen = match (answered, predicted == expected) {
            (_, false) => format!("explain says: {}", said["summary"].as_str().unwrap_or_default()),
            (Some(after), true) => format!("answers after {}", seconds(after)),
            (None, true) => "no answer".to_owned(),
        };
        let good = answered.is_some() == expected && predicted == expected;
        self.report.check(&what, good, &seen);
        Ok(())
    }

    /// Checks that `explain` names the security rule that stops a packet to a port.
    pub(super) async fn denied_by(&mut self, from: &str, to: &str, port: Port, rule: &str) -> Result<()> {
        let said = self.explain_port(from, to, port).await?;
        let summary = said["summary"].as_str().unwrap_or_default();
        let what = format!("explain {from} {to} {port} names the rule {rule}");
        let good = said["request"]["stop"].is_object() && summary.contains(rule);
        self.report.check(&what, good, if good { "" } else { summary });
        if good {
            self.report.dim(&format!("        {summary}"));
        }
        Ok(())
    }

    /// Returns what `explain` says of a packet to a port.
    pub(super) async fn explain_port(&self, from: &str, to: &str, port: Port) -> Result<Value> {
        Ok(self.lab.client()?.explain(&self.question(from, to, port)?).await?)
    }

    /// Checks that `explain --fix` finds a repair of one change, whose text contains `words`, and that connects something.
    /// Makes the change, and waits until it is in force.
    pub(super) async fn repair(&mut self, from: &str, to: &str, port: Port, words: &str) -> Result<()> {
        let what = format!("explain {from} {to} {port} --fix: {words}");
        self.report.progress().set_activity(&what);
        let found = self.lab.client()?.repair(&self.question(from, to, port)?).await?;
        let repair = &found["repairs"][0];
        let text = repair["changes"][0]["text"].as_str().unwrap_or_default().to_owned();
        let connects = repair["connects"]
            .as_array()
            .is_some_and(|connects| !connects.is_empty());
        let good = repair["changes"].as_array().map(Vec::len) == Some(1) && text.contains(words) && connects;
        self.report.check(&what, good, if good { "" } else { &text });
        if !good {
            return Ok(());
        }
        let start = Instant::now();
        self.lab.client()?.make_change(&repair["changes"][0]).await?;
        self.wait(&text, start).await
    }

    fn question(&self, from: &str, to: &str, port: Port) -> Result<ExplainRequest> {
        let (protocol, number) = match port {
            Port::Tcp(number) => (Protocol::Tcp, number),
            Port::Udp(number) => (Protocol::Udp, number),
        };
        Ok(ExplainRequest {
            from: from.to_owned(),
            to: self.address(to)?.to_string(),
            protocol,
            destination_port: Some(number),
            ttl: None,
            design: false,
        })
    }

    /// Checks that at least one agent has counted a packet for a rule of a group. Waits up to 10 s for the agents'
    /// reports.
    pub(super) async fn counted(&mut self, group: &str, rule: &str) -> Result<()> {
        let what = format!("packets are counted under the rule {rule} of {group}");
        self.report.progress().set_activity(&what);
        let group = self.lab.group().item("networkSecurityGroups", group);
        let start = Instant::now();
        loop {
            let agents = self.lab.client()?.agents().await?;
            let hits = agents
                .iter()
                .filter_map(|a| a.status.as_ref())
                .flat_map(|s| &s.rule_hits);
            let of_rule = hits.filter(|h| {
                let named = h.rule.rsplit('/').next().is_some_and(|name| name == rule);
                named && h.group.as_str().eq_ignore_ascii_case(&group)
            });
            let packets: u64 = of_rule.map(|h| h.packets).sum();
            if packets > 0 || start.elapsed() > REPORT_TIMEOUT {
                self.report.check(&what, packets > 0, &format!("{packets} packets"));
                return Ok(());
            }
            tokio::time::sleep(REPORT_POLL_INTERVAL).await;
        }
    }

    /// Opens a TCP connection, which stays open until the returned value is dropped. Fails if nobody answers, or if
    /// `port` is a UDP port.
    pub(super) async fn connection(&mut self, from: &str, to: &str, port: Port) -> Result<Connection> {
        let Port::Tcp(number) = port else {
            anyhow::bail!("{port} has no connections");
        };
        let (netns, address) = (self.lab.hosts().netns(from), SocketAddr::new(self.address(to)?, number));
        let opened = tokio::task::spawn_blocking(move || Connection::open(&netns, address)).await??;
        opened.with_context(|| format!("{from} → {to} {port} does not answer"))
    }

    /// Checks that an open connection still carries data.
    pub(super) async fn still_works(&mut self, connection: &mut Connection, what: &str) -> Result<()> {
        let exchanged = tokio::task::block_in_place(|| connection.exchange());
        let seen = exchanged.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.report
            .check(&format!("{what} still works"), exchanged.is_ok(), &seen);
        Ok(())
    }

    /// Creates or changes a security rule, and waits until the change is in force.
    pub(super) async fn put_rule(&mut self, group: &str, name: &str, body: &Value) -> Result<()> {
        let path = self.rule(group, name);
        let properties = &body["properties"];
        let text = |name: &str| properties[name].as_str().unwrap_or_default().to_owned();
        let what = format!(
            "PUT {group}/{name} {{{} {} {} → {}, priority {}}}",
            text("access"),
            text("protocol"),
            text("sourceAddressPrefix"),
            text("destinationPortRange"),
            properties["priority"]
        );
        self.put(&what, &path, body).await
    }

    /// Deletes a security rule, and waits until the change is in force. Fails if there is no such rule.
    pub(super) async fn delete_rule(&mut self, group: &str, name: &str) -> Result<()> {
        let what = format!("DELETE {group}/{name}");
        self.report.progress().set_activity(&what);
        let start = Instant::now();
        let existed = self.lab.client()?.arm_delete(&self.rule(group, name)).await?;
        ensure!(existed, "{group} has no rule {name}");
        self.wait(&what, start).await
    }

    fn rule(&self, group: &str, name: &str) -> String {
        let group = self.lab.group().item("networkSecurityGroups", group);
        format!("{group}/securityRules/{name}")
    }

    /// Sets the application security groups of a network interface, and waits until the change is in force.
    pub(super) async fn set_application_groups(&mut self, nic: &str, groups: &[&str]) -> Result<()> {
        let path = self.lab.group().item("networkInterfaces", nic);
        let ids = groups
            .iter()
            .map(|g| self.lab.group().item("applicationSecurityGroups", g));
        let ids: Vec<Value> = ids.map(|id| json!({"id": id})).collect();
        let mut body = self.lab.client()?.arm_get(&path).await?;
        let configurations = body["properties"]["ipConfigurations"].as_array_mut();
        for configuration in configurations.into_iter().flatten() {
            configuration["properties"]["applicationSecurityGroups"] = json!(ids);
        }
        let what = format!("PUT {nic} {{applicationSecurityGroups: [{}]}}", groups.join(", "));
        self.put(&what, &path, &body).await
    }
}
