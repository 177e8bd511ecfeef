#!/usr/bin/env python3
"""The CPU time of an agent and of the sender for floods of handshakes and garbage, and the loss of an established ping.

  floods.py --out results/floods.jsonl [--rate 50000] [--secs 5]

Two agents with a link; a third host sends to the port of one of them. CPU is that of the processes, per million datagrams.
"""
import argparse
import json
import os
import subprocess
import tempfile
import time

import measure
from contenders import which
from netns import Lab, TIED
from tombolo import Tombolo

KINDS = ["garbage", "handshake", "data", "quic"]

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--out", required=True)
ap.add_argument("--rate", type=int, default=50_000, help="datagrams a second beside the ping")
ap.add_argument("--secs", type=int, default=5)
a = ap.parse_args()


def flood(lab, kind, rate, secs):
    """Starts one; the datagrams that it sent and its CPU come with its end."""
    return lab.popen("m", which("flood"), f"{lab.attacked}:51820", kind, str(rate), str(secs), stdout=subprocess.PIPE)


def finish(process):
    """(datagrams, CPU seconds of the sender), read before it is reaped."""
    out = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return int(out.split()[0]), usage.ru_utime + usage.ru_stime


def received(lab):
    """Datagrams that the kernel of the attacked host handed to sockets so far."""
    lines = [line.split() for line in lab.run("b", "cat", "/proc/net/snmp").splitlines() if line.startswith("Udp:")]
    return int(lines[1][lines[0].index("InDatagrams")])


def main():
    c = Tombolo("tombolo-wg", "Automatic")
    d = tempfile.mkdtemp(prefix="bp-")
    os.chmod(d, 0o755)
    with Lab() as lab:
        c.prepare(lab, d)
        daemons = c.start(lab, d)
        if measure.ping_ready(lab, c.ip_b, time.time()) is None:
            raise SystemExit("the tunnel never came up")
        lab.add_node("m")
        lab.cable("m", "vm", "10.99.90.1/30", "b", "vbm", "10.99.90.2/30")
        lab.attacked = "10.99.90.2"
        time.sleep(1)
        victim = daemons[-1].pid
        for kind in KINDS:
            # At the given rate, beside a ping.
            process = flood(lab, kind, a.rate, a.secs)
            count = int((a.secs - 0.5) / 0.01)
            ping = measure.ping(lab, c.ip_b, count=count)
            sent, _ = finish(process)
            # Alone, as fast as possible: the CPU time of each side.
            before, got = measure.proc_ticks(victim), received(lab)
            process = flood(lab, kind, 0, 2)
            flat_out, sender = finish(process)
            time.sleep(0.2)
            agent = measure.proc_ticks(victim) - before
            got = received(lab) - got
            result = {"kind": kind, "pps": int(sent / a.secs), "ping_lost": ping.get("lost"), "pings": count,
                      "ping_median_ms": ping.get("median_ms"), "flat_out_pps": int(flat_out / 2), "taken_pps": int(got / 2),
                      "sender_cpu_per_million": round(sender / flat_out * 1e6, 3),
                      "agent_cpu_per_million": round(agent / got * 1e6, 3)}
            with open(a.out, "a") as f:
                f.write(json.dumps(result) + "\n")
            print(f"{kind:10} {result['pps']:7} datagrams/s beside a ping: {result['ping_lost']} of {count} lost, "
                  f"p50 {result['ping_median_ms']} ms; flat out {result['flat_out_pps']:7}/s: agent "
                  f"{result['agent_cpu_per_million']} s, sender {result['sender_cpu_per_million']} s per million", flush=True)


main()
