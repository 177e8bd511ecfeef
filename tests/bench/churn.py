"""Creates and deletes peerings of the hub with a VNet that nobody measures, until killed.  churn.py BASE CA TOKEN

While the controller is away it tries again. One line a cycle."""

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
        for method, path, body in steps:
            while True:
                try:
                    status, answer, _, _ = rest.call(method, path, body)
                except OSError:
                    time.sleep(0.2)
                    continue
                if status >= 300:
                    # The controller died between a change and its answer: start the cycle over.
                    print(f"{method} {path}: {status} {answer['error']['code']}", flush=True)
                break
            time.sleep(0.05)
        print("cycle", flush=True)


if __name__ == "__main__":
    main()
