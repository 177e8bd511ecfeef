//! Compares the rows of a topology whose source or destination is in a site with checks that the controller lets agents and
//! site probes make (M5, M10): what is expected, what live packets show, and what `explain` predicts.

use super::{Explanation, mark};
use crate::lab::Lab;
use crate::probe::path;
use crate::topology::expected::{Event, Hop, Row};
use anyhow::{Context, Result, bail};
use futures::StreamExt;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_client::fabric::{CheckRequest, ExplainRequest, Probe, Protocol};
use tombolo_proto::probe::ProbeKind;

/// Largest number of rows that are tried at the same time. Each row sends about 40 packets.
const MAX_CONCURRENT: usize = 6;
/// Largest TTL of a trace. The longest path of the built-in topologies has fewer hops.
const MAX_TTL: u8 = 8;
/// Longest time that routes may take to converge in a phase, as in the other checks.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two attempts while routes converge.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Stands for the routers of a site, which `explain` does not know.
const SITE: &str = "…";

/// A row of the topology, and what checks have shown.
#[derive(Debug, Clone)]
pub struct SiteViewRow {
    /// Row of the topology that was tried.
    pub row: Row,
    /// Whether a check's echo request was answered.
    pub reachable: bool,
    /// The hops of a trace from the source, without silent hops at its end.
    pub hops: Vec<Option<IpAddr>>,
    /// Whether `explain` predicts an answer.
    pub predicted: bool,
    /// The path that `explain` predicts, as text.
    pub predicted_path: String,
    /// The hop at which the trace of the check differs from `explain`, as text.
    pub difference: Option<String>,
}

impl SiteViewRow {
    /// Whether live packets and the prediction are as expected, and agree hop by hop.
    #[must_use]
    pub fn good(&self) -> bool {
        let same = |hops: &Vec<Hop>| hops.iter().map(|h| h.0).eq(self.hops.iter().copied());
        let is_path = !self.row.reachable || self.row.lists().any(same);
        self.reachable == self.row.reachable
            && self.predicted == self.row.reachable
            && is_path
            && self.difference.is_none()
    }

    /// The cells of a table: mark, pair, expected, seen, predicted.
    pub(super) fn cells(&self) -> [String; 5] {
        let expected = match self.row.reachable {
            false => "no answer".to_owned(),
            true => {
                let text = |hops: &Vec<Hop>| path(&hops.iter().map(|h| h.0).collect::<Vec<_>>());
                let same = |hops: &&Vec<Hop>| hops.iter().map(|h| h.0).eq(self.hops.iter().copied());
                let found = self.row.lists().find(same).map(text);
                found.unwrap_or_else(|| self.row.lists().map(text).collect::<Vec<_>>().join(", or "))
            }
        };
        let mut predicted = self.predicted_path.clone();
        if let Some(difference) = &self.difference {
            predicted += &format!(" ({difference})");
        }
        let seen = if self.reachable {
            path(&self.hops)
        } else {
            "no answer".to_owned()
        };
        let pair = format!("{} → {}", self.row.from, self.row.to);
        [mark(self.good()).to_owned(), pair, expected, seen, predicted]
    }
}

/// The results of a phase.
#[derive(Debug, Clone)]
pub struct SiteViewPhase {
    /// Title for people: `steady state`, `after 'EVENT'` or `restored after 'EVENT'`.
    pub title: String,
    /// The rows whose source or destination is in a site.
    pub rows: Vec<SiteViewRow>,
}

/// Checks the rows with a site at one end, in the steady state; with `events` also after each event, and after it was
/// undone. Calls `report` before a phase with its title and `None`, and after it with its results. All events are undone
/// at the end, also after an error. Returns whether all results were as expected.
///
/// # Errors
/// No site of the topology has a probe, the controller or an agent does not answer, or an event cannot be triggered.
pub async fn site_view(lab: &Lab, events: bool, mut report: impl FnMut(&str, Option<&SiteViewPhase>)) -> Result<bool> {
    if lab.topology().probes().next().is_none() {
        bail!(
            "no site of the lab {} has a probe: add 'probes' to its 'lan'",
            lab.topology().name
        );
    }
    lab.undo_events()?;
    let good = walk(lab, events, &mut report).await;
    lab.undo_events()?;
    good
}

async fn walk(lab: &Lab, events: bool, report: &mut impl FnMut(&str, Option<&SiteViewPhase>)) -> Result<bool> {
    let topology = lab.topology();
    let mut good = phase(lab, "steady state".to_owned(), &topology.expected, report).await?;
    let all: Vec<(&str, &Event)> = topology.events.iter().filter(|_| events).collect();
    for (name, event) in all {
        lab.trigger(event)?;
        good &= phase(lab, format!("after '{name}'"), &topology.rows_after(event), report).await?;
        lab.undo_events()?;
        good &= phase(lab, format!("restored after '{name}'"), &topology.expected, report).await?;
    }
    Ok(good)
}

async fn phase(
    lab: &Lab,
    title: String,
    rows: &[Row],
    report: &mut impl FnMut(&str, Option<&SiteViewPhase>),
) -> Result<bool> {
    report(&title, None);
    let probes: BTreeSet<String> = lab.topology().probes().map(|(machine, ..)| machine.host).collect();
    let is_wanted = |row: &&Row| probes.contains(&row.from) || probes.contains(&row.to);
    let wanted: Vec<Row> = rows.iter().filter(is_wanted).cloned().collect();
    let begun = Instant::now();
    let mut tried = try_rows(lab, &wanted, &probes).await?;
    while !tried.iter().all(SiteViewRow::good) && begun.elapsed() < CONVERGENCE_TIMEOUT {
        tokio::time::sleep(RETRY_INTERVAL).await;
        let left: Vec<Row> = tried.iter().filter(|t| !t.good()).map(|t| t.row.clone()).collect();
        let mut again = try_rows(lab, &left, &probes).await?.into_iter();
        for old in tried.iter_mut().filter(|t| !t.good()) {
            if let Some(new) = again.next() {
                *old = new;
            }
        }
    }
    let good = tried.iter().all(SiteViewRow::good);
    let done = SiteViewPhase { title, rows: tried };
    report(&done.title, Some(&done));
    Ok(good)
}

async fn try_rows(lab: &Lab, rows: &[Row], probes: &BTreeSet<String>) -> Result<Vec<SiteViewRow>> {
    let all = futures::stream::iter(rows.iter().cloned().map(|row| try_row(lab, row, probes)));
    let tried: Vec<Result<SiteViewRow>> = all.buffered(MAX_CONCURRENT).collect().await;
    tried.into_iter().collect()
}

async fn try_row(lab: &Lab, row: Row, probes: &BTreeSet<String>) -> Result<SiteViewRow> {
    let client = lab.client()?;
    let (from, to) = (row.from.clone(), row.to.clone());
    let at = || format!("{} → {}", row.from, row.to);
    let question = ExplainRequest {
        from: from.clone(),
        to: to.clone(),
        protocol: Protocol::Icmp,
        destination_port: None,
        ttl: None,
        design: false,
    };
    let explained: Explanation = serde_json::from_value(client.explain(&question).await.with_context(at)?)?;
    let check = CheckRequest {
        from: from.clone(),
        to: to.clone(),
        protocol: Protocol::Icmp,
        port: None,
    };
    let checked = client.check(&check).await.with_context(at)?;
    let trace = Probe {
        from,
        to,
        kind: ProbeKind::Trace,
        count: None,
        interval_ms: None,
        timeout_ms: None,
        max_ttl: Some(MAX_TTL),
        port: None,
    };
    let traced = client.probe(&trace).await.with_context(at)?.report;
    if let Some(error) = traced.error {
        bail!("{}: {error}", at());
    }
    let mut hops: Vec<Option<IpAddr>> = traced.hops.into_iter().map(|hop| hop.address).collect();
    while hops.last().is_some_and(Option::is_none) {
        hops.pop();
    }
    Ok(SiteViewRow {
        reachable: checked["connectionStatus"] == "Reachable",
        hops,
        predicted: explained.reachable,
        predicted_path: predicted_path(&explained, probes.contains(&row.from), probes.contains(&row.to)),
        difference: difference(&checked),
        row,
    })
}

/// The path that `explain` predicts. The routers of the sites at its ends are not known.
fn predicted_path(explained: &Explanation, from_site: bool, to_site: bool) -> String {
    if !explained.reachable {
        return "no answer".to_owned();
    }
    let known: Vec<_> = explained.trace.iter().map(|hop| hop.address).collect();
    let before = from_site.then(|| SITE.to_owned());
    let after = to_site.then(|| SITE.to_owned());
    let known = (!known.is_empty()).then(|| path(&known));
    let parts: Vec<String> = before.into_iter().chain(known).chain(after).collect();
    parts.join(" → ")
}

fn difference(checked: &Value) -> Option<String> {
    let found = checked.get("difference").filter(|d| !d.is_null())?;
    let text = |field: &str| found[field].as_str().unwrap_or("*").to_owned();
    Some(format!(
        "TTL {}: {} instead of {}",
        found["ttl"],
        text("observed"),
        text("expected")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::TraceHop;

    fn row(reachable: bool) -> SiteViewRow {
        let row = "{from: loc1-vm, to: hub-vm, reachable: true, hops: [10.2.30.3, '*', 10.10.30.4]}";
        SiteViewRow {
            row: Row {
                reachable,
                ..serde_norway::from_str(row).unwrap()
            },
            reachable,
            hops: ["10.2.30.3", "*", "10.10.30.4"].map(|h| h.parse().ok()).to_vec(),
            predicted: reachable,
            predicted_path: String::new(),
            difference: None,
        }
    }

    /// M10: a row is as expected only if live packets, the prediction and the expectation agree.
    #[test]
    fn m10_packets_prediction_and_expectation_agree() {
        assert!(row(true).good() && row(false).good());
        let wrong: [fn(&mut SiteViewRow); 4] = [
            |r| r.reachable = false,
            |r| r.predicted = false,
            |r| r.difference = Some("TTL 1".into()),
            |r| r.hops.truncate(2),
        ];
        for change in wrong {
            let mut changed = row(true);
            change(&mut changed);
            assert!(!changed.good(), "{changed:?}");
        }
        let mut silent = row(false);
        silent.predicted = true;
        assert!(!silent.good(), "the prediction counts for unreachable rows too");
    }

    /// M10: the routers of a site are not predicted.
    #[test]
    fn m10_a_site_is_an_unknown_part_of_the_predicted_path() {
        let explained = |reachable| Explanation {
            reachable,
            summary: String::new(),
            trace: ["192.168.30.18", "*", "10.10.30.4"]
                .map(|hop| TraceHop {
                    address: hop.parse().ok(),
                })
                .into(),
        };
        assert_eq!(
            predicted_path(&explained(true), true, false),
            "… → 192.168.30.18 → * → 10.10.30.4"
        );
        assert_eq!(predicted_path(&explained(false), true, false), "no answer");
    }
}
