//! Compares the rows of a topology, which are the expectations for pairs of hosts, with real pings and traces. Repeats
//! this until the results of all rows are as expected or a time limit has passed.

use crate::lab::Lab;
use crate::probe::{Ping, PingResult, TraceResult};
use crate::topology::expected::{Hop, Learned, Row};
use anyhow::Result;
use futures::StreamExt;
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Largest number of rows that are tried at the same time. A small machine can still answer all probes of this many
/// simultaneous traces in time (D24); each trace sends three probes for each TTL.
const MAX_CONCURRENT: usize = 10;
/// Probes for each TTL. A hop counts as silent only if it answers none of them.
const PROBES_PER_TTL: u8 = 3;
/// Echo requests for each row. All must be answered, or none.
const PINGS_PER_ROW: u32 = 4;
/// Pause between two attempts while routes converge.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A row of the topology, and what live packets showed for it.
#[derive(Debug, Clone)]
pub struct RowResult {
    /// Row of the topology that was tried.
    pub row: Row,
    /// Result of the row's pings.
    pub pinged: PingResult,
    /// Result of the trace; `None` if no trace was made, because the row expects no answer and no ping was answered.
    pub traced: Option<TraceResult>,
}

impl RowResult {
    /// Whether the result is as expected. If the row expects the pair to be reachable, all pings must be answered and
    /// the trace must be a permitted list of hops, with at most one address that answers at each TTL. If the row
    /// expects the pair to be unreachable, there must be no answer and no ICMP error.
    #[must_use]
    pub fn good(&self) -> bool {
        match (&self.traced, self.row.reachable) {
            (None, false) => self.pinged.none() && self.pinged.refusals == 0,
            (Some(traced), true) => self.pinged.all() && self.matching(traced).is_some(),
            (None, true) | (Some(_), false) => false,
        }
    }

    /// Returns the permitted list of hops that equals the trace; `None` if no permitted list does, or if several
    /// addresses answered at one TTL.
    fn matching(&self, traced: &TraceResult) -> Option<&Vec<Hop>> {
        let same = |hops: &&Vec<Hop>| hops.iter().map(|h| h.0).eq(traced.hops.iter().copied());
        self.row.lists().find(same).filter(|_| traced.others.is_empty())
    }

    /// Formats the expectation in the form of [`Self::seen`]. If the row permits several lists of hops, the text has
    /// only the list that equals the trace, or all lists if none equals it.
    #[must_use]
    pub fn expected(&self) -> String {
        if !self.row.reachable {
            return "no answer".into();
        }
        let text = |hops: &Vec<Hop>| {
            let hops: Vec<Option<IpAddr>> = hops.iter().map(|h| h.0).collect();
            crate::probe::path(&hops)
        };
        match self.traced.as_ref().and_then(|t| self.matching(t)) {
            Some(hops) => text(hops),
            None => self.row.lists().map(text).collect::<Vec<_>>().join(", or "),
        }
    }

    /// Formats the result: the hops of the trace, followed by the pings' result if not all pings were answered. Without
    /// a trace it is `no answer`, or the pings' result if ICMP errors have arrived.
    #[must_use]
    pub fn seen(&self) -> String {
        match &self.traced {
            Some(traced) if self.pinged.all() => traced.to_string(),
            Some(traced) => format!("{traced}; ping: {}", self.pinged),
            None if self.pinged.none() && self.pinged.refusals == 0 => "no answer".into(),
            None => format!("ping: {}", self.pinged),
        }
    }
}

/// The prefixes that a customer edge must learn from a neighbour, and those that it has learned.
#[derive(Debug, Clone)]
pub struct LearnedResult {
    /// The customer edge, its neighbour, and the prefixes that the neighbour is expected to advertise.
    pub expectation: Learned,
    /// Prefixes that the BIRD of the customer edge has learned from the neighbour.
    pub prefixes: BTreeSet<Ipv4Net>,
}

impl LearnedResult {
    /// Whether exactly the expected prefixes were learned.
    #[must_use]
    pub fn good(&self) -> bool {
        self.expectation.prefixes.iter().copied().collect::<BTreeSet<_>>() == self.prefixes
    }

    /// Formats the customer edge and its neighbour: `SITE ROUTER ← CIRCUIT primary`, or `SITE ROUTER ← CONNECTION` for
    /// a tunnel.
    #[must_use]
    pub fn neighbour(&self) -> String {
        let Learned {
            site,
            router,
            line,
            tunnel,
            ..
        } = &self.expectation;
        let line = line.as_ref().map(ToString::to_string);
        format!("{site} {router} ← {}", line.or(tunnel.clone()).unwrap_or_default())
    }

    /// Formats the expected prefixes as one sorted line; `nothing` if there are none.
    #[must_use]
    pub fn expected(&self) -> String {
        prefix_list(&self.expectation.prefixes.iter().copied().collect())
    }

    /// Formats the learned prefixes as one sorted line; `nothing` if there are none.
    #[must_use]
    pub fn seen(&self) -> String {
        prefix_list(&self.prefixes)
    }
}

fn prefix_list(prefixes: &BTreeSet<Ipv4Net>) -> String {
    let all: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    if all.is_empty() {
        "nothing".into()
    } else {
        all.join(" ")
    }
}

/// The results of a phase: one for each row and for each expectation of learned prefixes.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Last result of every row, in the order of the rows.
    pub rows: Vec<RowResult>,
    /// Last result of every expectation of learned prefixes, in their order.
    pub learned: Vec<LearnedResult>,
    /// Time from the start until all rows were as expected. None if not all results are as expected at the end.
    pub after: Option<Duration>,
}

impl Outcome {
    /// Whether the results of all rows and of all learned prefixes are as expected.
    #[must_use]
    pub fn good(&self) -> bool {
        self.rows.iter().all(RowResult::good) && self.learned.iter().all(LearnedResult::good)
    }

    /// Returns two numbers: how many results there are, and how many of them are as expected.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let all = self
            .rows
            .iter()
            .map(RowResult::good)
            .chain(self.learned.iter().map(LearnedResult::good));
        all.fold((0, 0), |(n, good), is_good| (n + 1, good + usize::from(is_good)))
    }
}

/// Tries all `rows` until the results are as expected, or `limit` has passed. First waits, within the same limit, until
/// the customer edges have learned the prefixes in `expected`. While some rows are not as expected, only these are
/// tried again. Then all rows are tried once more, which shows that the results of all rows hold at the same time. A
/// round that has begun before `limit` is finished, and there is at least one round. Results that are not as expected
/// are no error. Changes nothing in the lab.
///
/// # Errors
/// A host of a row does not exist or has no address, a ping or traceroute cannot run, or a routing daemon does not
/// answer.
pub async fn rows(lab: &Lab, rows: &[Row], expected: &[Learned], limit: Duration) -> Result<Outcome> {
    let start = Instant::now();
    while !read_learned(lab, expected).await?.iter().all(LearnedResult::good) && start.elapsed() < limit {
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    let mut tried = try_rows(lab, rows).await?;
    let mut after = tried.iter().all(RowResult::good).then(|| start.elapsed());
    // In an earlier round a row may have matched because routes had not changed yet. So the last round tries all rows.
    let mut whole = true;
    while !(whole && tried.iter().all(RowResult::good)) && start.elapsed() < limit {
        if tried.iter().all(RowResult::good) {
            after = after.or(Some(start.elapsed()));
            tried = try_rows(lab, rows).await?;
            whole = true;
        } else {
            tokio::time::sleep(RETRY_INTERVAL).await;
            let left: Vec<_> = tried.iter().filter(|t| !t.good()).map(|t| t.row.clone()).collect();
            let mut again = try_rows(lab, &left).await?.into_iter();
            for old in tried.iter_mut().filter(|t| !t.good()) {
                if let Some(new) = again.next() {
                    *old = new;
                }
            }
            whole = false;
        }
    }
    // The learned prefixes may have changed since the first check, so they are read again at the end.
    let mut outcome = Outcome {
        rows: tried,
        learned: read_learned(lab, expected).await?,
        after,
    };
    outcome.after = outcome.after.filter(|_| outcome.good());
    Ok(outcome)
}

async fn read_learned(lab: &Lab, expected: &[Learned]) -> Result<Vec<LearnedResult>> {
    let mut all = Vec::new();
    for expectation in expected {
        let prefixes = lab.learned(expectation).await?;
        all.push(LearnedResult {
            expectation: expectation.clone(),
            prefixes,
        });
    }
    Ok(all)
}

async fn try_rows(lab: &Lab, rows: &[Row]) -> Result<Vec<RowResult>> {
    let tried = futures::stream::iter(rows.to_vec()).map(|row| try_row(lab, row));
    let tried: Vec<_> = tried.buffered(MAX_CONCURRENT).collect().await;
    tried.into_iter().collect()
}

async fn try_row(lab: &Lab, row: Row) -> Result<RowResult> {
    let how = if row.reachable {
        Ping::REACHABLE
    } else {
        Ping::UNREACHABLE
    };
    let (pinged, traced) = super::ping_and_trace(
        lab,
        (&row.from, &row.to),
        Ping {
            count: PINGS_PER_ROW,
            ..how
        },
        PROBES_PER_TTL,
        row.reachable,
    )
    .await?;
    Ok(RowResult { row, pinged, traced })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(reachable: bool, hops: &str, received: u32, refusals: u32) -> RowResult {
        let row = "{from: a, to: b, reachable: true, hops: ['10.0.0.1', '*', '10.0.0.9'],
            alternatives: [['10.0.0.2', '*', '10.0.0.9']]}";
        let row: Row = serde_norway::from_str(row).unwrap();
        let row = if reachable {
            row
        } else {
            Row {
                reachable,
                hops: Vec::new(),
                alternatives: Vec::new(),
                ..row
            }
        };
        let hops: Vec<Option<IpAddr>> = hops.split_whitespace().map(|h| h.parse().ok()).collect();
        RowResult {
            row,
            pinged: PingResult {
                sent: 4,
                received,
                missing: (received + 1..=4).collect(),
                refusals,
                rtts_ms: Vec::new(),
            },
            traced: (!hops.is_empty()).then_some(TraceResult {
                hops,
                others: Vec::new(),
                reached: true,
            }),
        }
    }

    #[test]
    fn a_row_is_as_expected_or_not() {
        assert!(tried(true, "10.0.0.1 * 10.0.0.9", 4, 0).good());
        let other = tried(true, "10.0.0.2 * 10.0.0.9", 4, 0);
        assert!(other.good());
        assert_eq!(other.expected(), other.seen());
        for wrong in [
            tried(true, "10.0.0.1 10.0.0.5 10.0.0.9", 4, 0),
            tried(true, "10.0.0.3 * 10.0.0.9", 4, 0),
            tried(true, "10.0.0.1 10.0.0.9", 4, 0),
            tried(true, "10.0.0.1 * 10.0.0.9", 3, 0),
            tried(false, "10.0.0.1 * 10.0.0.9", 4, 0),
        ] {
            assert!(!wrong.good());
            assert_ne!(wrong.expected(), wrong.seen());
        }
        assert!(tried(false, "", 0, 0).good());
        assert!(!tried(false, "", 0, 2).good(), "ICMP errors arrived (T8)");
        assert!(!tried(false, "", 1, 0).good());
        let mut two = tried(true, "10.0.0.1 * 10.0.0.9", 4, 0);
        two.traced
            .as_mut()
            .unwrap()
            .others
            .push((0, "10.0.0.2".parse().unwrap()));
        assert!(!two.good(), "two answer at one step");
    }
}
