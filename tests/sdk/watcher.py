"""Asks Network Watcher about the machines of a running lab with the stock Azure client.

    watcher.py BASE_URL CA_FILE TOKEN_FILE OPEN_PORT CLOSED_PORT DENIED_PORT

`spoke-a-vm` and `hub-vm` are in peered VNets. `hub-vm` has the ports: a program listens at the first one, none at the
second, and a rule of the group `web` denies the third.
"""

import sys
import time

from azure.mgmt.network import NetworkManagementClient, models

from topology import SUBSCRIPTION, Token, refused, same

LAB = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers"
WATCHER = ("NetworkWatcherRG", "NetworkWatcher_region1")


def vm(name):
    return f"{LAB}/Microsoft.Compute/virtualMachines/{name}"


def nic(name):
    return f"{LAB}/Microsoft.Network/networkInterfaces/{name}-nic"


def check(watchers, destination, **more):
    body = models.ConnectivityParameters(
        source=models.ConnectivitySource(resource_id=vm("spoke-a-vm")), destination=destination, **more
    )
    return watchers.begin_check_connectivity(*WATCHER, body).result()


def issues(found):
    return [
        (number, issue.origin, issue.type, issue.context[0]["value"])
        for number, hop in enumerate(found.hops)
        for issue in hop.issues
    ]


def connectivity(watchers, open_port, closed_port, denied_port):
    by_address = lambda port: models.ConnectivityDestination(address="10.1.0.4", port=port)
    works = check(watchers, by_address(open_port), protocol="Tcp")
    same("an open port", (works.connection_status, works.probes_sent, works.probes_failed), ("Reachable", 10, 0))
    for latency in (works.min_latency_in_ms, works.avg_latency_in_ms, works.max_latency_in_ms):
        same("latency", isinstance(latency, int) and latency >= 1, True)
    same("hops", [(hop.type, hop.address) for hop in works.hops], [("Source", "10.2.0.4"), ("VnetLocal", "10.1.0.4")])
    same("the source's resource", works.hops[0].resource_id, f"{nic('spoke-a-vm')}/ipConfigurations/v4")
    same("the next hop", works.hops[0].next_hop_ids, [works.hops[1].id])
    same("the round trip", works.hops[0].links[0].round_trip_time_avg >= 1, True)
    same("no issues", issues(works), [])
    closed = check(watchers, by_address(closed_port))
    same("a closed port", closed.connection_status, "Unreachable")
    same("its issue", issues(closed), [(1, "Inbound", "GuestFirewall", "refused")])
    denied = check(watchers, by_address(denied_port))
    same("a denied port", denied.connection_status, "Unreachable")
    same("its issue", issues(denied), [(1, "Inbound", "NetworkSecurityRule", "UserRule_deny-one-port")])
    by_id = check(watchers, models.ConnectivityDestination(resource_id=vm("hub-vm")), protocol="Icmp")
    same("an echo request", by_id.connection_status, "Reachable")
    refused("HTTP", "XProtocolNotSupported", lambda: check(watchers, by_address(80), protocol="Http"))
    refused("a name", "InvalidRequestFormat",
            lambda: check(watchers, models.ConnectivityDestination(address="www.example.com", port=443)))


def predictions(watchers, denied_port):
    """What is computed: next hop, IP flow verify, the diagnostic, the view of groups, and the topology."""
    hop = watchers.begin_get_next_hop(*WATCHER, models.NextHopParameters(
        target_resource_id=vm("spoke-a-vm"), source_ip_address="10.2.0.4", destination_ip_address="10.1.0.4"
    )).result()
    same("next hop", (hop.next_hop_type, hop.route_table_id), ("VnetPeering", "System Route"))
    flow = watchers.begin_verify_ip_flow(*WATCHER, models.VerificationIPFlowParameters(
        target_resource_id=vm("hub-vm"), direction="Inbound", protocol="TCP", local_port=str(denied_port),
        remote_port="50000", local_ip_address="10.1.0.4", remote_ip_address="10.2.0.4",
    )).result()
    same("IP flow", (flow.access, flow.rule_name), ("Deny", "securityRules/deny-one-port"))
    diagnostic = watchers.begin_get_network_configuration_diagnostic(*WATCHER, models.NetworkConfigurationDiagnosticParameters(
        target_resource_id=nic("hub-vm"),
        profiles=[models.NetworkConfigurationDiagnosticProfile(
            direction="Inbound", protocol="TCP", source="10.2.0.4", destination="10.1.0.4",
            destination_port=str(denied_port),
        )],
    )).result()
    result = diagnostic.results[0].network_security_group_result
    matched = result.evaluated_network_security_groups[0].matched_rule
    same("diagnostic", (result.security_rule_access_result, matched.rule_name, matched.action),
         ("Deny", "UserRule_deny-one-port", "Deny"))
    view = watchers.begin_get_vm_security_rules(*WATCHER, models.SecurityGroupViewParameters(
        target_resource_id=vm("hub-vm")
    )).result().network_interfaces[0]
    rules = view.security_rule_associations
    same("rules of the NIC's group", [r.name for r in rules.network_interface_association.security_rules], ["deny-one-port"])
    names = {rule.name for rule in rules.effective_security_rules}
    same("effective rules", names >= {"UserRule_deny-one-port", "DefaultRule_AllowVnetInBound", "DefaultInboundDenyAll"}, True)
    same("default rules", len(rules.default_security_rules), 6)
    topology = watchers.get_topology(*WATCHER, models.TopologyParameters(target_resource_group_name="lab"))
    found = {resource.name: resource.associations for resource in topology.resources}
    same("associations", {a.name: a.association_type for a in found["hub-vm-nic"]},
         {"workload": "Associated", "web": "Associated", "hub-vm": "Associated"})
    same("contains", [a.name for a in found["spoke-a"] if a.association_type == "Contains"], ["workload"])


def troubleshooting(watchers):
    def ask(target):
        return watchers.begin_get_troubleshooting(*WATCHER, models.TroubleshootingParameters(
            target_resource_id=f"{LAB}/Microsoft.Network/{target}",
            storage_id=f"{LAB}/Microsoft.Storage/storageAccounts/none", storage_path="https://none.example/logs",
        )).result()

    last = models.QueryTroubleshootingParameters(
        target_resource_id=f"{LAB}/Microsoft.Network/connections/hub-to-branch"
    )
    refused("no result yet", "NotFound", lambda: watchers.begin_get_troubleshooting_result(*WATCHER, last))
    found = ask("connections/hub-to-branch")
    same("the connection", (found.code, [result.id for result in found.results]), ("Healthy", ["NoFault"]))
    again = watchers.begin_get_troubleshooting_result(*WATCHER, last).result()
    same("the last result", (again.code, again.start_time), (found.code, found.start_time))
    same("the gateway", ask("virtualNetworkGateways/hub-gw").code, "Healthy")


def monitors(client):
    """A connection monitor: created, read, listed, stopped and deleted. Its results are no part of Azure's API."""
    operations, name = client.connection_monitors, "web"
    body = models.ConnectionMonitor(
        location="region1",
        endpoints=[
            models.ConnectionMonitorEndpoint(name="a", type="AzureVM", resource_id=vm("spoke-a-vm")),
            models.ConnectionMonitorEndpoint(name="b", type="ExternalAddress", address="10.1.0.4"),
        ],
        test_configurations=[models.ConnectionMonitorTestConfiguration(
            name="echo", protocol="Icmp", test_frequency_sec=60,
            icmp_configuration=models.ConnectionMonitorIcmpConfiguration(disable_trace_route=True),
            success_threshold=models.ConnectionMonitorSuccessThreshold(checks_failed_percent=5, round_trip_time_ms=500),
        )],
        test_groups=[models.ConnectionMonitorTestGroup(
            name="DefaultTestGroup", test_configurations=["echo"], sources=["a"], destinations=["b"]
        )],
    )
    made = operations.begin_create_or_update(*WATCHER, name, body).result()
    same("the monitor", (made.provisioning_state, made.monitoring_status, made.connection_monitor_type),
         ("Succeeded", "Running", "MultiEndpoint"))
    same("read", operations.get(*WATCHER, name).etag, made.etag)
    same("listed", [monitor.name for monitor in operations.list(*WATCHER)], [name])
    again = operations.begin_create_or_update(*WATCHER, name, operations.get(*WATCHER, name)).result()
    same("written back", again.start_time, made.start_time)
    operations.begin_stop(*WATCHER, name).result()
    same("stopped", operations.get(*WATCHER, name).monitoring_status, "Stopped")
    operations.begin_delete(*WATCHER, name).result()
    same("deleted", list(operations.list(*WATCHER)), [])


def captures(client):
    """A packet capture: created, read, listed, asked for its state, stopped and deleted."""
    operations, name = client.packet_captures, "pings"
    body = models.PacketCapture(
        target=vm("hub-vm"),
        storage_location=models.PacketCaptureStorageLocation(file_path="/var/captures/pings.cap"),
        time_limit_in_seconds=120,
        filters=[models.PacketCaptureFilter(
            protocol="TCP", local_ip_address="10.1.0.4", local_port="", remote_ip_address="10.2.0.0-10.2.0.9",
            remote_port="1-65535",
        )],
    )
    made = operations.begin_create(*WATCHER, name, body).result()
    same("the capture", (made.provisioning_state, made.target, made.total_bytes_per_session),
         ("Succeeded", vm("hub-vm"), 1073741824))
    same("its filter", made.filters[0].remote_ip_address, "10.2.0.0-10.2.0.9")
    same("read", operations.get(*WATCHER, name).etag, made.etag)
    same("listed", [capture.name for capture in operations.list(*WATCHER)], [name])
    for _ in range(100):
        state = operations.begin_get_status(*WATCHER, name).result()
        if state.packet_capture_status == "Running":
            break
        time.sleep(0.1)
    same("runs", (state.packet_capture_status, state.packet_capture_error), ("Running", []))
    operations.begin_stop(*WATCHER, name).result()
    ended = operations.begin_get_status(*WATCHER, name).result()
    same("stopped", (ended.packet_capture_status, ended.stop_reason), ("Stopped", "Stopped"))
    same("its start", ended.capture_start_time, state.capture_start_time)
    refused("a bad filter", "InvalidRequestFormat", lambda: operations.begin_create(*WATCHER, "bad", models.PacketCapture(
        target=vm("hub-vm"), storage_location=models.PacketCaptureStorageLocation(file_path="/x.cap"),
        filters=[models.PacketCaptureFilter(protocol="TCP", remote_port="90-80")],
    )))
    operations.begin_delete(*WATCHER, name).result()
    same("deleted", list(operations.list(*WATCHER)), [])


def main():
    base, authority, token, open_port, closed_port, denied_port = sys.argv[1:]
    with NetworkManagementClient(
        Token(token), SUBSCRIPTION, base_url=base, credential_scopes=[f"{base}/.default"], connection_verify=authority
    ) as client:
        watchers = client.network_watchers
        connectivity(watchers, int(open_port), int(closed_port), int(denied_port))
        predictions(watchers, int(denied_port))
        troubleshooting(watchers)
        monitors(client)
        captures(client)
    print("the stock client has checked, predicted and troubleshot")


if __name__ == "__main__":
    main()
