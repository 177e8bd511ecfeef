//! The database with the sums of each resource, and with the totals of agents that are in these sums already.

use crate::database::{Format, open};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::collections::BTreeMap;
use std::path::Path;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{Meters, Volume};
use tombolo_topology::metering::{Amounts, Kind, Payer, Payers};

/// The application id is "tmbu" in ASCII. What a crash or a power failure has cost is in the next reports of the agents.
const FORMAT: Format = Format {
    application: 0x746d_6275,
    version: 1,
    schema: SCHEMA,
};

/// `totals`: the largest totals that each agent has reported for each peer. `sums`: what has passed within `seconds` from
/// `start` on.
const SCHEMA: &str = "
    CREATE TABLE totals (
        agent TEXT NOT NULL, peer TEXT NOT NULL, epoch INTEGER NOT NULL,
        rx_bytes INTEGER NOT NULL, tx_bytes INTEGER NOT NULL, rx_packets INTEGER NOT NULL, tx_packets INTEGER NOT NULL,
        PRIMARY KEY (agent, peer)
    ) WITHOUT ROWID;
    CREATE TABLE resources (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL, kind TEXT NOT NULL, region TEXT NOT NULL, remote_region TEXT,
        UNIQUE (id, kind, region, remote_region)
    );
    CREATE TABLE sums (
        start INTEGER NOT NULL, seconds INTEGER NOT NULL, resource INTEGER NOT NULL REFERENCES resources,
        ingress_bytes INTEGER NOT NULL, egress_bytes INTEGER NOT NULL,
        ingress_packets INTEGER NOT NULL, egress_packets INTEGER NOT NULL,
        PRIMARY KEY (start, seconds, resource)
    ) WITHOUT ROWID;
";

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;
/// Age from which sums of hours become sums of days.
pub(crate) const HOURS_KEPT: u64 = 31 * DAY;
/// Age from which sums are deleted.
const DAYS_KEPT: u64 = 400 * DAY;

/// Time after which the totals of agents that do not exist are forgotten. An agent that comes back later with its old totals
/// would be counted from 0.
const ORPHANS_KEPT: u64 = 7 * DAY;

/// Largest number that is recorded: sums of a few of them fit into the database's integers. It is an exabyte.
const MOST: u64 = 1 << 60;

/// The database.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
    /// The table `totals`.
    totals: BTreeMap<(AgentId, AgentId), (u64, Volume)>,
    /// The hour in which old sums were last reduced.
    reduced: u64,
    /// Entries of `totals` about agents that do not exist, with the time since when that is known.
    orphans: BTreeMap<(AgentId, AgentId), u64>,
}

/// What a resource has carried within a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Beginning of the time, in seconds of Unix time.
    pub start: u64,
    /// Length of the time: an hour or a day.
    pub seconds: u64,
    /// The resource.
    pub payer: Payer,
    /// What has passed.
    pub amounts: Amounts,
}

/// What resources have carried within a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums {
    /// The resources, in their order.
    pub all: Vec<(Payer, Amounts)>,
    /// Beginning of the first hour or day that is in the sums. `None`: nothing is.
    pub first: Option<u64>,
    /// End of the last one.
    pub end: Option<u64>,
}

impl Ledger {
    /// Opens the database, or creates it. Blocks.
    ///
    /// # Errors
    /// The file is another database or was written by a newer version, or cannot be read or written.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let connection = open(path, &FORMAT)?;
        let totals = read_totals(&connection)?;
        Ok(Self {
            connection,
            totals,
            reduced: 0,
            orphans: BTreeMap::new(),
        })
    }

    /// Adds what these reports have more than earlier ones. `now`: seconds of Unix time. Totals for which nobody pays are
    /// noted, and count for nothing later. If a total is smaller than before, the agent has lost its last seconds in a
    /// crash, and counts again when it is larger. Returns what was added.
    ///
    /// # Errors
    /// The database failed. Nothing is recorded.
    pub fn record(
        &mut self,
        reports: &BTreeMap<AgentId, Meters>,
        payers: &Payers<'_>,
        now: u64,
    ) -> anyhow::Result<BTreeMap<Payer, Amounts>> {
        let hour = now / HOUR * HOUR;
        let mut changed = BTreeMap::new();
        let mut added: BTreeMap<Payer, Amounts> = BTreeMap::new();
        for (agent, meters) in reports {
            // Names that nobody has would fill the database.
            let links = meters
                .links
                .iter()
                .filter(|link| payers.knows(agent) && payers.knows(&link.peer));
            for link in links {
                let key = (agent.clone(), link.peer.clone());
                let volume = capped(link.volume);
                let epoch = meters.epoch.min(MOST);
                let known = self
                    .totals
                    .get(&key)
                    .filter(|(of, _)| *of == epoch)
                    .map(|(_, known)| *known);
                let known = known.unwrap_or_default();
                let more = volume.beyond(known);
                if more.is_empty() {
                    continue;
                }
                changed.insert(key, (epoch, volume.largest(known)));
                for payer in payers.of_link(agent, &link.peer) {
                    let sum = added.entry(payer).or_default();
                    *sum = sum.plus(amounts_of(more));
                }
            }
        }
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        for ((agent, peer), (epoch, total)) in &changed {
            let sql = "INSERT OR REPLACE INTO totals VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            transaction.prepare_cached(sql)?.execute(params![
                agent.as_str(),
                peer.as_str(),
                epoch,
                total.rx_bytes,
                total.tx_bytes,
                total.rx_packets,
                total.tx_packets
            ])?;
        }
        for (payer, amounts) in &added {
            let resource = number(&transaction, payer)?;
            add_to_sum(&transaction, (hour, HOUR, resource), amounts)?;
        }
        let mut gone = Vec::new();
        if self.reduced != hour {
            reduce(&transaction, now)?;
            let is_orphan = |key: &&(AgentId, AgentId)| !(payers.knows(&key.0) && payers.knows(&key.1));
            let orphans = self.totals.keys().filter(is_orphan);
            let since = |key: &(AgentId, AgentId)| self.orphans.get(key).copied().unwrap_or(now);
            self.orphans = orphans.map(|key| (key.clone(), since(key))).collect();
            let is_old = |since: u64| now.saturating_sub(since) >= ORPHANS_KEPT;
            gone.extend(
                self.orphans
                    .iter()
                    .filter(|(_, since)| is_old(**since))
                    .map(|(key, _)| key.clone()),
            );
        }
        for (agent, peer) in &gone {
            let sql = "DELETE FROM totals WHERE agent = ?1 AND peer = ?2";
            transaction
                .prepare_cached(sql)?
                .execute([agent.as_str(), peer.as_str()])?;
        }
        transaction.commit()?;
        self.reduced = hour;
        for key in &gone {
            self.totals.remove(key);
            self.orphans.remove(key);
        }
        self.totals.extend(changed);
        Ok(added)
    }

    /// What each resource has carried in the hours and days that begin from `from` until before `to`, in seconds of Unix
    /// time.
    ///
    /// # Errors
    /// The database failed.
    pub fn sums(&self, from: u64, to: u64) -> anyhow::Result<Sums> {
        let sql = format!(
            "SELECT min(start), max(start + seconds), id, kind, region, remote_region, {TOTALS}
             FROM sums JOIN resources ON resource = number WHERE start >= ?1 AND start < ?2 GROUP BY resource"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![from.min(MOST), to.min(MOST)], |of| {
            let (first, end): (u64, u64) = (of.get(0)?, of.get(1)?);
            Ok((first, end, payer(of)?, amounts(of)?))
        })?;
        let mut sums = Sums::default();
        for row in rows {
            let (first, end, payer, amounts) = row?;
            sums.first = Some(sums.first.map_or(first, |known| known.min(first)));
            sums.end = Some(sums.end.map_or(end, |known| known.max(end)));
            sums.all.push((payer, amounts));
        }
        sums.all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(sums)
    }

    /// The sums of each day (UTC) and resource whose id begins with `prefix`, ordered by time, as for [`Self::sums`].
    ///
    /// # Errors
    /// The database failed.
    pub fn days(&self, prefix: &str, from: u64, to: u64) -> anyhow::Result<Vec<Row>> {
        let sql = format!(
            "SELECT start / {DAY} * {DAY} AS day, {DAY}, id, kind, region, remote_region, {TOTALS}
             FROM sums JOIN resources ON resource = number
             WHERE start >= ?1 AND start < ?2 AND lower(substr(id, 1, length(?3))) = lower(?3)
             GROUP BY day, resource ORDER BY day, id"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params![from.min(MOST), to.min(MOST), prefix], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The sums of all hours and days of one resource that begin from `from` until before `to`, ordered by time.
    ///
    /// # Errors
    /// The database failed.
    pub fn rows_of(&self, resource: &ResourceId, from: u64, to: u64) -> anyhow::Result<Vec<Row>> {
        let sql = "SELECT start, seconds, id, kind, region, remote_region,
                          ingress_bytes, egress_bytes, ingress_packets, egress_packets
                   FROM sums JOIN resources ON resource = number
                   WHERE id = ?1 COLLATE NOCASE AND start >= ?2 AND start < ?3 ORDER BY start";
        let mut statement = self.connection.prepare_cached(sql)?;
        let rows = statement.query_map(params![resource.as_str(), from.min(MOST), to.min(MOST)], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// The sums of several rows. `total` is a float, which cannot overflow. The number is [`MOST`].
const TOTALS: &str = "
    CAST(min(total(ingress_bytes), 1152921504606846976) AS INTEGER), CAST(min(total(egress_bytes), 1152921504606846976) AS INTEGER),
    CAST(min(total(ingress_packets), 1152921504606846976) AS INTEGER), CAST(min(total(egress_packets), 1152921504606846976) AS INTEGER)";

fn row(of: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(Row {
        start: of.get(0)?,
        seconds: of.get(1)?,
        payer: payer(of)?,
        amounts: amounts(of)?,
    })
}

/// The columns 2 to 5.
fn payer(of: &rusqlite::Row<'_>) -> rusqlite::Result<Payer> {
    let (id, kind): (String, String) = (of.get(2)?, of.get(3)?);
    Ok(Payer {
        resource: ResourceId::new(id),
        kind: kind_of(&kind),
        region: of.get(4)?,
        remote_region: of.get(5)?,
    })
}

/// The columns 6 to 9.
fn amounts(of: &rusqlite::Row<'_>) -> rusqlite::Result<Amounts> {
    Ok(Amounts {
        ingress_bytes: of.get(6)?,
        egress_bytes: of.get(7)?,
        ingress_packets: of.get(8)?,
        egress_packets: of.get(9)?,
    })
}

fn read_totals(connection: &Connection) -> anyhow::Result<BTreeMap<(AgentId, AgentId), (u64, Volume)>> {
    let mut statement = connection.prepare("SELECT * FROM totals")?;
    let rows = statement.query_map([], |row| {
        let (agent, peer): (String, String) = (row.get(0)?, row.get(1)?);
        let volume = Volume {
            rx_bytes: row.get(3)?,
            tx_bytes: row.get(4)?,
            rx_packets: row.get(5)?,
            tx_packets: row.get(6)?,
        };
        Ok((agent, peer, row.get(2)?, volume))
    })?;
    let mut totals = BTreeMap::new();
    for row in rows {
        let (agent, peer, epoch, volume) = row?;
        totals.insert((agent.parse()?, peer.parse()?), (epoch, volume));
    }
    Ok(totals)
}

const KINDS: [(Kind, &str); 5] = [
    (Kind::Peering, "peering"),
    (Kind::VnetToVnet, "vnetToVnet"),
    (Kind::Site, "site"),
    (Kind::ExpressRoute, "expressRoute"),
    (Kind::Circuit, "circuit"),
];

fn kind_of(name: &str) -> Kind {
    let found = KINDS.iter().find(|(_, known)| *known == name);
    found.map_or(Kind::Circuit, |(kind, _)| *kind)
}

/// The number of a resource. One that is not known yet gets the next number.
fn number(connection: &Connection, payer: &Payer) -> rusqlite::Result<i64> {
    let found = KINDS.iter().find(|(kind, _)| *kind == payer.kind);
    let kind = found.map_or("", |(_, name)| name);
    let of = params![payer.resource.as_str(), kind, payer.region, payer.remote_region];
    let sql = "SELECT number FROM resources WHERE id = ?1 AND kind = ?2 AND region = ?3 AND remote_region IS ?4";
    let known: Option<i64> = connection
        .prepare_cached(sql)?
        .query_row(of, |row| row.get(0))
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    let sql = "INSERT INTO resources (id, kind, region, remote_region) VALUES (?1, ?2, ?3, ?4)";
    connection.prepare_cached(sql)?.insert(of)
}

/// Adds to a sum that is there already. The number is [`MOST`].
const ADDED: &str = "
    ON CONFLICT DO UPDATE SET
    ingress_bytes = min(ingress_bytes + excluded.ingress_bytes, 1152921504606846976),
    egress_bytes = min(egress_bytes + excluded.egress_bytes, 1152921504606846976),
    ingress_packets = min(ingress_packets + excluded.ingress_packets, 1152921504606846976),
    egress_packets = min(egress_packets + excluded.egress_packets, 1152921504606846976)";

fn add_to_sum(connection: &Connection, key: (u64, u64, i64), amounts: &Amounts) -> rusqlite::Result<()> {
    let sql = format!("INSERT INTO sums VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) {ADDED}");
    connection.prepare_cached(&sql)?.execute(params![
        key.0,
        key.1,
        key.2,
        amounts.ingress_bytes.min(MOST),
        amounts.egress_bytes.min(MOST),
        amounts.ingress_packets.min(MOST),
        amounts.egress_packets.min(MOST)
    ])?;
    Ok(())
}

/// Joins old sums of hours to sums of days, and deletes sums that are too old. If the clock was wrong, a day can have a sum
/// already.
fn reduce(connection: &Connection, now: u64) -> rusqlite::Result<()> {
    let hours = now.saturating_sub(HOURS_KEPT) / DAY * DAY;
    let sql = format!(
        "INSERT INTO sums
         SELECT start / {DAY} * {DAY}, {DAY}, resource, {TOTALS}
         FROM sums WHERE seconds = {HOUR} AND start < ?1 GROUP BY start / {DAY}, resource
         {ADDED}"
    );
    connection.prepare_cached(&sql)?.execute([hours])?;
    let sql = format!("DELETE FROM sums WHERE seconds = {HOUR} AND start < ?1");
    connection.prepare_cached(&sql)?.execute([hours])?;
    let days = now.saturating_sub(DAYS_KEPT);
    connection
        .prepare_cached("DELETE FROM sums WHERE start < ?1")?
        .execute([days])?;
    Ok(())
}

/// What was received is ingress, and what was sent is egress.
const fn amounts_of(volume: Volume) -> Amounts {
    Amounts {
        ingress_bytes: volume.rx_bytes,
        egress_bytes: volume.tx_bytes,
        ingress_packets: volume.rx_packets,
        egress_packets: volume.tx_packets,
    }
}

/// A total that the database can hold. Agents may report any number.
fn capped(volume: Volume) -> Volume {
    Volume {
        rx_bytes: volume.rx_bytes.min(MOST),
        tx_bytes: volume.tx_bytes.min(MOST),
        rx_packets: volume.rx_packets.min(MOST),
        tx_packets: volume.tx_packets.min(MOST),
    }
}

#[cfg(test)]
mod tests;
