//! Packets with overlay addresses stay off the underlay, whoever sends them: the VM itself, a container behind a published port,
//! an appliance. They are looked for on every wire of the underlay while peerings come and go and agents crash (D22).

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

/// How long packets flow in each situation. The senders send every 10 ms.
const PERIOD: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(5);

/// Notes source and destination of every packet with an overlay address that enters the underlay, on any of its wires.
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

/// Loads rules of nftables on a host.
async fn nft(lab: &Lab, host: &str, rules: &str) -> Result<()> {
    let file = lab.path()?.join(format!("rules-{host}.nft"));
    std::fs::write(&file, rules)?;
    let done = lab
        .exec(host, &["nft", "-f", &file.display().to_string()], LIMIT)
        .await?;
    ensure!(done.code == 0, "nft on {host}: {}", done.stderr);
    Ok(())
}

/// The overlay packets that the underlay has seen, if any, as pairs of addresses with a count.
async fn seen(lab: &Lab) -> Result<Option<String>> {
    let done = lab
        .exec(INTERNET, &["nft", "list", "table", "bridge", "watch"], LIMIT)
        .await?;
    ensure!(done.code == 0, "nft: {}", done.stderr);
    let pairs = done.stdout.lines().filter(|l| l.contains("packets"));
    let pairs = pairs
        .map(|l| l.trim().trim_start_matches("elements = "))
        .collect::<Vec<_>>();
    Ok((!pairs.is_empty()).then(|| pairs.join("\n")))
}

/// Lets packets flow for a moment, then checks that none was seen in clear text.
async fn nothing_in_clear(lab: &Lab, when: &str) -> Result<()> {
    tokio::time::sleep(PERIOD).await;
    match seen(lab).await? {
        None => Ok(()),
        Some(pairs) => anyhow::bail!("{when}, the underlay sees in clear text:\n{pairs}"),
    }
}

/// A ping from whatever address the host chooses.
async fn ping_unbound(lab: &Lab, host: &str, to: &str) -> Result<()> {
    let argv = ["ping", "-n", "-c", "3", "-i", "0.1", "-W", "0.3", to];
    lab.exec(host, &argv, LIMIT).await.map(drop)
}

/// Threads with sockets in namespaces; they end when this is dropped.
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
    /// A server that sends to its last client every 10 ms, asked or not, and a client that asks `published` for that.
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
                    // Where the network refuses it, that is as good as lost.
                    let _ = server.send_to(b"answer", client);
                }
            }
        });
        let (ended, count) = (stop.clone(), answers.clone());
        let ask = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ended.load(Relaxed) {
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

    /// Waits for new answers.
    async fn answered(&self, when: &str) -> Result<()> {
        let (before, start) = (self.answers.load(Relaxed), Instant::now());
        // The first few may have been under way.
        while self.answers.load(Relaxed) < before + 5 {
            ensure!(start.elapsed() < LIMIT, "{when}, the published port does not answer");
            tokio::time::sleep(PING_INTERVAL).await;
        }
        Ok(())
    }
}

/// A namespace that stands for a container behind a bridge of a host; gone when dropped.
struct Container(String);

impl Drop for Container {
    fn drop(&mut self) {
        let _ = run(&["ip", "netns", "del", &self.0]);
    }
}

impl Container {
    /// Makes it, with UDP port 8080 of the host's overlay address published as container engines do it.
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

/// A VM's own traffic and that of a container behind it.
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
    let pings = ["/4", "/6"].map(|family| w.pinger(vm, &format!("{peer}{family}"), PING_INTERVAL));
    nothing_in_clear(&w, "never peered").await?;

    w.join("spoke-a", "spoke-b").await?;
    w.reach_within(vm, peer, LIMIT).await?;
    sockets.answered("peered").await?;
    // The host's own services are in the container's reach, and the other way round.
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
    w.reach_within(vm, peer, LIMIT).await?;
    sockets.answered("peered again").await?;

    w.kill_agent(vm)?;
    let peer_text = peer_address.to_string();
    ping_unbound(&w, vm, &peer_text).await?;
    nothing_in_clear(&w, "after a crash").await?;
    w.start_agent(vm)?;
    w.wait_until_ready(LIMIT).await?;
    w.reach_within(vm, peer, LIMIT).await?;
    sockets.answered("after a restart").await?;
    nothing_in_clear(&w, "after a restart").await?;

    ensure!(w.stop_agent(vm)?, "the agent had to be killed");
    ping_unbound(&w, vm, &peer_text).await?;
    nothing_in_clear(&w, "after a stop").await?;
    for ping in pings {
        drop(ping?);
    }

    // Only this undoes it; and what the host does then is seen.
    let (program, dir) = (tombolo_lab::binary::find("tombolo-agent")?, w.agent_dir(vm)?);
    let (program, dir) = (program.display().to_string(), dir.display().to_string());
    let done = w.exec(vm, &[&program, "clean", "--state-dir", &dir], LIMIT).await?;
    ensure!(done.code == 0, "clean: {}", done.stderr);
    ping_unbound(&w, vm, &peer_text).await?;
    let seen = seen(&w).await?.context("the watch on the underlay sees nothing")?;
    ensure!(seen.contains(&peer_text), "{seen}");
    drop((sockets, container));
    w.down()
}

/// What an appliance's kernel forwards; and an Internet exit.
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
    w.reach_within(vm, "spoke-b-vm", LIMIT).await?;
    nft(&w, INTERNET, WATCH).await?;
    let pings = ["spoke-b-vm", "10.77.0.1"].map(|to| w.pinger(vm, to, PING_INTERVAL));
    nothing_in_clear(&w, "with all peerings").await?;
    w.unpeer("hub", "spoke-b").await?;
    nothing_in_clear(&w, "when a peering of the appliance was deleted").await?;
    w.kill_agent(appliance)?;
    nothing_in_clear(&w, "after a crash").await?;
    w.start_agent(appliance)?;
    w.wait_until_ready(LIMIT).await?;
    nothing_in_clear(&w, "after a restart").await?;

    // An Internet exit: public destinations leave, with a source that was translated.
    let outside = w.underlay_address(tombolo_lab::topology::CONTROLLER)?.to_string();
    w.route("spoke-a-routes", "internet", "0.0.0.0/0", appliance).await?;
    let pinged = w.ping(vm, &outside, Ping::UNREACHABLE).await?;
    ensure!(pinged.none(), "an appliance is an exit unasked: {pinged}");
    ensure!(w.stop_agent(appliance)?, "the agent had to be killed");
    let settings = w.agent_dir(appliance)?.join("agent.toml");
    let text = std::fs::read_to_string(&settings)?.replace("internet_exit = false", "internet_exit = true");
    std::fs::write(&settings, text)?;
    w.start_agent(appliance)?;
    w.wait_until_ready(LIMIT).await?;
    let pinged = w.ping(vm, &outside, Ping::UNREACHABLE).await?;
    ensure!(pinged.none(), "no source was translated: {pinged}");
    nothing_in_clear(&w, "without a translation").await?;
    let masquerade = "table ip exit {
        chain out { type nat hook postrouting priority 100; ip saddr 10.0.0.0/8 oifname \"underlay0\" masquerade; }
    }";
    nft(&w, appliance, masquerade).await?;
    w.reach_within(vm, &outside, LIMIT).await?;
    nothing_in_clear(&w, "as an Internet exit").await?;
    for ping in pings {
        drop(ping?);
    }
    w.down()
}
