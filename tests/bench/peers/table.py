#!/usr/bin/env python3
"""Prints a table (median, min-max) from one or more result files.  table.py [--md] [--all] results/p2p.jsonl ...

Leaves out measurements during which other programs, or the hypervisor's steal time, used more than 15 % of one core, if an
undisturbed one remains. --all keeps them."""
import json
import statistics
import sys

CLEAN = True


def disturbed(r, k):
    v = r.get(k)
    if not isinstance(v, dict) or "wall" not in v:
        return False
    other = v["strange_cpu"]
    if "iperf_client_pct" in v:  # what nobody of ours accounts for
        ours = v["tunnel_cpu"] + v["wall"] * (v["iperf_client_pct"] + v["iperf_server_pct"]) / 100
        other = max(other, v["busy"] - ours) if r["contender"] != "veth" else other
    return max(other, v["steal"]) > 0.15 * v["wall"]


def get(r, *path):
    if CLEAN and disturbed(r, path[0]):
        return None
    for p in path:
        r = r.get(p) if isinstance(r, dict) else None
        if r is None:
            return None
    return r


def mx(r, k):
    v = r.get(k)
    return max(v) / 1024 if v else None


def share(r):
    """Tunnel's part of all CPU used while one TCP stream ran up."""
    b, t = get(r, "tcp1_up", "busy"), get(r, "tcp1_up", "tunnel_cpu")
    return 100 * t / b if b else None


COLS = [
    ("TCP1 up Mb/s", lambda r: get(r, "tcp1_up", "mbps"), 0),
    ("TCP1 down Mb/s", lambda r: get(r, "tcp1_down", "mbps"), 0),
    ("TCP4 Mb/s", lambda r: get(r, "tcp4", "mbps"), 0),
    ("UDP64 flood kpps", lambda r: get(r, "udp_flood", "pps") and get(r, "udp_flood", "pps") / 1000, 1),
    ("loss-free kpps", lambda r: get(r, "udp_lossfree", "kpps"), 0),
    ("ping idle p50 us", lambda r: get(r, "ping_idle", "median_ms") and get(r, "ping_idle", "median_ms") * 1000, 0),
    ("idle p99 us", lambda r: get(r, "ping_idle", "p99_ms") and get(r, "ping_idle", "p99_ms") * 1000, 0),
    ("ping load p50 ms", lambda r: get(r, "ping_load", "median_ms"), 2),
    ("load p99 ms", lambda r: get(r, "ping_load", "p99_ms"), 2),
    ("tunnel CPU s/GB", lambda r: get(r, "tcp1_up", "tunnel_cpu_per_gb"), 2),
    ("all CPU s/GB", lambda r: get(r, "tcp1_up", "busy_per_gb"), 2),
    ("tunnel share %", share, 0),
    ("RSS idle MB", lambda r: mx(r, "rss_idle_kb"), 1),
    ("RSS load MB", lambda r: mx(r, "rss_load_kb"), 1),
    ("1st ping s", lambda r: r.get("first_ping_s"), 3),
    ("strange CPU s", lambda r: get(r, "tcp1_up", "strange_cpu"), 2),
]


def cell(rs, fn, dec):
    global CLEAN
    v = [x for x in (fn(r) for r in rs) if x is not None]
    if not v and CLEAN:  # nothing undisturbed: better a disturbed figure than none
        CLEAN = False
        v = [x for x in (fn(r) for r in rs) if x is not None]
        CLEAN = True
    if not v:
        return "-"
    m = f"{statistics.median(v):.{dec}f}"
    return m if len(v) < 2 else f"{m} ({min(v):.{dec}f}-{max(v):.{dec}f})"


def kept(rs):
    n = [r for r in rs if "tcp1_up" in r]
    return f"{len([r for r in n if not disturbed(r, 'tcp1_up')])}/{len(n)}"


def main():
    global CLEAN
    md = "--md" in sys.argv
    CLEAN = "--all" not in sys.argv
    rows = {}
    for f in [x for x in sys.argv[1:] if not x.startswith("--")]:
        for line in open(f):
            r = json.loads(line)
            rows.setdefault(r["contender"], []).append(r)
    head = ["contender", "clean/runs"] + [c[0] for c in COLS]
    body = [[name, kept(rs)] + [cell(rs, fn, dec) for _, fn, dec in COLS]
            for name, rs in rows.items()]
    keep = [i for i in range(len(head)) if i < 2 or any(b[i] != "-" for b in body)]
    head, body = [head[i] for i in keep], [[b[i] for i in keep] for b in body]
    if md:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for b in body:
            print("| " + " | ".join(b) + " |")
    else:
        w = [max(len(x[i]) for x in [head] + body) for i in range(len(head))]
        for x in [head] + body:
            print("  ".join(c.ljust(w[i]) for i, c in enumerate(x)))


if __name__ == "__main__":
    main()
