//! POST `connectivityCheck`: live probes from a machine, in ARM's form (M5).

use super::fields::word;
use crate::connectivity::check;
use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::fabric::{CheckRequest, Protocol};

/// What a client may name as the protocol.
#[derive(Debug, Clone, Copy)]
enum Named {
    Known(Protocol),
    /// Protocols of Azure that are refused, with the port that their requests would use.
    Http(&'static str, u16),
}

/// The answer to a request. It takes seconds, because the probes are real.
pub(super) async fn answer(rest: &Rest, body: &Value) -> Result<Response, Failure> {
    let question = question(body)?;
    let checked = check(&rest.app, &question).await?;
    Ok(ok(&json!(checked.information)))
}

fn question(body: &Value) -> Result<CheckRequest, Failure> {
    let part = |pointer: &str| body.pointer(pointer).filter(|value| !value.is_null());
    let source = part("/source/resourceId").and_then(Value::as_str).unwrap_or_default();
    let source = resource("source.resourceId", source)?;
    if part("/source/port").is_some_and(|port| port.as_u64() != Some(0)) {
        let message =
            "source.port: a port of the source cannot be chosen, because each connection has its own; leave it out";
        return Err(Failure::bad("XSourcePortNotSupported", message).at("source.port"));
    }
    let destination = destination(body)?;
    let port = match part("/destination/port") {
        None => None,
        Some(port) => Some(port.as_u64().and_then(|port| u16::try_from(port).ok()).ok_or_else(|| {
            let message = format!(
                "destination.port: {} is not a whole number from 0 to 65535",
                excerpt(&port.to_string())
            );
            Failure::bad("InvalidRequestFormat", message).at("destination.port")
        })?),
    };
    // Stock clients send 0 if the user gives no port.
    let port = port.filter(|port| *port > 0);
    let protocol = match part("/protocol") {
        // Azure's documentation does not say which protocol is the default. A port has a meaning with TCP only.
        None if port.is_some() => Protocol::Tcp,
        None => Protocol::Icmp,
        Some(_) => {
            let words = [
                ("Tcp", Named::Known(Protocol::Tcp)),
                ("Icmp", Named::Known(Protocol::Icmp)),
                ("Http", Named::Http("Http", 80)),
                ("Https", Named::Http("Https", 443)),
            ];
            match word(body, "protocol", words)? {
                Named::Known(protocol) => protocol,
                Named::Http(name, port) => {
                    let message = format!(
                        "protocol: {name} is not supported, as agents send no requests; use Tcp with the port, such as {port}"
                    );
                    return Err(Failure::bad("XProtocolNotSupported", message).at("protocol"));
                }
            }
        }
    };
    Ok(CheckRequest {
        from: source,
        to: destination,
        protocol,
        // An echo request has no port, and clients may send one with it.
        port: port.filter(|_| protocol == Protocol::Tcp),
    })
}

/// The destination: a resource, or else an address.
fn destination(body: &Value) -> Result<String, Failure> {
    let text = |field: &str| body["destination"][field].as_str().filter(|text| !text.is_empty());
    match (text("resourceId"), text("address")) {
        (Some(id), _) => resource("destination.resourceId", id),
        (None, Some(address)) if address.parse::<IpAddr>().is_ok() => Ok(address.to_owned()),
        (None, Some(name)) => {
            let message = format!(
                "destination.address: '{}' is not an IP address, and agents resolve no names; give the address",
                excerpt(name)
            );
            Err(Failure::bad("InvalidRequestFormat", message).at("destination.address"))
        }
        (None, None) => {
            let message = "destination: an address or a resourceId is required";
            Err(Failure::bad("InvalidRequestFormat", message).at("destination"))
        }
    }
}

/// The id of a virtual machine, a network interface, or what attaches a site with a probe (M10).
fn resource(field: &str, id: &str) -> Result<String, Failure> {
    // Without this check, a name of an agent would do too, which Azure does not know.
    let is_id = id.to_ascii_lowercase().starts_with("/subscriptions/");
    if is_id {
        return Ok(id.to_owned());
    }
    let message = format!(
        "{field}: '{}' is not the id of a virtual machine, a network interface, a local network gateway or a circuit",
        excerpt(id)
    );
    Err(Failure::bad("InvalidRequestFormat", message).at(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm";

    fn asked(change: impl FnOnce(&mut Value)) -> Result<CheckRequest, String> {
        let mut body = json!({"source": {"resourceId": VM}, "destination": {"address": "10.2.0.4"}});
        change(&mut body);
        question(&body).map_err(|failure| failure.object()["message"].as_str().unwrap().to_owned())
    }

    /// M5: a port means TCP, and no port means ICMP, unless the request says otherwise.
    #[test]
    fn m5_the_protocol_follows_from_the_port() {
        let of = |body: Value| {
            asked(|b| {
                b["destination"]["port"] = body[0].clone();
                b["protocol"] = body[1].clone();
            })
            .map(|q| (q.protocol, q.port))
        };
        for (given, expected) in [
            (json!([null, null]), (Protocol::Icmp, None)),
            (json!([0, null]), (Protocol::Icmp, None)),
            (json!([443, null]), (Protocol::Tcp, Some(443))),
            (json!([443, "TCP"]), (Protocol::Tcp, Some(443))),
            (json!([443, "icmp"]), (Protocol::Icmp, None)),
        ] {
            assert_eq!(of(given.clone()), Ok(expected), "{given}");
        }
        assert!(
            of(json!([80, "Http"]))
                .unwrap_err()
                .starts_with("protocol: Http is not supported")
        );
        assert!(
            of(json!([80, "Udp"]))
                .unwrap_err()
                .starts_with("protocol: 'Udp' is not one of")
        );
        assert!(
            of(json!([65_536, "Tcp"]))
                .unwrap_err()
                .starts_with("destination.port: 65536")
        );
        assert!(of(json!(["80", "Tcp"])).unwrap_err().starts_with("destination.port"));
    }

    #[test]
    fn ends_are_resources_or_addresses() {
        let by_id = asked(|b| b["destination"] = json!({"resourceId": VM, "address": "10.2.0.4"}));
        assert_eq!(by_id.unwrap().to, VM);
        assert_eq!(asked(|_| ()).unwrap().to, "10.2.0.4");
        for (field, value, begin) in [
            (
                "destination",
                json!({"address": "www.example.com"}),
                "destination.address: 'www",
            ),
            ("destination", json!({}), "destination: an address"),
            (
                "destination",
                json!({"resourceId": "vm-b"}),
                "destination.resourceId: 'vm-b'",
            ),
            ("source", json!({"resourceId": "vm-a"}), "source.resourceId: 'vm-a'"),
            ("source", json!({"resourceId": VM, "port": 5000}), "source.port"),
            ("source", json!(7), "source.resourceId: ''"),
        ] {
            let refused = asked(|b| b[field] = value).unwrap_err();
            assert!(refused.starts_with(begin), "{refused}");
        }
    }
}
