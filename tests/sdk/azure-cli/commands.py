"""Runs commands of the stock `az` against a running lab.

    commands.py AZ BASE_URL CA_FILE TOKEN_FILE CONFIG_DIR

The lab has peered VNets `hub` and `spoke-a` with the machines `hub-vm` and `spoke-a-vm`, and a connection `hub-to-branch`,
all in the group `lab`. Traffic has passed the connection. A TCP server of `hub-vm` listens at port 5001.
"""

import json
import os
import subprocess
import sys
import time

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-000000000001"
LAB = f"{SUBSCRIPTION}/resourceGroups/lab/providers"
STORAGE = ("--storage-account", f"{LAB}/Microsoft.Storage/storageAccounts/none")
REGION = ("-l", "region1")


def run(*arguments):
    environment = dict(os.environ, AZURE_CONFIG_DIR=sys.argv[5], REQUESTS_CA_BUNDLE=sys.argv[3])
    environment["AZURE_CORE_COLLECT_TELEMETRY"] = "0"
    # Each command would compile its modules again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.argv[1], *arguments, "-o", "json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def az(*arguments):
    """The parsed output of a command that must succeed; None if it prints nothing."""
    done = run(*arguments)
    if done.returncode != 0:
        sys.exit(f"az {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout) if done.stdout.strip() else None


def refused(code, *arguments):
    done = run(*arguments)
    if done.returncode == 0 or f"({code})" not in done.stderr:
        sys.exit(f"az {' '.join(arguments)}: no {code}\n{done.stdout}{done.stderr}")


def same(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: {found!r} instead of {expected!r}")


def login():
    """As docs/azure-clients.md says. The tenant is a name, which the command resolves."""
    with open(sys.argv[4]) as file:
        secret = file.read().strip()
    az("cloud", "register", "-n", "Tombolo", "--endpoint-resource-manager", sys.argv[2])
    az("cloud", "set", "-n", "Tombolo")
    accounts = az("login", "--service-principal", "-u", "admin", "-p", secret, "--tenant", "any")
    same("subscription", [a["id"] for a in accounts], [SUBSCRIPTION.rsplit("/", 1)[1]])
    same("locations", [place["name"] for place in az("account", "list-locations")], ["region1"])


def networks(group):
    """VNets, peerings, routes, groups and interfaces, created, read, changed and deleted."""
    az("group", "create", "-n", "made-by-az", *REGION)
    for name, number in (("east", 1), ("west", 2)):
        az("network", "vnet", "create", *group, "-n", name, "--address-prefixes", f"172.16.{number}.0/24",
           "--subnet-name", "work", "--subnet-prefixes", f"172.16.{number}.0/26")
    for local, remote, state in (("east", "west", "Initiated"), ("west", "east", "Connected")):
        made = az("network", "vnet", "peering", "create", *group, "-n", f"to-{remote}", "--vnet-name", local,
                  "--remote-vnet", remote, "--allow-vnet-access", "--allow-forwarded-traffic")
        same("peering", (made["peeringState"], made["allowForwardedTraffic"]), (state, True))
    az("network", "vnet", "update", *group, "-n", "east", "--add", "addressSpace.addressPrefixes", "172.16.8.0/24")
    west = ("network", "vnet", "peering", "show", *group, "--vnet-name", "west", "-n", "to-east", "--query")
    same("before sync", az(*west, "peeringSyncLevel"), "LocalNotInSync")
    az("network", "vnet", "peering", "sync", *group, "--vnet-name", "west", "-n", "to-east")
    same("after sync", az(*west, "[peeringSyncLevel, remoteAddressSpace.addressPrefixes]"),
         ["FullyInSync", ["172.16.1.0/24", "172.16.8.0/24"]])
    refused("NetcfgInvalidSubnet", "network", "vnet", "subnet", "create", *group, "--vnet-name", "east", "-n", "far",
            "--address-prefixes", "10.99.0.0/24")

    az("network", "route-table", "create", *group, "-n", "detour")
    az("network", "route-table", "route", "create", *group, "--route-table-name", "detour", "-n", "all",
       "--address-prefix", "0.0.0.0/0", "--next-hop-type", "VirtualAppliance", "--next-hop-ip-address", "172.16.2.9")
    az("network", "vnet", "subnet", "update", *group, "--vnet-name", "east", "-n", "work", "--route-table", "detour")
    az("network", "nsg", "create", *group, "-n", "web")
    rule = ("network", "nsg", "rule")
    az(*rule, "create", *group, "--nsg-name", "web", "-n", "no-ssh", "--priority", "100", "--access", "Deny",
       "--protocol", "Tcp", "--destination-port-ranges", "22", "--source-address-prefixes", "Internet")
    az(*rule, "update", *group, "--nsg-name", "web", "-n", "no-ssh", "--priority", "110")
    rules = az(*rule, "list", *group, "--nsg-name", "web", "--include-default")
    same("rules", len(rules), 7)
    az("network", "asg", "create", *group, "-n", "servers")
    az("network", "nic", "create", *group, "-n", "web-nic", "--vnet-name", "east", "--subnet", "work",
       "--private-ip-address", "172.16.1.10", "--network-security-group", "web",
       "--application-security-groups", "servers")
    az("network", "nic", "update", *group, "-n", "web-nic", "--set", 'tags.tombolo-bandwidth="50"')
    az("network", "nic", "ip-config", "update", *group, "--nic-name", "web-nic", "-n", "ipconfig1",
       "--private-ip-address", "172.16.1.11")
    routes = az("network", "nic", "show-effective-route-table", *group, "-n", "web-nic")["value"]
    same("effective routes", [(r["nextHopType"], r["nextHopIpAddress"]) for r in routes if r["source"] == "User"],
         [("VirtualAppliance", ["172.16.2.9"])])
    same("effective group", len(az("network", "nic", "list-effective-nsg", *group, "-n", "web-nic")["value"]), 1)
    taken = az("network", "vnet", "check-ip-address", *group, "-n", "east", "--ip-address", "172.16.1.11")
    same("address in use", taken["available"], False)


def load_balancer(group):
    """`lb create` sends a template; the other commands read and write the whole load balancer."""
    az("network", "lb", "create", *group, "-n", "front", "--sku", "Standard", "--vnet-name", "east", "--subnet", "work",
       "--frontend-ip-name", "fe", "--private-ip-address", "172.16.1.36", "--backend-pool-name", "pool")
    balancer = ("--lb-name", "front", *group)
    az("network", "lb", "probe", "create", *balancer, "-n", "tcp", "--protocol", "Tcp", "--port", "80")
    az("network", "lb", "rule", "create", *balancer, "-n", "web", "--protocol", "Tcp", "--frontend-port", "80",
       "--backend-port", "8080", "--frontend-ip-name", "fe", "--backend-pool-name", "pool", "--probe-name", "tcp")
    az("network", "nic", "ip-config", "address-pool", "add", *group, "--nic-name", "web-nic", "-n", "ipconfig1",
       "--lb-name", "front", "--address-pool", "pool")
    pool = az("network", "lb", "address-pool", "show", *balancer, "-n", "pool")
    same("members", len(pool["backendIPConfigurations"]), 1)
    refused("InUseSubnetCannotBeDeleted", "network", "vnet", "delete", *group, "-n", "east")
    refused("XLoadBalancerInUse", "network", "lb", "delete", *group, "-n", "front")
    az("network", "nic", "ip-config", "address-pool", "remove", *group, "--nic-name", "web-nic", "-n", "ipconfig1",
       "--lb-name", "front", "--address-pool", "pool")
    az("network", "lb", "rule", "delete", *balancer, "-n", "web")
    az("network", "lb", "delete", *group, "-n", "front")


def gateways(group):
    """A gateway, a site and a connection. `create` sends templates, and shared keys are actions."""
    az("network", "vnet", "subnet", "create", *group, "--vnet-name", "west", "-n", "GatewaySubnet",
       "--address-prefixes", "172.16.2.224/27")
    az("network", "public-ip", "create", *group, "-n", "gw-ip", "--sku", "Standard")
    az("network", "vnet-gateway", "create", *group, "-n", "gw", "--vnet", "west", "--public-ip-addresses", "gw-ip",
       "--gateway-type", "Vpn", "--vpn-type", "RouteBased", "--sku", "VpnGw1", "--asn", "65010")
    az("network", "local-gateway", "create", *group, "-n", "site", "--gateway-ip-address", "203.0.113.99",
       "--local-address-prefixes", "192.168.0.0/16")
    az("network", "vpn-connection", "create", *group, "-n", "to-site", "--vnet-gateway1", "gw", "--local-gateway2",
       "site", "--shared-key", "first.key")
    key = ("network", "vpn-connection", "shared-key")
    az(*key, "update", *group, "--connection-name", "to-site", "--value", "second.key")
    same("key", az(*key, "show", *group, "--connection-name", "to-site")["value"], "second.key")
    az("network", "express-route", "create", *group, "-n", "circuit", "--bandwidth", "50", "--provider", "Equinix",
       "--peering-location", "Amsterdam", "--sku-family", "MeteredData", "--sku-tier", "Standard")
    az("network", "express-route", "peering", "create", *group, "--circuit-name", "circuit", "--peering-type",
       "AzurePrivatePeering", "--peer-asn", "65020", "--vlan-id", "100", "--primary-peer-subnet", "172.20.0.0/30",
       "--secondary-peer-subnet", "172.20.0.4/30")
    az("network", "vpn-connection", "delete", *group, "-n", "to-site")
    az("network", "vnet-gateway", "delete", *group, "-n", "gw")


def watcher():
    lab, ask = ("-g", "lab"), ("network", "watcher")
    hop = az(*ask, "show-next-hop", *lab, "--vm", "spoke-a-vm", "--source-ip", "10.2.0.4", "--dest-ip", "10.1.0.4")
    same("next hop", hop["nextHopType"], "VnetPeering")
    flow = az(*ask, "test-ip-flow", *lab, "--vm", "hub-vm", "--direction", "Inbound", "--protocol", "TCP",
              "--local", "10.1.0.4:80", "--remote", "10.2.0.4:50000")
    same("IP flow", flow["access"], "Allow")
    for port, state in (("5001", "Reachable"), ("5003", "Unreachable")):
        check = az(*ask, "test-connectivity", *lab, "--source-resource", "spoke-a-vm", "--dest-resource", "hub-vm",
                   "--dest-port", port)
        same(f"port {port}", check["connectionStatus"], state)
    az(*ask, "show-security-group-view", *lab, "--vm", "hub-vm")
    same("topology", "hub-vm-nic" in [r["name"] for r in az(*ask, "show-topology", *lab)["resources"]], True)
    for target, kind in (("hub-gw", "vnetGateway"), ("hub-to-branch", "vpnConnection")):
        found = az(*ask, "troubleshooting", "start", *lab, "--resource", target, "--resource-type", kind, *STORAGE,
                   "--storage-path", "https://none.example/logs")
        same(target, found["code"], "Healthy")
    diagnostic = az(*ask, "run-configuration-diagnostic", "--resource", f"{LAB}/Microsoft.Network/networkInterfaces/hub-vm-nic",
                    "--direction", "Inbound", "--protocol", "TCP", "--source", "10.2.0.4", "--destination", "10.1.0.4",
                    "--port", "80")
    same("diagnostic", diagnostic["results"][0]["networkSecurityGroupResult"]["securityRuleAccessResult"], "Allow")

    capture = (*REGION, "-n", "packets")
    az(*ask, "packet-capture", "create", *lab, "--vm", "hub-vm", "-n", "packets", "--file-path", "/var/captures/az.cap",
       "--time-limit", "60", "--filters", '[{"protocol": "TCP", "remoteIPAddress": "10.2.0.0-10.2.0.9"}]')
    for _ in range(20):
        state = az(*ask, "packet-capture", "show-status", *capture)["packetCaptureStatus"]
        if state == "Running":
            break
        time.sleep(0.2)
    same("capture", state, "Running")
    az(*ask, "packet-capture", "stop", *capture)
    az(*ask, "packet-capture", "delete", *capture)

    monitor = (*REGION, "-n", "echo")
    az(*ask, "connection-monitor", "create", *monitor, "--endpoint-source-name", "a", "--endpoint-source-resource-id",
       f"{LAB}/Microsoft.Compute/virtualMachines/spoke-a-vm", "--endpoint-dest-name", "b", "--endpoint-dest-address",
       "10.1.0.4", "--test-config-name", "icmp", "--protocol", "Icmp", "--frequency", "30")
    az(*ask, "connection-monitor", "stop", *monitor)
    same("monitor", az(*ask, "connection-monitor", "show", *monitor, "--query", "monitoringStatus"), "Stopped")
    az(*ask, "connection-monitor", "delete", *monitor)

    log = (*REGION, "-n", "flows")
    az(*ask, "flow-log", "create", *log, *lab, "--vnet", "hub", *STORAGE)
    same("flow logs", [found["name"] for found in az(*ask, "flow-log", "list", *REGION)], ["flows"])
    az(*ask, "flow-log", "update", *log, "--enabled", "false")
    same("flow log", az(*ask, "flow-log", "show", *log)["enabled"], False)
    az(*ask, "flow-log", "delete", *log)


def records():
    """What the controller has recorded: metrics, charges and writes."""
    connection = ("--resource", f"{LAB}/Microsoft.Network/connections/hub-to-branch")
    names = {d["name"]["value"] for d in az("monitor", "metrics", "list-definitions", *connection)}
    same("definitions", names >= {"BitsInPerSecond", "BitsOutPerSecond"}, True)
    metrics = ("monitor", "metrics", "list", *connection, "--metric", "BitsOutPerSecond", "--interval", "PT1M")
    charges = ("consumption", "usage", "list")
    # Agents report each few seconds.
    for _ in range(30):
        points = az(*metrics)["value"][0]["timeseries"][0]["data"]
        if any(point.get("average") for point in points) and az(*charges):
            break
        time.sleep(1)
    else:
        sys.exit(f"no bits in {points}, or no charges")
    entry = az(*charges)[0]
    same("charge", (float(entry["usageQuantity"]) > 0, entry["currency"]), (True, "USD"))

    log = ("monitor", "activity-log", "list", "--offset", "1h", "--max-events", "1000", "--resource-group")
    events = az(*log, "made-by-az")
    written = {(event["operationName"]["value"], event["status"]["value"], event["caller"]) for event in events}
    for kind in ("virtualNetworks/virtualNetworkPeerings", "networkSecurityGroups", "loadBalancers"):
        same(kind, (f"Microsoft.Network/{kind}/write", "Succeeded", "admin") in written, True)
    refusals = [event for event in events if event["status"]["value"] == "Failed"]
    same("refused writes", len(refusals) >= 2, True)


def main():
    group = ("-g", "made-by-az")
    login()
    networks(group)
    load_balancer(group)
    gateways(group)
    watcher()
    records()
    az("group", "delete", "-n", "made-by-az", "-y")
    same("gone", az("group", "exists", "-n", "made-by-az"), False)
    print("az has made networks, asked the watcher, and read the records")


main()
