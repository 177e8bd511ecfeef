//! Tests of the program that need no controller: wrong usage, the configuration file, hints in error messages, and exit
//! codes.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program without the caller's environment and configuration.
fn tombolo(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tombolo"))
        .args(args)
        .env_clear()
        .env("HOME", home)
        .output()
        .expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exits by itself")
}

#[test]
fn every_command_has_a_help_text() {
    let home = tempfile::tempdir().unwrap();
    let help = stdout(&tombolo(home.path(), &["--help"]));
    for command in [
        "login",
        "status",
        "apply",
        "diff",
        "group",
        "vnet",
        "subnet",
        "peering",
        "nic",
        "public-ip",
        "route-table",
        "nsg",
        "lb",
        "gateway",
        "connection",
        "local-gateway",
        "circuit",
        "agent",
        "token",
        "api-token",
        "settings",
        "routes",
        "explain",
        "ping",
        "trace",
        "link",
        "wait",
        "backup",
        "lab",
        "completions",
    ] {
        assert!(
            help.contains(&format!("  {command} ")),
            "{command} is missing in:\n{help}"
        );
        assert_eq!(code(&tombolo(home.path(), &[command, "--help"])), 0, "{command}");
    }
    assert!(!help.contains('\u{1b}'), "colours although the output is no terminal");
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&["vnet", "create", "hub"][..], "--address-prefix"),
        (&["vnet", "create", "a/b", "-p", "10.0.0.0/8"], "cannot be a name"),
        (&["subnet", "create", "hub", "-p", "10.0.0.0/24"], "PARENT/NAME"),
        (&["subnet", "create", "hub/a", "-p", "10.0.0.0/33"], "10.0.0.0/33"),
        (
            &[
                "route-table",
                "route",
                "create",
                "t/r",
                "-p",
                "10.0.0.0/8",
                "-t",
                "Wherever",
            ],
            "VirtualAppliance",
        ),
        (&["nsg", "update", "g"], "--tags"),
        (&["nsg", "rule", "create", "g", "--priority", "100"], "PARENT/NAME"),
        (&["nsg", "rule", "create", "g/r"], "--priority"),
        (&["nsg", "rule", "create", "g/r", "--priority", "99"], "100..=4096"),
        (
            &[
                "nsg",
                "rule",
                "create",
                "g/r",
                "--priority",
                "100",
                "--protocol",
                "Sctp",
            ],
            "Tcp",
        ),
        (
            &["nsg", "rule", "create", "g/r", "--priority", "100", "--access", "Maybe"],
            "Allow, Deny",
        ),
        (
            &["nsg", "rule", "update", "g/r", "--destination-port-ranges", "443-80"],
            "8000-8080",
        ),
        (
            &[
                "nsg",
                "rule",
                "update",
                "g/r",
                "--source-address-prefixes",
                "Internet",
                "--source-asgs",
                "web",
            ],
            "cannot be used with",
        ),
        (
            &["nic", "update", "n", "--network-security-group", "a/b"],
            "cannot be a name",
        ),
        (&["nic", "update", "n", "--lb-address-pools", "pool"], "PARENT/NAME"),
        (
            &["nic", "create", "n", "-s", "a/b", "--lb-inbound-nat-rules", "r"],
            "PARENT/NAME",
        ),
        (&["lb", "update", "b"], "--tags"),
        (&["lb", "create", "b", "--sku", "Gateway"], "Basic, Standard"),
        (&["lb", "create", "b", "-a", "10.0.0.4"], "--subnet"),
        (&["lb", "frontend-ip", "create", "b/f"], "--subnet"),
        (&["lb", "frontend-ip", "list"], "<BALANCER>"),
        (&["lb", "address-pool", "create", "b"], "PARENT/NAME"),
        (
            &["lb", "address-pool", "create", "b/p", "--backend-addresses", "10.0.0.4"],
            "NAME=ADDRESS",
        ),
        (
            &["lb", "address-pool", "create", "b/p", "--vnet", "v"],
            "--backend-addresses",
        ),
        (&["lb", "probe", "create", "b/p", "--protocol", "Tcp"], "--port"),
        (
            &["lb", "probe", "create", "b/p", "--protocol", "Icmp", "--port", "80"],
            "Tcp, Http, Https",
        ),
        (&["lb", "probe", "update", "b/p", "--interval", "4"], "5.."),
        (&["lb", "rule", "create", "b/r", "--frontend-port", "80"], "--protocol"),
        (&["lb", "rule", "update", "b/r", "--idle-timeout", "31"], "4..=30"),
        (
            &["lb", "rule", "update", "b/r", "--load-distribution", "Random"],
            "SourceIPProtocol",
        ),
        (
            &["lb", "inbound-nat-rule", "create", "b/r", "--protocol", "All"],
            "Tcp, Udp",
        ),
        (&["token", "create"], "--vm"),
        (&["token", "create", "--vm", "x"], "--nic"),
        (
            &["token", "create", "--vm", "x", "--nic", "y", "--gateway", "z"],
            "cannot be used with",
        ),
        (&["token", "create", "--circuit", "x"], "--link"),
        (
            &["token", "create", "--circuit", "x", "--link", "third"],
            "primary, secondary",
        ),
        (
            &[
                "token",
                "create",
                "--gateway",
                "g",
                "--cloud-init",
                "--package-url",
                "https://x/a.deb",
            ],
            "--package-sha256",
        ),
        (
            &[
                "token",
                "create",
                "--gateway",
                "g",
                "--cloud-init",
                "--package-url",
                "a.deb",
            ],
            "https://",
        ),
        (&["token", "create", "--gateway", "g", "--no-package"], "--cloud-init"),
        (
            &[
                "token",
                "create",
                "--gateway",
                "g",
                "--cloud-init",
                "--package",
                "x",
                "--no-package",
            ],
            "cannot be used with",
        ),
        (&["connection", "create", "c", "--gateway1", "g"], "--local-gateway"),
        (
            &[
                "connection",
                "create",
                "c",
                "--gateway1",
                "g",
                "--gateway2",
                "h",
                "--circuit",
                "e",
            ],
            "cannot be used with",
        ),
        (
            &[
                "connection",
                "create",
                "c",
                "--gateway1",
                "g",
                "--gateway2",
                "h",
                "--tunnel-address",
                "10.0.0.4",
                "10.0.0.5",
            ],
            "cannot be used with",
        ),
        (
            &["local-gateway", "create", "l", "--public-key", "abc"],
            "32 bytes in base64",
        ),
        (&["circuit", "peering", "create", "e", "--vlan-id", "4095"], "4095"),
        (&["wait", "soon"], "soon"),
        (&["--timeout", "1y", "wait"], "30s"),
        (&["ping", "a", "b", "--count", "0"], "1..=100"),
        (&["frobnicate"], "frobnicate"),
        (&["gateway", "update"], "<NAME>"),
        (&["connection", "update", "c"], "--routing-weight"),
        (&["public-ip", "update", "p"], "--ip-address"),
    ] {
        let output = tombolo(home.path(), args);
        assert_eq!(code(&output), 2, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn without_a_controller_it_says_how_to_set_one() {
    let home = tempfile::tempdir().unwrap();
    let output = tombolo(home.path(), &["status"]);
    assert_eq!(code(&output), 2);
    let text = stderr(&output);
    assert!(
        text.contains("no controller is set") && text.contains("tombolo login"),
        "{text}"
    );
}

#[test]
fn without_a_group_it_says_how_to_give_one() {
    let home = tempfile::tempdir().unwrap();
    let output = tombolo(
        home.path(),
        &["--controller", "https://127.0.0.1:1", "vnet", "show", "hub"],
    );
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("no resource group"), "{}", stderr(&output));
}

#[test]
fn the_hint_for_a_closed_port_is_to_start_the_controller() {
    let home = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    drop(listener);
    let output = tombolo(home.path(), &["--controller", &url, "status"]);
    assert_eq!(code(&output), 4, "code 1 would be a negative result");
    let text = stderr(&output);
    assert!(
        text.contains("refused") && text.contains("is the controller running"),
        "{text}"
    );
}

#[test]
fn errors_name_missing_and_invalid_files() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config.toml");
    let with = |args: &[&str]| {
        let base = [
            "--config",
            config.to_str().unwrap(),
            "--controller",
            "https://127.0.0.1:1",
            "-g",
            "g",
        ];
        tombolo(home.path(), &[&base, args].concat())
    };
    let missing = with(&["--ca", "/nowhere/ca.pem", "status"]);
    assert!(stderr(&missing).contains("/nowhere/ca.pem"), "{}", stderr(&missing));
    let missing = with(&["apply", "-f", "/nowhere/x.yaml"]);
    assert!(stderr(&missing).contains("/nowhere/x.yaml"), "{}", stderr(&missing));
    let file = home.path().join("bad.yaml");
    std::fs::write(&file, "virtualNetworks:\n  hub:\n    adressSpace: []\n").unwrap();
    let bad = with(&["diff", "-f", file.to_str().unwrap()]);
    let text = stderr(&bad);
    assert!(
        text.contains("bad.yaml") && text.contains("adressSpace") && text.contains("line 3"),
        "{text}"
    );
    std::fs::write(&config, "controler = 'x'\n").unwrap();
    let bad = with(&["status"]);
    assert!(stderr(&bad).contains("controler"), "{}", stderr(&bad));
}

#[test]
fn the_configuration_file_is_used() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/tombolo");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), "controller = 'https://127.0.0.1:1'\n").unwrap();
    let output = tombolo(home.path(), &["status"]);
    assert!(stderr(&output).contains("https://127.0.0.1:1"), "{}", stderr(&output));
}

#[test]
fn completions_name_the_commands() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = tombolo(home.path(), &["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("route-table"), "{shell}");
    }
}

/// The children of load balancers have the verbs of Azure's commands.
#[test]
fn every_child_of_load_balancers_has_the_five_verbs() {
    let home = tempfile::tempdir().unwrap();
    for child in ["frontend-ip", "address-pool", "probe", "rule", "inbound-nat-rule"] {
        let help = stdout(&tombolo(home.path(), &["lb", child, "--help"]));
        for verb in ["create", "list", "show", "update", "delete"] {
            assert!(
                help.contains(&format!("  {verb} ")),
                "lb {child} {verb} is missing in:\n{help}"
            );
        }
    }
}

/// The README's table of commands promises these verbs.
#[test]
fn every_kind_of_resource_has_the_five_verbs() {
    let home = tempfile::tempdir().unwrap();
    for kind in [
        "vnet",
        "subnet",
        "peering",
        "nic",
        "public-ip",
        "route-table",
        "nsg",
        "lb",
        "gateway",
        "connection",
    ] {
        let help = stdout(&tombolo(home.path(), &[kind, "--help"]));
        for verb in ["create", "list", "show", "update", "delete"] {
            assert!(
                help.contains(&format!("  {verb} ")),
                "{kind} {verb} is missing in:\n{help}"
            );
        }
    }
}

#[test]
fn only_the_status_of_labs_is_json() {
    let home = tempfile::tempdir().unwrap();
    let refused = tombolo(home.path(), &["lab", "down", "-o", "json"]);
    assert_eq!(code(&refused), 4);
    assert!(stderr(&refused).contains("writes JSON"), "{}", stderr(&refused));
    // The default folder of `tombolo lab` may contain labs that are up on this machine, so the test uses an empty
    // folder.
    let none = home.path().join("none");
    let status = tombolo(
        home.path(),
        &["lab", "--lab-dir", none.to_str().unwrap(), "status", "-o", "json"],
    );
    if code(&status) == 0 {
        assert_eq!(stdout(&status).trim(), "[]");
    } else {
        assert!(stderr(&status).contains("as root"), "{}", stderr(&status));
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let (home, pages) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = pages.path().to_str().unwrap();
    assert_eq!(code(&tombolo(home.path(), &["manual", dir])), 0);
    let page = |name: &str| std::fs::read_to_string(pages.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let all = page("tombolo.1");
    assert!(
        all.contains("TOMBOLO_CONTROLLER") && all.contains("tombolo\\-token(1)"),
        "{all}"
    );
    assert!(!all.contains("manual(1)"), "commands for packages are hidden: {all}");
    assert!(page("tombolo-token-create.1").contains("cloud\\-init"));
    for completions in ["tombolo.bash", "_tombolo", "tombolo.fish"] {
        assert!(page(completions).contains("token"), "{completions}");
    }
    // A missing directory is an error, and is not created.
    assert_ne!(code(&tombolo(home.path(), &["manual", &format!("{dir}/none")])), 0);
    assert!(!pages.path().join("none").exists());
}
