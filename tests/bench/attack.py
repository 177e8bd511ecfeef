"""The cost of attacks: the loss of an established stream and of its neighbours' pings, and the CPU time of sender and receiver.

Attacker, victims and both ends of the stream share the machine's cores, so the attacker's own computing slows the stream. A real
attacker has its own machine. So each round has three turns, in changing order: without the attack, with it, and with a process that
computes as much as the attacker and sends nothing. The first ratio compares the throughput with the attack and beside the computing
process, and has the goal. The second ratio compares it with and without the attack. Costs are measured without the stream: processor
time of the attacker, and processor time of the product's processes beyond their idle time.
"""

import json
import os
import statistics
import subprocess
import time

from interval import interval
from lab import run

GOAL = 0.95  # of the throughput without the attack
HZ = os.sysconf("SC_CLK_TCK")
SPACING = "0.02"  # seconds between pings
COSTS = 8  # seconds for which costs are measured: the kernel counts processor time in hundredths

# Computes for a share of each 10 ms.
COMPUTE = """
import sys, time
share, end = float(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    begun, spent = time.monotonic(), time.thread_time()
    while time.thread_time() - spent < share * 0.01:
        pass
    time.sleep(max(begun + 0.01 - time.monotonic(), 0))
"""


def ticks(pid, children=False):
    """Seconds of processor time of a process, and if asked of its children that have ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = [int(n) for n in file.read().rsplit(")", 1)[1].split()[11:15]]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(fields if children else fields[:2]) / HZ


def parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(pid):
    """Seconds of processor time of a process and of all that it started."""
    children = {}
    for other in map(int, filter(str.isdigit, os.listdir("/proc"))):
        children.setdefault(parent(other), []).append(other)
    every, waiting = [], [pid]
    while waiting:
        every.append(waiting.pop())
        waiting += children.get(every[-1], [])
    return sum(ticks(p, True) for p in every)


class Attack:
    """`begin` starts processes that attack for so many seconds; `others` are further processes that work for the attacker."""

    def __init__(self, name, begin, stream, pings, others=()):
        self.name, self.begin, self.stream, self.pings, self.others = name, begin, stream, pings, others


class Beside:
    """One attack beside a stream."""

    def __init__(self, lab, binaries, attack, seconds):
        self.lab, self.attack, self.seconds = lab, attack, seconds
        processes = {n: p["pid"] for n, p in lab.state()["processes"].items() if "." not in n} | lab.pids
        self.victims = []
        for pid in processes.values():
            try:
                name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            except OSError:
                continue
            if name in ("tombolo-agent", "tombolo-controller"):
                self.victims.append(pid)
        # A gateway's BGP daemon is a child of its agent: count it too.
        self.victims += [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent(pid) in self.victims]

    def spent(self):
        return sum(ticks(pid) for pid in self.victims)

    def begin(self, seconds):
        processes = self.attack.begin(self.lab, seconds + 2)
        time.sleep(0.7)
        return processes

    def end(self, processes):
        """Waits until the attack is over: its processes on other hosts must not disturb the next turn."""
        for process in processes:
            process.wait(COSTS + 20)

    def compute(self, share):
        process = subprocess.Popen(["python3", "-c", COMPUTE, str(share), str(self.seconds + 2)])
        self.lab.started.append(process)
        time.sleep(0.7)
        return [process]

    def turn(self, kind, share=0.0):
        """Megabits a second, pings sent and lost, the attackers' share of one core."""
        processes = {"quiet": list, "attack": lambda: self.begin(self.seconds), "compute": lambda: self.compute(share)}[kind]()
        others = sum(ticks(pid, True) for pid in self.attack.others)
        before = [tree(p.pid) for p in processes]
        begun = time.monotonic()
        source, target = self.attack.pings
        count = int(self.seconds / float(SPACING))
        pings = self.lab.start(source, "ping", "-q", "-n", "-c", str(count), "-i", SPACING, "-W", "1", self.lab.address(target),
                               stdout=subprocess.PIPE)
        source, target = self.attack.stream
        out = self.lab.on(source, "iperf3", "-c", self.lab.address(target), "-t", str(self.seconds), "-O", "0.3", "-J",
                          timeout=self.seconds + 20)
        took = time.monotonic() - begun
        said = pings.communicate(timeout=20)[0]
        received = int(said.split(" received")[0].split()[-1])
        own = sum(tree(p.pid) - b for p, b in zip(processes, before) if p.poll() is None)
        own += sum(ticks(pid, True) for pid in self.attack.others) - others
        self.end(processes)
        return json.loads(out)["end"]["sum_received"]["bits_per_second"] / 1e6, count, count - received, own / took

    def costs(self):
        """Processor seconds in a second of the attack: the attacker's, and the victims' beyond those of idleness."""
        before, begun = self.spent(), time.monotonic()
        time.sleep(COSTS)
        idle = (self.spent() - before) / (time.monotonic() - begun)
        processes = self.begin(COSTS)
        others = sum(ticks(pid, True) for pid in self.attack.others)
        victims, own, begun = self.spent(), sum(tree(p.pid) for p in processes), time.monotonic()
        time.sleep(COSTS)
        took = time.monotonic() - begun
        own = sum(tree(p.pid) for p in processes) - own + sum(ticks(pid, True) for pid in self.attack.others) - others
        victims = self.spent() - victims
        self.end(processes)
        return own / took, max(victims / took - idle, 0)

    def measure(self, rounds):
        quiet, ratios, whole, shares = [], [], [], []
        lost = dict.fromkeys(("quiet", "attack", "compute"), 0)
        sent = 0
        kinds = ("attack", "compute", "quiet")
        for number in range(rounds):
            turns = {}
            # The first attack says how much the attacker computes.
            for kind in kinds[number % 3:] + kinds[:number % 3]:
                turns[kind] = self.turn(kind, statistics.median(shares) if shares else 0)
                if kind == "attack":
                    shares.append(turns[kind][3])
                    sent += turns[kind][1]
                lost[kind] += turns[kind][2]
                time.sleep(0.3)
            quiet.append(turns["quiet"][0])
            ratios.append(turns["attack"][0] / turns["compute"][0])
            whole.append(turns["attack"][0] / turns["quiet"][0])
        attacker, victims = self.costs()
        low, high = interval(ratios)
        ratio = statistics.median(ratios)
        good = ratio >= GOAL and lost["attack"] <= lost["quiet"] + lost["compute"] and victims <= attacker
        print(f"  {self.attack.name:44} stream {statistics.median(quiet):5.0f} Mbit/s x {ratio:.3f} ({low:.3f} to {high:.3f}), "
              f"with what the attacker computes x {statistics.median(whole):.3f} ({100 * statistics.median(shares):.0f} % of a core); "
              f"{lost['attack']} of {sent} pings lost ({lost['quiet']} without); "
              f"alone: sender {1000 * attacker:.0f} ms/s, receivers {1000 * victims:.0f} ms/s{'' if good else '   MISSED'}", flush=True)
        return good


def state_dir(command):
    return command[command.index("--state-dir") + 1]


def flood_routes(lab):
    """Gives the site 2,000 more routes, in a protocol that can be switched; returns the pids of BIRD and of its WireGuard device."""
    folder = next(f for f, _, files in os.walk(lab.folder) if "bird.conf" in files and "ce1" in f)
    path = os.path.join(folder, "bird.conf")
    with open(path) as file:
        lines = file.read().splitlines()
    lines = ['    export where proto ~ "flood" || proto = "announced";' if "export where proto = \"announced\"" in line else line
             for line in lines]
    routes = "".join(f"  route 172.{16 + n // 256}.{n % 256}.0/24 blackhole;\n" for n in range(2000))
    with open(path, "w") as file:
        file.write("\n".join(lines) + f"\nprotocol static flood {{\n  disabled;\n  ipv4;\n{routes}}}\n")
    lab.cli("lab", "exec", "--lab", lab.name, "site-ce1", "--", "birdc", "configure")
    return [p["pid"] for name, p in lab.state()["processes"].items() if name.split(".")[0] == "site-ce1"]


STRANGER = "203.0.113.99"

FLAP = "end=$((SECONDS + $1)); while [ $SECONDS -lt $end ]; do birdc enable flood; sleep 0.05; birdc disable flood; sleep 0.05; done"


def attacks(lab, binaries):
    """The attacks; those agents that turn hostile are stopped."""
    hostile = os.path.join(binaries, "examples", "hostile-agent")
    stranger = os.path.join(binaries, "stranger")
    controller = lab.state()["topology"]["underlay"]["controller"]
    folders = {host: state_dir(lab.end(host)) for host in ("branch-gw", "evil-vm")}
    devices = flood_routes(lab)
    time.sleep(1)

    def agent(host, *what):
        def begin(lab, seconds):
            return [lab.start(host, hostile, what[0], "--state", folders[host], "--seconds", str(seconds), *what[1:])]
        return begin

    def site(lab, seconds):
        command = [lab.tombolo, "lab", "exec", "--lab", lab.name, "site-ce1", "--", "bash", "-c", FLAP, "flap", str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=lab.environment)
        lab.started.append(process)
        return [process]

    # The controller knows no agent at this address.
    lab.on("evil-vm", "ip", "address", "add", f"{STRANGER}/32", "dev", "lo")

    def connections(state, *more):
        def begin(lab, seconds):
            return [lab.start("evil-vm", stranger, "--to", f"{controller['address']}:{controller['port']}", "--connections", "10000",
                              "--state", state, "--seconds", str(seconds), "--rate", "1000", *more)]
        return begin

    elsewhere = ("--addresses", f"{STRANGER}/32")
    direct, gateways = ("spoke-vm", "hub-vm"), ("hub-vm", "other-vm")
    return [
        Attack("a neighbour advertises 2,000 tables/s", agent("branch-gw", "advertise", "--peer", "hub-gw", "--rate", "2000",
                                                                "--asn", "65030", "--routes", "3"), gateways, direct),
        Attack("the same with 500 routes each, 100/s", agent("branch-gw", "advertise", "--peer", "hub-gw", "--rate", "100",
                                                              "--asn", "65030", "--routes", "500"), gateways, direct),
        Attack("a VM advertises 2,000 tables/s", agent("evil-vm", "advertise", "--peer", "hub-vm", "--rate", "2000"),
               direct, gateways),
        Attack("an agent's QUIC connections flap", agent("evil-vm", "flap", "--peer", "hub-vm"), direct, gateways),
        Attack("a site's 2,000 routes flap", site, gateways, direct, others=devices),
        Attack("a stranger's idle connections", connections("tcp", *elsewhere), direct, gateways),
        Attack("a stranger's TLS handshakes", connections("tls", *elsewhere), direct, gateways),
        Attack("an agent's TLS handshakes", connections("tls"), direct, gateways),
    ]


def attack(lab, binaries, rounds, seconds, only=""):
    for pair in (("spoke-vm", "hub-vm"), ("hub-vm", "other-vm")):
        lab.reach(pair[0], lab.address(pair[1]), 60)
    for host in ("hub-vm", "other-vm"):
        lab.start(host, "iperf3", "-s")
    time.sleep(0.5)
    chosen = [a for a in attacks(lab, binaries) if only in a.name]
    return all([Beside(lab, binaries, a, seconds).measure(rounds) for a in chosen])
