//! Packets with overlay addresses never enter the underlay in clear text (D22). The senders are a VM, a container behind a
//! published port, and an appliance. All wires of the underlay are watched while peerings are added and deleted and agents
//! crash.

use anyhow::{Context as _, Result, ensure};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tombolo_lab::Lab;
use tombolo_lab::command::run;
use tombolo_lab::host::{inside, sysctl};
use tombolo_lab::probe::Ping;
use tombolo_lab::topology::INTERNET;
use tombolo_tests::live::{FORWARDED, PING_INTERVAL, World};

/// How long packets flow in each situation. The senders send every 10 ms, so each sends 40 packets.
const PERIOD: Duration = Duration::from_millis(400);
/// Timeout of each command, and of each change that must take effect.
const TIMEOUT: Duration = Duration::from_secs(5);

/// nftables rules that record the source and the destination of each packet that enters the underlay on any wire, if
/// one of the two is an overlay address. The rules are loaded in the network namespace that bridges all wires of the
/// underlay.
const WATCH: &str = "table bridge watch {
    set four { type ipv4_addr . ipv4_addr; size 1024; flags dynamic; }
    set six { type ipv6_addr . ipv6_addr; size 1024; flags dynamic; }
    chain wires {
        type filter hook prerouting priority 0;
        ip saddr 10.0.0.0/8 update @four { ip saddr . ip daddr counter }
        ip daddr 10.0.0.0/8 update @four { ip saddr . ip daddr counter }
        ip6 saddr fd00:10::/32 update @six { ip6 saddr . ip6 daddr counter }
        ip6 daddr fd00:10::/32 update @six { ip6 saddr . ip6 daddr counter }
    }
}";

/// Adds nftables rules to those that a host's namespace already has.
async fn nft(lab: &Lab, host: &str, rules: &str) -> Result<()> {
    let file = lab.path()?.join(format!("rules-{host}.nft"));
    std::fs::write(&file, rules)?;
    let done = lab
        .exec(host, &["nft", "-f", &file.display().to_string()], TIMEOUT)
        .await?;
    ensure!(done.code == 0, "nft on {host}: {}", done.stderr);
    Ok(())
}

/// The pairs of addresses of overlay packets that entered the underlay since [`WATCH`] was loaded, each with its count.
/// None: there was no such packet.
async fn seen(lab: &Lab) -> Result<Option<String>> {
    let done = lab
        .exec(INTERNET, &["nft", "list", "table", "bridge", "watch"], TIMEOUT)
        .await?;
    ensure!(done.code == 0, "nft: {}", done.stderr);
    let pairs = done.stdout.lines().filter(|l| l.contains("packets"));
    let pairs = pairs
        .map(|l| l.trim().trim_start_matches("elements = "))
        .collect::<Vec<_>>();
    Ok((!pairs.is_empty()).then(|| pairs.join("\n")))
}

/// Lets packets flow for [`PERIOD`], then checks that none entered the underlay in clear text.
async fn nothing_in_clear(lab: &Lab, when: &str) -> Result<()> {
    tokio::time::sleep(PERIOD).await;
    match seen(lab).await? {
        None => Ok(()),
        Some(pairs) => anyhow::bail!("{when}, the underlay sees in clear text:\n{pairs}"),
    }
}

/// Sends three pings from a socket that is not bound, so the host's kernel chooses the source address. Lost pings are no error.
async fn ping_unbound(lab: &Lab, host: &str, to: &str) -> Result<()> {
    let argv = ["ping", "-n", "-c", "3", "-i", "0.1", "-W", "0.3", to];
    lab.exec(host, &argv, TIMEOUT).await.map(drop)
}

/// A client and a server on UDP sockets, each in a thread. Dropping the value ends both threads.
struct Sockets {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Sockets {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Sockets {
    /// Starts a server that sends to its last client every 10 ms even without requests, and a client that sends requests to
    /// `published`.
    fn start(server: UdpSocket, client: UdpSocket, published: SocketAddr) -> Result<Self> {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(PING_INTERVAL))?;
        }
        let ended = stop.clone();
        let serve = std::thread::spawn(move || {
            let mut last = None;
            let mut buffer = [0; 64];
            while !ended.load(Relaxed) {
                last = server.recv_from(&mut buffer).ok().map(|(_, from)| from).or(last);
                if let Some(client) = last {
                    // The kernel refuses packets while the overlay is down. For this test such a packet is merely lost.
                    let _ = server.send_to(b"answer", client);
                }
            }
        });
        let (ended, count) = (stop.clone(), answers.clone());
        let ask = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ended.load(Relaxed) {
                // As above, a refused packet is merely lost.
                let _ = client.send_to(b"question", published);
                if client.recv(&mut buffer).is_ok() {
                    count.fetch_add(1, Relaxed);
                }
            }
        });
        Ok(Self {
            stop,
            answers,
            threads: vec![serve, ask],
        })
    }

    /// Waits until the client has received five replies more. Fails after [`TIMEOUT`]; `when` names the situation in the error.
    async fn answered(&self, when: &str) -> Result<()> {
        let (before, start) = (self.answers.load(Relaxed), Instant::now());
        // Several replies are awaited, because the first ones may answer requests from before the call.
        while self.answers.load(Relaxed) < before + 5 {
            ensure!(start.elapsed() < TIMEOUT, "{when}, the published port does not answer");
            tokio::time::sleep(PING_INTERVAL).await;
        }
        Ok(())
    }
}

/// A network namespace in the role of a container behind a bridge of a host, by the namespace's name. Dropping the value
/// removes the namespace.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run(&["ip", "netns", "del", &self.0]);
    }
}

impl Container {
    /// Creates a container, and publishes its UDP port 8080 at the host's overlay address as container engines do.
    async fn publish(w: &World, host: &str) -> Result<Self> {
        let name = format!("tb-{}-box", w.topology().name);
        let netns = w.hosts().netns(host);
        run(&["ip", "netns", "add", &name])?;
        let container = Self(name.clone());
        inside(&netns, || {
            run(&["ip", "link", "add", "br-box", "type", "bridge"])?;
            run(&["ip", "address", "add", "172.17.0.1/16", "dev", "br-box"])?;
            run(&["ip", "link", "set", "br-box", "up"])?;
            run(&[
                "ip", "link", "add", "box0", "type", "veth", "peer", "name", "eth0", "netns", &name,
            ])?;
            run(&["ip", "link", "set", "box0", "master", "br-box", "up"])
        })??;
        inside(&container.netns(), || {
            run(&["ip", "address", "add", "172.17.0.2/16", "dev", "eth0"])?;
            run(&["ip", "link", "set", "eth0", "up"])?;
            run(&["ip", "route", "add", "default", "via", "172.17.0.1"])
        })??;
        sysctl(&netns, &[("ipv4/ip_forward", "1")])?;
        let address = w.address(host)?;
        let rules = format!(
            "table ip published {{
                chain in {{
                    type nat hook prerouting priority -100;
                    ip daddr {address} udp dport 8080 dnat to 172.17.0.2
                }}
                chain out {{
                    type nat hook postrouting priority 100;
                    ip saddr 172.17.0.0/16 oifname != \"br-box\" masquerade
                }}
            }}"
        );
        nft(w, host, &rules).await?;
        Ok(container)
    }

    fn netns(&self) -> std::path::PathBuf {
        std::path::Path::new("/run/netns").join(&self.0)
    }
}

/// D22: a VM and a container on this VM send packets while a peering is created and deleted and while the agent crashes
/// and stops. None enters the underlay in clear text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_and_its_containers_send_nothing_in_clear_text() -> Result<()> {
    let w = World::up("clear-vm").await?;
    let (vm, peer) = ("spoke-a-vm", "spoke-b-vm");
    let container = Container::publish(&w, vm).await?;
    let (vm_address, peer_address) = (w.address(vm)?, w.address(peer)?);
    let server = inside(&container.netns(), || UdpSocket::bind("0.0.0.0:8080"))??;
    let client = inside(&w.hosts().netns(peer), || UdpSocket::bind((peer_address, 9000)))??;
    nft(&w, INTERNET, WATCH).await?;
    let sockets = Sockets::start(server, client, (vm_address, 8080).into())?;
    let pings = ["/4", "/6"].map(|family| w.start_ping(vm, &format!("{peer}{family}"), PING_INTERVAL));
    nothing_in_clear(&w, "never peered").await?;

    w.join("spoke-a", "spoke-b").await?;
    w.reach_within(vm, peer, TIMEOUT).await?;
    sockets.answered("peered").await?;
    // The agent's packet filter, which confines overlay packets to the host, must not drop packets between the host's
    // overlay address and a network inside the host.
    for (from, to) in [("172.17.0.2", "10.2.0.4"), ("10.2.0.4", "172.17.0.2")] {
        let netns = if from == "172.17.0.2" {
            container.netns()
        } else {
            w.hosts().netns(vm)
        };
        let argv = ["ping", "-n", "-c", "1", "-W", "2", "-I", from, to];
        inside(&netns, || run(&argv))??;
    }
    nothing_in_clear(&w, "peered").await?;

    w.unpeer("spoke-a", "spoke-b").await?;
    nothing_in_clear(&w, "when the peering was deleted").await?;
    w.unpeer("spoke-b", "spoke-a").await?;
    w.join("spoke-a", "spoke-b").await?;
    w.reach_within(vm, peer, TIMEOUT).await?;
    sockets.answered("peered again").await?;

    w.kill_agent(vm)?;
    let peer_text = peer_address.to_string();
    ping_unbound(&w, vm, &peer_text).await?;
    nothing_in_clear(&w, "after a crash").await?;
    w.start_agent(vm)?;
    w.wait_until_ready(TIMEOUT).await?;
    w.reach_within(vm, peer, TIMEOUT).await?;
    sockets.answered("after a restart").await?;
    nothing_in_clear(&w, "after a restart").await?;

    ensure!(w.stop_agent(vm)?, "the agent had to be killed");
    ping_unbound(&w, vm, &peer_text).await?;
    nothing_in_clear(&w, "after a stop").await?;
    for ping in pings {
        drop(ping?);
    }

    // Only `tombolo-agent clean` removes the rules that confine overlay packets to the host. After that, packets must
    // leave in clear text. This proves that the nftables rules of [`WATCH`] would have recorded such packets earlier.
    let (program, dir) = (tombolo_lab::binary::find("tombolo-agent")?, w.agent_dir(vm)?);
    let (program, dir) = (program.display().to_string(), dir.display().to_string());
    let done = w.exec(vm, &[&program, "clean", "--state-dir", &dir], TIMEOUT).await?;
    ensure!(done.code == 0, "clean: {}", done.stderr);
    ping_unbound(&w, vm, &peer_text).await?;
    let seen = seen(&w).await?.context("the watch on the underlay sees nothing")?;
    ensure!(seen.contains(&peer_text), "{seen}");
    drop((sockets, container));
    w.down()
}

/// D22: an appliance's kernel forwards packets of a spoke to a deleted peering, to an unknown prefix and to the
/// Internet. Only packets to public destinations whose source was translated leave the host in clear text, and only
/// with the setting `internet_exit`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_forwards_nothing_in_clear_text() -> Result<()> {
    let w = World::up("clear-fw").await?;
    let (vm, appliance) = ("spoke-a-vm", "hub-fw");
    for (spoke, table, prefix) in [
        ("spoke-a", "spoke-a-routes", "10.3.0.0/16"),
        ("spoke-b", "spoke-b-routes", "10.2.0.0/16"),
    ] {
        w.put_half("hub", spoke, FORWARDED).await?;
        w.put_half(spoke, "hub", FORWARDED).await?;
        w.route(table, "other", prefix, appliance).await?;
    }
    w.route("spoke-a-routes", "unknown", "10.77.0.0/16", appliance).await?;
    w.reach_within(vm, "spoke-b-vm", TIMEOUT).await?;
    nft(&w, INTERNET, WATCH).await?;
    let pings = ["spoke-b-vm", "10.77.0.1"].map(|to| w.start_ping(vm, to, PING_INTERVAL));
    nothing_in_clear(&w, "with all peerings").await?;
    w.unpeer("hub", "spoke-b").await?;
    nothing_in_clear(&w, "when a peering of the appliance was deleted").await?;
    w.kill_agent(appliance)?;
    nothing_in_clear(&w, "after a crash").await?;
    w.start_agent(appliance)?;
    w.wait_until_ready(TIMEOUT).await?;
    nothing_in_clear(&w, "after a restart").await?;

    // With `internet_exit`, packets to public destinations leave the host, but only if their source was translated.
    let outside = w.underlay_address(tombolo_lab::topology::CONTROLLER)?.to_string();
    w.route("spoke-a-routes", "internet", "0.0.0.0/0", appliance).await?;
    let pinged = w.ping(vm, &outside, Ping::UNREACHABLE).await?;
    ensure!(
        pinged.none(),
        "an appliance forwards to the internet without internet_exit: {pinged}"
    );
    ensure!(w.stop_agent(appliance)?, "the agent had to be killed");
    let settings = w.agent_dir(appliance)?.join("agent.toml");
    let text = std::fs::read_to_string(&settings)?.replace("internet_exit = false", "internet_exit = true");
    std::fs::write(&settings, text)?;
    w.start_agent(appliance)?;
    w.wait_until_ready(TIMEOUT).await?;
    let pinged = w.ping(vm, &outside, Ping::UNREACHABLE).await?;
    ensure!(
        pinged.none(),
        "packets with an untranslated source were answered: {pinged}"
    );
    nothing_in_clear(&w, "without a translation").await?;
    let masquerade = "table ip exit {
        chain out { type nat hook postrouting priority 100; ip saddr 10.0.0.0/8 oifname \"underlay0\" masquerade; }
    }";
    nft(&w, appliance, masquerade).await?;
    w.reach_within(vm, &outside, TIMEOUT).await?;
    nothing_in_clear(&w, "as an Internet exit").await?;
    for ping in pings {
        drop(ping?);
    }
    w.down()
}
