//! The metrics in `docs/operations.md`, in the alert rules and in the dashboard are those that the programs export. The
//! test needs root.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use tombolo_tests::live::World;

/// Labels that no document lists: those that Prometheus adds, and the label of a histogram's buckets.
const ADDED: [&str; 3] = ["instance", "job", "le"];

/// The names of metrics, each with the names of its labels.
type Metrics = BTreeMap<String, BTreeSet<String>>;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Reads the names of metrics and labels from a text in Prometheus' format.
fn exported(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            metrics
                .entry(rest.split(' ').next().unwrap_or_default().to_owned())
                .or_default();
        } else if let Some((name, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = labels.split("=\"").filter_map(|part| part.rsplit([',', '"']).next());
            let labels = labels.filter(|l| !l.is_empty() && !l.starts_with('}') && !ADDED.contains(l));
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            let known = base.filter(|base| metrics.contains_key(*base)).unwrap_or(name);
            metrics
                .entry(known.to_owned())
                .or_default()
                .extend(labels.map(str::to_owned));
        }
    }
    metrics
}

/// Reads the table under a heading of the document: the first column has metrics, and the second their labels.
fn documented(document: &str, heading: &str) -> Metrics {
    let section = document.split(&format!("\n## {heading}\n")).nth(1).expect(heading);
    let rows = section
        .lines()
        .take_while(|l| !l.starts_with("## "))
        .filter(|l| l.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        // "`state`: `desired`, `in_force`": the text after the colon lists the values of the last label, and is not
        // read.
        let labels = cells[2]
            .split(':')
            .next()
            .unwrap_or_default()
            .split('`')
            .skip(1)
            .step_by(2);
        let labels = labels.filter(|l| !ADDED.contains(l)).map(str::to_owned);
        (cells[1].trim_matches('`').to_owned(), labels.collect())
    };
    rows.map(row).collect()
}

/// Returns the metrics and labels of a PromQL expression that do not exist.
fn check_expression(expression: &str, metrics: &Metrics) -> Vec<String> {
    let mut wrong = Vec::new();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut labels = BTreeSet::new();
    let mut rest = expression;
    while let Some(at) = rest.find("tombolo_") {
        rest = &rest[at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        match metrics.get(name).or_else(|| metrics.get(base?)) {
            Some(of) => labels.extend(of.iter().map(String::as_str)),
            None => wrong.push(format!("no metric {name}")),
        }
        rest = after;
    }
    labels.extend(ADDED);
    let named = expression
        .split("by (")
        .skip(1)
        .filter_map(|part| part.split(')').next());
    let grouped = named.flat_map(|list| list.split(',')).map(str::trim);
    let braces = expression.split('{').skip(1).filter_map(|part| part.split('}').next());
    let matched = braces
        .flat_map(|list| list.split(','))
        .filter_map(|m| m.split(['=', '!']).next())
        .map(str::trim);
    for label in grouped.chain(matched) {
        if !labels.contains(label) {
            wrong.push(format!("no label {label}"));
        }
    }
    wrong.into_iter().map(|w| format!("{w} in {expression}")).collect()
}

/// Reads an agent's metrics over the address that its `metrics_listen` names.
async fn scraped(world: &World, host: &str, path: &str) -> Result<(i32, String)> {
    let script = format!(
        "import urllib.request as r, sys\n\
         try: print(r.urlopen('http://127.0.0.1:9469{path}', timeout=5).read().decode())\n\
         except r.HTTPError as e: sys.exit(e.code % 256)"
    );
    let done = world
        .exec(host, &["python3", "-c", &script], Duration::from_secs(20))
        .await?;
    Ok((done.code, done.stdout))
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_those_of_the_documents() -> Result<()> {
    let world = World::up("operations").await?;
    world.join("hub", "spoke-a").await?;
    world.reach("hub-vm", "spoke-a-vm").await?;
    // An operator sets `metrics_listen` so that Prometheus can read an agent's metrics.
    ensure!(world.stop_agent("hub-vm")?, "hub-vm's agent did not end by itself");
    let settings = world.agent_dir("hub-vm")?.join("agent.toml");
    let text = std::fs::read_to_string(&settings)?;
    std::fs::write(&settings, format!("metrics_listen = \"127.0.0.1:9469\"\n{text}"))?;
    world.start_agent("hub-vm")?;
    world
        .reach_within("hub-vm", "spoke-a-vm", Duration::from_secs(20))
        .await?;

    let controller = exported(&world.client()?.metrics().await?);
    let (code, text) = scraped(&world, "hub-vm", "/metrics").await?;
    ensure!(code == 0, "no metrics over TCP: {code}");
    let agent = exported(&text);
    ensure!(text.contains("tombolo_link_up{peer=\"spoke-a-vm\"} 1\n"), "{text}");
    ensure!(
        text.contains("\ntombolo_certificate_expiry_timestamp_seconds "),
        "{text}"
    );
    // A request to the address for Prometheus needs no password, so the paths of the agent's local socket must not
    // exist there, except that of the metrics.
    for path in ["/status", "/config", "/tables", "/"] {
        ensure!(
            scraped(&world, "hub-vm", path).await?.0 == 404 % 256,
            "{path} is served to scrapers"
        );
    }

    let document = read("docs/operations.md");
    let mut all = Metrics::new();
    for (heading, exported) in [
        ("Metrics of the controller", controller),
        ("Metrics of an agent", agent),
    ] {
        let documented = documented(&document, heading);
        let names = |metrics: &Metrics| metrics.keys().cloned().collect::<BTreeSet<_>>();
        let (documents, exports) = (names(&documented), names(&exported));
        ensure!(
            documents == exports,
            "{heading}: {:?}",
            documents.symmetric_difference(&exports).collect::<Vec<_>>()
        );
        for (name, labels) in &exported {
            let known = &documented[name];
            // A metric without samples shows no labels.
            ensure!(
                labels.is_empty() || labels == known,
                "{name}: documented {known:?}, exported {labels:?}"
            );
        }
        for (name, labels) in documented {
            all.entry(name).or_default().extend(labels);
        }
    }

    let rules: Value = serde_norway::from_str(&read("deploy/prometheus/alerts.yml"))?;
    let rules = rules["groups"].as_array().context("groups")?;
    let rules = rules.iter().filter_map(|g| g["rules"].as_array()).flatten();
    let mut alerts = BTreeSet::new();
    let mut wrong = Vec::new();
    for rule in rules {
        alerts.insert(rule["alert"].as_str().context("alert")?.to_owned());
        wrong.extend(check_expression(rule["expr"].as_str().context("expr")?, &all));
    }
    let row = |line: &str| {
        line.strip_prefix("| `Tombolo")
            .and_then(|l| l.split('`').next())
            .map(|l| format!("Tombolo{l}"))
    };
    let explained: BTreeSet<String> = document.lines().filter_map(row).collect();
    ensure!(
        alerts.len() > 5 && alerts == explained,
        "alerts {alerts:?}, explained {explained:?}"
    );

    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/tombolo.json"))?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let targets = panels.iter().filter_map(|p| p["targets"].as_array()).flatten();
    let expressions: Vec<&str> = targets.filter_map(|t| t["expr"].as_str()).collect();
    ensure!(expressions.len() > 10, "{expressions:?}");
    wrong.extend(expressions.iter().flat_map(|e| check_expression(e, &all)));
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn expressions_with_other_names_are_found() {
    let labels = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    let metrics: Metrics = [
        ("tombolo_a".to_owned(), labels(&["x"])),
        ("tombolo_b_seconds".to_owned(), labels(&[])),
    ]
    .into();
    for good in [
        "sum by (x, instance) (rate(tombolo_a{x=\"1\"}[5m])) > 0",
        "tombolo_b_seconds_bucket{le!=\"1\"}",
    ] {
        assert_eq!(check_expression(good, &metrics), Vec::<String>::new());
    }
    for bad in [
        "tombolo_c > 0",
        "tombolo_a{y=\"1\"}",
        "sum by (x) (tombolo_b_seconds)",
        "tombolo_a_total",
    ] {
        assert_eq!(check_expression(bad, &metrics).len(), 1, "{bad}");
    }
}
