//! A site without a controller and agents, in real namespaces: the site's stock routing daemons and VPN device connect
//! to stock programs, which play the providers' part. Needs root, BIRD 2, wireguard-go and wg.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tombolo_lab::probe::Ping;
use tombolo_lab::process::{self, Process};
use tombolo_lab::site::bird::RemoteEnd;
use tombolo_lab::site::device::{self, DeviceSettings};
use tombolo_lab::site::with_own_run;
use tombolo_lab::{Lab, Options, Topology};

const PROGRAM_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that routes may take to converge. The BGP hold time is 3 s in these tests; the rest of the time allows
/// for a busy machine.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(40);

/// Returns a topology with one site that has two customer edges with one line each. The first edge has a tunnel too.
/// `lan`: the properties `routes` and `ecmp` of the site's LAN.
fn topology(name: &str, lan: &str) -> Topology {
    let text = "
name: NAME
underlay:
  segments:
    internet: {prefix: 203.0.113.0/24}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  gw: {address: 203.0.113.12}
  e1: {address: 203.0.113.41, edge: {circuit: er1, link: primary}}
  e2: {address: 203.0.113.42, edge: {circuit: er1, link: secondary}}
sites:
  a:
    asn: 65021
    prefixes: [10.2.30.0/25]
    lan: {router: 10.2.30.3/25, hosts: {vm: 10.2.30.10}, LAN}
    customerEdges:
      ce1:
        lan: 192.168.30.0/31
        address: 203.0.113.51
        lines: [{circuit: er1, link: primary}]
        tunnels: [{connection: to-site, address: 10.2.30.125}]
      ce2:
        lan: 192.168.30.4/31
        lines: [{circuit: er1, link: secondary}]
    bgp: {circuit: {localPreference: 200}, holdTime: 3}
resources:
  localNetworkGateways:
    site: {gatewayIpAddress: 203.0.113.51, asn: 65021, bgpPeeringAddress: 10.2.30.125}
  connections:
    to-site: {connectionType: IPsec, virtualNetworkGateway1: gw, localNetworkGateway2: site}
  expressRouteCircuits:
    er1: {privatePeering: {peerAsn: 65021, primary: 192.168.30.16/30, secondary: 192.168.30.20/30, sharedKey: signed}}
events:
  cut: {actions: [{site: a, router: ce1, line: er1 primary, action: down}]}
";
    Topology::parse(&text.replace("NAME", name).replace("LAN", lan)).unwrap()
}

/// A lab, and the programs that replace the providers.
struct Bench {
    lab: Lab,
    folder: tempfile::TempDir,
    stand_ins: Vec<Process>,
}

impl Bench {
    async fn up(name: &str, lan: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run as root"
        );
        let options = Options {
            replace: true,
            ..Options::default()
        };
        let lab = Lab::underlay_only(&topology(name, lan), options).await.unwrap();
        let mut bench = Self {
            lab,
            folder: tempfile::tempdir().unwrap(),
            stand_ins: Vec::new(),
        };
        bench.edge("e1", "192.168.30.18", "192.168.30.17").await;
        bench.edge("e2", "192.168.30.22", "192.168.30.21").await;
        bench
    }

    /// Creates and returns the folder that a provider's host sees as its `/run`.
    fn run_of(&self, host: &str) -> PathBuf {
        let run = self.folder.path().join(host);
        std::fs::create_dir_all(run.join("bird")).unwrap();
        run
    }

    /// Runs a command, whose words are separated by spaces, on a provider's host to its end. Returns its output.
    async fn on(&self, host: &str, command: &str) -> String {
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let argv = with_own_run(&self.run_of(host), &argv);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let done = self.lab.exec(host, &argv, PROGRAM_TIMEOUT).await.unwrap();
        assert_eq!(done.code, 0, "{command}: {}{}", done.stdout, done.stderr);
        done.stdout
    }

    /// Starts a command, whose words are separated by spaces, on a provider's host in the background.
    fn start(&mut self, host: &str, command: &str) {
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let argv = self.lab.hosts().wrap(host, &with_own_run(&self.run_of(host), &argv));
        let log = self.folder.path().join(format!("{host}.log"));
        self.stand_ins.push(process::start(&argv, &log, &[], true).unwrap());
    }

    /// Starts BIRD on a provider's host. BIRD advertises 10.10.30.0/24 to the site, and the host has the address
    /// 10.10.30.4. `how`: options of the BGP session; `more`: additional static routes.
    fn speaker(&mut self, host: &str, (own, other): (&str, &str), asn: u32, how: &str, more: &str) {
        let config = format!(
            "log stderr all; router id {own};
protocol device {{ }}
protocol kernel {{ ipv4 {{ import none; export where net != 10.10.30.0/24; }}; }}
protocol static {{ ipv4; route 10.10.30.0/24 blackhole; {more} }}
protocol bgp site {{
  local {own} as {asn}; neighbor {other} as 65021; {how}
  connect delay time 1; connect retry time 1; error wait time 1, 2; hold time 3;
  ipv4 {{ import all; export where net = 10.10.30.0/24; next hop self; }};
}}
"
        );
        std::fs::write(self.run_of(host).join("bird/bird.conf"), config).unwrap();
        self.start(host, "bird -f -c /run/bird/bird.conf -s /run/bird/bird.ctl");
    }

    /// Starts a provider edge of the circuit.
    async fn edge(&mut self, host: &str, own: &str, other: &str) {
        self.on(host, &format!("ip address add {own}/30 dev line0")).await;
        self.on(host, "ip address add 10.10.30.4/32 dev lo").await;
        self.speaker(host, (own, other), 12076, "check link; password \"signed\";", "");
    }

    /// Starts the remote end of the tunnel, a VPN gateway with BGP. Returns the settings for the site's device.
    async fn gateway(&mut self, device_key: &str) -> DeviceSettings {
        let key = self.run_of("gw").join("key");
        let public = device::make_key(&key).unwrap();
        self.start("gw", "wireguard-go -f wg0");
        let deadline = Instant::now() + PROGRAM_TIMEOUT;
        while !self.run_of("gw").join("wireguard/wg0.sock").exists() {
            assert!(Instant::now() < deadline, "wireguard-go does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.on(
            "gw",
            &format!("wg set wg0 listen-port 51820 private-key /run/key peer {device_key} allowed-ips 0.0.0.0/0"),
        )
        .await;
        self.on("gw", "ip address add 10.10.30.254/32 dev wg0").await;
        self.on("gw", "ip address add 10.10.30.4/32 dev lo").await;
        self.on("gw", "ip link set wg0 mtu 1420 up").await;
        let device = "route 10.2.30.125/32 via \"wg0\";";
        self.speaker("gw", ("10.10.30.254", "10.2.30.125"), 65515, "multihop;", device);
        let text = format!(
            "[Interface]\nAddress = 10.2.30.125/32\nListenPort = 51820\n\
             PostUp = ip route add 10.10.30.254/32 dev %i\n[Peer]\nPublicKey = {public}\n\
             Endpoint = 203.0.113.12:51820\nAllowedIPs = 0.0.0.0/0\nPersistentKeepalive = 25\n\
             protocol bgp x {{\nneighbor 10.10.30.254 as 65515;\n}}\n"
        );
        DeviceSettings::read(&text).unwrap()
    }

    /// Runs a command on a host again and again until `good` returns true for the command's output. `what` names the
    /// state in messages.
    async fn until(&self, host: &str, command: &str, what: &str, good: impl Fn(&str) -> bool) {
        let argv: Vec<&str> = command.split(' ').collect();
        let start = Instant::now();
        loop {
            let done = self.lab.exec(host, &argv, PROGRAM_TIMEOUT).await.unwrap();
            if good(&done.stdout) {
                println!("{what}: after {:.1} s", start.elapsed().as_secs_f64());
                return;
            }
            assert!(
                start.elapsed() < CONVERGENCE_TIMEOUT,
                "{what}: {}{}",
                done.stdout,
                done.stderr
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Traces from the address `source` of the host `from`. Returns the hops as one line.
    async fn hops(&self, from: &str, source: &str, to: &str) -> String {
        let argv = ["traceroute", "-n", "-I", "-q", "3", "-m", "6", "-s", source, to];
        let start = Instant::now();
        loop {
            let done = self.lab.exec(from, &argv, Duration::from_secs(30)).await.unwrap();
            // While routes converge, the source may have no route for a moment. traceroute then fails, and is run
            // again.
            match tombolo_lab::probe::TraceResult::read(&done, to.parse().unwrap()) {
                Ok(traced) => return traced.to_string(),
                Err(e) => assert!(start.elapsed() < CONVERGENCE_TIMEOUT, "{e:#}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends all programs, takes the lab down, and checks that nothing is left on this machine.
    fn down(mut self, name: &str) {
        for process in self.stand_ins.drain(..) {
            process.kill().unwrap();
        }
        let folder = self.lab.path().unwrap().to_owned();
        self.lab.down().unwrap();
        assert!(!folder.exists());
        let left: Vec<_> = std::fs::read_dir("/run/netns")
            .unwrap()
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|n| n.starts_with(&format!("tb-{name}-")))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(!Path::new("/run/wireguard/wg0.sock").exists());
    }
}

#[tokio::test]
async fn the_circuit_is_preferred_and_the_tunnel_takes_over() {
    let mut bench = Bench::up("tls1", "routes: default, ecmp: false").await;
    let keys = bench.lab.make_device_keys().unwrap();
    let parsed = bench.gateway(&keys["to-site"].to_string()).await;
    bench.lab.start_device("a-ce1", 0, &parsed).await.unwrap();
    let remotes = BTreeMap::from([("to-site".to_owned(), parsed.remote)]);
    bench.lab.start_routers(&remotes).unwrap();
    bench.lab.wait_for_sessions(CONVERGENCE_TIMEOUT).await.unwrap();

    let way = "ip route get 10.10.30.4";
    bench
        .until("a-ce1", way, "the circuit has the traffic", |t| t.contains("dev line0"))
        .await;
    let default = "ip route show default";
    bench
        .until("a-router", default, "the first edge is the way out", |t| {
            t.contains("via 192.168.30.0 ") && !t.contains("192.168.30.4")
        })
        .await;
    let routes = bench.lab.exec(
        "a-ce1",
        &["birdc", "show", "route", "for", "10.10.30.4", "all"],
        PROGRAM_TIMEOUT,
    );
    let routes = routes.await.unwrap();
    assert_eq!(routes.code, 0, "{}", routes.stderr);
    let routes = routes.stdout;
    assert!(
        routes.contains("BGP.local_pref: 200") && routes.contains("BGP.local_pref: 100"),
        "{routes}"
    );
    assert!(
        routes.contains("BGP.as_path: 12076") && routes.contains("BGP.as_path: 65515"),
        "{routes}"
    );

    // The site advertises only its prefix: no prefixes of links, no default route, and no routes of other neighbours.
    for host in ["e1", "gw"] {
        let learned = bench.on(host, "birdc show route protocol site").await;
        let prefixes: Vec<_> = learned.lines().filter(|l| l.contains("/")).collect();
        assert!(
            prefixes.len() == 1 && prefixes[0].starts_with("10.2.30.0/25"),
            "{host}: {learned}"
        );
        assert!(prefixes[0].contains("AS65021i"), "{learned}");
    }

    // Routers answer with the address of the device that received the probe (T3). The VPN device answers with its own
    // address (T7).
    let out = bench.lab.trace("a-vm", "10.10.30.4", 3).await.unwrap();
    assert_eq!(out.to_string(), "10.2.30.3 → 192.168.30.0 → 10.10.30.4");
    assert_eq!(
        bench.hops("e1", "10.10.30.4", "10.2.30.10").await,
        "192.168.30.17 → 192.168.30.1 → 10.2.30.10"
    );
    assert_eq!(
        bench.hops("gw", "10.10.30.254", "10.2.30.10").await,
        "10.2.30.125 → 192.168.30.1 → 10.2.30.10",
        "replies to the speaker itself use the tunnel"
    );
    assert_eq!(
        bench.hops("gw", "10.10.30.4", "10.2.30.10").await,
        "*",
        "replies to all others use the circuit"
    );

    // Routers drop packets without a route silently (T8). The packets of a site's hosts must have no route into the
    // underlay either.
    for nowhere in ["172.31.0.1", "203.0.113.41"] {
        let pinged = bench.lab.ping("a-vm", nowhere, Ping::UNREACHABLE).await.unwrap();
        assert!(pinged.none() && pinged.refusals == 0, "{nowhere}: {pinged}");
    }

    let cut = bench.lab.topology().events.find("cut").unwrap().clone();
    bench.lab.trigger(&cut).unwrap();
    bench
        .until("a-ce1", way, "the tunnel has the traffic", |t| t.contains("dev wg0"))
        .await;
    assert!(
        bench
            .lab
            .ping("a-vm", "10.10.30.4", Ping::REACHABLE)
            .await
            .unwrap()
            .all()
    );
    assert_eq!(
        bench.hops("gw", "10.10.30.4", "10.2.30.10").await,
        "10.2.30.125 → 192.168.30.1 → 10.2.30.10"
    );
    bench.lab.undo_events().unwrap();
    bench
        .until("a-ce1", way, "the circuit has it again", |t| t.contains("dev line0"))
        .await;
    bench.lab.wait_for_sessions(CONVERGENCE_TIMEOUT).await.unwrap();
    bench.down("tls1");
}

#[tokio::test]
async fn a_lan_spreads_over_its_edges_and_avoids_one_without_a_route() {
    let mut bench = Bench::up("tls2", "routes: learned, ecmp: true").await;
    // This test has no gateway, so the tunnel's remote end has no routes and no BGP speaker.
    let remotes = BTreeMap::from([("to-site".to_owned(), RemoteEnd::default())]);
    bench.lab.start_routers(&remotes).unwrap();
    let way = "ip route show 10.10.30.0/24";
    let both = |t: &str| t.contains("via 192.168.30.0 ") && t.contains("via 192.168.30.4 ");
    bench.until("a-router", way, "both edges share the traffic", both).await;
    assert!(
        bench
            .lab
            .ping("a-vm", "10.10.30.4", Ping::REACHABLE)
            .await
            .unwrap()
            .all()
    );

    // BIRD of the second provider edge is killed. It sends no BGP notification, so the customer edge must detect the
    // failure itself.
    bench.stand_ins[1].kill().unwrap();
    bench
        .until("a-router", way, "the other has all of it", |t| {
            t.contains("via 192.168.30.0 ") && !t.contains("192.168.30.4")
        })
        .await;
    assert!(
        bench
            .lab
            .ping("a-vm", "10.10.30.4", Ping::REACHABLE)
            .await
            .unwrap()
            .all()
    );
    bench.edge_again("e2").await;
    bench.until("a-router", way, "both share it again", both).await;

    // The second customer edge loses its link to the LAN router.
    let down = bench
        .lab
        .exec("a-ce2", &["ip", "link", "set", "lan0", "down"], PROGRAM_TIMEOUT);
    let down = down.await.unwrap();
    assert_eq!(down.code, 0, "{}", down.stderr);
    bench
        .until("a-router", way, "its link is no way", |t| {
            t.contains("via 192.168.30.0 ") && !t.contains("192.168.30.4")
        })
        .await;
    bench.down("tls2");
}

impl Bench {
    /// Starts BIRD of a provider edge again, with its earlier configuration.
    async fn edge_again(&mut self, host: &str) {
        self.start(host, "bird -f -c /run/bird/bird.conf -s /run/bird/bird.ctl");
    }
}
