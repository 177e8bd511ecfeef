//! What a topology expects against what is: every row with real pings and traces, until it is seen or time is up.

use crate::lab::Lab;
use crate::probe::{Ping, Pinged, Traced};
use crate::topology::expected::{Hop, Learned, Row};
use anyhow::Result;
use futures::StreamExt;
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Rows that are tried at the same time. Every router answers three probes a TTL from thirty sources at once (D24), and
/// a small machine keeps up.
const AT_ONCE: usize = 10;
/// Probes a TTL; a silent hop answers none of them.
const PROBES: u8 = 3;
/// Pings a row.
const PINGS: u32 = 4;
/// Between two rounds, while routes change.
const PAUSE: Duration = Duration::from_millis(500);

/// A row and what was seen.
#[derive(Debug, Clone)]
pub struct Tried {
    /// What was expected.
    pub row: Row,
    /// Pings.
    pub pinged: Pinged,
    /// The trace, for a row that should reach or whose pings were answered.
    pub traced: Option<Traced>,
}

impl Tried {
    /// It was seen as expected.
    #[must_use]
    pub fn good(&self) -> bool {
        match (&self.traced, self.row.reachable) {
            (None, false) => self.pinged.none() && self.pinged.refusals == 0,
            (Some(traced), true) => self.pinged.all() && self.matching(traced).is_some(),
            (None, true) | (Some(_), false) => false,
        }
    }

    /// The list of hops that was seen, of those that are right.
    fn matching(&self, traced: &Traced) -> Option<&Vec<Hop>> {
        let same = |hops: &&Vec<Hop>| hops.iter().map(|h| h.0).eq(traced.hops.iter().copied());
        self.row.lists().find(same).filter(|_| traced.others.is_empty())
    }

    /// What was expected, in the words of [`Self::seen`]: of several lists the one that was seen.
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

    /// What was seen.
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

/// What a customer edge should have learned from a neighbour, and what it has.
#[derive(Debug, Clone)]
pub struct Heard {
    /// What was expected.
    pub learned: Learned,
    /// What its routing daemon says.
    pub seen: BTreeSet<Ipv4Net>,
}

impl Heard {
    /// Neither more nor less.
    #[must_use]
    pub fn good(&self) -> bool {
        self.learned.prefixes.iter().copied().collect::<BTreeSet<_>>() == self.seen
    }

    /// The router and its neighbour.
    #[must_use]
    pub fn who(&self) -> String {
        let Learned {
            site,
            router,
            line,
            tunnel,
            ..
        } = &self.learned;
        let line = line.as_ref().map(ToString::to_string);
        format!("{site} {router} ← {}", line.or(tunnel.clone()).unwrap_or_default())
    }

    /// What was expected.
    #[must_use]
    pub fn expected(&self) -> String {
        words(&self.learned.prefixes.iter().copied().collect())
    }

    /// What was seen.
    #[must_use]
    pub fn saw(&self) -> String {
        words(&self.seen)
    }
}

fn words(prefixes: &BTreeSet<Ipv4Net>) -> String {
    let all: Vec<_> = prefixes.iter().map(ToString::to_string).collect();
    if all.is_empty() {
        "nothing".into()
    } else {
        all.join(" ")
    }
}

/// What came of a set of rows.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Every row, in order, as it was seen last.
    pub rows: Vec<Tried>,
    /// What customer edges have learned.
    pub heard: Vec<Heard>,
    /// When all of them were first seen as expected; none: they were not.
    pub after: Option<Duration>,
}

impl Outcome {
    /// Every row was seen as expected.
    #[must_use]
    pub fn good(&self) -> bool {
        self.rows.iter().all(Tried::good) && self.heard.iter().all(Heard::good)
    }

    /// How many rows there are, and how many of them were seen as expected; what a neighbour told is a row too.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let all = self
            .rows
            .iter()
            .map(Tried::good)
            .chain(self.heard.iter().map(Heard::good));
        all.fold((0, 0), |(n, good), is_good| (n + 1, good + usize::from(is_good)))
    }
}

/// Tries rows until all are as expected at the same time, or `limit` has passed.
///
/// # Errors
/// A probe cannot run at all.
pub async fn rows(lab: &Lab, rows: &[Row], learned: &[Learned], limit: Duration) -> Result<Outcome> {
    let start = Instant::now();
    let mut heard = hear(lab, learned).await?;
    while !heard.iter().all(Heard::good) && start.elapsed() < limit {
        tokio::time::sleep(PAUSE).await;
        heard = hear(lab, learned).await?;
    }
    let mut tried = round(lab, rows).await?;
    let mut after = tried.iter().all(Tried::good).then(|| start.elapsed());
    // Rows that were right before others may have been so by the routes of before.
    let mut whole = true;
    while !(whole && tried.iter().all(Tried::good)) && start.elapsed() < limit {
        if tried.iter().all(Tried::good) {
            after = after.or(Some(start.elapsed()));
            tried = round(lab, rows).await?;
            whole = true;
        } else {
            tokio::time::sleep(PAUSE).await;
            let left: Vec<_> = tried.iter().filter(|t| !t.good()).map(|t| t.row.clone()).collect();
            let mut again = round(lab, &left).await?.into_iter();
            for old in tried.iter_mut().filter(|t| !t.good()) {
                if let Some(new) = again.next() {
                    *old = new;
                }
            }
            whole = false;
        }
    }
    // Again: what was right once may have gone on changing.
    let heard = hear(lab, learned).await?;
    let mut outcome = Outcome {
        rows: tried,
        heard,
        after,
    };
    outcome.after = outcome.after.filter(|_| outcome.good());
    Ok(outcome)
}

async fn hear(lab: &Lab, learned: &[Learned]) -> Result<Vec<Heard>> {
    let mut all = Vec::new();
    for one in learned {
        let seen = lab.learned(one).await?;
        all.push(Heard {
            learned: one.clone(),
            seen,
        });
    }
    Ok(all)
}

async fn round(lab: &Lab, rows: &[Row]) -> Result<Vec<Tried>> {
    let tried = futures::stream::iter(rows.to_vec()).map(|row| one(lab, row));
    let tried: Vec<_> = tried.buffered(AT_ONCE).collect().await;
    tried.into_iter().collect()
}

async fn one(lab: &Lab, row: Row) -> Result<Tried> {
    let how = if row.reachable {
        Ping::REACHABLE
    } else {
        Ping::UNREACHABLE
    };
    let (pinged, traced) = super::seen(
        lab,
        (&row.from, &row.to),
        Ping { count: PINGS, ..how },
        PROBES,
        row.reachable,
    )
    .await?;
    Ok(Tried { row, pinged, traced })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(reachable: bool, hops: &str, received: u32, refusals: u32) -> Tried {
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
        Tried {
            row,
            pinged: Pinged {
                sent: 4,
                received,
                missing: (received + 1..=4).collect(),
                refusals,
                rtts_ms: Vec::new(),
            },
            traced: (!hops.is_empty()).then_some(Traced {
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
        assert!(!tried(false, "", 0, 2).good(), "somebody said so (T8)");
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
