"""Tombolo as a contender: a real controller, real joins, and agents whose links are WireGuard or QUIC.

The controller has its own namespace with a link to every node. It is not on the data path, and its CPU time is not
counted. In transit the middle node is the hub's gateway agent and the outer ones are spokes that use it.
"""
import json
import os
import time

from contenders import MTU, Contender, which
from netns import PREFIX, sh

NODES = {"a": ("left", "10.98.1.4"), "b": ("right", "10.98.2.4")}


def groups(rules):
    """Two network security groups, each with this number of rules in both directions together, of which the default ones decide."""
    lines = ["networkSecurityGroups:"]
    for name in ("left", "right"):
        lines += [f"  {name}:", "    rules:"]
        for number in range(rules):
            direction, place = ("Inbound", "Outbound")[number % 2], number // 2
            lines.append(
                f"      r{number}: {{priority: {100 + place}, direction: {direction}, access: Deny, protocol: Tcp, "
                f"sourceAddressPrefix: 10.{120 + place // 250}.{place % 250}.0/24, destinationPortRange: '{1000 + place}'}}"
            )
    return lines


def manifest(transit, transport):
    """Two VNets, peered directly or both with a hub whose gateway they use. TOMBOLO_RULES=1000: with groups of so many rules."""
    rules = int(os.environ.get("TOMBOLO_RULES", "0"))
    vnet = "{{addressSpace: [{0}.0/24], subnets: {{work: {{addressPrefix: {0}.0/25{1}}}}}, peerings: {{{2}}}}}"
    lines = ["resourceGroup: bench", "location: region1", "virtualNetworks:"]
    if transit:
        use = "to-hub: {remoteVirtualNetwork: hub, useRemoteGateways: true, allowForwardedTraffic: true, transport: %s}" % transport
        lines += [
            "  left: " + vnet.format("10.98.1", ", routeTable: left-routes", use),
            "  right: " + vnet.format("10.98.2", ", routeTable: right-routes", use),
            "  hub:",
            "    addressSpace: [10.98.3.0/24]",
            "    subnets: {GatewaySubnet: {addressPrefix: 10.98.3.0/27}}",
            "    peerings:",
            "      to-left: {remoteVirtualNetwork: left, allowGatewayTransit: true}",
            "      to-right: {remoteVirtualNetwork: right, allowGatewayTransit: true}",
            "routeTables:",
            "  left-routes: {routes: {other: {addressPrefix: 10.98.2.0/24, nextHopType: VirtualNetworkGateway}}}",
            "  right-routes: {routes: {other: {addressPrefix: 10.98.1.0/24, nextHopType: VirtualNetworkGateway}}}",
            "publicIPAddresses: {hub-pip: {}}",
            "virtualNetworkGateways: {hub-gw: {virtualNetwork: hub, publicIPAddress: hub-pip}}",
        ]
    else:
        lines += [
            "  left: " + vnet.format("10.98.1", "", "to-right: {remoteVirtualNetwork: right, transport: %s}" % transport),
            "  right: " + vnet.format("10.98.2", "", "to-left: {remoteVirtualNetwork: left}"),
        ]
    lines += ["networkInterfaces:"]
    for name, address in NODES.values():
        group = f", networkSecurityGroup: {name}" if rules else ""
        lines.append(f"  {name}-nic: {{subnet: {name}/work, privateIPAddress: {address}{group}}}")
    if rules:
        lines += groups(rules)
    return "\n".join(lines) + "\n"


class Tombolo(Contender):
    transit = True
    ip_a, ip_b = NODES["a"][1], NODES["b"][1]

    def __init__(self, name, transport, binary="tombolo-agent"):
        super().__init__(name, binary)
        self.transport = transport

    def prepare(self, lab, d):
        controller = self.controller(lab, d)
        ca, token = f"{d}/controller/ca.pem", f"{d}/controller/admin.token"
        self.cli = [which("tombolo"), "--config", f"{d}/config.toml", "--controller", controller["c"], "--ca", ca,
                    "--token-file", token, "-g", "bench"]
        with open(f"{d}/bench.yaml", "w") as f:
            f.write(manifest(lab.transit, self.transport))
        self.tombolo(lab, "apply", "-f", f"{d}/bench.yaml", "--yes")
        for node in lab.nodes:
            vnet = NODES.get(node, ("hub",))[0]
            what = ["--gateway", "hub-gw"] if node == "h" else ["--vm", node, "--nic", f"{vnet}-nic"]
            out = self.tombolo(lab, "token", "create", *what, "--agent", node, "-o", "json")
            join_token = f"{d}/{node}.token"
            with open(os.open(join_token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
                f.write(json.loads(out)["token"])
            lab.run(node, which("tombolo-agent"), "join", "--state-dir", f"{d}/{node}", "--controller", controller[node],
                    "--token-file", join_token, "--interface", f"bptb{node}", "--endpoint", self.endpoint(lab, node))
            self.settings(f"{d}/{node}/agent.toml")

    def endpoint(self, lab, node):
        # In transit the middle node has one address that both know; the other side's is routed.
        address = lab.underlay[node] if (node in lab.underlay) else lab.underlay["h", "a"]
        return f"{address}:51820"

    def settings(self, path):
        """Settings to try: TOMBOLO_AGENT_TOML="receive_buffer = 500000;offload = false"."""
        with open(path) as f:
            lines = f.read().splitlines()
        for setting in filter(None, os.environ.get("TOMBOLO_AGENT_TOML", "").split(";")):
            key = setting.split("=")[0].strip()
            lines = [line for line in lines if line.split("=")[0].strip() != key] + [setting]
        with open(path, "w") as f:
            f.write("\n".join(lines) + "\n")

    def tombolo(self, lab, *command):
        return sh("ip", "netns", "exec", PREFIX + "c", *self.cli, *command, timeout=60)

    def controller(self, lab, d):
        """Starts it; returns its URL as each node sees it."""
        lab.add_node("c")
        urls = {}
        names = []
        for number, node in enumerate(lab.nodes, 1):
            lab.cable(node, f"vc{node}", f"10.99.{100 + number}.1/30", "c", f"v{node}", f"10.99.{100 + number}.2/30")
            urls[node] = f"https://10.99.{100 + number}.2:8443"
            names.append(f"10.99.{100 + number}.2")
        urls["c"] = "https://127.0.0.1:8443"
        command = [which("tombolo-controller"), "--data-dir", f"{d}/controller", "--listen", "0.0.0.0:8443"]
        for name in ["127.0.0.1", *names]:
            command += ["--public-name", name]
        lab.popen("c", *command, log=f"{d}/controller.log")
        end = time.time() + 20
        while not (os.path.exists(f"{d}/controller/admin.token") and os.path.exists(f"{d}/controller/ca.pem")):
            if time.time() > end:
                raise RuntimeError(f"no controller: see {d}/controller.log")
            time.sleep(0.05)
        time.sleep(0.3)
        return urls

    def start(self, lab, d):
        if lab.transit:
            lab.ip("b", "route", "add", "10.99.1.0/30", "via", lab.underlay["h", "b"])
        started = []
        for node in lab.nodes:
            started.append(lab.popen(node, which("tombolo-agent"), "run", "--state-dir", f"{d}/{node}", log=f"{d}/{node}.log"))
        return started
