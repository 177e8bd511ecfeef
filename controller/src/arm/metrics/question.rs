//! What a request for metrics asks for.

use crate::arm::call::Call;
use crate::rest::failure::{Failure, excerpt};
use crate::times;
use percent_encoding::percent_decode_str;

/// The time spans of intervals, as Azure writes them (ISO 8601), in seconds.
pub(super) const INTERVALS: [(&str, u64); 8] = [
    ("PT1M", 60),
    ("PT5M", 5 * 60),
    ("PT15M", 15 * 60),
    ("PT30M", 30 * 60),
    ("PT1H", HOUR),
    ("PT6H", 6 * HOUR),
    ("PT12H", 12 * HOUR),
    ("P1D", 24 * HOUR),
];

/// An hour in seconds.
pub(super) const HOUR: u64 = 60 * 60;

/// Largest number of intervals of an answer, for each metric. It is a day of minutes.
const MAX_INTERVALS: u64 = 1440;
/// Largest number of names in one parameter.
const MAX_NAMES: usize = 20;

/// How the figures of an interval become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregation {
    Average,
    Minimum,
    Maximum,
    Total,
    Count,
}

impl Aggregation {
    pub(super) const ALL: [Self; 5] = [Self::Average, Self::Minimum, Self::Maximum, Self::Total, Self::Count];

    /// The name in requests and definitions.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Average => "Average",
            Self::Minimum => "Minimum",
            Self::Maximum => "Maximum",
            Self::Total => "Total",
            Self::Count => "Count",
        }
    }
}

/// A request for metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Beginning and end of the time, in seconds of Unix time.
    pub(super) from: u64,
    pub(super) to: u64,
    /// Length of an interval in seconds, and as text.
    pub(super) step: u64,
    pub(super) interval: &'static str,
    /// The names of metrics, as the client wrote them. Empty: the first metric of the resource's type.
    pub(super) names: Vec<String>,
    /// `None`: the first aggregation of each metric.
    pub(super) aggregations: Option<Vec<Aggregation>>,
}

impl Question {
    /// Reads the parameters of a request. Without `timespan` it is about the last hour, and without `interval` about
    /// minutes. `now`: seconds of Unix time.
    ///
    /// # Errors
    /// 400: a parameter is malformed, or the answer would be too long.
    pub(super) fn read(call: &Call, now: u64) -> Result<Self, Failure> {
        let parameter = |name: &str| {
            let value = call.query.get(name).map(|value| value.trim());
            value.filter(|value| !value.is_empty())
        };
        if let Some(filter) = parameter("$filter") {
            let message = format!(
                "$filter: '{}' names a dimension; the metrics of this controller have none",
                excerpt(filter)
            );
            return Err(Failure::bad("BadRequest", message).at("$filter"));
        }
        let (interval, step) = interval(parameter("interval").unwrap_or("PT1M"))?;
        let (from, to) = match parameter("timespan") {
            Some(text) => timespan(text)?,
            None => (now.saturating_sub(HOUR), now),
        };
        // Intervals begin with a whole minute or hour, as the figures do.
        let from = from / step.min(HOUR) * step.min(HOUR);
        if to.saturating_sub(from).div_ceil(step) > MAX_INTERVALS {
            let message = format!(
                "timespan: it has more than {MAX_INTERVALS} intervals of {interval}; ask for a shorter time or a longer interval"
            );
            return Err(Failure::bad("BadRequest", message).at("timespan"));
        }
        Ok(Self {
            from,
            to,
            step,
            interval,
            names: list("metricnames", parameter("metricnames"))?,
            aggregations: aggregations(parameter("aggregation"))?,
        })
    }
}

/// The values of a list that commas separate.
fn list(name: &str, text: Option<&str>) -> Result<Vec<String>, Failure> {
    let values: Vec<String> = text
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .map(str::to_owned)
        .collect();
    if values.len() > MAX_NAMES {
        let message = format!(
            "{name}: it has {} values; at most {MAX_NAMES} are possible",
            values.len()
        );
        return Err(Failure::bad("BadRequest", message).at(name));
    }
    Ok(values)
}

fn aggregations(text: Option<&str>) -> Result<Option<Vec<Aggregation>>, Failure> {
    let values = list("aggregation", text)?;
    let read = |value: &String| {
        let mut all = Aggregation::ALL.into_iter();
        all.find(|known| known.name().eq_ignore_ascii_case(value))
            .ok_or_else(|| {
                let message = format!(
                    "aggregation: '{}' is none of Average, Minimum, Maximum, Total and Count",
                    excerpt(value)
                );
                Failure::bad("BadRequest", message).at("aggregation")
            })
    };
    let all: Vec<Aggregation> = values.iter().map(read).collect::<Result<_, _>>()?;
    Ok((!all.is_empty()).then_some(all))
}

fn interval(text: &str) -> Result<(&'static str, u64), Failure> {
    let mut known = INTERVALS.into_iter();
    let found = known.find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names = INTERVALS.map(|(name, _)| name).join(", ");
        let message = format!("interval: '{}' is none of {names}", excerpt(text));
        Failure::bad("BadRequest", message).at("interval")
    })
}

/// Reads `START/END`. Some clients encode it twice.
fn timespan(text: &str) -> Result<(u64, u64), Failure> {
    let wrong = |what: String| Failure::bad("BadRequest", format!("timespan: {what}")).at("timespan");
    // A `+` before the offset of a zone, which was decoded once already, is a space by now.
    let text = percent_decode_str(text).decode_utf8_lossy().replace(' ', "+");
    let (from, to) = text
        .split_once('/')
        .ok_or_else(|| wrong(format!("'{}' is not of the form START/END", excerpt(&text))))?;
    let (from, to) = (
        times::parse_seconds(from).map_err(wrong)?,
        times::parse_seconds(to).map_err(wrong)?,
    );
    if from >= to {
        return Err(wrong(format!("'{}' does not end after it begins", excerpt(&text))));
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Question, String> {
        let request = http::Request::get(format!("/x?{query}")).body(()).unwrap();
        let call = Call::read(request.into_parts().0).map_err(|_| "no request")?;
        Question::read(&call, 7210).map_err(|failure| failure.object()["message"].to_string())
    }

    #[test]
    fn the_questions_of_clients_are_read() {
        let question = read("").unwrap();
        assert_eq!((question.from, question.to, question.step), (3600, 7210, 60));
        let twice = "timespan=1970-01-01T01%253A00%253A30/1970-01-01T02%253A00%253A00&interval=pt5m\
                     &metricnames=A,%20b&aggregation=average,Total";
        let question = read(twice).unwrap();
        assert_eq!((question.from, question.to, question.step), (3600, 7200, 300));
        assert_eq!(question.names, ["A", "b"]);
        assert_eq!(
            question.aggregations,
            Some(vec![Aggregation::Average, Aggregation::Total])
        );
        let zone = read("timespan=1970-01-01T02:00:00+01:00/1970-01-01T02:00:00Z").unwrap();
        assert_eq!((zone.from, zone.to), (3600, 7200));
    }

    #[test]
    fn a_question_that_cannot_be_answered_is_refused_by_name() {
        for (query, name) in [
            ("timespan=yesterday", "timespan"),
            ("timespan=1970-01-02/1970-01-01", "timespan"),
            ("timespan=1970-01-01/1990-01-01", "timespan"),
            ("interval=PT2M", "interval"),
            ("aggregation=Median", "aggregation"),
            ("$filter=Instance%20eq%20'a'", "$filter"),
            (&format!("metricnames={}", "a,".repeat(21)), "metricnames"),
        ] {
            let message = read(query).unwrap_err();
            assert!(message.starts_with(&format!("\"{name}: ")), "{query}: {message}");
        }
    }
}
