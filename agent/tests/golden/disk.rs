//! Compares the files of the state directory with recorded ones.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use tombolo_agent::apply::plan::KernelIds;
use tombolo_agent::config::{CaptureSettings, Config, FlowLogSettings};
use tombolo_agent::meter::{Saved, SavedEarlier};
use tombolo_agent::persist::LastGood;
use tombolo_agent::state::file;
use tombolo_golden::golden;
use tombolo_proto::config::{AgentConfig, Probes, Role};
use tombolo_proto::id::{AgentId, ResourceId, Revision};
use tombolo_proto::status::{LinkMeter, Volume};

fn agent() -> AgentId {
    "hub-vm".parse().unwrap()
}

fn settings() -> Config {
    Config {
        agent: agent(),
        controller: "https://192.0.2.1:8443".into(),
        site_probe: false,
        tcp_echo: Vec::new(),
        listen_port: 51_821,
        endpoints: vec!["192.0.2.7:51821".parse().unwrap()],
        quic_port: Some(443),
        interface: "tl-hub-vm".into(),
        customer_interface: Some("eth1".into()),
        allow_default_route: true,
        internet_exit: true,
        protected_networks: vec!["198.51.100.0/24".parse().unwrap()],
        lanes: 4,
        metrics_listen: Some("127.0.0.1:9469".parse().unwrap()),
        offload: false,
        receive_buffer: Some(1_000_000),
        fwmark: 7,
        table: Some(1000),
        flow_logs: FlowLogSettings {
            directory: Some("/srv/flow-logs".into()),
            max_megabytes: 2048,
            interval_seconds: 30,
        },
        captures: CaptureSettings {
            directory: Some("/srv/captures".into()),
            max_megabytes: 4096,
        },
    }
}

/// Operators write `agent.toml` with these names, so the names must not change.
#[test]
fn settings_of_the_operator() {
    let minimal = Config::new(agent(), "https://192.0.2.1:8443".into());
    let site_probe = Config {
        site_probe: true,
        tcp_echo: vec!["192.168.7.10:7".parse().unwrap()],
        ..minimal.clone()
    };
    for (name, settings) in [("full", settings()), ("new", minimal), ("site-probe", site_probe)] {
        let text = toml::to_string(&settings).unwrap();
        golden!().text(&format!("agent.{name}.toml"), &text);
        let read: Config = toml::from_str(&text).unwrap();
        assert_eq!(read, settings);
    }
}

#[test]
fn totals_of_links() {
    let volume = Volume {
        rx_bytes: 1,
        tx_bytes: 2,
        rx_packets: 3,
        tx_packets: 4,
    };
    let saved = Saved {
        epoch: 1_700_000_000_000,
        links: BTreeMap::from([("spoke-vm".parse().unwrap(), volume)]),
    };
    golden!().cases(file::METERS.trim_end_matches(".json"), &[("full", saved)]);
    let earlier = SavedEarlier {
        epoch: 1_700_000_000_000,
        links: vec![LinkMeter {
            peer: "old-vm".parse().unwrap(),
            volume,
        }],
    };
    golden!().cases(file::EARLIER_METERS.trim_end_matches(".json"), &[("full", earlier)]);
}

/// An `agent.toml` with only the required settings gets the defaults.
#[test]
fn settings_without_any_option() {
    let text =
        "agent = \"hub-vm\"\ncontroller = \"https://192.0.2.1:8443\"\nlisten_port = 51820\ninterface = \"tl-hub-vm\"\n";
    let read: Config = toml::from_str(text).unwrap();
    assert_eq!(read, Config::new(agent(), "https://192.0.2.1:8443".into()));
}

#[test]
fn files_of_the_state_directory() {
    let names = [
        ("config", file::CONFIG),
        ("linkKey", file::LINK_KEY),
        ("tlsKey", file::TLS_KEY),
        ("certificate", file::CERTIFICATE),
        ("ca", file::CA),
        ("lastGood", file::LAST_GOOD),
        ("endpoints", file::ENDPOINTS),
        ("numbers", file::NUMBERS),
        ("flowLogs", file::FLOW_LOGS),
        ("captures", file::CAPTURES),
        ("flows", file::FLOWS),
        ("bgp", file::BGP),
        ("adminSocket", file::ADMIN_SOCKET),
        ("lock", file::LOCK),
    ];
    let names = names.map(|(name, file)| (name, file.to_owned()));
    golden!().cases("file_names", &names);

    let numbers = KernelIds {
        table: 1000,
        default_table: 1001,
        offset: 7,
        fwmark: 9,
    };
    golden!().document("numbers", &numbers);
    // The numbers of rules and tables are derived from the device's name. The derivation must not change: after an
    // upgrade the agent must find the rules that the earlier version has installed.
    let derived = KernelIds::of("tl-hub-vm", None, 0x746d);
    golden!().document("derived_numbers", &derived);

    let endpoints: BTreeMap<AgentId, SocketAddr> =
        BTreeMap::from([("spoke-vm".parse().unwrap(), "192.0.2.8:51820".parse().unwrap())]);
    golden!().document("endpoints", &endpoints);

    let last_good = LastGood {
        revision: Revision(7),
        digest: "ab".into(),
        config: AgentConfig {
            agent: agent(),
            vnet: ResourceId::new("/vnet"),
            address_space: vec![],
            mtu: 1420,
            probes: Probes::default(),
            role: Role::Vm {
                nics: vec![],
                served: vec![],
                gateways: vec![],
            },
            subnets: vec![],
            spaces: vec![],
            links: vec![],
            security: None,
            front_ends: vec![],
            limits: None,
        },
    };
    golden!().document("last_good", &last_good);
}
