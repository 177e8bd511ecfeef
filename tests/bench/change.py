"""Changes in the demo's lab: from the request's last byte to the last agent's acknowledgement (D2).

The printed time is an upper bound: it ends when this client has read the answer to a request that waits for the last
acknowledgement.  change.py BASE CA TOKEN COUNT
"""

import statistics
import sys
import time

from lab import NETWORK
from rest import Rest


def peering(local, remote):
    path = f"{NETWORK}/virtualNetworks/{local}/virtualNetworkPeerings/to-{remote}"
    body = {"properties": {"remoteVirtualNetwork": {"id": f"{NETWORK}/virtualNetworks/{remote}"}}}
    return path, body


def cycle():
    """Changes that restore the initial state; each concerns other agents."""
    table = f"{NETWORK}/routeTables/spoke-a-routes/routes/bench"
    hop = {"addressPrefix": "10.3.0.0/16", "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.1.1.4"}
    both = [peering("hub", "spoke-b"), peering("spoke-b", "hub")]
    yield "route added", "PUT", table, {"properties": hop}
    yield "peering, one half", "PUT", *both[0]
    yield "peering, both halves", "PUT", *both[1]
    yield "peering, half gone", "DELETE", both[1][0], None
    yield "peering gone", "DELETE", both[0][0], None
    yield "route removed", "DELETE", table, None


def main():
    base, authority, token, count = sys.argv[1:]
    writer, waiter = Rest(base, authority, token), Rest(base, authority, token)
    waiter.in_force(int(writer.call("GET", "/fabric/v1/health")[1]["revision"]))
    kinds, all_of_them = {}, []
    while len(all_of_them) < int(count):
        for kind, method, path, body in cycle():
            revision, sent = writer.change(method, path, body)
            waiter.in_force(revision)
            took = (time.perf_counter() - sent) * 1000
            kinds.setdefault(kind, []).append(took)
            all_of_them.append(took)
            time.sleep(0.005)
    for kind, values in kinds.items():
        print(f"  {kind:22} {len(values):4} changes   p50 {statistics.median(values):6.1f} ms   max {max(values):6.1f} ms")
    values = sorted(all_of_them)
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    print(f"change to last acknowledgement: {len(values)} changes, p50 {statistics.median(values):.1f} ms, "
          f"p99 {p99:.1f} ms (goal: p99 under 100 ms)")
    sys.exit(p99 >= 100)


if __name__ == "__main__":
    main()
