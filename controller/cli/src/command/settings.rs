//! The controller's settings.

use crate::context::Context;
use crate::failure::UsageError;
use crate::output::text;
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::Value;

#[derive(Debug, Subcommand)]
pub(crate) enum Settings {
    /// Show all settings
    Show,
    /// Change settings: NAME=VALUE …; era=azure-2017 or era=azure-current also resets every setting that depends on the
    /// era
    Set {
        /// Name and new value; the names are those that `show` prints
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = assignment)]
        values: Vec<(String, Value)>,
    },
}

const ERA: &str = "era";
/// Settings whose defaults are the same in all eras, so that a new era does not reset them.
const ERA_INDEPENDENT: [&str; 9] = [
    "mtu",
    "reevaluate",
    "gatewayBandwidth",
    "flowsPerNic",
    "bgpHoldTime",
    "probeInterval",
    "probeMisses",
    "probeAnswers",
    "probeHold",
];

/// Parses `name=value`. A value that is not JSON is text.
fn assignment(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("must be written as NAME=VALUE, e.g. mtu=1400")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

impl Settings {
    /// Changes the given settings, if there are any, and then prints all settings. Names are compared without regard to
    /// case, `-` and `_`. An unknown name is a [`UsageError`], and nothing changes then. Settings that are not given
    /// keep their values, with one exception: a new `era` resets all settings whose defaults depend on the era.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let mut settings = c.client.settings().await?;
        if let Self::Set { values } = self {
            let known: Vec<String> = settings
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, _)| k.clone())
                .collect();
            // With a new era, settings that depend on the era must not keep the values of the old era. They are removed
            // from the request, so that the controller sets them to the defaults of the new era. Values from the same
            // command line are added below.
            if values.iter().any(|(name, _)| same(name, ERA))
                && let Some(object) = settings.as_object_mut()
            {
                object.retain(|name, _| name == ERA || ERA_INDEPENDENT.contains(&&**name));
            }
            for (name, value) in values {
                let Some(object) = settings.as_object_mut() else { break };
                let canonical = known.iter().find(|k| same(k, name)).cloned();
                let Some(key) = canonical else {
                    let names = known.join(", ");
                    return Err(
                        UsageError::new(format!("there is no setting '{name}'"), format!("one of: {names}")).into(),
                    );
                };
                object.insert(key, value.clone());
            }
            settings = c.client.put_settings(&settings).await?;
        }
        if c.out.is_json() {
            c.out.json(&settings)?;
        } else {
            let rows = settings.as_object().into_iter().flatten();
            let rows = rows
                .map(|(k, v)| vec![Cell::new(k), Cell::new(text(Some(v)))])
                .collect();
            c.out.table(&["Setting", "Value"], rows, "none");
        }
        if matches!(self, Self::Set { .. }) {
            c.wait_if_requested().await
        } else {
            Ok(())
        }
    }
}

/// Whether two names are equal apart from case, `-` and `_`, as `global-gateway-transit` and `globalGatewayTransit` do.
fn same(a: &str, b: &str) -> bool {
    let plain = |s: &str| s.replace(['-', '_'], "").to_ascii_lowercase();
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json_or_text() {
        assert_eq!(assignment("mtu=1400").unwrap(), ("mtu".into(), 1400.into()));
        assert_eq!(assignment("addressSpaceChange=strict").unwrap().1, "strict");
        assert_eq!(assignment("globalGatewayTransit=false").unwrap().1, false);
        assert!(assignment("mtu").is_err());
        assert!(same("global-gateway-transit", "globalGatewayTransit"));
    }
}
