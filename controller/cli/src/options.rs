//! The global options, and parsers for values of options.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tombolo_client::path::{check_group_name, check_name};

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// URL of the controller, https://HOST:PORT [env: TOMBOLO_CONTROLLER]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) controller: Option<String>,
    /// API token; visible to all users of this machine, so prefer --token-file [env: TOMBOLO_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", conflicts_with = "token_file")]
    pub(crate) token: Option<String>,
    /// File that contains the API token [env: TOMBOLO_TOKEN_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// File with the controller's CA certificate in PEM; if it is not given, the system's authorities are trusted [env:
    /// TOMBOLO_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Resource group that names refer to [env: TOMBOLO_RESOURCE_GROUP]
    #[arg(short = 'g', long, global = true, value_name = "NAME", value_parser = group_name)]
    pub(crate) resource_group: Option<String>,
    /// Subscription that names refer to [env: TOMBOLO_SUBSCRIPTION]
    #[arg(long, global = true, value_name = "GUID", value_parser = name)]
    pub(crate) subscription: Option<String>,
    /// Configuration file [env: TOMBOLO_CONFIG] [default: ~/.config/tombolo/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Output format: table for people, json for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// After a change, wait until the change is in force on every connected agent
    #[arg(long, global = true)]
    pub(crate) wait: bool,
    /// Longest time that --wait and `tombolo wait` wait, such as 500ms, 30s or 5m
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Answer every question with yes
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
}

/// The format of the program's output: tables for people, or JSON for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// Checks a resource's own name (P6), and returns the name unchanged. The error of this function, and of those below,
/// is a message for the user.
pub(crate) fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

/// Checks the name of a resource group, and returns it unchanged.
pub(crate) fn group_name(text: &str) -> Result<String, String> {
    check_group_name(text).map(|()| text.to_owned())
}

/// Checks a resource's name, and returns it unchanged. A text that begins with `/` is a full id and is not checked.
pub(crate) fn reference(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        name(text)
    }
}

/// As [`reference()`], but also accepts an empty text, which stands for no resource.
pub(crate) fn optional_reference(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Ok(String::new())
    } else {
        reference(text)
    }
}

/// The name of a child resource, written as `PARENT/CHILD`.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    pub(crate) parent: String,
    pub(crate) name: String,
}

/// Parses `PARENT/CHILD`, such as `hub/workload`; both names are checked.
pub(crate) fn child(text: &str) -> Result<Child, String> {
    let (parent, own) = text
        .split_once('/')
        .ok_or("must be written as PARENT/NAME, e.g. hub/workload")?;
    Ok(Child {
        parent: name(parent)?,
        name: name(own)?,
    })
}

/// Checks `VNET/SUBNET`, and returns it unchanged. A text that begins with `/` is a full id and is not checked.
pub(crate) fn subnet(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        child(text)?;
    }
    Ok(text.to_owned())
}

/// Checks `PARENT/CHILD`, and returns it unchanged. A text that begins with `/` is a full id, and an empty text stands for
/// no resource; neither is checked.
pub(crate) fn optional_child(text: &str) -> Result<String, String> {
    if !text.is_empty() && !text.starts_with('/') {
        child(text)?;
    }
    Ok(text.to_owned())
}

/// Returns a value of an option in Azure's spelling.
pub(crate) fn word(value: &impl ValueEnum) -> Value {
    json!(value.to_possible_value().as_ref().map(|v| v.get_name()))
}

/// Parses a time: a whole number with a unit (`500ms`, `30s`, `5m`, `2h`, `7d`). A number without a unit is in seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("'{text}' is not a time such as 500ms, 30s, 5m, 2h or 7d");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "s", "-1s", "1y", "1.5s", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_text_is_an_optional_reference_only() {
        assert!(reference("").is_err());
        assert_eq!(optional_reference(""), Ok(String::new()));
        assert_eq!(optional_reference("/a/b"), Ok("/a/b".to_owned()));
        assert!(optional_reference("a/b").is_err());
    }

    #[test]
    fn names_of_children_have_two_parts() {
        assert!(child("hub/workload").is_ok());
        for bad in ["hub", "hub/", "/x", "hub/a/b", "hub/.."] {
            assert!(child(bad).is_err(), "{bad}");
        }
        for good in ["", "lb/pool", "/a/full/id"] {
            assert_eq!(optional_child(good), Ok(good.to_owned()));
        }
        assert!(optional_child("lb").is_err());
    }
}
