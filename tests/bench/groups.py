"""Security groups under load: small packets with groups and without, and a stream and pings beside a flood of new flows."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from interval import interval
from lab import Lab, run

HERE = os.path.dirname(os.path.abspath(__file__))

# Headers and payload of a small packet in bytes. With Ethernet's header and checksum it is a frame of 64 bytes.
HEADERS, PAYLOAD = 28, 18
# Packets a second of a flood.
RATE = 20_000
# Rules of each of the two groups of b.
RULES = 1000
# Number of flows that fill the table of an agent, and the packets a second that create them.
FLOWS, FILL_RATE = 1_050_000, 25_000


def rules():
    """Rules that match no packet of the benchmark, and one at the end that allows everything."""
    rule = {"direction": "Inbound", "protocol": "Tcp", "access": "Deny"}
    deny = {f"deny-{n}": {**rule, "priority": 100 + n, "sourceAddressPrefix": f"172.{16 + n // 250}.{n % 250}.0/24",
                          "destinationPortRange": str(30_000 + n)} for n in range(RULES - 1)}
    return {**deny, "allow": {"priority": 4000, "direction": "Inbound", "access": "Allow", "destinationPortRange": "*"}}


def topology(folder, name, groups):
    """Two VMs of two peered VNets, a and b, and a third VM that floods b."""
    vnets = {"left": "10.1", "right": "10.2", "third": "10.3"}
    hosts = {"a": "left", "b": "right", "m": "third"}
    peers = {"left": ["right"], "right": ["left", "third"], "third": ["right"]}
    resources = {
        "resourceGroup": "lab", "location": "region1",
        "virtualNetworks": {
            vnet: {"addressSpace": [f"{prefix}.0.0/16"],
                   "subnets": {"workload": {"addressPrefix": f"{prefix}.0.0/24"}},
                   "peerings": {f"to-{peer}": {"remoteVirtualNetwork": peer} for peer in peers[vnet]}}
            for vnet, prefix in vnets.items()
        },
        "networkInterfaces": {
            f"{host}-nic": {"subnet": f"{vnet}/workload", "privateIPAddress": f"{vnets[vnet]}.0.4"}
            for host, vnet in hosts.items()
        },
    }
    if groups:
        resources["networkSecurityGroups"] = {"of-nic": {"rules": rules()}, "of-subnet": {"rules": rules()}}
        resources["virtualNetworks"]["right"]["subnets"]["workload"]["networkSecurityGroup"] = "of-subnet"
        resources["networkInterfaces"]["b-nic"]["networkSecurityGroup"] = "of-nic"
    lab = {
        "name": name,
        "underlay": {"segments": {"internet": {"prefix": "203.0.113.0/24"}},
                     "controller": {"address": "203.0.113.10", "port": 8443}},
        "hosts": {host: {"address": f"203.0.113.{11 + n}", "vm": {"nics": [f"{host}-nic"]}} for n, host in enumerate(hosts)},
        "resources": resources,
    }
    path = os.path.join(folder, f"{name}.yaml")
    with open(path, "w") as file:
        json.dump(lab, file)  # JSON is YAML too
    return path


def sender(lab, host, *arguments):
    return lab.start(host, sys.executable, os.path.join(HERE, "raw_sender.py"), *map(str, arguments), stdout=subprocess.PIPE)


def received(lab):
    """The number of small packets that the agent of b has written to its device. The agent joins them into super-packets,
    each of which has the headers once."""
    files = (f"/sys/class/net/tl-b/statistics/rx_{what}" for what in ("packets", "bytes"))
    supers, length = (int(number) for number in lab.on("b", "cat", *files).split())
    return (length - supers * HEADERS) / PAYLOAD


def small_packets(labs, flood, rounds, seconds):
    """Compares how many packets of 64-byte Ethernet frames b receives from one sender, with groups and without."""
    rates = {name: [] for name in labs}
    for turn in range(rounds):
        names = list(labs)
        for name in names if turn % 2 else reversed(names):
            lab = labs[name]
            before, begin = received(lab), time.monotonic()
            lab.on("a", flood, f"{lab.address('b')}:9", "small", "0", str(seconds), timeout=seconds + 30)
            time.sleep(0.2)
            rates[name].append((received(lab) - before) / (time.monotonic() - begin))
    ratios = [w / n for w, n in zip(rates["groups"], rates["plain"])]
    low, high = interval(ratios)
    good = statistics.median(ratios) >= 0.97
    print(f"packets of 64 bytes: {statistics.median(rates['groups']):.0f} a second with two groups of {RULES} rules, "
          f"{statistics.median(rates['plain']):.0f} without, ratio {statistics.median(ratios):.3f} "
          f"({low:.3f} to {high:.3f}; goal: median at least 0.97){'' if good else '   MISSED'}", flush=True)
    return good


def beside(lab, kind, seconds):
    """Mbit/s of a stream while the third VM sends packets of one kind, then lost pings beside the same packets. A stream that
    fills the path loses some pings by itself, so the pings have a time of their own."""
    own, other, length = lab.address("m"), lab.address("b"), 2 * seconds + 1.5
    flood = sender(lab, "m", own, other, kind, RATE, length)
    time.sleep(0.5)
    out = json.loads(lab.on("a", "iperf3", "-c", other, "-t", str(seconds), "-J", timeout=seconds + 30))
    count = int((seconds - 0.5) / 0.01)
    pings = lab.on("a", "ping", "-n", "-q", "-i", "0.01", "-c", str(count), "-W", "1", other, check=False)
    answered = int(pings.split(" received")[0].split()[-1])
    sent = int(flood.communicate(timeout=30)[0])
    return out["end"]["sum_received"]["bits_per_second"] / 1e6, count - answered, sent / length


def flooded(lab, title, rounds, seconds):
    turns = {"udp": [], "syn": []}
    for turn in range(rounds):
        for kind in ("udp", "syn") if turn % 2 else ("syn", "udp"):
            turns[kind].append(beside(lab, kind, seconds))
    ratios = [s[0] / u[0] for s, u in zip(turns["syn"], turns["udp"])]
    low, high = interval(ratios)
    lost = {kind: sum(t[1] for t in done) for kind, done in turns.items()}
    rate = {kind: statistics.median(t[2] for t in done) for kind, done in turns.items()}
    good = statistics.median(ratios) >= 0.9 and lost["syn"] == 0
    print(f"{title}: a stream beside {rate['syn']:.0f} SYNs a second {statistics.median(t[0] for t in turns['syn']):.0f} Mbit/s, "
          f"beside {rate['udp']:.0f} datagrams of one flow {statistics.median(t[0] for t in turns['udp']):.0f} Mbit/s, "
          f"ratio {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}; goal: at least 0.9); "
          f"pings lost {lost['syn']} (goal: 0) and {lost['udp']}{'' if good else '   MISSED'}", flush=True)
    return good


def fill(lab):
    """Fills b's flow table with flows that have an answer."""
    own, other, seconds = lab.address("m"), lab.address("b"), FLOWS / FILL_RATE
    echo = sender(lab, "b", other, "-", "echo", 0, seconds + 2)
    time.sleep(0.5)
    sent = int(sender(lab, "m", own, other, "flows", FILL_RATE, seconds).communicate(timeout=seconds + 60)[0])
    answered = int(echo.communicate(timeout=60)[0])
    print(f"  table filled: {sent} flows sent, {answered} answered", flush=True)


def groups(binaries, rounds, seconds):
    good = True
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        flood = os.path.join(folder, "flood")
        run("rustc", "-O", "-o", flood, os.path.join(HERE, "peers/flood.rs"), timeout=120)
        labs = {}
        for name in ("groups", "plain"):
            path = topology(folder, f"bench-{name}", name == "groups")
            labs[name] = stack.enter_context(Lab(binaries, path, f"bench-{name}"))
            lab = labs[name]
            # No socket receives the flood, and the kernel must not answer it with ICMP errors or RSTs.
            for rule in ("add table ip sink", "add chain ip sink in { type filter hook input priority 0; }",
                         "add rule ip sink in tcp dport 9 drop", "add rule ip sink in udp dport 9 drop"):
                lab.on("b", "nft", rule)
            lab.reach("a", lab.address("b"))
            lab.reach("m", lab.address("b"))
            lab.start("b", "iperf3", "-s")
        good &= small_packets(labs, flood, rounds, seconds)
        good &= flooded(labs["groups"], "with room in the flow table", rounds, seconds)
        fill(labs["groups"])
        good &= flooded(labs["groups"], "with a full flow table", rounds, seconds)
    return good
