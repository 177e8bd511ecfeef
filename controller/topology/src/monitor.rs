//! Connection monitors: reads the properties of an ARM body, and lists the checks that the controller has to repeat (D42).

use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;
use tombolo_proto::fabric::{MonitorOutcome, Protocol};

/// Largest number of tests of one monitor. A test is a source and a destination with one test configuration.
pub const MAX_TESTS: usize = 100;

/// Largest number of entries of each list, as in Azure.
const MAX_ENTRIES: usize = 100;

/// The frequencies that are possible, in seconds. Azure permits 30 s to 30 min.
const FREQUENCIES: std::ops::RangeInclusive<u64> = 30..=1800;

/// A check that is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorTest {
    /// The name of the test group.
    pub group: String,
    /// The name of the test configuration.
    pub configuration: String,
    /// The name of the source endpoint.
    pub source: String,
    /// The name of the destination endpoint.
    pub destination: String,
    /// The id of the source's machine or network interface, or of what attaches its site (M10).
    pub from: String,
    /// The id of the destination's machine or network interface, or its address.
    pub to: String,
    /// What is sent.
    pub protocol: Protocol,
    /// The destination port; `None` for ICMP.
    pub port: Option<u16>,
    /// The time from one check to the next.
    pub every: Duration,
    /// The share of failed probes above which the test fails, in percent. `None`: there is no limit, so the test fails if
    /// all probes fail.
    pub max_failed_percent: Option<u8>,
    /// The round-trip time above which the test fails, in milliseconds.
    pub max_round_trip_ms: Option<u32>,
}

impl MonitorTest {
    /// The outcome of a check. `round_trip_ms`: the mean of the round-trip times; `None` if all probes failed.
    #[must_use]
    pub fn outcome(&self, sent: u32, failed: u32, round_trip_ms: Option<u32>) -> MonitorOutcome {
        let is_lost = match self.max_failed_percent {
            Some(percent) => u64::from(failed) * 100 > u64::from(sent) * u64::from(percent),
            None => failed >= sent,
        };
        let is_slow = self
            .max_round_trip_ms
            .is_some_and(|limit| round_trip_ms.is_some_and(|time| time > limit));
        if is_lost || is_slow {
            MonitorOutcome::Fail
        } else {
            MonitorOutcome::Pass
        }
    }
}

/// A body that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorProblem {
    /// The path of the property, such as `testConfigurations[0].tcpConfiguration.port`.
    pub field: String,
    /// The value and what is possible.
    pub message: String,
}

/// A place in a body.
#[derive(Clone, Copy)]
struct At<'a, 'p> {
    value: &'a Map<String, Value>,
    path: &'p str,
}

fn problem<T>(field: String, what: impl std::fmt::Display) -> Result<T, MonitorProblem> {
    let message = format!("{field}: {what}");
    Err(MonitorProblem { field, message })
}

impl<'a> At<'a, '_> {
    fn field(&self, name: &str) -> String {
        match self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.value.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>, MonitorProblem> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= 2048 => Ok(Some(text)),
            Some(_) => problem(self.field(name), "a text of at most 2,048 bytes is needed"),
        }
    }

    /// A name of 1 to 80 characters.
    fn name(&self) -> Result<&'a str, MonitorProblem> {
        match self.text("name")? {
            Some(name) if (1..=80).contains(&name.chars().count()) => Ok(name),
            _ => problem(self.field("name"), "a name of 1 to 80 characters is needed"),
        }
    }

    fn number(&self, name: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>, MonitorProblem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => problem(
                self.field(name),
                format!("a whole number from {} to {} is needed", range.start(), range.end()),
            ),
        }
    }

    /// The entries of a list, each with its path.
    fn list(&self, name: &str) -> Result<Vec<(String, &'a Value)>, MonitorProblem> {
        let field = self.field(name);
        match self.get(name) {
            Some(Value::Array(entries)) if (1..=MAX_ENTRIES).contains(&entries.len()) => {
                let numbered = entries.iter().enumerate();
                Ok(numbered.map(|(n, entry)| (format!("{field}[{n}]"), entry)).collect())
            }
            _ => problem(field, format!("a list of 1 to {MAX_ENTRIES} entries is needed")),
        }
    }

    /// The names in a list, each of which `known` must have.
    fn names(&self, name: &str, known: &[&str]) -> Result<Vec<&'a str>, MonitorProblem> {
        let entries = self.list(name)?;
        let read = entries.into_iter().map(|(field, entry)| match entry.as_str() {
            Some(text) if known.contains(&text) => Ok(text),
            _ => problem(field, "it is not the name of an entry of this monitor"),
        });
        let names: Vec<&str> = read.collect::<Result<_, _>>()?;
        let mut seen = BTreeSet::new();
        match names.iter().find(|text| !seen.insert(**text)) {
            Some(text) => problem(self.field(name), format!("the name '{text}' is there twice")),
            None => Ok(names),
        }
    }

    /// Refuses properties that would change what is measured.
    fn without(&self, names: &[&str]) -> Result<(), MonitorProblem> {
        match names.iter().find(|name| self.get(name).is_some()) {
            Some(name) => problem(self.field(name), "this property is not supported; leave it out"),
            None => Ok(()),
        }
    }
}

fn object<'a, 'p>(value: Option<&'a Value>, path: &'p str) -> Result<At<'a, 'p>, MonitorProblem> {
    match value {
        Some(Value::Object(value)) => Ok(At { value, path }),
        _ => problem(path.to_owned(), "an object is needed"),
    }
}

/// An endpoint: its name, and the id or the address.
struct Endpoint<'a> {
    name: &'a str,
    place: &'a str,
    is_resource: bool,
}

/// The tests of a monitor, in the order of their groups. `properties`: those of the ARM body.
///
/// # Errors
/// The first property that is malformed or not supported.
pub fn tests(properties: &Value) -> Result<Vec<MonitorTest>, MonitorProblem> {
    let body = object(Some(properties), "")?;
    body.without(&["source", "destination", "monitoringIntervalInSeconds"])?;
    body.text("notes")?;
    let mut endpoints = Vec::new();
    for (path, entry) in body.list("endpoints")? {
        endpoints.push(endpoint(object(Some(entry), &path)?)?);
    }
    unique("endpoints", endpoints.iter().map(|e| e.name))?;
    let mut configurations = Vec::new();
    for (path, entry) in body.list("testConfigurations")? {
        configurations.push(configuration(object(Some(entry), &path)?)?);
    }
    unique(
        "testConfigurations",
        configurations.iter().map(|c| c.configuration.as_str()),
    )?;
    let names: Vec<&str> = endpoints.iter().map(|e| e.name).collect();
    let known: Vec<&str> = configurations.iter().map(|c| c.configuration.as_str()).collect();
    let (mut tests, mut groups) = (Vec::new(), Vec::new());
    for (path, entry) in body.list("testGroups")? {
        let group = object(Some(entry), &path)?;
        groups.push(group.name()?);
        let chosen = group.names("testConfigurations", &known)?;
        let (sources, destinations) = (group.names("sources", &names)?, group.names("destinations", &names)?);
        let is_disabled = match group.get("disable") {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(_) => return problem(group.field("disable"), "true or false is needed"),
        };
        if is_disabled {
            continue;
        }
        if tests.len() + chosen.len() * sources.len() * destinations.len() > MAX_TESTS {
            return problem(path.clone(), format!("a monitor can have {MAX_TESTS} tests in all"));
        }
        for name in chosen {
            for source in &sources {
                for destination in &destinations {
                    let find = |name: &str| endpoints.iter().find(|e| e.name == name);
                    let (Some(from), Some(to)) = (find(source), find(destination)) else {
                        continue;
                    };
                    if !from.is_resource {
                        let what = format!("'{source}' is only an address; a source needs a resourceId");
                        return problem(group.field("sources"), what);
                    }
                    let Some(test) = configurations.iter().find(|c| c.configuration == name) else {
                        continue;
                    };
                    tests.push(MonitorTest {
                        group: group.name()?.to_owned(),
                        source: from.name.to_owned(),
                        destination: to.name.to_owned(),
                        from: from.place.to_owned(),
                        to: to.place.to_owned(),
                        ..test.clone()
                    });
                }
            }
        }
    }
    unique("testGroups", groups.into_iter())?;
    Ok(tests)
}

fn unique<'a>(list: &str, names: impl Iterator<Item = &'a str>) -> Result<(), MonitorProblem> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.to_ascii_lowercase()) {
            return problem(list.to_owned(), "two entries have the same name");
        }
    }
    Ok(())
}

fn endpoint<'a>(at: At<'a, '_>) -> Result<Endpoint<'a>, MonitorProblem> {
    at.without(&["filter", "scope", "coverageLevel"])?;
    let kind = at.text("type")?;
    if kind.is_some_and(|kind| !["AzureVM", "ExternalAddress"].contains(&kind)) {
        return problem(at.field("type"), "AzureVM and ExternalAddress are supported");
    }
    let name = at.name()?;
    match (at.text("resourceId")?, at.text("address")?) {
        (Some(id), _) if id.to_ascii_lowercase().starts_with("/subscriptions/") => Ok(Endpoint {
            name,
            place: id,
            is_resource: true,
        }),
        (Some(_), _) => problem(
            at.field("resourceId"),
            "the id of a virtual machine, a network interface, or a local network gateway or circuit of a site is needed",
        ),
        (None, Some(address)) if address.parse::<IpAddr>().is_ok() => Ok(Endpoint {
            name,
            place: address,
            is_resource: false,
        }),
        (None, Some(_)) => problem(at.field("address"), "an IP address is needed; names are not resolved"),
        (None, None) => problem(at.field("resourceId"), "a resourceId or an address is needed"),
    }
}

/// A test configuration, as a test without group and endpoints.
fn configuration(at: At<'_, '_>) -> Result<MonitorTest, MonitorProblem> {
    at.without(&["httpConfiguration"])?;
    if at.text("preferredIPVersion")?.is_some_and(|version| version != "IPv4") {
        return problem(at.field("preferredIPVersion"), "IPv4 is supported");
    }
    let word = at.text("protocol")?.unwrap_or_default();
    let (protocol, port) = if word.eq_ignore_ascii_case("Tcp") {
        let path = at.field("tcpConfiguration");
        let tcp = object(at.get("tcpConfiguration"), &path)?;
        if tcp.text("destinationPortBehavior")?.is_some_and(|how| how != "None") {
            return problem(tcp.field("destinationPortBehavior"), "None is supported");
        }
        match tcp
            .number("port", 1..=65_535)?
            .and_then(|port| u16::try_from(port).ok())
        {
            Some(port) => (Protocol::Tcp, Some(port)),
            None => return problem(tcp.field("port"), "a port from 1 to 65535 is needed"),
        }
    } else if word.eq_ignore_ascii_case("Icmp") {
        (Protocol::Icmp, None)
    } else {
        return problem(at.field("protocol"), "Tcp and Icmp are supported");
    };
    let path = at.field("successThreshold");
    let (mut max_failed_percent, mut max_round_trip_ms) = (None, None);
    if at.get("successThreshold").is_some() {
        let threshold = object(at.get("successThreshold"), &path)?;
        max_failed_percent = threshold.number("checksFailedPercent", 0..=100)?;
        max_round_trip_ms = match threshold.get("roundTripTimeMs").map(Value::as_f64) {
            None => None,
            Some(Some(time)) if (0.0..=60_000.0).contains(&time) => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 60,000")]
                let whole = time.ceil() as u32;
                Some(whole)
            }
            Some(_) => return problem(threshold.field("roundTripTimeMs"), "a number from 0 to 60000 is needed"),
        };
    }
    Ok(MonitorTest {
        group: String::new(),
        configuration: at.name()?.to_owned(),
        source: String::new(),
        destination: String::new(),
        from: String::new(),
        to: String::new(),
        protocol,
        port,
        every: Duration::from_secs(at.number("testFrequencySec", FREQUENCIES)?.unwrap_or(60)),
        max_failed_percent: max_failed_percent.and_then(|percent| u8::try_from(percent).ok()),
        max_round_trip_ms,
    })
}

#[cfg(test)]
mod unit {
    use super::*;
    use serde_json::json;

    const VM: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/";

    fn body() -> Value {
        json!({
            "endpoints": [
                {"name": "a", "type": "AzureVM", "resourceId": format!("{VM}a")},
                {"name": "b", "resourceId": format!("{VM}b")},
                {"name": "site", "type": "ExternalAddress", "address": "10.9.0.4"},
            ],
            "testConfigurations": [
                {"name": "web", "protocol": "Tcp", "testFrequencySec": 30, "tcpConfiguration": {"port": 443},
                 "successThreshold": {"checksFailedPercent": 5, "roundTripTimeMs": 99.5}},
                {"name": "echo", "protocol": "Icmp", "icmpConfiguration": {"disableTraceRoute": true}},
            ],
            "testGroups": [
                {"name": "one", "disable": false, "testConfigurations": ["web", "echo"], "sources": ["a"], "destinations": ["b", "site"]},
                {"name": "off", "disable": true, "testConfigurations": ["web"], "sources": ["b"], "destinations": ["a"]},
            ],
            "outputs": [],
        })
    }

    /// D42: each configuration of a group is tested between each source and each destination.
    #[test]
    fn d42_the_tests_of_a_monitor() {
        let tests = tests(&body()).unwrap();
        let line = |t: &MonitorTest| format!("{} {} {} {}", t.group, t.configuration, t.source, t.destination);
        assert_eq!(
            tests.iter().map(line).collect::<Vec<_>>(),
            ["one web a b", "one web a site", "one echo a b", "one echo a site"]
        );
        let web = &tests[1];
        assert_eq!(
            (web.from.as_str(), web.to.as_str(), web.protocol, web.port),
            (&*format!("{VM}a"), "10.9.0.4", Protocol::Tcp, Some(443))
        );
        assert_eq!(
            (web.every, web.max_failed_percent, web.max_round_trip_ms),
            (Duration::from_secs(30), Some(5), Some(100))
        );
        assert_eq!(
            (tests[2].every, tests[2].max_failed_percent),
            (Duration::from_secs(60), None)
        );
    }

    /// D42: a test fails by the thresholds of its configuration.
    #[test]
    fn d42_thresholds_decide_about_a_check() {
        let all = tests(&body()).unwrap();
        let (web, echo) = (&all[0], &all[2]);
        for (sent, failed, time, expected) in [
            (20, 0, Some(1), MonitorOutcome::Pass),
            (20, 1, Some(100), MonitorOutcome::Pass),
            (20, 2, Some(1), MonitorOutcome::Fail),
            (20, 0, Some(101), MonitorOutcome::Fail),
            (20, 20, None, MonitorOutcome::Fail),
        ] {
            assert_eq!(web.outcome(sent, failed, time), expected, "{sent} {failed} {time:?}");
        }
        assert_eq!(echo.outcome(5, 4, Some(60_000)), MonitorOutcome::Pass);
        assert_eq!(echo.outcome(5, 5, None), MonitorOutcome::Fail);
        assert_eq!(echo.outcome(0, 0, None), MonitorOutcome::Fail);
    }

    /// D42: what is malformed or not supported is refused by the path of its property.
    #[test]
    fn d42_bad_monitors_are_refused_by_field() {
        for (pointer, value, field) in [
            ("/endpoints", json!([]), "endpoints"),
            ("/endpoints/0/name", json!(""), "endpoints[0].name"),
            ("/endpoints/0/name", json!("B"), "endpoints"),
            ("/endpoints/0/type", json!("AzureSubnet"), "endpoints[0].type"),
            ("/endpoints/0/resourceId", json!("vm-a"), "endpoints[0].resourceId"),
            ("/endpoints/2/address", json!("www.example.com"), "endpoints[2].address"),
            (
                "/testConfigurations/0/protocol",
                json!("Http"),
                "testConfigurations[0].protocol",
            ),
            (
                "/testConfigurations/0/tcpConfiguration/port",
                json!(0),
                "testConfigurations[0].tcpConfiguration.port",
            ),
            (
                "/testConfigurations/0/testFrequencySec",
                json!(29),
                "testConfigurations[0].testFrequencySec",
            ),
            ("/testConfigurations/1/name", json!("WEB"), "testConfigurations"),
            (
                "/testConfigurations/0/successThreshold/roundTripTimeMs",
                json!(-1),
                "testConfigurations[0].successThreshold.roundTripTimeMs",
            ),
            ("/testGroups/0/sources/0", json!("nobody"), "testGroups[0].sources[0]"),
            ("/testGroups/0/sources/0", json!("site"), "testGroups[0].sources"),
            ("/testGroups/0/disable", json!("no"), "testGroups[0].disable"),
            ("/testGroups/1/name", json!("one"), "testGroups"),
            ("/testGroups", json!(7), "testGroups"),
        ] {
            let mut bad = body();
            *bad.pointer_mut(pointer).unwrap() = value.clone();
            let problem = tests(&bad).expect_err(pointer);
            assert_eq!(problem.field, field, "{pointer} = {value}: {problem:?}");
            assert!(problem.message.starts_with(field), "{problem:?}");
        }
        let mut many = body();
        many["endpoints"] = (0..15)
            .map(|n| json!({"name": format!("e{n}"), "resourceId": format!("{VM}{n}")}))
            .collect();
        let all: Value = (0..15).map(|n| json!(format!("e{n}"))).collect();
        many["testGroups"] =
            json!([{"name": "all", "testConfigurations": ["web"], "sources": all, "destinations": all}]);
        assert_eq!(tests(&many).unwrap_err().field, "testGroups[0]");
        assert_eq!(tests(&json!(null)).unwrap_err().field, "");
    }
}
