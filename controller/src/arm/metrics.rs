//! Metrics of resources in the form of Azure Monitor. Figures of minutes are kept in memory for some hours, and those of
//! hours and days are the sums that charges are computed from.
//!
//! * `definitions`: the metrics of each type.
//! * `question`: the parameters of a request.
//! * `series`: figures over time.

mod definitions;
mod question;
mod series;

use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use crate::times;
use crate::usage::history::MINUTE;
use crate::usage::{HOURS_KEPT, Row};
use axum::response::Response;
use definitions::{Metric, Source};
use http::{Method, StatusCode};
use question::{Aggregation, HOUR, INTERVALS, Question};
use serde_json::{Value, json};
use series::{Joined, Samples, Zeros};
use tombolo_proto::id::ResourceId;
use tombolo_topology::metering::Amounts;
use tombolo_topology::topology::Topology;

/// Number of segments after the resource: `providers/Microsoft.Insights/metrics`.
const TAIL: usize = 3;

/// A resource that has metrics.
struct Target {
    id: ResourceId,
    /// The type, e.g. `Microsoft.Network/connections`.
    type_name: String,
    location: String,
    metrics: &'static [Metric],
    /// The resources whose traffic is the target's.
    carriers: Vec<ResourceId>,
}

/// What the carriers of a target have carried, each within minutes, hours or days.
struct Volumes {
    /// Beginning and length of the time, in seconds, by carrier.
    all: Vec<(u64, u64, Amounts)>,
    zeros: Zeros,
    carriers: u32,
}

/// GET `{resource}/providers/Microsoft.Insights/metrics`.
pub(super) async fn figures(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let target = target(rest, call)?;
    let now = times::now();
    let question = Question::read(call, now)?;
    let asked = asked(&target, &question)?;
    let volumes = volumes(rest, &target, &question, now).await?;
    let value: Vec<Value> = asked
        .iter()
        .map(|metric| {
            let samples = samples(rest, &target, metric, &volumes, now);
            answer(&target, metric, &question, &samples)
        })
        .collect();
    Ok(ok(&json!({
        "cost": 0,
        "timespan": format!("{}/{}", times::text(question.from), times::text(question.to)),
        "interval": question.interval,
        "namespace": target.type_name,
        "resourceregion": target.location,
        "value": value,
    })))
}

/// GET `{resource}/providers/Microsoft.Insights/metricDefinitions`.
pub(super) fn definitions(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let target = target(rest, call)?;
    let grains = INTERVALS.map(|(name, step)| {
        let retention = if step < HOUR { "PT6H" } else { "P400D" };
        json!({"timeGrain": name, "retention": retention})
    });
    let define = |metric: &Metric| {
        json!({
            "id": format!("{}/providers/Microsoft.Insights/metricDefinitions/{}", target.id, metric.name),
            "resourceId": target.id,
            "namespace": target.type_name,
            "name": {"value": metric.name, "localizedValue": metric.title},
            "displayDescription": metric.meaning,
            "isDimensionRequired": false,
            "unit": metric.unit,
            "primaryAggregationType": metric.primary.name(),
            "supportedAggregationTypes": Aggregation::ALL.map(Aggregation::name),
            "metricAvailabilities": grains,
            "dimensions": [],
        })
    };
    let value: Vec<Value> = target.metrics.iter().map(define).collect();
    Ok(ok(&json!({"value": value})))
}

/// GET `{resource}/providers/Microsoft.Insights/metricNamespaces`.
pub(super) fn namespaces(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let target = target(rest, call)?;
    let namespace = json!({
        "id": format!("{}/providers/Microsoft.Insights/metricNamespaces/{}", target.id, target.type_name),
        "name": target.type_name,
        "type": "Microsoft.Insights/metricNamespaces",
        "classification": "Platform",
        "properties": {"metricNamespaceName": target.type_name},
    });
    let value: Vec<Value> = (!target.metrics.is_empty()).then_some(namespace).into_iter().collect();
    Ok(ok(&json!({"value": value})))
}

/// The resource of a request.
///
/// # Errors
/// 405 for another method than GET, 404 if the resource does not exist.
fn target(rest: &Rest, call: &Call) -> Result<Target, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let path = call.item(call.segments.len() - TAIL)?;
    let topology = rest.app.writer.current().topology;
    let provider = path.provider.as_deref().unwrap_or_default();
    let type_name = format!("{provider}/{}", path.types());
    if let Some(body) = rest.monitors.get(&path.id()) {
        return Ok(Target {
            id: path.id(),
            type_name,
            location: location(&body),
            metrics: definitions::of_monitors(),
            carriers: Vec::new(),
        });
    }
    let statuses = rest.app.agents.statuses();
    let body = topology.view(&path, &statuses);
    let body = body.ok_or_else(|| missing(&topology, &path))?;
    // A child has the location of its parent.
    let parent = path.parent().and_then(|parent| topology.view(&parent, &statuses));
    let id = body["id"].as_str().map_or_else(|| path.id(), ResourceId::new);
    Ok(Target {
        carriers: carriers(&topology, &id),
        id,
        type_name,
        location: [Some(body), parent]
            .iter()
            .flatten()
            .map(location)
            .find(|l| !l.is_empty())
            .unwrap_or_default(),
        metrics: definitions::of(path.kind()),
    })
}

fn location(body: &Value) -> String {
    body["location"].as_str().unwrap_or_default().to_owned()
}

/// The resources whose traffic is that of `id`: the connections of a gateway, and each other resource itself.
fn carriers(topology: &Topology, id: &ResourceId) -> Vec<ResourceId> {
    if !topology.gateways.contains_key(id) {
        return vec![id.clone()];
    }
    let connections = topology.connections.values();
    let own = connections.filter(|connection| connection.gateway1 == *id);
    own.map(|connection| connection.envelope.id.clone()).collect()
}

/// The metrics that a question names.
///
/// # Errors
/// 400: the resource has no such metric.
fn asked(target: &Target, question: &Question) -> Result<Vec<&'static Metric>, Failure> {
    if question.names.is_empty() {
        return Ok(target.metrics.iter().take(1).collect());
    }
    let find = |name: &String| {
        let found = target.metrics.iter().find(|m| m.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let names: Vec<&str> = target.metrics.iter().map(|m| m.name).collect();
            let message = format!(
                "metricnames: Failed to find metric configuration for type {}, metric: {}. Valid metrics: {}",
                target.type_name,
                excerpt(name),
                names.join(",")
            );
            Failure::bad("BadRequest", message).at("metricnames")
        })
    };
    question.names.iter().map(find).collect()
}

/// What a target has carried in the time of a question: by minutes, or by hours and days if its intervals are that long.
async fn volumes(rest: &Rest, target: &Target, question: &Question, now: u64) -> Result<Volumes, Failure> {
    let carriers = u32::try_from(target.carriers.len()).unwrap_or(u32::MAX);
    if question.step < HOUR {
        let history = rest.app.usage.history();
        let of = |carrier| {
            history
                .volumes(carrier)
                .map(|(minute, amounts)| (minute, MINUTE, amounts))
        };
        return Ok(Volumes {
            all: target.carriers.iter().flat_map(of).collect(),
            zeros: Zeros {
                from: history.since(now),
                to: now,
                step: MINUTE,
            },
            carriers,
        });
    }
    let (usage, ids, from, to) = (
        rest.app.usage.clone(),
        target.carriers.clone(),
        question.from,
        question.to,
    );
    let read = move || -> anyhow::Result<Vec<Row>> {
        let rows = ids.iter().map(|id| usage.read(|ledger| ledger.rows_of(id, from, to)));
        Ok(rows
            .collect::<anyhow::Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    };
    let failed = |error: String| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error);
    let rows = tokio::task::spawn_blocking(read)
        .await
        .map_err(|e| failed(e.to_string()))?;
    let rows = rows.map_err(|e| failed(e.to_string()))?;
    Ok(Volumes {
        all: rows.iter().map(|row| (row.start, row.seconds, row.amounts)).collect(),
        zeros: Zeros {
            // Older sums are those of days.
            from: question.from.max(now.saturating_sub(HOURS_KEPT)),
            to: now,
            step: HOUR,
        },
        carriers,
    })
}

/// The figures of a metric.
fn samples(rest: &Rest, target: &Target, metric: &Metric, volumes: &Volumes, now: u64) -> Samples {
    let mut all: Vec<(u64, f64)> = match metric.source {
        Source::Volume(of) => return volumes.figures(|amounts, _| number(of(amounts)), now),
        Source::Rate(of) => return volumes.figures(|amounts, seconds| number(of(amounts)) / seconds, now),
        Source::MeanRate(of) => {
            let carriers = f64::from(volumes.carriers.max(1));
            return volumes.figures(|amounts, seconds| number(of(amounts)) / seconds / carriers, now);
        }
        Source::Gauge(gauge) => rest.app.usage.history().gauge(&target.id, gauge).collect(),
        Source::ChecksFailed => of_monitor(rest, &target.id, |result| result.checks_failed_percent.map(f64::from)),
        Source::RoundTrip => of_monitor(rest, &target.id, |result| result.round_trip_time_ms.map(f64::from)),
    };
    all.sort_by_key(|(time, _)| *time);
    Samples { all, zeros: None }
}

/// The figures of all tests of a monitor.
fn of_monitor(
    rest: &Rest,
    id: &ResourceId,
    figure: impl Fn(&tombolo_proto::fabric::MonitorResult) -> Option<f64>,
) -> Vec<(u64, f64)> {
    let views = rest.monitors.views();
    let tests = views.iter().filter(|view| view.id == *id).flat_map(|view| &view.tests);
    tests
        .flat_map(|test| &test.history)
        .filter_map(|result| Some((result.time, figure(result)?)))
        .collect()
}

impl Volumes {
    /// The sum of all carriers for each minute, hour or day, as a figure. `figure` gets it with its length in seconds, which
    /// is shorter if it is not over.
    fn figures(&self, figure: impl Fn(&Amounts, f64) -> f64, now: u64) -> Samples {
        let mut all = self.all.clone();
        all.sort_by_key(|(start, _, _)| *start);
        let mut sums: Vec<(u64, u64, Amounts)> = Vec::with_capacity(all.len());
        for (start, seconds, amounts) in all {
            match sums.last_mut() {
                Some((last, _, sum)) if *last == start => *sum = sum.plus(amounts),
                _ => sums.push((start, seconds, amounts)),
            }
        }
        let figures = sums.iter().map(|(start, seconds, amounts)| {
            let passed = now.saturating_sub(*start).clamp(1, *seconds);
            (*start, figure(amounts, number(passed)))
        });
        Samples {
            all: figures.collect(),
            zeros: Some(self.zeros),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a metric needs no more than 15 digits")]
const fn number(n: u64) -> f64 {
    n as f64
}

fn answer(target: &Target, metric: &Metric, question: &Question, samples: &Samples) -> Value {
    let primary = [metric.primary];
    let aggregations = question.aggregations.as_deref().unwrap_or(&primary);
    let point = |(start, joined): (u64, Option<Joined>)| {
        let mut point = json!({"timeStamp": times::text(start)});
        for aggregation in aggregations {
            if let Some(joined) = joined {
                let (key, value) = match aggregation {
                    Aggregation::Average => ("average", joined.average()),
                    Aggregation::Minimum => ("minimum", joined.minimum),
                    Aggregation::Maximum => ("maximum", joined.maximum),
                    Aggregation::Total => ("total", joined.total),
                    Aggregation::Count => ("count", f64::from(joined.count)),
                };
                point[key] = json!(value);
            }
        }
        point
    };
    let intervals = samples.by_interval(question.from, question.to, question.step);
    let data: Vec<Value> = intervals.into_iter().map(point).collect();
    json!({
        "id": format!("{}/providers/Microsoft.Insights/metrics/{}", target.id, metric.name),
        "type": "Microsoft.Insights/metrics",
        "name": {"value": metric.name, "localizedValue": metric.title},
        "displayDescription": metric.meaning,
        "unit": metric.unit,
        "errorCode": "Success",
        "timeseries": [{"metadatavalues": [], "data": data}],
    })
}
