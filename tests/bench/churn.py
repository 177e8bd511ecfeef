"""Creates and deletes peerings of the hub with an unmeasured VNet, until killed.  churn.py BASE CA TOKEN

It retries while the controller is down. It prints "cycle" for each complete cycle: every change of it was accepted."""

import http.client
import sys
import time

from change import peering
from lab import NETWORK
from rest import Rest


def main():
    rest = Rest(*sys.argv[1:])
    vnet = {"location": "region1", "properties": {"addressSpace": {"addressPrefixes": ["10.77.0.0/16"]}}}
    steps = [("PUT", f"{NETWORK}/virtualNetworks/churn", vnet)]
    halves = [peering("hub", "churn"), peering("churn", "hub")]
    steps += [("PUT", *half) for half in halves] + [("DELETE", path, None) for path, _ in halves]
    while True:
        if all([step(rest, *each) for each in steps]):
            print("cycle", flush=True)


def step(rest, method, path, body):
    """Sends one change until it is answered. Returns whether it was accepted."""
    while True:
        try:
            status, answer, _, _ = rest.call(method, path, body)
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
            continue
        time.sleep(0.05)
        if status >= 300:
            # The controller died between a change and its answer: this cycle does not count, and the next one starts anew.
            print(f"refused: {method} {path}: {status} {answer['error']['code']}", flush=True)
        return status < 300


if __name__ == "__main__":
    main()
