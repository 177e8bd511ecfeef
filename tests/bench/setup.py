"""Joins the demo's lab: hub and spokes peered, spoke to spoke through the appliance, branch through the gateway.

setup.py BASE CA TOKEN"""

import sys

from change import peering
from lab import NETWORK
from rest import Rest


def main():
    rest = Rest(*sys.argv[1:])
    for spoke in ("spoke-a", "spoke-b"):
        for local, remote, flags in (
            ("hub", spoke, {"allowGatewayTransit": True}),
            (spoke, "hub", {"useRemoteGateways": True, "allowForwardedTraffic": True}),
        ):
            path, body = peering(local, remote)
            body["properties"].update(flags)
            rest.change("PUT", path, body)
    for spoke, other in (("spoke-a", "10.3.0.0/16"), ("spoke-b", "10.2.0.0/16")):
        hop = {"addressPrefix": other, "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.1.1.4"}
        revision, _ = rest.change("PUT", f"{NETWORK}/routeTables/{spoke}-routes/routes/other", {"properties": hop})
    rest.in_force(revision)


if __name__ == "__main__":
    main()
