#!/usr/bin/env python3
"""Starts deploy/compose.yaml with the image and checks the steps of deploy/README.md with real packets. Prints one line for each
check; the exit code is 1 if one failed. Removes everything at the end.

Needs a running docker engine, and docker-compose or docker's compose plug-in. It installs neither.
"""

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy/compose.yaml"
PROJECT = "tombolo-image-test"
AGENTS = ("hub-vm", "hub-fw", "hub-gw", "spoke-a-vm", "spoke-b-vm", "branch-gw", "branch-vm")
ADDRESS = {
    "hub-vm": "10.1.0.4", "hub-fw": "10.1.1.4", "hub-gw": "10.1.255.4", "spoke-a-vm": "10.2.0.4", "spoke-b-vm": "10.3.0.4",
    "branch-vm": "10.9.0.4",
}
# Once the image is there.
UP_LIMIT = 60.0


class Checks:
    def __init__(self):
        self.failed = 0

    def __call__(self, what, ok, detail=""):
        mark = "✓" if ok else "✗"
        if not ok:
            self.failed += 1
        print(f"  {mark} {what}" + (f"  ({detail})" if detail else ""), flush=True)
        return ok


class Compose:
    def __init__(self, command):
        self.command = [*command, "-p", PROJECT, "-f", str(FILE)]

    def __call__(self, *arguments, must=True, **options):
        done = subprocess.run([*self.command, *arguments], check=False, capture_output=True, text=True, **options)
        if must and done.returncode:
            raise RuntimeError(f"compose {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def execute(self, service, *command):
        return self("exec", "-T", service, *command, must=False)

    def tombolo(self, *arguments):
        done = self.execute("controller", "tombolo", *arguments)
        if done.returncode:
            raise RuntimeError(f"tombolo {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def ping(self, source, target, count=3):
        """The number of answered echoes."""
        done = self.execute(source, "ping", "-n", "-c", str(count), "-i", "0.2", "-W", "1", target)
        found = re.search(r"(\d+) received", done.stdout)
        return int(found[1]) if found else 0

    def trace(self, source, target):
        """The hops; `*` is a silent one."""
        done = self.execute(source, "traceroute", "-n", "-q", "3", "-w", "1", "-m", "6", target)
        hops = []
        for line in done.stdout.splitlines()[1:]:
            words = line.split()[1:]
            hops.append(next((word for word in words if re.fullmatch(r"[0-9a-f.:]*[.:][0-9a-f.:]*", word)), "*"))
        return hops


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


def left_over():
    """The project's containers, volumes and networks that the engine still has."""
    label = f"label=com.docker.compose.project={PROJECT}"
    kinds = {"container": ["ps", "-aq"], "volume": ["volume", "ls", "-q"], "network": ["network", "ls", "-q"]}
    return [f"{kind} {name}" for kind, command in kinds.items() for name in docker(*command, "--filter", label).split()]


def until(limit, holds):
    """Retries until the check holds or the limit has passed. Returns whether it holds, and the time that it took."""
    begun = time.monotonic()
    while True:
        ok = holds()
        took = time.monotonic() - begun
        if ok or took > limit:
            return ok, took
        time.sleep(0.2)


def in_force(compose):
    done = compose.execute("controller", "tombolo", "agent", "list", "-o", "json")
    if done.returncode:
        return False
    agents = json.loads(done.stdout)
    has_its_own = lambda agent: agent["connected"] and agent["desiredDigest"] and agent["appliedDigest"] == agent["desiredDigest"]
    return {agent["id"] for agent in agents} == set(AGENTS) and all(has_its_own(agent) for agent in agents)


def containers(compose):
    ids = compose("ps", "-q").stdout.split()
    described = json.loads(docker("inspect", *ids))
    return {c["Config"]["Labels"]["com.docker.compose.service"]: c for c in described}


def check_confinement(check, compose):
    every = containers(compose)
    services = {name: c for name, c in every.items() if name != "provision"}
    check("no container is privileged", not any(c["HostConfig"]["Privileged"] for c in every.values()))
    check("every root file system is read-only", all(c["HostConfig"]["ReadonlyRootfs"] for c in every.values()))
    check("every container drops all capabilities first", all(c["HostConfig"]["CapDrop"] == ["ALL"] for c in every.values()))

    def status(service, field):
        text = compose.execute(service, "cat", "/proc/1/status").stdout
        return re.search(rf"^{field}:\s*(.*)$", text, re.M)[1]

    check("the controller is not root and has no capability",
          status("controller", "Uid").split()[0] == "990" and int(status("controller", "CapBnd"), 16) == 0)
    bits = {"NET_ADMIN": 12, "NET_RAW": 13}
    check("an agent of a machine has NET_ADMIN and NET_RAW, and no other",
          int(status("hub-vm", "CapBnd"), 16) == sum(1 << bit for bit in bits.values()))
    ok, took = until(60, lambda: all(c["State"].get("Health", {}).get("Status") == "healthy"
                                     for name, c in containers(compose).items() if name in services))
    check("every container is healthy", ok, f"{took:.1f} s")
    check("no setuid program is in the image",
          compose.execute("hub-vm", "find", "/usr", "-xdev", "-perm", "/6000").stdout == "")
    logged = subprocess.run(["docker", "logs", every["hub-vm"]["Id"]], check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in logged.stderr.splitlines()]
    check("logs are JSON", any(line.get("message") == "joined" for line in lines), f"{len(lines)} lines")


def check_packets(check, compose):
    for source, target in (("spoke-a-vm", "hub-vm"), ("spoke-b-vm", "hub-vm"), ("hub-vm", "spoke-a-vm"), ("hub-vm", "hub-fw"),
                           ("hub-vm", "branch-vm"), ("spoke-a-vm", "branch-vm"), ("branch-vm", "spoke-a-vm")):
        ok, took = until(15, lambda: compose.ping(source, ADDRESS[target]) == 3)
        check(f"{source} → {target} answers", ok, f"{took:.1f} s")
    ok, _ = until(15, lambda: compose.ping("spoke-a-vm", "fd00:10:1::4") == 3)
    check("spoke-a-vm → hub-vm answers over IPv6", ok)
    for source, target in (("spoke-a-vm", "spoke-b-vm"), ("spoke-b-vm", "spoke-a-vm"), ("spoke-b-vm", "branch-vm")):
        check(f"{source} → {target} does not answer", compose.ping(source, ADDRESS[target], 2) == 0)
    for source, target, wanted in (
        ("spoke-a-vm", "hub-vm", [ADDRESS["hub-vm"]]),
        ("spoke-a-vm", "branch-vm", [ADDRESS["hub-gw"], "*", ADDRESS["branch-vm"]]),
    ):
        hops = compose.trace(source, ADDRESS[target])
        check(f"traceroute {source} → {target}", hops == wanted, " → ".join(hops))


def check_appliance(check, compose):
    for spoke, other in (("spoke-a", "10.3.0.0/16"), ("spoke-b", "10.2.0.0/16")):
        compose.tombolo("route-table", "route", "create", f"{spoke}-routes/to-other-spoke", "--address-prefix", other,
                        "--next-hop-type", "VirtualAppliance", "--next-hop-ip-address", ADDRESS["hub-fw"], "--wait")
    ok, took = until(15, lambda: compose.ping("spoke-a-vm", ADDRESS["spoke-b-vm"]) == 3)
    check("with two routes, spoke-a-vm → spoke-b-vm answers", ok, f"{took:.1f} s")
    hops = compose.trace("spoke-a-vm", ADDRESS["spoke-b-vm"])
    check("traceroute shows the appliance", hops == [ADDRESS["hub-fw"], ADDRESS["spoke-b-vm"]], " → ".join(hops))
    done = compose.execute("spoke-a-vm", "ping", "-n", "-c", "10", "-i", "0.05", ADDRESS["spoke-b-vm"])
    check("the appliance sends no redirects", "10 received" in done.stdout and "Redirect" not in done.stdout)
    compose.tombolo("ping", "spoke-a-vm", "spoke-b-vm")
    check("tombolo ping spoke-a-vm spoke-b-vm", True)


def check_bgp(check, compose):
    """A site whose device does not exist: BIRD still runs as its own user, and answers the agent."""
    script = 'for p in /proc/[0-9]*; do [ "$(cat $p/comm)" != bird ] || sed -n "s/^Uid:.//p; s/^CapEff:.//p" $p/status; done'
    seen = lambda: compose.execute("branch-gw", "sh", "-c", script).stdout.split()
    compose.tombolo("local-gateway", "create", "office", "--asn", "65010", "--bgp-peering-address", "192.168.7.254",
                    "--public-key", base64.b64encode(bytes(range(1, 33))).decode())
    compose.tombolo("connection", "create", "to-office", "--gateway1", "branch-gw", "--local-gateway", "office", "--enable-bgp",
                    "--shared-key", "NobodyHasIt", "--wait")
    user = compose.execute("branch-gw", "id", "-u", "bird").stdout.strip()
    ok, _ = until(20, lambda: seen()[:1] == [user])
    check("with BGP, a gateway runs BIRD as its own user", ok, " ".join(seen()))
    peers = lambda: compose.tombolo("gateway", "bgp-peers", "branch-gw", "-o", "json")
    ok, _ = until(20, lambda: "192.168.7.254" in peers() and "Unknown" not in peers())
    check("the agent hears from BIRD about the session", ok, " ".join(peers().split())[:200])
    compose.tombolo("connection", "delete", "to-office", "--wait")
    ok, took = until(20, lambda: not seen())
    check("without BGP, BIRD has ended", ok, f"{took:.1f} s")


def check_ends(check, compose):
    begun = time.monotonic()
    compose("stop", "hub-gw")
    state = containers_all()["hub-gw"]["State"]
    check("a gateway ends by SIGTERM and drains", state["ExitCode"] == 0, f"{time.monotonic() - begun:.1f} s")
    compose("start", "hub-gw")
    ok, took = until(30, lambda: compose.ping("spoke-a-vm", ADDRESS["branch-vm"]) == 3)
    check("it comes back with the identity in its volume", ok, f"{took:.1f} s")
    compose("kill", "controller")
    check("without the controller, spoke-a-vm → hub-vm answers", compose.ping("spoke-a-vm", ADDRESS["hub-vm"]) == 3)
    compose("restart", "spoke-a-vm")
    ok, took = until(30, lambda: compose.ping("spoke-a-vm", ADDRESS["hub-vm"]) == 3)
    check("and an agent restarts without it", ok, f"{took:.1f} s")
    compose("up", "-d")
    ok, took = until(UP_LIMIT, lambda: in_force(compose))
    check("up again: the same agents, nothing joins anew", ok, f"{took:.1f} s")


def containers_all():
    label = f"label=com.docker.compose.project={PROJECT}"
    described = json.loads(docker("inspect", *docker("ps", "-aq", "--filter", label).split()))
    return {c["Config"]["Labels"]["com.docker.compose.service"]: c for c in described}


def find_compose(given):
    if given:
        return given.split()
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if subprocess.run(["docker", "compose", "version"], check=False, capture_output=True).returncode == 0:
        return ["docker", "compose"]
    sys.exit("error: neither docker-compose nor docker's compose plug-in is here: install one (Debian: package docker-compose)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="load this image first")
    parser.add_argument("--compose", help="the compose command (default: docker-compose, or docker compose)")
    parser.add_argument("--keep", action="store_true", help="leave the containers up")
    given = parser.parse_args()
    if not shutil.which("docker") or subprocess.run(["docker", "version"], check=False, capture_output=True).returncode:
        sys.exit("error: no docker engine answers here: start one; none is installed for you (Debian: package docker.io)")
    compose = Compose(find_compose(given.compose))
    check = Checks()
    if given.archive:
        print(docker("load", "-i", str(given.archive)).strip())
    check("the file is valid", compose("config", "-q", must=False).returncode == 0, compose("version", "--short").stdout.strip())
    try:
        begun = time.monotonic()
        compose("up", "-d")
        ok, _ = until(UP_LIMIT, lambda: in_force(compose))
        took = time.monotonic() - begun
        check("from 'up' until every agent has its configuration in force", ok and took < UP_LIMIT, f"{took:.1f} s")
        if not ok:
            print(compose("logs", "--tail=20", must=False).stdout)
            return 1
        check_packets(check, compose)
        check_appliance(check, compose)
        check_confinement(check, compose)
        check_bgp(check, compose)
        check_ends(check, compose)
    finally:
        if not given.keep:
            compose("down", "--volumes", "--timeout", "10", must=False)
            left = left_over()
            check("down leaves nothing", not left, ", ".join(left))
    print(f"{check.failed} checks failed" if check.failed else "all checks passed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
