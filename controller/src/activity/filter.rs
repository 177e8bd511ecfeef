//! The filter of a question for events, as Azure's clients write it:
//! `eventTimestamp ge 2026-11-30T10:00:00 and resourceGroupName eq 'g'`.

use crate::excerpt::excerpt;
use crate::times;

/// What a client wants to see. All texts are in lower case; `None`: any.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Earliest time, in microseconds of Unix time.
    pub(crate) from: Option<i64>,
    /// Latest time.
    pub(crate) to: Option<i64>,
    pub(crate) subscription: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) resource: Option<String>,
    pub(crate) provider: Option<String>,
    pub(crate) correlation: Option<String>,
    pub(crate) caller: Option<String>,
    pub(crate) status: Option<String>,
    /// Only events before the one with this number: the next page.
    pub(crate) before: Option<i64>,
}

/// Largest number of conditions of a filter.
const MAX_CONDITIONS: usize = 16;

impl Filter {
    /// Parses the value of `$filter`; empty: no condition.
    ///
    /// # Errors
    /// A condition is malformed, its name is unknown, or its value is no time. The text says which.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut filter = Self::default();
        let conditions: Vec<&str> = text.split(" and ").map(str::trim).filter(|c| !c.is_empty()).collect();
        if conditions.len() > MAX_CONDITIONS {
            let count = conditions.len();
            return Err(format!(
                "it has {count} conditions; at most {MAX_CONDITIONS} are possible"
            ));
        }
        for condition in conditions {
            filter.add(condition)?;
        }
        Ok(filter)
    }

    fn add(&mut self, condition: &str) -> Result<(), String> {
        let mut words = condition.splitn(3, ' ');
        let (Some(name), Some(operator), Some(value)) = (words.next(), words.next(), words.next()) else {
            return Err(format!(
                "'{}' is not of the form NAME OPERATOR VALUE",
                excerpt(condition)
            ));
        };
        let value = value.trim().trim_matches('\'');
        let place = match (name.to_ascii_lowercase().as_str(), operator) {
            ("eventtimestamp", "ge") => {
                self.from = Some(times::parse(value)?);
                return Ok(());
            }
            ("eventtimestamp", "le") => {
                self.to = Some(times::parse(value)?);
                return Ok(());
            }
            ("resourcegroupname", "eq") => &mut self.group,
            ("resourceid" | "resourceuri", "eq") => &mut self.resource,
            ("resourceprovider", "eq") => &mut self.provider,
            ("correlationid", "eq") => &mut self.correlation,
            ("caller", "eq") => &mut self.caller,
            ("status", "eq") => &mut self.status,
            _ => {
                return Err(format!(
                    "'{}' is unknown; known are eventTimestamp with ge and le, and with eq resourceGroupName, resourceId, \
                     resourceProvider, correlationId, caller and status",
                    excerpt(condition)
                ));
            }
        };
        *place = Some(value.to_ascii_lowercase());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_of_the_azure_cli_is_read() {
        let text = "eventTimestamp ge 1970-01-01T00:00:01.5 and eventTimestamp le 1970-01-01T00:00:02Z \
                    and resourceGroupName eq 'G' and resourceProvider eq Microsoft.Network";
        let expected = Filter {
            from: Some(1_500_000),
            to: Some(2_000_000),
            group: Some("g".into()),
            provider: Some("microsoft.network".into()),
            ..Filter::default()
        };
        assert_eq!(Filter::parse(text).unwrap(), expected);
        assert_eq!(Filter::parse("").unwrap(), Filter::default());
        for bad in [
            "caller",
            "caller ne 'x'",
            "eventTimestamp ge yesterday",
            "level eq 'Error'",
            &["caller eq x"; 17].join(" and "),
        ] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }
}
