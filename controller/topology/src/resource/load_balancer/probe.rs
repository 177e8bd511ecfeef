//! The health probes of a load balancer (L6).

use super::part::{Described, find};
use crate::arm::body::{Object, missing};
use crate::arm::view::{child, references};
use crate::draft::Draft;
use crate::path::{Kind, shown};
use crate::resource::LoadBalancer;
use crate::resource::frame::Child;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A health probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the probe.
    pub etag: Uuid,
    /// The protocol.
    pub protocol: ProbeProtocol,
    /// The port of the back end, 1 to 65535.
    pub port: u16,
    /// `requestPath`: the path of the HTTP request, of printable ASCII characters. It need not begin with `/`. `None` for
    /// TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_path: Option<String>,
    /// `intervalInSeconds`: the time between two probes, 5 to 65535 s.
    pub interval_seconds: u16,
    /// `probeThreshold`: the number of equal results in a row that change the health of a back end, 1 to 100.
    pub threshold: u16,
    /// `numberOfProbes`: kept and shown only, as in Azure.
    pub number: u16,
    /// `noHealthyBackendsBehavior` is `AllProbedUp`: if no back end is healthy, all count as healthy.
    #[serde(default)]
    pub all_up_when_all_down: bool,
}

/// The protocol of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeProtocol {
    /// A TCP connection that the back end accepts.
    Tcp,
    /// A GET over HTTP that the back end answers with status 200.
    Http,
    /// A GET over HTTPS that the back end answers with status 200. The certificate is not checked.
    Https,
}

impl ProbeProtocol {
    const NAMES: [(&'static str, Self); 3] = [("Tcp", Self::Tcp), ("Http", Self::Http), ("Https", Self::Https)];
}

/// The values of `noHealthyBackendsBehavior`.
const WHEN_ALL_DOWN: [(&str, bool); 2] = [("AllProbedDown", false), ("AllProbedUp", true)];

/// Azure's default of `intervalInSeconds`, and the least value.
const DEFAULT_INTERVAL: u16 = 15;
const MIN_INTERVAL: i64 = 5;
/// Azure's default of `numberOfProbes`, which has no effect.
const DEFAULT_NUMBER: u16 = 2;
/// Azure's largest `probeThreshold`.
const MAX_THRESHOLD: i64 = 100;
/// The longest `requestPath` in bytes. Azure's limit is the same number of characters.
const MAX_REQUEST_PATH: usize = 2048;

/// The ports that probes over HTTP and HTTPS refuse, as in Azure (L6).
const REFUSED_PORTS: [u16; 9] = [19, 21, 25, 70, 110, 119, 143, 220, 993];

/// The probes of a load balancer as child items. They are written with their load balancer.
pub(super) const PROBES: Child = Child {
    name: "probes",
    kind: Some(Kind::Probe),
    writes: None,
    item: |views, path| {
        let balancer = views.topology.load_balancers.get(&path.parent()?.id())?;
        find(&balancer.probes, &path.id()).map(|p| p.view(balancer))
    },
    list: |views, parent| {
        let balancer = views.topology.load_balancers.get(parent)?;
        Some(balancer.probes.iter().map(|p| p.view(balancer)).collect())
    },
};

impl Probe {
    /// The ARM body of the probe, which belongs to `balancer`.
    pub(super) fn view(&self, balancer: &LoadBalancer) -> Value {
        let behavior = if self.all_up_when_all_down {
            "AllProbedUp"
        } else {
            "AllProbedDown"
        };
        let mut properties = json!({
            "protocol": self.protocol,
            "port": self.port,
            "intervalInSeconds": self.interval_seconds,
            "numberOfProbes": self.number,
            "probeThreshold": self.threshold,
            "noHealthyBackendsBehavior": behavior,
            "loadBalancingRules": references(balancer.rules_with(|r| r.probe.as_ref() == Some(&self.id))),
        });
        if let Some(path) = &self.request_path {
            properties["requestPath"] = path.as_str().into();
        }
        child(&self.id, Kind::Probe, self.etag, properties)
    }
}

impl Draft<'_> {
    /// Reads a probe. `old`: the probe before the change. `None`: it cannot be read, and a problem gives the reason.
    pub(super) fn read_probe(&mut self, described: &Described<'_>, old: Option<&Probe>) -> Option<Probe> {
        let properties = &described.properties;
        let before = self.problems.len();
        let protocol = self.required_choice(properties, "protocol", &ProbeProtocol::NAMES);
        let port = self.required_port(properties, "port");
        if let (Some(ProbeProtocol::Http | ProbeProtocol::Https), Some(port)) = (protocol, port)
            && REFUSED_PORTS.contains(&port)
        {
            let at = properties.at("port");
            let message = format!(
                "{at}: a probe over HTTP or HTTPS cannot use port {port}. Refused are 19, 21, 25, 70, 110, 119, 143, 220 and 993. \
                 Choose another port, or a Tcp probe (L6)."
            );
            self.problems.add("XProbePortNotAllowed", at, message);
        }
        let request_path = self.request_path(properties, protocol);
        let interval = properties.integer(
            "intervalInSeconds",
            MIN_INTERVAL..=i64::from(u16::MAX),
            &mut self.problems,
        );
        let number = properties.integer("numberOfProbes", 1..=i64::from(u16::MAX), &mut self.problems);
        let threshold = properties.integer("probeThreshold", 1..=MAX_THRESHOLD, &mut self.problems);
        // A client of an older API version does not know the property, so a body without it keeps the present value.
        let when_all_down = self.optional_choice(properties, "noHealthyBackendsBehavior", &WHEN_ALL_DOWN);
        let kept = old.is_some_and(|p| p.all_up_when_all_down);
        let number_of = |given: Option<i64>, default: u16| given.and_then(|n| u16::try_from(n).ok()).unwrap_or(default);
        if self.problems.len() > before {
            return None;
        }
        Some(Probe {
            id: described.id.clone(),
            etag: old.map_or(Uuid::nil(), |p| p.etag),
            protocol: protocol?,
            port: port?,
            request_path,
            interval_seconds: number_of(interval, DEFAULT_INTERVAL),
            threshold: number_of(threshold, 1),
            number: number_of(number, DEFAULT_NUMBER),
            all_up_when_all_down: when_all_down.unwrap_or(kept),
        })
    }

    /// Reads `requestPath`, which probes over HTTP and HTTPS need and others must not have.
    fn request_path(&mut self, properties: &Object<'_>, protocol: Option<ProbeProtocol>) -> Option<String> {
        let given = properties.text("requestPath", &mut self.problems);
        let path = given.filter(|text| !text.is_empty());
        let at = properties.at("requestPath");
        match (protocol?, path) {
            (ProbeProtocol::Tcp, None) => {}
            (ProbeProtocol::Tcp, Some(path)) => {
                let message = format!(
                    "{at}: '{}' has no meaning for a Tcp probe. Leave it out, or choose the protocol Http or Https (L6).",
                    shown(path)
                );
                self.problems.add("InvalidRequestFormat", at, message);
            }
            (ProbeProtocol::Http | ProbeProtocol::Https, None) => missing(&mut self.problems, &at),
            (ProbeProtocol::Http | ProbeProtocol::Https, Some(path)) => {
                // The path becomes a part of the request's first line, which ends at a space or a line break.
                let good = path.len() <= MAX_REQUEST_PATH && path.bytes().all(|b| b.is_ascii_graphic());
                if !good {
                    let message = format!(
                        "{at}: '{}' is not a path of at most {MAX_REQUEST_PATH} printable ASCII characters without spaces (L6). \
                         Write other characters as % and two hexadecimal digits.",
                        shown(path)
                    );
                    self.problems.add("InvalidRequestFormat", at, message);
                }
            }
        }
        path.map(ToOwned::to_owned)
    }

    /// A required port, 1 to 65535. `None`: it is missing or wrong, and a problem says so.
    pub(super) fn required_port(&mut self, properties: &Object<'_>, name: &str) -> Option<u16> {
        if properties.get(name).is_none() {
            missing(&mut self.problems, &properties.at(name));
        }
        let port = properties.integer(name, 1..=i64::from(u16::MAX), &mut self.problems);
        port.and_then(|port| u16::try_from(port).ok())
    }
}
