#!/usr/bin/env python3
"""Scaling with cores: lanes against flows, on a machine with many cores.

  scale.py [--lanes 1,2,4,8] [--flows 1,4,16] [--secs 3] [--transit] [--peers wgspike,wg-go-bpo] [--out FILE]

Every flow has its own iperf3 pair, so that the load is not limited to one core. Prints for each contender and number of
flows the total throughput, that of the slowest flow, and the cores that the tunnel and the whole machine used.
"""
import argparse
import json
import os
import tempfile
import time

import measure
from contenders import ALL as PEERS
from netns import Lab
from tombolo import Tombolo

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--lanes", default="1,2,4,8")
ap.add_argument("--flows", default="1,4,16")
ap.add_argument("--secs", type=int, default=3)
ap.add_argument("--transit", action="store_true")
ap.add_argument("--transport", choices=("WireGuard", "Quic"), default="WireGuard")
ap.add_argument("--peers", default="", help="other contenders to run as well")
ap.add_argument("--out", help="append JSON lines to this file")
a = ap.parse_args()
FIRST_PORT = 5300


def together(lab, ip, pids, own, flows, secs):
    """`flows` TCP streams at once: (all Gbit/s, the slowest one's, cores of the tunnel, cores of everybody)."""
    with measure.Window(pids, own) as window:
        clients = [lab.popen("a", "iperf3", "-c", ip, "-p", str(FIRST_PORT + n), "-t", str(secs), "-O", "1", "-J", "-C", lab.cc,
                             stdout=-1) for n in range(flows)]
        rates = []
        for client in clients:
            text, _ = client.communicate(timeout=secs + 20)
            try:
                rates.append(json.loads(text)["end"]["sum_received"]["bits_per_second"] / 1e9)
            except (ValueError, KeyError):
                rates.append(0.0)
    wall = window.r["wall"]
    return sum(rates), min(rates), window.r["tunnel_cpu"] / wall, window.r["busy"] / wall


def run(name, contender):
    with tempfile.TemporaryDirectory(prefix="scale-") as d, Lab(transit=a.transit) as lab:
        os.chmod(d, 0o755)
        contender.prepare(lab, d)
        start = time.time()
        pids = [p.pid for p in contender.start(lab, d)]
        if measure.ping_ready(lab, contender.ip_b, start) is None:
            print(f"{name}: never came up", flush=True)
            return
        most = max(int(n) for n in a.flows.split(","))
        own = [lab.popen("b", "iperf3", "-s", "-p", str(FIRST_PORT + n)).pid for n in range(most)]
        time.sleep(1.5)
        idle = measure.ping(lab, contender.ip_b, count=100)
        for flows in [int(n) for n in a.flows.split(",")]:
            total, slowest, tunnel, busy = together(lab, contender.ip_b, pids, own, flows, a.secs)
            print(f"{name:22} {flows:3} flows {total:7.2f} Gbit/s, slowest {slowest:6.2f}, cores: tunnel {tunnel:5.2f}, all "
                  f"{busy:5.2f}, idle ping {idle.get('median_ms', '-')} ms", flush=True)
            if a.out:
                row = {"contender": name, "transit": a.transit, "flows": flows, "gbps": total, "slowest": slowest,
                       "tunnel_cores": tunnel, "busy_cores": busy, "idle_ping": idle}
                with open(a.out, "a") as f:
                    f.write(json.dumps(row) + "\n")


def main():
    print(f"{os.cpu_count()} cores, {'three nodes' if a.transit else 'two nodes'}", flush=True)
    known = {c.name: c for c in PEERS}
    for name in filter(None, a.peers.split(",")):
        if known[name].available():
            run(name, known[name])
        else:
            print(f"{name}: skipped, no binary", flush=True)
    for lanes in filter(None, a.lanes.split(",")):
        os.environ["TOMBOLO_AGENT_TOML"] = f"lanes = {lanes}"
        run(f"{a.transport.lower()} {lanes} lanes", Tombolo("tombolo", a.transport))


main()
