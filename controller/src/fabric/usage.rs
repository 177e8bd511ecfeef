//! The request `usage`: what each resource has carried, and what that costs (Meter-1 to Meter-6).

use crate::rest::Rest;
use crate::rest::failure::{Failure, ok};
use crate::rest::json;
use crate::usage::Sums;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json as object};
use std::sync::Arc;
use tombolo_proto::fabric::UsageRequest;
use tombolo_topology::metering::Prices;

/// POST `usage`: the sums of each resource within a time, with charges.
pub(super) async fn usage(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let UsageRequest { from, to, prices } = json::typed(request).await?;
    let prices: Prices = serde_json::from_value(prices.unwrap_or_else(|| object!({})))
        .map_err(|error| Failure::bad("InvalidRequestFormat", format!("prices: {error}")).at("prices"))?;
    if from > to {
        let message = format!("from: {from} is after to, {to}");
        return Err(Failure::bad("InvalidRequestFormat", message).at("from"));
    }
    let usage = rest.app.usage.clone();
    let sums = tokio::task::spawn_blocking(move || usage.read(|ledger| ledger.sums(from, to))).await;
    let failed = |error: String| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error);
    let sums = sums
        .map_err(|e| failed(e.to_string()))?
        .map_err(|e| failed(e.to_string()))?;
    Ok(ok(&answer(&sums, &prices)))
}

fn answer(sums: &Sums, prices: &Prices) -> Value {
    let mut total = 0.0;
    let entries: Vec<Value> = sums
        .all
        .iter()
        .map(|(payer, amounts)| {
            let charge = prices.charge(payer, amounts);
            total += charge.map_or(0.0, |charge| charge.ingress + charge.egress);
            object!({
                "resource": payer.resource,
                "kind": payer.kind,
                "region": payer.region,
                "remoteRegion": payer.remote_region,
                "ingressBytes": amounts.ingress_bytes,
                "egressBytes": amounts.egress_bytes,
                "ingressPackets": amounts.ingress_packets,
                "egressPackets": amounts.egress_packets,
                "charge": charge,
            })
        })
        .collect();
    let (first, end) = (sums.first, sums.end);
    object!({"entries": entries, "total": total, "currency": "USD", "prices": prices, "first": first, "end": end})
}
