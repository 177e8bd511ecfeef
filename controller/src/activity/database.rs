//! The events on disk.

use super::event::{Place, Write};
use super::filter::Filter;
use crate::database::{Format, open};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, TransactionBehavior, params, params_from_iter};
use serde_json::Value;
use std::path::Path;
use time::{Duration, OffsetDateTime};

/// The application id is "tmba" in ASCII.
const FORMAT: Format = Format {
    application: 0x746d_6261,
    version: 1,
    schema: SCHEMA,
};

/// Texts that filters compare are in lower case. `at` is in microseconds of Unix time.
const SCHEMA: &str = "
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL,
        subscription TEXT NOT NULL, grp TEXT NOT NULL, resource TEXT NOT NULL, provider TEXT NOT NULL,
        correlation TEXT NOT NULL, caller TEXT NOT NULL, status TEXT NOT NULL, body TEXT NOT NULL
    );
    CREATE INDEX events_by_time ON events (at);
";

/// For questions about few of the events. Databases of earlier versions do not have them yet.
const INDEXES: &str = "
    CREATE INDEX IF NOT EXISTS events_by_group ON events (grp, number);
    CREATE INDEX IF NOT EXISTS events_by_correlation ON events (correlation, number);
";

/// Time for which events stay, as in Azure.
const KEPT: Duration = Duration::days(90);

/// Largest number of events. The oldest ones are removed first.
const MOST: i64 = 1_000_000;

/// Number of added writes after which old events are removed.
const PRUNED_AFTER: u32 = 1000;

/// Number of events of a page.
const PAGE: usize = 200;

/// The database.
#[derive(Debug)]
pub(super) struct Database {
    connection: Connection,
    /// Number of writes since old events were last removed.
    added: u32,
}

/// Some events, and where the next page begins.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// The events, the newest first.
    pub(crate) events: Vec<Value>,
    /// [`Filter::before`] of the next page. `None`: there is none.
    pub(crate) next: Option<i64>,
}

impl Database {
    /// Opens the database; see [`open`].
    ///
    /// # Errors
    /// As for [`open`].
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let connection = open(path, &FORMAT)?;
        connection.execute_batch(INDEXES)?;
        Ok(Self {
            connection,
            added: PRUNED_AFTER,
        })
    }

    /// Adds the events of a write.
    ///
    /// # Errors
    /// The database failed. No event is added.
    pub(super) fn add(&mut self, write: &Write) -> anyhow::Result<()> {
        let place = Place::of(&write.method, &write.path);
        let prunes = self.added >= PRUNED_AFTER;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let states = [(write.began, "Started"), (write.ended, write.result())];
        for ((at, status), event) in states.into_iter().zip(write.events(&place)) {
            let sql =
                "INSERT INTO events (at, subscription, grp, resource, provider, correlation, caller, status, body)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
            transaction.prepare_cached(sql)?.execute(params![
                microseconds(at),
                place.subscription.to_ascii_lowercase(),
                place.group.to_ascii_lowercase(),
                place.resource.to_ascii_lowercase(),
                place.provider.to_ascii_lowercase(),
                write.correlation.to_ascii_lowercase(),
                write.caller.to_ascii_lowercase(),
                status.to_ascii_lowercase(),
                event.to_string(),
            ])?;
        }
        if prunes {
            let oldest = microseconds(write.ended - KEPT);
            let sql = "DELETE FROM events WHERE at < ?1 OR number <= (SELECT max(number) FROM events) - ?2";
            transaction.prepare_cached(sql)?.execute([oldest, MOST])?;
        }
        transaction.commit()?;
        self.added = if prunes { 0 } else { self.added + 1 };
        Ok(())
    }

    /// The newest events that a filter wants.
    ///
    /// # Errors
    /// The database failed.
    pub(super) fn page(&self, filter: &Filter) -> anyhow::Result<Page> {
        let mut conditions = vec!["1".to_owned()];
        let mut values: Vec<Sql> = Vec::new();
        let mut add = |condition: &str, value: Option<Sql>| {
            if let Some(value) = value {
                values.push(value);
                conditions.push(condition.replace("?", &format!("?{}", values.len())));
            }
        };
        add("at >= ?", filter.from.map(Sql::Integer));
        add("at <= ?", filter.to.map(Sql::Integer));
        add("number < ?", filter.before.map(Sql::Integer));
        // Objects that only this controller has are in no subscription, and are shown in each.
        add("subscription IN ('', ?)", filter.subscription.clone().map(Sql::Text));
        for (column, value) in [
            ("grp", &filter.group),
            ("resource", &filter.resource),
            ("provider", &filter.provider),
            ("correlation", &filter.correlation),
            ("caller", &filter.caller),
            ("status", &filter.status),
        ] {
            add(&format!("{column} = ?"), value.clone().map(Sql::Text));
        }
        let sql = format!(
            "SELECT number, body FROM events WHERE {} ORDER BY number DESC LIMIT {}",
            conditions.join(" AND "),
            PAGE + 1
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params_from_iter(values), |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        let rows: Vec<(i64, String)> = rows.collect::<Result<_, _>>()?;
        let mut page = Page::default();
        for (_, body) in rows.iter().take(PAGE) {
            page.events.push(serde_json::from_str(body)?);
        }
        if rows.len() > PAGE {
            page.next = rows.get(PAGE - 1).map(|(number, _)| *number);
        }
        Ok(page)
    }
}

fn microseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use serde_json::json;
    use uuid::Uuid;

    fn write(second: i64, path: &str, status: StatusCode) -> Write {
        let began = OffsetDateTime::from_unix_timestamp(1_800_000_000 + second).unwrap();
        Write {
            began,
            ended: began,
            method: "PUT".into(),
            path: path.into(),
            client: Some([192, 0, 2, 7].into()),
            caller: "admin".into(),
            tenant: Uuid::nil(),
            correlation: format!("c-{second}"),
            client_request: String::new(),
            status,
            error: (!status.is_success()).then(|| json!({"code": "X"})),
        }
    }

    const VNET: &str = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/v";

    #[test]
    fn a_write_has_two_events_and_is_found_by_what_it_is_about() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("activity.db");
        let mut database = Database::open(&file).unwrap();
        database.add(&write(0, VNET, StatusCode::CREATED)).unwrap();
        database
            .add(&write(1, "/fabric/v1/settings", StatusCode::BAD_REQUEST))
            .unwrap();
        // The controller is killed.
        drop(database);
        let database = Database::open(&file).unwrap();
        let found = |text: &str| {
            let page = database.page(&Filter::parse(text).unwrap()).unwrap();
            assert_eq!(page.next, None);
            let status = |event: &Value| event["status"]["value"].as_str().unwrap().to_owned();
            page.events.iter().map(status).collect::<Vec<_>>()
        };
        assert_eq!(
            found(""),
            ["Failed", "Started", "Succeeded", "Started"],
            "the newest first"
        );
        assert_eq!(found("resourceGroupName eq 'g'"), ["Succeeded", "Started"]);
        assert_eq!(found(&format!("resourceId eq '{VNET}'")), ["Succeeded", "Started"]);
        assert_eq!(found("status eq 'Failed'"), ["Failed"]);
        assert_eq!(
            found("correlationId eq 'c-1' and caller eq 'admin'"),
            ["Failed", "Started"]
        );
        assert_eq!(found("caller eq 'somebody'"), Vec::<String>::new());
        assert_eq!(found("eventTimestamp ge 2027-01-15T08:00:01"), ["Failed", "Started"]);
        let page = database.page(&Filter::parse("status eq 'Failed'").unwrap()).unwrap();
        let event = &page.events[0];
        assert_eq!(event["properties"]["statusMessage"], r#"{"code":"X"}"#);
        assert_eq!(event["httpRequest"]["clientIpAddress"], "192.0.2.7");
        assert_eq!(event["operationName"]["value"], "Tombolo.Fabric/settings/write");
    }

    #[test]
    fn pages_follow_each_other_and_old_events_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut database = Database::open(&dir.path().join("activity.db")).unwrap();
        for second in 0..150 {
            database.add(&write(second, VNET, StatusCode::OK)).unwrap();
        }
        let first = database.page(&Filter::default()).unwrap();
        assert_eq!(first.events.len(), PAGE);
        let rest = Filter {
            before: first.next,
            ..Filter::default()
        };
        let second = database.page(&rest).unwrap();
        assert_eq!((second.events.len(), second.next), (100, None));
        assert_ne!(first.events.last(), second.events.first());

        database.added = PRUNED_AFTER;
        let later = (KEPT + Duration::seconds(100)).whole_seconds();
        database.add(&write(later, VNET, StatusCode::OK)).unwrap();
        let left = database.page(&Filter::default()).unwrap();
        assert_eq!(left.events.len(), 2 * 50 + 2, "the first hundred writes are too old");
    }
}
