"""Load balancers: a stream and new connections through a front end, against the same back end by its own address."""

import json
import os
import statistics
import tempfile
import time

from interval import interval
from lab import Lab, run

HERE = os.path.dirname(os.path.abspath(__file__))

# Back ends of the pool. All of them are addresses of one machine, so that both ways use the same link.
MEMBERS = 64
FRONT, DIRECT = "10.2.0.250", "10.2.0.10"
STREAM_PORT, CONNECTION_PORT = 5201, 7000
THREADS = 8


def topology(folder, name, balanced):
    """A client in one VNet, and a machine with 64 addresses in a peered one. `balanced`: these are the pool of a front end."""
    vnets = {"left": "10.1", "right": "10.2"}
    addresses = {f"ip{n}": {"subnet": "right/workload", "privateIPAddress": f"10.2.0.{10 + n}",
                            **({"loadBalancerPools": ["lb/servers"]} if balanced else {})} for n in range(MEMBERS)}
    resources = {
        "resourceGroup": "lab", "location": "region1",
        "virtualNetworks": {
            vnet: {"addressSpace": [f"{prefix}.0.0/16"],
                   "subnets": {"workload": {"addressPrefix": f"{prefix}.0.0/24"}},
                   "peerings": {f"to-{peer}": {"remoteVirtualNetwork": peer} for peer in vnets if peer != vnet}}
            for vnet, prefix in vnets.items()
        },
        "networkInterfaces": {"a-nic": {"subnet": "left/workload", "privateIPAddress": "10.1.0.4"},
                              "b-nic": {"ipConfigurations": addresses}},
    }
    if balanced:
        rule = {"protocol": "Tcp", "frontEnd": "front", "pool": "servers", "probe": "health"}
        resources["loadBalancers"] = {"lb": {
            "frontEnds": {"front": {"subnet": "right/workload", "privateIPAddress": FRONT}},
            "pools": {"servers": {}},
            "probes": {"health": {"protocol": "Tcp", "port": CONNECTION_PORT, "intervalInSeconds": 5}},
            "rules": {f"port-{port}": {**rule, "frontEndPort": port} for port in (STREAM_PORT, CONNECTION_PORT)},
        }}
    lab = {
        "name": name,
        "underlay": {"segments": {"internet": {"prefix": "203.0.113.0/24"}},
                     "controller": {"address": "203.0.113.10", "port": 8443}},
        "hosts": {host: {"address": f"203.0.113.{11 + n}", "vm": {"nics": [f"{host}-nic"]}} for n, host in enumerate("ab")},
        "resources": resources,
    }
    path = os.path.join(folder, f"{name}.yaml")
    with open(path, "w") as file:
        json.dump(lab, file)  # JSON is YAML too
    return path


def stream(lab, address, seconds):
    """Mbit/s of one TCP stream."""
    out = lab.on("a", "iperf3", "-c", address, "-t", str(seconds), "-O", "0.3", "-J", timeout=seconds + 30)
    return json.loads(out)["end"]["sum_received"]["bits_per_second"] / 1e6


def connections(lab, program, address, seconds):
    """New TCP connections a second, each of which carries one byte there and back."""
    out = lab.on("a", program, "open", f"{address}:{CONNECTION_PORT}", str(THREADS), str(seconds), timeout=seconds + 30)
    opened, failed = map(int, out.split())
    if failed:
        raise RuntimeError(f"{failed} connections to {address} failed")
    return opened / seconds


def compare(title, unit, goal, rounds, measure):
    """Measures both addresses in turns, and prints the ratio."""
    values = {DIRECT: [], FRONT: []}
    for turn in range(rounds):
        for address in (DIRECT, FRONT) if turn % 2 else (FRONT, DIRECT):
            values[address].append(measure(address))
    ratios = [front / direct for front, direct in zip(values[FRONT], values[DIRECT])]
    low, high = interval(ratios)
    good = statistics.median(ratios) >= goal
    print(f"{title}: {statistics.median(values[FRONT]):.0f} {unit} through a front end with {MEMBERS} back ends, "
          f"{statistics.median(values[DIRECT]):.0f} {unit} without, ratio {statistics.median(ratios):.3f} "
          f"({low:.3f} to {high:.3f}; goal: median at least {goal}){'' if good else '   MISSED'}", flush=True)
    return good


def memory(lab, host):
    """Resident memory of the host's agent in kB."""
    with open(f"/proc/{lab.state()['processes'][host]['pid']}/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1])


def wait_for(program, lab, address, seconds=30):
    """Waits until a connection to the address succeeds, which for a front end needs a successful probe."""
    end = time.monotonic() + seconds
    while True:
        opened, _ = map(int, lab.on("a", program, "open", f"{address}:{CONNECTION_PORT}", "1", "0.2").split())
        if opened:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"no connection to {address}")


def settle(lab, program):
    """Opens connections through the front end until the owner's agent looks for the SYNs of new connections at one back end
    only, which it does from a minute after the last change of health, and until the memory of the flow table is allocated."""
    end = time.monotonic() + 65
    while time.monotonic() < end:
        connections(lab, program, FRONT, 5)


def balancers(binaries, rounds, seconds):
    good = True
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "connections")
        run("rustc", "-O", "-o", program, os.path.join(HERE, "connections.rs"), timeout=120)
        used = {}
        for name in ("plain", "balanced"):
            with Lab(binaries, topology(folder, f"bench-{name}", name == "balanced"), f"bench-{name}") as lab:
                for command in (("iperf3", "-s"), (program, "serve", str(CONNECTION_PORT))):
                    lab.start("b", *command)
                lab.reach("a", DIRECT)
                wait_for(program, lab, FRONT if name == "balanced" else DIRECT)
                used[name] = [memory(lab, host) for host in "ab"]
                if name == "balanced":
                    good &= compare("TCP stream", "Mbit/s", 0.97, rounds, lambda to: stream(lab, to, seconds))
                    settle(lab, program)
                    good &= compare("new connections", "a second", 0.9, rounds,
                                    lambda to: connections(lab, program, to, seconds))
        more = [after - before for before, after in zip(used["plain"], used["balanced"])]
        print(f"memory of an agent with a front end and {MEMBERS} back ends, and without: client {used['balanced'][0]} kB "
              f"({more[0]:+} kB), owner of the back ends {used['balanced'][1]} kB ({more[1]:+} kB)", flush=True)
    return good
