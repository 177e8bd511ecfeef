//! Packet captures (D42): reads the properties of an ARM body and filters in Azure's words, and finds the agent that makes a
//! capture.

use crate::resource::Binding;
use crate::topology::Topology;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::capture::{
    AddressRange, CaptureFilter, CaptureProtocol, MAX_BYTES, MAX_FILTERS, MAX_RANGES, MAX_SECONDS,
};
use tombolo_proto::config::PortRange;
use tombolo_proto::fabric::CaptureFilterText;
use tombolo_proto::id::{AgentId, ResourceId};

/// Defaults of Azure's clients: a gibibyte, and five hours.
const DEFAULT_BYTES: u64 = 1 << 30;
const DEFAULT_SECONDS: u32 = MAX_SECONDS;

/// What a capture records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureSpec {
    /// The id of the machine or network interface.
    pub target: String,
    /// Which packets are captured; all if there is no filter.
    pub filters: Vec<CaptureFilter>,
    /// Number of bytes that are kept of each packet; 0 means all.
    pub bytes_per_packet: u32,
    /// Largest length of the file in bytes.
    pub total_bytes: u64,
    /// Longest time in seconds.
    pub seconds: u32,
}

/// A property that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureProblem {
    /// The path of the property, such as `filters[0].remotePort`.
    pub field: String,
    /// The property, its value, and what is possible.
    pub message: String,
}

fn problem<T>(field: impl Into<String>, what: impl std::fmt::Display) -> Result<T, CaptureProblem> {
    let field = field.into();
    let message = format!("{field}: {what}");
    Err(CaptureProblem { field, message })
}

/// Reads the properties of a packet capture in an ARM body.
///
/// # Errors
/// The first property that is malformed or not supported.
pub fn read(properties: &Value) -> Result<CaptureSpec, CaptureProblem> {
    let Value::Object(body) = properties else {
        return problem("properties", "an object is needed");
    };
    let target = text(body, "", "target")?.unwrap_or_default();
    if !target.to_ascii_lowercase().starts_with("/subscriptions/") {
        return problem("target", "the id of a virtual machine is needed");
    }
    if text(body, "", "targetType")?.is_some_and(|kind| !kind.eq_ignore_ascii_case("AzureVM")) {
        return problem("targetType", "AzureVM is supported; scale sets are not");
    }
    for name in ["continuousCapture", "captureSettings"] {
        if body
            .get(name)
            .is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
        {
            return problem(name, "this property is not supported; leave it out");
        }
    }
    check_scope(body)?;
    check_storage(body)?;
    let filters = match body.get("filters") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(entries)) if entries.len() <= MAX_FILTERS => {
            let read = entries.iter().enumerate().map(|(n, entry)| filter_text(n, entry));
            filters(&read.collect::<Result<Vec<_>, _>>()?)?
        }
        Some(_) => return problem("filters", format!("a list of at most {MAX_FILTERS} filters is needed")),
    };
    let bytes = number(body, "totalBytesPerSession", MAX_BYTES)?;
    let seconds = number(body, "timeLimitInSeconds", MAX_SECONDS.into())?;
    Ok(CaptureSpec {
        target,
        filters,
        bytes_per_packet: number(body, "bytesToCapturePerPacket", u32::MAX.into())?
            .and_then(|bytes| u32::try_from(bytes).ok())
            .unwrap_or_default(),
        total_bytes: total_bytes(Some(bytes.unwrap_or(DEFAULT_BYTES))),
        seconds: time_limit(Some(
            seconds
                .and_then(|seconds| u32::try_from(seconds).ok())
                .unwrap_or(DEFAULT_SECONDS),
        )),
    })
}

/// The largest length that a number of a request stands for: 0, or none, is the largest possible.
#[must_use]
pub fn total_bytes(given: Option<u64>) -> u64 {
    given.filter(|bytes| *bytes > 0).unwrap_or(MAX_BYTES)
}

/// The longest time that a number of a request stands for: 0, or none, is the longest possible.
#[must_use]
pub fn time_limit(given: Option<u32>) -> u32 {
    given.filter(|seconds| *seconds > 0).unwrap_or(MAX_SECONDS)
}

/// A scope selects instances of a scale set, so it has to be empty.
fn check_scope(body: &Map<String, Value>) -> Result<(), CaptureProblem> {
    let is_empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    match body.get("scope") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(scope)) if scope.values().all(is_empty) => Ok(()),
        Some(_) => problem("scope", "scale sets are not supported; leave it out"),
    }
}

/// Azure needs one place for the file. The agent chooses the real one.
fn check_storage(body: &Map<String, Value>) -> Result<(), CaptureProblem> {
    let Some(Value::Object(storage)) = body.get("storageLocation") else {
        return problem("storageLocation", "an object with storageId or filePath is needed");
    };
    let mut given = false;
    for name in ["storageId", "storagePath", "filePath", "localPath"] {
        given |= text(storage, "storageLocation.", name)?.is_some();
    }
    if given {
        return Ok(());
    }
    problem("storageLocation", "storageId or filePath is needed")
}

/// A text of at most 2,048 bytes; `None` if it is missing or empty.
fn text(body: &Map<String, Value>, above: &str, name: &str) -> Result<Option<String>, CaptureProblem> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.len() <= 2048 => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => problem(format!("{above}{name}"), "a text of at most 2,048 bytes is needed"),
    }
}

fn number(body: &Map<String, Value>, name: &str, most: u64) -> Result<Option<u64>, CaptureProblem> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().filter(|number| *number <= most) {
            Some(number) => Ok(Some(number)),
            None => problem(name, format!("a whole number from 0 to {most} is needed")),
        },
    }
}

fn filter_text(number: usize, entry: &Value) -> Result<CaptureFilterText, CaptureProblem> {
    let above = format!("filters[{number}].");
    let Value::Object(entry) = entry else {
        return problem(format!("filters[{number}]"), "an object is needed");
    };
    Ok(CaptureFilterText {
        protocol: text(entry, &above, "protocol")?,
        local_address: text(entry, &above, "localIPAddress")?,
        local_port: text(entry, &above, "localPort")?,
        remote_address: text(entry, &above, "remoteIPAddress")?,
        remote_port: text(entry, &above, "remotePort")?,
    })
}

/// Reads filters in Azure's words.
///
/// # Errors
/// There are too many, or a value is malformed.
pub fn filters(texts: &[CaptureFilterText]) -> Result<Vec<CaptureFilter>, CaptureProblem> {
    if texts.len() > MAX_FILTERS {
        return problem(
            "filters",
            format!("{} are too many; {MAX_FILTERS} are possible", texts.len()),
        );
    }
    let read = texts.iter().enumerate().map(|(number, given)| filter(number, given));
    read.collect()
}

fn filter(number: usize, given: &CaptureFilterText) -> Result<CaptureFilter, CaptureProblem> {
    let at = |name: &str| format!("filters[{number}].{name}");
    let word = given.protocol.as_deref().unwrap_or_default();
    let protocols = [
        ("", CaptureProtocol::Any),
        ("Any", CaptureProtocol::Any),
        ("TCP", CaptureProtocol::Tcp),
        ("UDP", CaptureProtocol::Udp),
    ];
    let protocol = protocols.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    let Some((_, protocol)) = protocol else {
        return problem(at("protocol"), format!("'{}' is not one of TCP, UDP, Any", short(word)));
    };
    Ok(CaptureFilter {
        protocol: *protocol,
        local_addresses: list(at("localIPAddress"), given.local_address.as_deref(), addresses)?,
        local_ports: list(at("localPort"), given.local_port.as_deref(), ports)?,
        remote_addresses: list(at("remoteIPAddress"), given.remote_address.as_deref(), addresses)?,
        remote_ports: list(at("remotePort"), given.remote_port.as_deref(), ports)?,
    })
}

/// The ranges of a list with `;`. Empty: it matches everything.
fn list<T>(
    field: String,
    given: Option<&str>,
    read: impl Fn(&str, &str) -> Result<T, &'static str>,
) -> Result<Vec<T>, CaptureProblem> {
    let given = given.unwrap_or_default();
    if given.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut ranges = Vec::new();
    for entry in given.split(';').map(str::trim) {
        if ranges.len() == MAX_RANGES {
            return problem(field, format!("the list has more than {MAX_RANGES} entries"));
        }
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        match read(first.trim(), last.trim()) {
            Ok(range) => ranges.push(range),
            Err(what) => return problem(field, format!("'{}' {what}", short(entry))),
        }
    }
    Ok(ranges)
}

fn addresses(first: &str, last: &str) -> Result<AddressRange, &'static str> {
    let (Ok(first), Ok(last)) = (first.parse::<IpAddr>(), last.parse::<IpAddr>()) else {
        return Err("is no IP address and no range A-B of them");
    };
    if first.is_ipv4() != last.is_ipv4() || first > last {
        return Err("is no range of one address family from the lower to the higher address");
    }
    Ok(AddressRange { first, last })
}

fn ports(first: &str, last: &str) -> Result<PortRange, &'static str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| is_number(text));
    let (Some(first), Some(last)) = (number(first), number(last)) else {
        return Err("is no port from 0 to 65535 and no range A-B of them");
    };
    if first > last {
        return Err("is no range from the lower to the higher port");
    }
    Ok(PortRange { first, last })
}

/// The beginning of a client's text, for a message.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Where a capture is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureTarget {
    /// The agent that makes it.
    pub agent: AgentId,
    /// The network interfaces. Empty: all of the agent.
    pub nics: Vec<ResourceId>,
}

/// The place that a name or an id stands for: a machine, a network interface, or an agent.
///
/// # Errors
/// It stands for nothing or for several places, or no agent has joined for it.
pub fn target(topology: &Topology, name: &str) -> Result<CaptureTarget, String> {
    let is = |id: &ResourceId| id.name().eq_ignore_ascii_case(name) || id.as_str().eq_ignore_ascii_case(name);
    let trusted = || topology.agents.values().filter(|agent| !agent.revoked);
    let mut found: BTreeMap<&AgentId, Vec<ResourceId>> = BTreeMap::new();
    for agent in trusted() {
        let is_its_machine = matches!(&agent.binding, Binding::Vm { vm, .. } if is(vm));
        if agent.id.as_str() == name || is_its_machine {
            found.insert(&agent.id, Vec::new());
        }
    }
    let mut without_agent = false;
    for nic in topology.nics.keys().filter(|nic| is(nic)) {
        let has = |binding: &Binding| matches!(binding, Binding::Vm { nics, .. } if nics.contains(nic));
        match trusted().find(|agent| has(&agent.binding)) {
            // A machine with the same name has all its network interfaces.
            Some(agent) => drop(found.entry(&agent.id).or_insert_with(|| vec![nic.clone()])),
            None => without_agent = true,
        }
    }
    let name = short(name);
    let mut places = found.into_iter();
    match (places.next(), places.next()) {
        (Some((agent, nics)), None) => Ok(CaptureTarget {
            agent: agent.clone(),
            nics,
        }),
        (Some((one, _)), Some((other, _))) => Err(format!(
            "'{name}' is ambiguous: the agents {one} and {other} have it; give the full id or the name of the agent"
        )),
        (None, _) if without_agent => Err(format!(
            "'{name}' has no agent yet, so nothing can be captured; create a join token for its VM and join an agent"
        )),
        (None, _) => Err(format!(
            "'{name}' is not the name or id of a machine or network interface with an agent, nor the name of an agent"
        )),
    }
}

#[cfg(test)]
mod unit;
