#!/usr/bin/env python3
"""Compares contenders, or builds and settings of one. All run at the same time, and one at a time has load, for a short turn.
So a drift of the machine's speed affects all of them equally.

  duel.py [--transit] [--rounds 20] [--secs 2] NAME=CONTENDER[,VARIABLE=VALUE...] ...
  duel.py pipe=wgspike now=tombolo-wg,BENCH_BIN=/new:/bin before=tombolo-wg,BENCH_BIN=/old:/bin

Prints medians, and the median of the rounds' ratios to the first contender with its 95 % interval. Use 20 rounds or more.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from interval import interval  # noqa: E402

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--rounds", type=int, default=20)
ap.add_argument("--secs", type=float, default=2)
ap.add_argument("--ping", action="store_true", help="pings while idle and under load too; with --secs 0 while idle alone")
ap.add_argument("--transit", action="store_true", help="three nodes, the middle one passing on")
ap.add_argument("--one", help="(inside) stand as this contender and take turns from standard input")
ap.add_argument("who", nargs="*")
a = ap.parse_args()


def stand(name):
    """One contender: up until standard input ends; a line on it is a turn."""
    import tempfile
    import time

    import measure
    from contenders import ALL as PEERS
    from netns import Lab
    from tombolo import Tombolo

    known = [*PEERS, Tombolo("tombolo-wg", "WireGuard"), Tombolo("tombolo-quic", "Quic")]
    contender = next(c for c in known if c.name == name)
    with tempfile.TemporaryDirectory(prefix="duel-") as d, Lab(transit=a.transit) as lab:
        os.chmod(d, 0o755)
        contender.prepare(lab, d)
        t0 = time.time()
        pids = [p.pid for p in contender.start(lab, d)]
        if measure.ping_ready(lab, contender.ip_b, t0) is None:
            raise SystemExit(f"{name} never came up")
        own = [lab.popen("b", "iperf3", "-s").pid]
        time.sleep(0.5)
        print("ready", flush=True)
        for turn in sys.stdin:
            secs, ping = json.loads(turn)
            out = {}
            if ping:
                out["idle"] = measure.ping(lab, contender.ip_b, count=100)["median_ms"]
            for direction, args in (("up", []), ("down", ["-R"])) if secs else ():
                r = measure.tcp(lab, contender.ip_b, pids, own, *args, "-O", "0.3", secs=secs)
                out[direction] = r["mbps"]
                out["cpu_" + direction] = r["tunnel_cpu_per_gb"]
            if ping and secs:
                load = lab.popen("a", "iperf3", "-c", contender.ip_b, "-t", "2.4", "-C", lab.cc)
                time.sleep(0.7)
                out["loaded"] = measure.ping(lab, contender.ip_b, count=120)["median_ms"]
                load.wait(9)
            print(json.dumps(out), flush=True)


if a.one:
    stand(a.one)
    raise SystemExit

standing, results = {}, {}
flags = ["--transit"] if a.transit else []
for number, who in enumerate(a.who):
    name, _, rest = who.partition("=")
    contender, *settings = rest.split(",")
    env = {**os.environ, **dict(s.split("=", 1) for s in settings), "BENCH_PREFIX": f"duel{number}-"}
    standing[name] = subprocess.Popen([sys.executable, __file__, *flags, "--one", contender], env=env, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    if standing[name].stdout.readline() != "ready\n":
        raise SystemExit(f"{name} did not come up")
    results[name] = []
try:
    for r in range(a.rounds):
        order = list(standing)
        for name in order[r % len(order):] + order[:r % len(order)]:
            p = standing[name]
            p.stdin.write(json.dumps([a.secs, a.ping]) + "\n")
            p.stdin.flush()
            results[name].append(json.loads(p.stdout.readline()))
finally:
    for p in standing.values():
        p.stdin.close()
    for p in standing.values():
        p.wait(20)
first = next(iter(results))
for name, rows in results.items():
    line = f"{name:12}"
    for key in rows[0]:
        mine = statistics.median(r[key] for r in rows)
        ratios = [r[key] / f[key] for r, f in zip(rows, results[first])]
        low, high = interval(ratios)
        line += f"  {key} {mine:8.3f} ({statistics.median(ratios):.3f}, {low:.3f} to {high:.3f})"
    print(line, flush=True)
