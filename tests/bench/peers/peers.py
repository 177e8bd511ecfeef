#!/usr/bin/env python3
"""Runs contenders round by round (A B C, A B C, ...) and appends JSON lines to a file.

  peers.py --list
  peers.py --rounds 3 --out results/p2p.jsonl                       everything available
  peers.py --only veth,wg-go-bpo,boringtun --rounds 3 --out ...
  peers.py --transit --only ... --out results/transit.jsonl         A - H - B
  peers.py --underlay-offload off --only ... --out ...              veth like a NIC with no offloads
"""
import argparse
import json
import os
import shutil
import tempfile
import time
import traceback

import measure
from contenders import ALL as PEERS
from netns import Lab
from tombolo import Tombolo

ALL = [*PEERS, Tombolo("tombolo-wg", "WireGuard"), Tombolo("tombolo-quic", "Quic")]

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--list", action="store_true")
ap.add_argument("--only", default="")
ap.add_argument("--skip", default="")
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--secs", type=int, default=8)
ap.add_argument("--udp-len", type=int, default=64)
ap.add_argument("--quick", action="store_true", help="no 4-stream and no loss-free search")
ap.add_argument("--transit", action="store_true")
ap.add_argument("--cc", default="cubic")
ap.add_argument("--underlay-offload", choices=("on", "off"), default="on")
ap.add_argument("--deadline", type=int, default=0, help="start no further run after this many seconds")
ap.add_argument("--keep-logs", action="store_true")
ap.add_argument("--out", default="results/last.jsonl")
a = ap.parse_args()

pick = [c for c in ALL if (not a.only or c.name in a.only.split(",")) and c.name not in a.skip.split(",")
        and (c.transit or not a.transit)]
if a.list:
    for c in ALL:
        print(f"{c.name:20} {'ready' if c.available() else 'binary not found':18} {'p2p+transit' if c.transit else 'p2p'}")
    raise SystemExit
for c in [c for c in pick if not c.available()]:
    print(f"{c.name}: skipped, no binary")
pick = [c for c in pick if c.available()]
os.makedirs(os.path.dirname(a.out) or ".", exist_ok=True)
begin = time.time()
for rnd in range(a.rounds):
    for c in pick:
        if a.deadline and time.time() - begin > a.deadline:
            raise SystemExit("deadline")
        waited = measure.wait_quiet()
        d = tempfile.mkdtemp(prefix="bp-")
        os.chmod(d, 0o755)
        t0 = time.time()
        try:
            with Lab(transit=a.transit, cc=a.cc, underlay_offload=a.underlay_offload == "on") as lab:
                c.prepare(lab, d)
                r = measure.measure(lab, c.ip_b, lambda: c.start(lab, d), a.secs, a.udp_len, a.transit, a.quick)
        except Exception as e:  # one contender's failure must not end the round
            traceback.print_exc()
            r = {"error": f"{type(e).__name__}: {e}"[:300]}
        r = {"contender": c.name, "round": rnd, "topology": "transit" if a.transit else "p2p", "cc": a.cc,
             "underlay_offload": a.underlay_offload, "udp_len": a.udp_len, "secs": a.secs, "quiet_wait_s": waited,
             "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t0)), **r}
        with open(a.out, "a") as f:
            f.write(json.dumps(r) + "\n")
        if a.keep_logs or "error" in r:
            print("logs:", d)
        else:
            shutil.rmtree(d, ignore_errors=True)
        g = lambda k, m: r.get(k, {}).get(m, "-") if isinstance(r.get(k), dict) else "-"
        print(f"[{rnd}] {c.name:20} up {g('tcp1_up', 'mbps')} down {g('tcp1_down', 'mbps')} x4 {g('tcp4', 'mbps')} Mb/s "
              f"flood {g('udp_flood', 'pps')} pps, loss-free {g('udp_lossfree', 'kpps')}k, ping {g('ping_idle', 'median_ms')}/"
              f"{g('ping_load', 'median_ms')} ms, cpu/GB {g('tcp1_up', 'tunnel_cpu_per_gb')}, strange "
              f"{g('tcp1_up', 'strange_cpu')}, {time.time() - t0:.0f}s {r.get('error', '')}", flush=True)
