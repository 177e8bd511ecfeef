//! Circuits, sites and VPNs live: every row of the published interoperability lab, and of a second one of another shape whose
//! table was written from the rules alone; each in the steady state, after its events and after the way back.

use anyhow::{Result, ensure};
use tombolo_lab::check;
use tombolo_lab::lab::{Lab, Options};
use tombolo_lab::topology::Topology;

async fn every_row(name: &str) -> Result<()> {
    let mut topology = Topology::load(name)?;
    topology.name = format!("e2e-{name}");
    let lab = Lab::up(&topology, Options::default()).await?;
    let mut wrong = Vec::new();
    let good = check::phases(&lab, true, |title, phase| {
        let rows = phase.map(|p| p.outcome.rows.as_slice()).unwrap_or_default();
        for row in rows.iter().filter(|r| !r.good()) {
            let (from, to) = (&row.row.from, &row.row.to);
            wrong.push(format!(
                "{title}: {from} → {to}: expected {}, seen {}",
                row.expected(),
                row.seen()
            ));
        }
    })
    .await?;
    ensure!(good, "{}", wrong.join("\n"));
    // E16: what pings do not show. Tables, links' sources and kernel routes of every agent are what the rules allow.
    let agreement = check::all(&lab).await?;
    ensure!(agreement.problems.is_empty(), "{}", agreement.problems.join("\n"));
    lab.down()
}

/// E, G, T: 30 rows, 11 that a cut changes, and 30 again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_lab_shows_every_published_path() -> Result<()> {
    every_row("interop").await
}

/// Two hubs joined twice, three circuits, a site on two of them, a chain of VPN gateways (E6, E7, E9, E12, G19, D9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hubs_show_every_path_that_the_rules_give() -> Result<()> {
    every_row("two-hubs").await
}
