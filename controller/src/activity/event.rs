//! A write, and its events in ARM's form.

use serde_json::{Value, json};
use std::net::IpAddr;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

/// Longest text of an error that an event has, in bytes.
const MAX_ERROR: usize = 2000;

/// A write that was asked for, and its response.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    /// When the request arrived.
    pub(crate) began: OffsetDateTime,
    /// When it was answered.
    pub(crate) ended: OffsetDateTime,
    /// The method.
    pub(crate) method: String,
    /// The decoded path, as the client wrote it.
    pub(crate) path: String,
    /// The address of the client. `None`: it is not known.
    pub(crate) client: Option<IpAddr>,
    /// The id of the API token with which the client has shown who it is.
    pub(crate) caller: String,
    /// The tenant that clients see.
    pub(crate) tenant: Uuid,
    /// Azure's correlation id, which may be of several requests.
    pub(crate) correlation: String,
    /// The client's own id of the request; may be empty.
    pub(crate) client_request: String,
    /// The status of the response.
    pub(crate) status: http::StatusCode,
    /// The error object of the response, if it is an error.
    pub(crate) error: Option<Value>,
}

/// The parts of a path that events name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) subscription: String,
    pub(crate) group: String,
    pub(crate) provider: String,
    /// The provider, and the types after it: `Microsoft.Network/virtualNetworks/subnets`.
    pub(crate) resource_type: String,
    /// The id of the resource: the path without an action.
    pub(crate) resource: String,
    /// `Microsoft.Network/virtualNetworks/write`, `…/delete` or `…/ACTION/action`.
    pub(crate) operation: String,
}

/// The provider of objects that only this controller has.
const OWN_PROVIDER: &str = "Tombolo.Fabric";

impl Place {
    /// Those of a request with this method.
    pub(crate) fn of(method: &str, path: &str) -> Self {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let after = |name: &str| {
            let at = segments.iter().position(|segment| segment.eq_ignore_ascii_case(name))?;
            segments.get(at + 1).copied()
        };
        let providers = segments.iter().rposition(|s| s.eq_ignore_ascii_case("providers"));
        let (provider, rest) = match (providers, segments.as_slice()) {
            (Some(at), all) if at + 1 < all.len() => (all[at + 1], &all[at + 2..]),
            (_, ["fabric", "v1", rest @ ..]) => (OWN_PROVIDER, rest),
            _ => ("Microsoft.Resources", segments.get(2..).unwrap_or_default()),
        };
        // Types and names alternate, so an action is a type without a name.
        let action = rest.last().filter(|_| method == "POST" && rest.len() % 2 == 1);
        let types: Vec<&str> = rest.iter().step_by(2).copied().collect();
        let types = match action {
            Some(_) => &types[..types.len() - 1],
            None => &types[..],
        };
        let resource_type = std::iter::once(provider)
            .chain(types.iter().copied())
            .collect::<Vec<_>>()
            .join("/");
        let operation = match (method, action) {
            ("DELETE", _) => format!("{resource_type}/delete"),
            (_, Some(action)) => format!("{resource_type}/{action}/action"),
            _ => format!("{resource_type}/write"),
        };
        let own = segments.len() - usize::from(action.is_some());
        Self {
            subscription: after("subscriptions").unwrap_or_default().to_owned(),
            group: after("resourceGroups").unwrap_or_default().to_owned(),
            provider: provider.to_owned(),
            resource: format!("/{}", segments[..own].join("/")),
            resource_type,
            operation,
        }
    }
}

impl Write {
    /// The result of the write: `Succeeded` or `Failed`.
    pub(crate) fn result(&self) -> &'static str {
        match self.status.is_success() {
            true => "Succeeded",
            false => "Failed",
        }
    }

    /// The events: one for the beginning, and one for the result.
    pub(crate) fn events(&self, place: &Place) -> [Value; 2] {
        let operation = Uuid::new_v4();
        let begin = self.event(place, operation, self.began, "Started", String::new(), json!({}));
        let reason = self.status.canonical_reason().unwrap_or_default();
        let code = self.status.as_u16();
        let mut properties = json!({"statusCode": reason, "requestDuration": self.duration()});
        if let Some(error) = &self.error {
            let mut text = error.to_string();
            let end = (0..=MAX_ERROR.min(text.len()))
                .rev()
                .find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or_default());
            properties["statusMessage"] = json!(text);
        }
        let sub_status = format!("{reason} (HTTP Status Code: {code})");
        let end = self.event(place, operation, self.ended, self.result(), sub_status, properties);
        [begin, end]
    }

    fn duration(&self) -> String {
        format!("PT{:.3}S", (self.ended - self.began).as_seconds_f64().max(0.0))
    }

    fn event(
        &self,
        place: &Place,
        operation: Uuid,
        at: OffsetDateTime,
        status: &str,
        sub_status: String,
        properties: Value,
    ) -> Value {
        let id = Uuid::new_v4();
        let time = at.format(&Rfc3339).unwrap_or_default();
        let named = |value: &str| json!({"value": value, "localizedValue": value});
        let event = if status == "Started" {
            "BeginRequest"
        } else {
            "EndRequest"
        };
        json!({
            "id": format!("{}/events/{id}/ticks/{}", place.resource, at.unix_timestamp_nanos() / 100),
            "eventDataId": id,
            "correlationId": self.correlation,
            "operationId": operation,
            "eventTimestamp": time,
            "submissionTimestamp": time,
            "level": if status == "Failed" { "Error" } else { "Informational" },
            "caller": self.caller,
            "resourceGroupName": place.group,
            "resourceId": place.resource,
            "subscriptionId": place.subscription,
            "tenantId": self.tenant,
            "description": "",
            "operationName": named(&place.operation),
            "status": named(status),
            "subStatus": named(&sub_status),
            "category": named("Administrative"),
            "eventName": named(event),
            "resourceProviderName": named(&place.provider),
            "resourceType": named(&place.resource_type),
            "authorization": {"action": place.operation, "role": "", "scope": place.resource},
            "httpRequest": {
                "clientRequestId": self.client_request,
                "clientIpAddress": self.client.map(|address| address.to_string()).unwrap_or_default(),
                "method": self.method,
                "uri": self.path,
            },
            "claims": {"appid": self.caller},
            "properties": properties,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_have_azures_names() {
        let group = "/subscriptions/s/resourceGroups/g";
        for (method, tail, operation, resource) in [
            ("PUT", "", "Microsoft.Resources/resourceGroups/write", ""),
            (
                "PUT",
                "/providers/Microsoft.Network/virtualNetworks/v/subnets/a",
                "Microsoft.Network/virtualNetworks/subnets/write",
                "/providers/Microsoft.Network/virtualNetworks/v/subnets/a",
            ),
            (
                "DELETE",
                "/providers/Microsoft.Network/virtualNetworks/v",
                "Microsoft.Network/virtualNetworks/delete",
                "/providers/Microsoft.Network/virtualNetworks/v",
            ),
            (
                "POST",
                "/providers/Microsoft.Network/virtualNetworkGateways/g/reset",
                "Microsoft.Network/virtualNetworkGateways/reset/action",
                "/providers/Microsoft.Network/virtualNetworkGateways/g",
            ),
        ] {
            let place = Place::of(method, &format!("{group}{tail}"));
            assert_eq!(place.operation, operation);
            assert_eq!(place.resource, format!("{group}{resource}"));
            assert_eq!((&*place.subscription, &*place.group), ("s", "g"));
        }
        let own = Place::of("DELETE", "/fabric/v1/tokens/t");
        assert_eq!(own.operation, "Tombolo.Fabric/tokens/delete");
        for odd in ["", "/", "/providers", "/subscriptions", "/subscriptions/s/providers/"] {
            Place::of("POST", odd);
        }
    }
}
