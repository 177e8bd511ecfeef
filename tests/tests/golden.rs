//! Checks that golden files are complete: every type that leaves a process has one, and so has the command line's JSON output.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tombolo_golden::golden;
use tombolo_tests::binary::binary;
use tombolo_tests::controller::Controller;

/// The crates whose types are checked.
const CRATES: [&str; 8] = [
    "proto",
    "agent",
    "agent/engine",
    "controller",
    "controller/topology",
    "controller/client",
    "controller/cli",
    "deploy/lab",
];

/// Types that need no golden value of their own, each with its crate and the reason.
const EXCEPTIONS: [(&str, &str, &str); 6] = [
    (
        "controller/topology",
        "SettingsBody",
        "how `Settings` are read, which are recorded",
    ),
    (
        "controller/client",
        "Outer",
        "part of an error: `golden_errors_of_the_controller_are_read` reads `errors.json`",
    ),
    (
        "controller/client",
        "Inner",
        "part of an error: `golden_errors_of_the_controller_are_read` reads `errors.json`",
    ),
    (
        "controller/client",
        "Detail",
        "part of an error: `golden_errors_of_the_controller_are_read` reads `errors.json`",
    ),
    ("controller/cli", "UserData", "`user_data.yaml` is what it becomes"),
    ("deploy/lab", "Shown", "what the program `ip` prints"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("workspace")
        .to_owned()
}

/// All Rust files below a folder, with their text.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            found.push((path, text));
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// Whether a file of a crate holds golden tests.
fn is_golden(path: &Path, of: &Path) -> bool {
    let path = path.strip_prefix(of).unwrap_or(path);
    path.ends_with("golden.rs") || path.components().any(|part| part.as_os_str() == "golden")
}

/// The names of the types with a recorded format: those that derive or implement serde's traits, in the text of a file.
fn types_with_a_format(text: &str) -> BTreeSet<String> {
    let mut types = BTreeSet::new();
    let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    for part in code.split("#[derive(").skip(1) {
        let (derived, rest) = part.split_once(")]").unwrap_or((part, ""));
        if !words(derived).any(|word| ["Serialize", "Deserialize"].contains(&word)) {
            continue;
        }
        let lines = rest.lines().map(str::trim);
        let declared = lines.filter(|line| !line.starts_with("//") && !line.starts_with('#'));
        let mut declared = declared.flat_map(words);
        declared.find(|word| ["struct", "enum"].contains(word));
        types.extend(declared.next().map(str::to_owned));
    }
    for line in code.lines().map(str::trim).filter(|line| line.starts_with("impl")) {
        let implemented = line
            .split_once("Serialize for ")
            .or_else(|| line.split_once("Deserialize<'de> for "));
        if let Some((_, name)) = implemented {
            types.extend(words(name).next().map(str::to_owned));
        }
    }
    types
}

/// The golden tests of a crate, as text: files and modules named `golden`.
fn golden_tests(of: &Path) -> String {
    let mut tests = String::new();
    for (path, text) in sources(&of.join("src")).into_iter().chain(sources(&of.join("tests"))) {
        if is_golden(&path, of) {
            tests.push_str(&text);
        } else if let Some((_, module)) = text.split_once("mod golden {") {
            tests.push_str(module);
        }
    }
    tests
}

#[test]
fn every_type_with_a_format_has_a_golden_value() {
    let mut missing = Vec::new();
    let mut excused = BTreeSet::new();
    for name in CRATES {
        let folder = root().join(name);
        let tests = golden_tests(&folder);
        let recorded: BTreeSet<&str> = words(&tests).collect();
        for (path, text) in sources(&folder.join("src"))
            .iter()
            .filter(|(path, _)| !is_golden(path, &folder))
        {
            for found in types_with_a_format(text) {
                if EXCEPTIONS
                    .iter()
                    .any(|(of, excepted, _)| (*of, *excepted) == (name, &*found))
                {
                    excused.insert((name, found));
                } else if !recorded.contains(&*found) {
                    missing.push(format!("{}: {found}", path.display()));
                }
            }
        }
    }
    assert!(
        missing.is_empty(),
        "These types are read or written, and no golden test names them:\n{}\nAdd a value of each to the golden tests of its \
         crate (tests/golden/src/lib.rs says how), or an entry to EXCEPTIONS here.",
        missing.join("\n")
    );
    for (of, name, _) in EXCEPTIONS {
        assert!(
            excused.contains(&(of, name.to_owned())),
            "EXCEPTIONS: {of} has no type {name} any more: remove the entry"
        );
    }
}

#[test]
fn types_are_found_however_they_are_written() {
    let text = "#[derive(Debug, Serialize)]\n#[serde(tag = \"struct Wrong\")]\n/// An enum.\npub(crate) enum One {}\n\
                #[derive(\n    Clone,\n    Deserialize,\n)]\nstruct Two<T>(T);\n#[derive(Debug)]\nstruct Plain;\n\
                impl<'de> Deserialize<'de> for Three {\nimpl<T: Serialize> Serialize for Four<T> {\n\
                \n#[cfg(test)]\nmod tests {\n#[derive(Serialize)]\nstruct OfTests;\n";
    let found = types_with_a_format(text);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["Four", "One", "Three", "Two"]);
}

/// Every golden file is named by a test. One that is not named would never be compared.
#[test]
fn every_golden_file_is_compared() {
    let mut orphans = Vec::new();
    for name in CRATES.into_iter().chain(["tests"]) {
        let folder = root().join(name);
        let code: String = ["src", "tests"]
            .iter()
            .flat_map(|part| sources(&folder.join(part)))
            .map(|(_, text)| text)
            .collect();
        let files = fs::read_dir(folder.join("tests/golden")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let files = files.flatten().map(|file| file.path());
        for file in files.filter(|path| path.extension().is_some_and(|e| e != "rs")) {
            let stem = file
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| n.split('.').next());
            if !stem.is_some_and(|stem| code.contains(&format!("\"{stem}"))) {
                orphans.push(file.display().to_string());
            }
        }
    }
    assert!(orphans.is_empty(), "No test names these files: {orphans:#?}");
}

/// The paths in a JSON value, each once, and each with the type of the value at this path. Scripts may rely on these.
fn shape(value: &Value, path: &str, found: &mut BTreeMap<String, BTreeSet<&'static str>>) {
    let kind = match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                shape(value, &format!("{path}.{name}"), found);
            }
            "object"
        }
        Value::Array(items) => {
            for item in items {
                shape(item, &format!("{path}[]"), found);
            }
            "array"
        }
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
    };
    found.entry(path.to_owned()).or_default().insert(kind);
}

/// The golden file `command_line.txt` has the paths and types in the output of each command with `-o json`.
#[tokio::test(flavor = "multi_thread")]
async fn golden_output_of_the_command_line() {
    let data = tempfile::tempdir().expect("folder");
    let controller = Controller::start(data.path(), None).await;
    let manifest = root().join("controller/client/tests/interop.yaml");
    let (manifest, backup) = (
        manifest.display().to_string(),
        data.path().join("copy").display().to_string(),
    );
    let output = |command: &str| {
        let arguments = command.replace("MANIFEST", &manifest).replace("BACKUP", &backup);
        let done = Command::new(binary("tombolo"))
            .args(["--controller", &controller.base(), "--ca"])
            .arg(controller.certificate())
            .arg("--token-file")
            .arg(data.path().join("admin.token"))
            .arg("--config")
            .arg(data.path().join("config.toml"))
            .args(["-g", "lab", "-y", "-o", "json"])
            .args(arguments.split(' ').map(|word| if word == "NONE" { "" } else { word }))
            .env_clear()
            .output()
            .unwrap_or_else(|e| panic!("{command}: {e}"));
        let errors = String::from_utf8_lossy(&done.stderr);
        let json = serde_json::from_slice::<Value>(&done.stdout);
        json.unwrap_or_else(|e| {
            panic!(
                "tombolo {command}: {e}\n{}{errors}",
                String::from_utf8_lossy(&done.stdout)
            )
        })
    };
    let mut text = String::new();
    for command in COMMANDS {
        let mut found = BTreeMap::new();
        shape(&output(command), "", &mut found);
        let _ = writeln!(text, "tombolo {command}");
        for (path, kinds) in found {
            let path = if path.is_empty() { "." } else { &path };
            let kinds: Vec<_> = kinds.into_iter().collect();
            let _ = writeln!(text, "    {path} {}", kinds.join("|"));
        }
    }
    golden!().text("command_line.txt", &text);
}

/// The commands whose output is recorded, in an order in which later commands show resources of earlier ones. No agent
/// runs here, so the recorded output has no reports of agents. The golden files of the crates `tombolo-client` and
/// `tombolo-proto` record these reports. `NONE` stands for an empty argument.
const COMMANDS: [&str; 95] = [
    "login",
    "diff -f MANIFEST",
    "apply -f MANIFEST",
    "status",
    "group list",
    "group show lab",
    "vnet list",
    "vnet show hub",
    "subnet list hub",
    "subnet show hub/workload",
    "peering list hub",
    "peering show hub/to-spoke",
    "nic list",
    "public-ip list",
    "route-table list",
    "gateway list",
    "gateway show hub-vpn",
    "gateway show hub-er",
    "gateway learned-routes hub-vpn",
    "gateway bgp-peers hub-vpn",
    "connection list",
    "connection show hub-to-branch",
    "connection show hub-er1",
    "connection shared-key show hub-to-loc1",
    "connection shared-key reset hub-to-loc1",
    "connection device-config hub-to-loc1",
    "local-gateway list",
    "local-gateway show loc1",
    "circuit list",
    "circuit show er1",
    "circuit routes er1",
    "agent list",
    "link",
    "monitor list",
    "settings show",
    "settings set mtu=1400",
    "api-token create ci",
    "nic create vm --subnet hub/workload --private-ip-address 10.10.30.4",
    "nic show vm",
    "nic list",
    "token create --vm vm --nic vm",
    "token list",
    "routes vm",
    "public-ip create address",
    "public-ip show address",
    "public-ip delete address",
    "route-table create table",
    "route-table route create table/r --address-prefix 10.0.0.0/8 --next-hop-type None",
    "route-table route show table/r",
    "route-table show table",
    "route-table delete table",
    "asg create web --tags tier=front",
    "asg list",
    "asg show web",
    "asg update web --tags tier=back,owner=net",
    "nsg create guard --tags tier=front",
    "nsg rule create guard/https --priority 100 --protocol tcp --destination-asgs web --destination-port-ranges 443",
    "nsg rule create guard/login --priority 200 --access Deny --source-address-prefixes 10.0.0.0/8,192.0.2.1 --destination-port-ranges 22 3389",
    "nsg rule update guard/login --direction Outbound --description text",
    "nsg rule list guard --include-default --per-nic",
    "nsg rule show guard/https",
    "subnet update hub/workload --network-security-group guard",
    "nic update vm --network-security-group guard --application-security-groups web",
    "nsg list",
    "nsg show guard",
    "nsg rule delete guard/https",
    "subnet update hub/workload --network-security-group NONE",
    "nic update vm --nsg NONE --asgs NONE",
    "nsg delete guard",
    "asg delete web",
    "lb create front --subnet hub/workload --private-ip-address 10.10.30.36",
    "lb frontend-ip create front/other --subnet hub/workload",
    "lb frontend-ip update front/other --private-ip-address 10.10.30.37",
    "lb frontend-ip list front",
    "lb address-pool create front/outside --backend-addresses one=10.10.30.9 --drain-period 0",
    "lb address-pool show front/outside",
    "lb probe create front/health --protocol http --port 80 --path /health",
    "lb rule create front/web --protocol tcp --frontend-port 80 --frontend-ip LoadBalancerFrontEnd --backend-pool-name frontbepool --probe health",
    "lb rule update front/web --backend-port 8080 --load-distribution SourceIP",
    "lb rule show front/web",
    "lb inbound-nat-rule create front/ssh --protocol Tcp --frontend-port 2222 --backend-port 22 --frontend-ip other",
    "nic update vm --lb-address-pools front/frontbepool --lb-inbound-nat-rules front/ssh",
    "lb list",
    "lb show front",
    "lb address-pool list front",
    "lb inbound-nat-rule list front",
    "nic update vm --lb-address-pools NONE --lb-inbound-nat-rules NONE",
    "lb inbound-nat-rule delete front/ssh",
    "lb rule delete front/web",
    "lb probe delete front/health",
    "lb address-pool delete front/outside",
    "lb delete front",
    "peering delete hub/to-spoke",
    "wait",
    "backup BACKUP",
];
