#!/usr/bin/env python3
"""Full load for a long time, while the peer is killed and restarted: no leak, no panic, and traffic resumes.

  soak.py [--minutes 30] [--every 20]

Two agents, half of the time over WireGuard and half over QUIC, with TCP in both directions at once. One agent is restarted every
`--every` seconds, with SIGKILL and SIGTERM alternating. The other agent's memory is measured.
"""
import argparse
import glob
import os
import signal
import statistics
import sys
import tempfile
import time

import measure
from netns import Lab
from tombolo import Tombolo

# The permitted growth: buffers that the beginning did not need.
GROWTH_MB = 2.0
# Whichever end sends next starts a handshake with the restarted agent.
RECOVERY_S = 5.0

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("--minutes", type=float, default=30)
ap.add_argument("--every", type=float, default=20)
a = ap.parse_args()


def median(values):
    return statistics.median(values) if values else 0.0


def soak(transport, seconds):
    """One transport; what went wrong."""
    wrong = []
    d = tempfile.mkdtemp(prefix="bp-")
    os.chmod(d, 0o755)
    c = Tombolo("soak", transport)
    with Lab() as lab:
        c.prepare(lab, d)
        first, second = c.start(lab, d)
        if measure.ping_ready(lab, c.ip_b, time.time()) is None:
            return ["the link never came up"]
        memory, recovery, moved, restarts = [], [], [], 0
        end = time.time() + seconds
        while time.time() < end:
            servers = [lab.popen(n, "iperf3", "-s", "-1") for n in "ab"]
            time.sleep(0.3)
            span = max(2, int(min(a.every, end - time.time())))
            load = [lab.popen("a", "iperf3", "-c", c.ip_b, "-t", str(span), "-P", "2"),
                    lab.popen("b", "iperf3", "-c", c.ip_a, "-t", str(span), "-P", "2")]
            before = received(lab)
            for _ in range(span):
                time.sleep(1)
                memory.append(measure.rss_kb(first.pid) / 1024)
            moved.append((received(lab) - before) / span * 8 / 1e6)
            hard = restarts % 2 == 0
            second.send_signal(signal.SIGKILL if hard else signal.SIGTERM)
            second.wait(10)
            for p in [*load, *servers]:
                if p.poll() is None:
                    p.kill()
                p.wait()
            second = lab.popen("b", *second.args[second.args.index("--pdeathsig") + 2:], log=f"{d}/b.log")
            begun = time.time()
            took = measure.ping_ready(lab, c.ip_b, begun)
            recovery.append(took if took is not None else float("inf"))
            restarts += 1
            if first.poll() is not None:
                return [*wrong, f"{transport}: the agent that was not killed ended with {first.returncode}"]
        quarter = max(1, len(memory) // 4)
        early, late = median(memory[quarter:2 * quarter]), median(memory[-quarter:])
        print(f"{transport:10} {seconds:.0f} s, {restarts} restarts of the other end; {median(moved):.0f} Mbit/s received "
              f"(least {min(moved):.0f}); back in {median(recovery):.2f} s (worst {max(recovery):.2f}); memory {early:.1f} MB in "
              f"the second quarter, {late:.1f} MB in the last", flush=True)
        if late - early > GROWTH_MB:
            wrong.append(f"{transport}: memory grew by {late - early:.1f} MB")
        if max(recovery) > RECOVERY_S:
            wrong.append(f"{transport}: traffic came back after {max(recovery):.1f} s only")
        for log in glob.glob(f"{d}/*.log"):
            with open(log, errors="replace") as f:
                bad = [line for line in f if "panicked" in line or "data path ended" in line]
            wrong += [f"{transport}: {os.path.basename(log)}: {line.strip()}" for line in bad[:3]]
    return wrong


def received(lab):
    """Bytes that the device of the agent that is not killed has handed to its host."""
    return int(lab.run("a", "cat", "/sys/class/net/bptba/statistics/rx_bytes"))


def main():
    wrong = []
    for transport in ("WireGuard", "Quic"):
        wrong += soak(transport, a.minutes * 30)
    for line in wrong:
        print(line)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
