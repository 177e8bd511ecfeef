#!/usr/bin/env python3
"""The project's performance goals and their measured figures, from the rounds of one run, as `summary.json` and as a table.

  summary.py --out target/bench/summary.json RESULTS.jsonl...

Each figure is a ratio of medians over the undisturbed rounds; the range is that of the rounds' own ratios.
"""
import argparse
import json
import statistics

from table import disturbed

PEERS = ["wg-go-deb12", "wg-go-bpo", "wg-go-new", "boringtun", "gotatun", "nebula-aes", "nebula-chacha", "tinc", "openvpn",
         "quincy", "vpncloud", "easytier"]
NEWEST = "wg-go-bpo"


def value(record, *path):
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record


class Results:
    def __init__(self, files):
        self.records = [json.loads(line) for f in files for line in open(f)]

    def of(self, contender, path, topology="p2p", offload="on", clean=True):
        """Values by round."""
        values = {}
        for r in self.records:
            if (r["contender"], r["topology"], r["underlay_offload"]) != (contender, topology, offload):
                continue
            v = value(r, *path)
            if v is not None and not (clean and disturbed(r, path[0])):
                values[r["round"]] = v
        if not values and clean:
            return self.of(contender, path, topology, offload, clean=False)
        return values

    def median(self, *args, **kw):
        values = self.of(*args, **kw)
        return statistics.median(values.values()) if values else None

    def ratio(self, ours, theirs, *path, **kw):
        """Ratio of medians, and the least and largest ratio of a round that has both."""
        a, b = self.of(ours, path, **kw), self.of(theirs, path, **kw)
        if not a or not b:
            return None
        rounds = [a[r] / b[r] for r in a if r in b and b[r]]
        middle = statistics.median(a.values()) / statistics.median(b.values())
        return middle, min(rounds, default=middle), max(rounds, default=middle), len(rounds)


def worse(results, ours, theirs, **kw):
    ratios = [results.ratio(ours, theirs, direction, "mbps", **kw) for direction in ("tcp1_up", "tcp1_down")]
    ratios = [r for r in ratios if r]
    return min(ratios, default=None)


def best_peer(results):
    flood = {p: results.median(p, ("udp_flood", "pps")) for p in PEERS}
    return max((p for p in flood if flood[p]), key=flood.get, default=None)


def figures(results):
    wg, quic = "tombolo-wg", "tombolo-quic"
    peer = best_peer(results)
    rss = results.of(wg, ("rss_load_kb",))
    rss = [max(v) / 1024 for v in rss.values()]
    loaded = results.ratio(wg, NEWEST, "ping_load", "median_ms")
    yield "wg_tcp1_vs_wgspike", ">=", 0.9, worse(results, wg, "wgspike")
    yield "wg_tcp1_vs_wireguard_go", ">=", 1.6, worse(results, wg, NEWEST)
    yield "wg_tcp1_vs_wireguard_go_no_offload", ">=", 2.0, worse(results, wg, NEWEST, offload="off")
    yield "wg_cpu_per_gb_vs_wireguard_go", "<=", 0.5, results.ratio(wg, NEWEST, "tcp1_up", "tunnel_cpu_per_gb")
    yield "wg_udp64_vs_best_peer", ">=", 1.1, results.ratio(wg, peer, "udp_flood", "pps") if peer else None
    yield "wg_idle_ping_vs_boringtun", "<=", 1.1, results.ratio(wg, "boringtun", "ping_idle", "median_ms")
    yield "wg_loaded_ping_vs_wireguard_go", "<=", 0.25, loaded
    yield "wg_rss_loaded_mb", "<=", 12, (statistics.median(rss), min(rss), max(rss), len(rss)) if rss else None
    yield "wg_transit_vs_wireguard_go", ">=", 2.0, worse(results, wg, NEWEST, topology="transit")
    yield "quic_tcp1_vs_quincy", ">=", 2.5, worse(results, quic, "quincy")
    yield "quic_loaded_ping_vs_quincy", "<=", 0.2, results.ratio(quic, "quincy", "ping_load", "median_ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("results", nargs="+")
    options = parser.parse_args()
    results = Results(options.results)
    summary, missed = {}, []
    print(f"{'figure':38} {'measured':>9} {'range':>17} {'rounds':>6}   wanted")
    for name, sign, wanted, measured in figures(results):
        if measured is None:
            print(f"{name:38} {'-':>9} {'':>17} {0:>6}   {sign} {wanted}: not measured")
            summary[name] = {"value": None, "wanted": f"{sign} {wanted}"}
            continue
        middle, low, high, rounds = measured
        good = middle >= wanted if sign == ">=" else middle <= wanted
        if not good:
            missed.append(name)
        print(f"{name:38} {middle:9.2f} {f'{low:.2f} to {high:.2f}':>17} {rounds:6}   {sign} {wanted}: "
              f"{'reached' if good else 'MISSED'}")
        summary[name] = {"value": round(middle, 3), "low": round(low, 3), "high": round(high, 3), "rounds": rounds,
                         "wanted": f"{sign} {wanted}", "reached": good}
    peer = best_peer(results)
    if peer:
        print(f"the best peer in the 64-byte flood is {peer}")
    with open(options.out, "w") as f:
        json.dump(summary, f, indent=1)
        f.write("\n")
    if missed:
        print(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
