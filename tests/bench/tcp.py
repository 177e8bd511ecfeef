"""TCP through one WireGuard link: ours against Debian's wireguard-go, over the same two hosts, in interleaved rounds."""

import json
import os
import statistics
import tempfile
import time

from lab import run


def wireguard_go(lab, folder):
    """A second tunnel between the same hosts, by wireguard-go: 10.98.0.1 and 10.98.0.2."""
    os.makedirs("/var/run/wireguard", exist_ok=True)
    hosts = lab.state()["topology"]["hosts"]
    keys = {}
    for side in "ab":
        private = run("wg", "genkey").strip()
        with open(f"{folder}/{side}", "w") as file:
            file.write(private)
        keys[side] = run("wg", "pubkey", input=private).strip()
    for number, (side, other) in enumerate((("a", "b"), ("b", "a")), 1):
        device = f"tbbench{side}"
        lab.start(side, "wireguard-go", "-f", device)
        for _ in range(100):
            if os.path.exists(f"/var/run/wireguard/{device}.sock"):
                break
            time.sleep(0.05)
        time.sleep(0.2)
        lab.on(side, "wg", "set", device, "private-key", f"{folder}/{side}", "listen-port", "51900", "peer", keys[other],
               "allowed-ips", "10.98.0.0/24", "endpoint", f"{hosts[other]['address']}:51900")
        lab.on(side, "ip", "address", "add", f"10.98.0.{number}/24", "dev", device)
        lab.on(side, "ip", "link", "set", device, "mtu", "1420", "up")


def megabits(lab, address, seconds):
    out = lab.on("a", "iperf3", "-c", address, "-t", str(seconds), "-O", "1", "-J", "-C", "cubic", timeout=seconds + 30)
    return json.loads(out)["end"]["sum_received"]["bits_per_second"] / 1e6


def compare(lab, rounds, seconds):
    ours = lab.address("b")
    with tempfile.TemporaryDirectory() as folder:
        wireguard_go(lab, folder)
        lab.start("b", "iperf3", "-s")
        for address in (ours, "10.98.0.2"):
            lab.reach("a", address)
        results = {"tombolo": [], "wireguard-go": []}
        for number in range(rounds):
            for name, address in (("tombolo", ours), ("wireguard-go", "10.98.0.2")):
                results[name].append(megabits(lab, address, seconds))
            print(f"  round {number + 1}: " + ", ".join(f"{n} {v[-1]:.0f} Mbit/s" for n, v in results.items()), flush=True)
    medians = {name: statistics.median(values) for name, values in results.items()}
    ratio = medians["tombolo"] / medians["wireguard-go"]
    version = run("dpkg-query", "-W", "-f", "${Version}", "wireguard-go", check=False).strip() or "unknown version"
    print(f"TCP through one link: tombolo {medians['tombolo']:.0f} Mbit/s, wireguard-go ({version}) "
          f"{medians['wireguard-go']:.0f} Mbit/s, ratio {ratio:.2f} (goal: at least 1)")
    return ratio >= 1
