//! Attacks a peer with the identity of a joined agent. Run it in that agent's network namespace, while the agent is stopped.
//!
//! ```text
//! hostile-agent advertise --state DIR --peer NAME [--rate N] [--seconds S] [--asn N] [--routes N]
//! hostile-agent flap --state DIR --peer NAME [--seconds S]
//! ```
//! `advertise` advertises route tables, by default as many as possible (`--rate 0`). `flap` opens and closes QUIC
//! connections. Both commands print one line of JSON: the count of tables or connections, and the seconds and CPU
//! seconds that the attack took.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;
use tombolo_tests::hostile::{Hostile, tables};

struct Options(BTreeMap<String, String>);

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = BTreeMap::new();
        while let Some(name) = arguments.next() {
            let value = arguments
                .next()
                .with_context(|| format!("{name}: a value is missing"))?;
            let known = ["--state", "--peer", "--rate", "--seconds", "--asn", "--routes"];
            if !known.contains(&name.as_str()) {
                bail!("{name}: the options are {}", known.join(", "));
            }
            options.insert(name, value);
        }
        Ok(Self(options))
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .with_context(|| format!("{name} is missing"))
    }

    fn number<T: FromStr>(&self, name: &str, otherwise: T) -> Result<T> {
        let Some(text) = self.0.get(name) else {
            return Ok(otherwise);
        };
        text.parse()
            .ok()
            .with_context(|| format!("{name}: {text} is no such number"))
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next().context("advertise or flap?")?;
    let options = Options::read(arguments)?;
    let time = Duration::from_secs(options.number("--seconds", 10)?);
    let mut hostile = Hostile::new(Path::new(options.text("--state")?), options.text("--peer")?)?;
    let done = match verb.as_str() {
        "advertise" => {
            let (asn, count) = (options.number("--asn", 65_010)?, options.number("--routes", 1)?);
            hostile.advertise(&tables(asn, count), options.number("--rate", 0)?, time)?
        }
        "flap" => hostile.flap(time)?,
        other => bail!("{other}: advertise or flap"),
    };
    println!(
        "{{\"count\": {}, \"seconds\": {:.3}, \"cpuSeconds\": {:.3}}}",
        done.count,
        done.elapsed.as_secs_f64(),
        done.cpu.as_secs_f64()
    );
    Ok(())
}
