//! What the traffic of resources costs, in the form of Azure's `usageDetails` (Meter-1 to Meter-6): an entry for each day,
//! resource and direction, at the default prices.

use super::call::Call;
use super::subscription::page;
use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use crate::times;
use crate::usage::Row;
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tombolo_topology::metering::{Payer, Prices};
use uuid::Uuid;

/// A day in seconds.
const DAY: u64 = 24 * 60 * 60;
/// The time that an answer covers if the request names none.
const DEFAULT_TIME: u64 = 30 * DAY;
/// Largest number of conditions of a filter.
const MAX_CONDITIONS: usize = 8;

/// GET `{subscription}/providers/Microsoft.Consumption/usageDetails`.
pub(super) async fn usage_details(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let now = times::now();
    let filter = call.query.get("$filter").map(String::as_str).unwrap_or_default();
    let wrong = |what: String| Failure::bad("BadRequest", format!("$filter: {what}")).at("$filter");
    let (from, to) = days(filter, now).map_err(wrong)?;
    let usage = rest.app.usage.clone();
    let subscription = &call.segments[1];
    let prefix = format!("/subscriptions/{subscription}/");
    let rows = tokio::task::spawn_blocking(move || usage.read(|ledger| ledger.days(&prefix, from, to))).await;
    let failed = |error: String| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error);
    let rows = rows
        .map_err(|e| failed(e.to_string()))?
        .map_err(|e| failed(e.to_string()))?;
    let entries = entries(&rows, subscription, now);
    Ok(ok(&page(call, entries)?))
}

/// The days that a filter names, as the beginning of the first and the end of the last, in seconds of Unix time. Its
/// conditions compare `properties/usageStart` and `properties/usageEnd` with times.
fn days(filter: &str, now: u64) -> Result<(u64, u64), String> {
    let (mut from, mut to) = (now.saturating_sub(DEFAULT_TIME) / DAY * DAY, u64::MAX);
    let conditions: Vec<&str> = filter.split(" and ").map(str::trim).filter(|c| !c.is_empty()).collect();
    if conditions.len() > MAX_CONDITIONS {
        let count = conditions.len();
        return Err(format!(
            "it has {count} conditions; at most {MAX_CONDITIONS} are possible"
        ));
    }
    for condition in conditions {
        let unknown = || {
            format!(
                "'{}' is not of the form properties/usageStart ge TIME or properties/usageEnd le TIME",
                excerpt(condition)
            )
        };
        let mut words = condition.splitn(3, ' ');
        let (Some(name), Some(operator), Some(value)) = (words.next(), words.next(), words.next()) else {
            return Err(unknown());
        };
        let time = times::parse_seconds(&value.trim().trim_matches('\'').replacen(' ', "T", 1))?;
        let name = name.to_ascii_lowercase();
        match (name.trim_start_matches("properties/"), operator) {
            ("usagestart" | "usageend", "ge" | "gt") => from = time / DAY * DAY,
            ("usagestart" | "usageend", "le" | "lt") => to = time.div_ceil(DAY).saturating_mul(DAY),
            _ => return Err(unknown()),
        }
    }
    Ok((from, to))
}

/// The entries of a subscription, from the sums of its resources by day.
fn entries(days: &[Row], subscription: &str, now: u64) -> Vec<Value> {
    let prices = Prices::default();
    let mut entries = Vec::new();
    for Row {
        start, payer, amounts, ..
    } in days
    {
        let charge = prices.charge(payer, amounts).unwrap_or_default();
        for (direction, bytes, cost) in [
            ("Ingress", amounts.ingress_bytes, charge.ingress),
            ("Egress", amounts.egress_bytes, charge.egress),
        ] {
            if bytes > 0 {
                entries.push(entry(subscription, payer, (*start, now), (direction, bytes, cost)));
            }
        }
    }
    entries
}

fn entry(
    subscription: &str,
    payer: &Payer,
    (day, now): (u64, u64),
    (direction, bytes, cost): (&str, u64, f64),
) -> Value {
    let guid = |text: &str| Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes()).to_string();
    let kind = json!(payer.kind);
    let kind = kind.as_str().unwrap_or_default();
    let (start, end) = (times::text(day), times::text(day + DAY - 1));
    let remote = payer.remote_region.as_deref();
    let name = guid(&format!(
        "{day} {} {kind} {} {} {direction}",
        payer.resource.key(),
        payer.region,
        remote.unwrap_or_default()
    ));
    let month = start.get(..7).unwrap_or_default().replace('-', "");
    let id = format!(
        "/subscriptions/{subscription}/providers/Microsoft.Billing/billingPeriods/{month}01/providers/\
         Microsoft.Consumption/usageDetails/{name}"
    );
    let instance = payer.resource.as_str();
    let scope = if remote.is_some_and(|remote| remote != payer.region) {
        "between regions"
    } else {
        "in a region"
    };
    json!({
        "id": id,
        "name": name,
        "type": "Microsoft.Consumption/usageDetails",
        "kind": "legacy",
        "properties": {
            "billingPeriodId": format!(
                "/subscriptions/{subscription}/providers/Microsoft.Billing/billingPeriods/{month}01"
            ),
            "usageStart": start,
            "usageEnd": end,
            "instanceId": instance,
            "instanceName": instance.rsplit('/').next(),
            "instanceLocation": payer.region,
            "meterId": guid(&format!("{kind} {direction} {scope}")),
            "usageQuantity": gigabytes(bytes),
            "pretaxCost": cost,
            "currency": "USD",
            // The prices are defaults that are not verified, and the day may not be over.
            "isEstimated": true,
            "product": format!("Tombolo {kind} {direction} {scope}, gigabytes"),
            "additionalProperties": if day + DAY > now { "The day is not over." } else { "" },
        },
    })
}

#[expect(clippy::cast_precision_loss, reason = "a charge needs no more than 15 digits")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_proto::id::ResourceId;
    use tombolo_topology::metering::{Amounts, Kind};

    fn row(day: u64, bytes: u64) -> Row {
        Row {
            start: day * DAY,
            seconds: DAY,
            payer: Payer {
                resource: ResourceId::new("/subscriptions/s/x/virtualNetworkPeerings/p"),
                kind: Kind::Peering,
                region: "region1".into(),
                remote_region: Some("region1".into()),
            },
            amounts: Amounts {
                egress_bytes: bytes,
                ..Amounts::default()
            },
        }
    }

    #[test]
    fn meter_1_a_day_of_a_peering_is_an_entry_at_its_price() {
        let rows = [row(20_000, 2_000_000_000), row(20_001, 5_000_000_000)];
        let entries = entries(&rows, "s", 20_001 * DAY + 1);
        assert_eq!(entries.len(), 2, "{entries:?}");
        let first = &entries[0]["properties"];
        assert_eq!(first["usageStart"], "2024-10-04T00:00:00Z");
        assert_eq!(
            (&first["usageQuantity"], &first["pretaxCost"]),
            (&json!(2.0), &json!(0.02))
        );
        assert_eq!(first["instanceName"], "p");
        let second = &entries[1]["properties"];
        assert_eq!(
            (&second["usageQuantity"], &second["pretaxCost"]),
            (&json!(5.0), &json!(0.05))
        );
        assert_eq!(first["meterId"], second["meterId"]);
        assert_ne!(entries[0]["name"], entries[1]["name"]);
    }

    #[test]
    fn the_filter_of_the_azure_cli_is_read() {
        let text = "properties/usageStart ge '2024-10-04' and properties/usageEnd le '2024-10-05 10:00:00'";
        assert_eq!(days(text, 0), Ok((20_000 * DAY, 20_002 * DAY)));
        assert_eq!(days("", 40 * DAY + 7), Ok((10 * DAY, u64::MAX)));
        for bad in [
            "usageStart",
            "properties/cost ge '2024-10-04'",
            "properties/usageStart ge 'x'",
            "properties/usageStart eq '2024-10-04'",
        ] {
            assert!(days(bad, 0).is_err(), "{bad}");
        }
    }
}
