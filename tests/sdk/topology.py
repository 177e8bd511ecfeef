"""Creates, lists, reads and deletes a hub, two spokes, a branch, security groups, a site and a circuit with the stock
Azure client.

    topology.py BASE_URL CA_FILE TOKEN_FILE

Nothing here knows that the other side is not Azure, but the address, the certificate and the token.
"""

import sys
import time

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.mgmt.network import NetworkManagementClient, models

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
GROUP = "sdk"
LOCATION = "region1"


class Token:
    """The admin token as a credential."""

    def __init__(self, path):
        with open(path) as file:
            self.text = file.read().strip()

    def get_token(self, *_scopes, **_options):
        return AccessToken(self.text, int(time.time()) + 3600)


def same(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: {found!r} instead of {expected!r}")


def refused(what, code, action):
    try:
        result = action()
        if hasattr(result, "result"):
            result.result()
    except HttpResponseError as error:
        same(what, error.error.code if error.error else None, code)
        return
    sys.exit(f"{what}: accepted, instead of {code}")


def vnet(prefix, gateway):
    subnets = [models.Subnet(name="workload", address_prefix=f"{prefix}.0.0/24")]
    if gateway:
        subnets.append(models.Subnet(name="GatewaySubnet", address_prefix=f"{prefix}.255.0/27"))
    space = models.AddressSpace(address_prefixes=[f"{prefix}.0.0/16"])
    return models.VirtualNetwork(location=LOCATION, address_space=space, subnets=subnets)


def public_address():
    return models.PublicIPAddress(
        location=LOCATION, public_ip_allocation_method="Static", sku=models.PublicIPAddressSku(name="Standard")
    )


VNETS = {"hub": ("10.1", True), "spoke-a": ("10.2", False), "spoke-b": ("10.3", False), "branch": ("10.4", True)}


def peering(client, local, remote, **flags):
    remote_id = client.virtual_networks.get(GROUP, remote).id
    body = models.VirtualNetworkPeering(
        remote_virtual_network=models.SubResource(id=remote_id), allow_virtual_network_access=True, **flags
    )
    return client.virtual_network_peerings.begin_create_or_update(GROUP, local, f"to-{remote}", body).result()


def create(client):
    for name, (prefix, gateway) in VNETS.items():
        made = client.virtual_networks.begin_create_or_update(GROUP, name, vnet(prefix, gateway)).result()
        same(f"{name} state", made.provisioning_state, "Succeeded")
        same(f"{name} subnets", len(made.subnets), 2 if gateway else 1)

    client.public_ip_addresses.begin_create_or_update(GROUP, "spare-pip", public_address()).result()
    gateways = {}
    for name in ("hub", "branch"):
        address = client.public_ip_addresses.begin_create_or_update(GROUP, f"{name}-pip", public_address()).result()
        subnet = client.subnets.get(GROUP, name, "GatewaySubnet")
        gateways[name] = client.virtual_network_gateways.begin_create_or_update(
            GROUP,
            f"{name}-gw",
            models.VirtualNetworkGateway(
                location=LOCATION,
                gateway_type="Vpn",
                vpn_type="RouteBased",
                sku=models.VirtualNetworkGatewaySku(name="VpnGw1", tier="VpnGw1"),
                ip_configurations=[
                    models.VirtualNetworkGatewayIPConfiguration(
                        name="default",
                        subnet=models.SubResource(id=subnet.id),
                        public_ip_address=models.SubResource(id=address.id),
                        private_ip_allocation_method="Dynamic",
                    )
                ],
            ),
        ).result()
        same(f"{name} gateway state", gateways[name].provisioning_state, "Succeeded")
        same(f"{name} gateway ASN", gateways[name].bgp_settings.asn, 65515)
        tunnels = gateways[name].bgp_settings.bgp_peering_addresses[0].tunnel_ip_addresses
        same(f"{name} gateway's public address", tunnels, [address.ip_address])

    same("one side alone", peering(client, "hub", "spoke-a", allow_gateway_transit=True).peering_state, "Initiated")
    made = peering(client, "spoke-a", "hub", use_remote_gateways=True, allow_forwarded_traffic=True)
    same("both sides", (made.peering_state, made.peering_sync_level), ("Connected", "FullyInSync"))
    first = client.virtual_network_peerings.get(GROUP, "hub", "to-spoke-a")
    same("the other side", first.peering_state, "Connected")
    same("one GUID for both halves", first.resource_guid, made.resource_guid)
    same("remote ranges", made.remote_address_space.address_prefixes, ["10.1.0.0/16"])
    peering(client, "hub", "spoke-b")
    peering(client, "spoke-b", "hub", allow_forwarded_traffic=True)

    for name in VNETS:
        subnet = client.subnets.get(GROUP, name, "workload")
        nic = client.network_interfaces.begin_create_or_update(
            GROUP,
            f"{name}-nic",
            models.NetworkInterface(
                location=LOCATION,
                enable_ip_forwarding=name == "hub",
                ip_configurations=[
                    models.NetworkInterfaceIPConfiguration(
                        name="ipconfig1",
                        subnet=models.Subnet(id=subnet.id),
                        private_ip_allocation_method="Static",
                        private_ip_address=f"{VNETS[name][0]}.0.4",
                    )
                ],
            ),
        ).result()
        same(f"{name} NIC", (nic.ip_configurations[0].private_ip_address, nic.enable_ip_forwarding),
             (f"{VNETS[name][0]}.0.4", name == "hub"))
        same(f"{name} NIC's DNS servers", (nic.dns_settings.dns_servers, nic.dns_settings.applied_dns_servers), ([], []))
        same(f"{name} NIC's application groups", nic.ip_configurations[0].application_security_groups, [])

    table = client.route_tables.begin_create_or_update(
        GROUP,
        "rt-a",
        models.RouteTable(
            location=LOCATION,
            routes=[
                models.Route(
                    name="to-b",
                    address_prefix="10.3.0.0/16",
                    next_hop_type="VirtualAppliance",
                    next_hop_ip_address="10.1.0.4",
                )
            ],
        ),
    ).result()
    client.routes.begin_create_or_update(
        GROUP, "rt-a", "nowhere", models.Route(address_prefix="10.9.0.0/16", next_hop_type="None")
    ).result()
    subnet = client.subnets.get(GROUP, "spoke-a", "workload")
    subnet.route_table = models.RouteTable(id=table.id)
    subnet = client.subnets.begin_create_or_update(GROUP, "spoke-a", "workload", subnet).result()
    same("route table of the subnet", subnet.route_table.id.lower(), table.id.lower())

    for local, remote in (("hub", "branch"), ("branch", "hub")):
        made = client.virtual_network_gateway_connections.begin_create_or_update(
            GROUP,
            f"{local}-to-{remote}",
            models.VirtualNetworkGatewayConnection(
                location=LOCATION,
                connection_type="Vnet2Vnet",
                virtual_network_gateway1=gateways[local],
                virtual_network_gateway2=gateways[remote],
                shared_key="abc123",
            ),
        ).result()
        same(f"connection {local}", made.provisioning_state, "Succeeded")
        same("the key stays secret", made.shared_key, None)


def read(client):
    same("VNets", sorted(v.name for v in client.virtual_networks.list(GROUP)), sorted(VNETS))
    same("all VNets", sorted(v.name for v in client.virtual_networks.list_all()), sorted(VNETS))
    same("subnets", sorted(s.name for s in client.subnets.list(GROUP, "hub")), ["GatewaySubnet", "workload"])
    same("peerings", sorted(p.name for p in client.virtual_network_peerings.list(GROUP, "hub")), ["to-spoke-a", "to-spoke-b"])
    same("NICs", len(list(client.network_interfaces.list(GROUP))), 4)
    same("public addresses", len(list(client.public_ip_addresses.list(GROUP))), 3)
    same("gateways", sorted(g.name for g in client.virtual_network_gateways.list(GROUP)), ["branch-gw", "hub-gw"])
    same("connections", len(list(client.virtual_network_gateway_connections.list(GROUP))), 2)
    same("routes", sorted(r.name for r in client.routes.list(GROUP, "rt-a")), ["nowhere", "to-b"])
    users = client.route_tables.get(GROUP, "rt-a").subnets
    same("subnets of the route table", [s.id.rsplit("/", 1)[1] for s in users], ["workload"])
    key = client.virtual_network_gateway_connections.get_shared_key(GROUP, "hub-to-branch")
    same("shared key", key.value, "abc123")
    status = client.virtual_network_gateway_connections.get(GROUP, "hub-to-branch").connection_status
    if status not in ("Unknown", "Connecting", "NotConnected", "Connected"):
        sys.exit(f"connection status: {status!r}")

    routes = client.network_interfaces.begin_get_effective_route_table(GROUP, "spoke-a-nic").result().value
    found = {(r.source, r.state, r.address_prefix[0], r.next_hop_type) for r in routes}
    for expected in (
        ("Default", "Active", "10.2.0.0/16", "VnetLocal"),
        ("Default", "Active", "10.1.0.0/16", "VNetPeering"),
        ("User", "Active", "10.3.0.0/16", "VirtualAppliance"),
        ("User", "Active", "10.9.0.0/16", "None"),
        ("VirtualNetworkGateway", "Active", "10.4.0.0/16", "VirtualNetworkGateway"),
        ("Default", "Active", "0.0.0.0/0", "Internet"),
    ):
        if expected not in found:
            sys.exit(f"effective routes: {expected} is not in {sorted(found, key=str)}")

    client.virtual_network_gateway_connections.begin_reset_connection(GROUP, "hub-to-branch").result()
    same("a gateway after its reset", client.virtual_network_gateways.begin_reset(GROUP, "hub-gw").result().name, "hub-gw")
    free = client.virtual_networks.check_ip_address_availability(GROUP, "hub", ip_address="10.1.0.4")
    same("a free address", (free.available, free.available_ip_addresses[0]), (False, "10.1.0.5"))
    used = {u.id.rsplit("/", 1)[1]: u.current_value for u in client.virtual_networks.list_usage(GROUP, "hub")}
    same("addresses in use", used["workload"], 1)
    used = {u.name.value: u.current_value for u in client.usages.list(LOCATION)}
    same("resources in use", (used["VirtualNetworks"], used["PublicIPAddresses"]), (4, 3))
    same("service tags", [t.name for t in client.service_tags.list(LOCATION).values_property], ["AzureLoadBalancer"])

    # The usual change of a client: GET, edit, PUT the whole body.
    hub = client.virtual_networks.get(GROUP, "hub")
    hub.tags = {"purpose": "hub"}
    hub = client.virtual_networks.begin_create_or_update(GROUP, "hub", hub).result()
    same("tags", hub.tags, {"purpose": "hub"})
    same("peerings stay", len(hub.virtual_network_peerings), 2)
    hub = client.virtual_networks.update_tags(GROUP, "hub", models.TagsObject(tags={"purpose": "other"}))
    same("tags", hub.tags, {"purpose": "other"})


def rules(client):
    hub = models.SubResource(id=client.virtual_networks.get(GROUP, "hub").id)
    body = models.VirtualNetworkPeering(remote_virtual_network=hub)
    refused("a second peering of the pair (P7)", "AnotherPeeringAlreadyReferencesRemoteVnet",
            lambda: client.virtual_network_peerings.begin_create_or_update(GROUP, "spoke-a", "again", body))
    refused("a peering with itself (P12)", "VnetAddressSpacesOverlap",
            lambda: client.virtual_network_peerings.begin_create_or_update(GROUP, "hub", "self", body))
    refused("a subnet in use (P3)", "InUseSubnetCannotBeDeleted",
            lambda: client.subnets.begin_delete(GROUP, "spoke-a", "workload"))
    refused("a route table in use (R17)", "InUseRouteTableCannotBeDeleted",
            lambda: client.route_tables.begin_delete(GROUP, "rt-a"))
    refused("a gateway with connections", "VirtualNetworkGatewayCannotBeDeleted",
            lambda: client.virtual_network_gateways.begin_delete(GROUP, "hub-gw"))
    refused("a subnet outside (P2)", "NetcfgInvalidSubnet",
            lambda: client.subnets.begin_create_or_update(GROUP, "hub", "far", models.Subnet(address_prefix="10.77.0.0/24")))
    try:
        client.virtual_networks.get(GROUP, "nobody")
        sys.exit("a VNet that does not exist was found")
    except ResourceNotFoundError as error:
        same("not found", error.error.code, "ResourceNotFound")


def outside(client):
    """A site and a circuit: created, connected, read, not deletable while in use, and deleted."""
    site = client.local_network_gateways.begin_create_or_update(
        GROUP,
        "loc1",
        models.LocalNetworkGateway(
            location=LOCATION,
            gateway_ip_address="192.0.2.7",
            local_network_address_space=models.AddressSpace(address_prefixes=["10.7.0.0/16"]),
            bgp_settings=models.BgpSettings(asn=65021, bgp_peering_address="10.7.0.1"),
        ),
    ).result()
    same("the site's prefixes", site.local_network_address_space.address_prefixes, ["10.7.0.0/16"])
    circuit = client.express_route_circuits.begin_create_or_update(
        GROUP,
        "er1",
        models.ExpressRouteCircuit(
            location=LOCATION,
            sku=models.ExpressRouteCircuitSku(name="Standard_MeteredData", tier="Standard", family="MeteredData"),
            service_provider_properties=models.ExpressRouteCircuitServiceProviderProperties(
                service_provider_name="own", peering_location="Silicon Valley", bandwidth_in_mbps=50
            ),
        ),
    ).result()
    same("circuit state", circuit.service_provider_provisioning_state, "Provisioned")
    private = client.express_route_circuit_peerings.begin_create_or_update(
        GROUP,
        "er1",
        "AzurePrivatePeering",
        models.ExpressRouteCircuitPeering(
            peering_type="AzurePrivatePeering",
            peer_asn=65021,
            primary_peer_address_prefix="192.168.30.16/30",
            secondary_peer_address_prefix="192.168.30.20/30",
            vlan_id=300,
        ),
    ).result()
    same("the edge's ASN", private.azure_asn, 12076)
    same("the parent has it too", len(client.express_route_circuits.get(GROUP, "er1").peerings), 1)
    authorizations = client.express_route_circuit_authorizations
    owned = authorizations.begin_create_or_update(GROUP, "er1", "owner", models.ExpressRouteCircuitAuthorization()).result()
    same("authorization", owned.authorization_use_status, "Available")
    subnet = client.subnets.get(GROUP, "hub", "GatewaySubnet")
    express = client.virtual_network_gateways.begin_create_or_update(
        GROUP,
        "hub-er",
        models.VirtualNetworkGateway(
            location=LOCATION,
            gateway_type="ExpressRoute",
            sku=models.VirtualNetworkGatewaySku(name="Standard", tier="Standard"),
            ip_configurations=[
                models.VirtualNetworkGatewayIPConfiguration(name="default", subnet=models.SubResource(id=subnet.id))
            ],
        ),
    ).result()
    vpn = client.virtual_network_gateways.get(GROUP, "hub-gw")
    connections = client.virtual_network_gateway_connections
    for name, far in (
        ("to-loc1", {"connection_type": "IPsec", "virtual_network_gateway1": vpn, "local_network_gateway2": site,
                     "shared_key": "abc123", "enable_bgp": True}),
        ("to-er1", {"connection_type": "ExpressRoute", "virtual_network_gateway1": express,
                    "peer": models.SubResource(id=circuit.id), "authorization_key": owned.authorization_key}),
    ):
        body = models.VirtualNetworkGatewayConnection(location=LOCATION, **far)
        made = connections.begin_create_or_update(GROUP, name, body).result()
        same(name, (made.connection_type, made.provisioning_state), (far["connection_type"], "Succeeded"))
        again = connections.begin_create_or_update(GROUP, name, connections.get(GROUP, name)).result()
        same(f"{name} written back", again.etag, made.etag)

    gateways = client.virtual_network_gateways
    learned = gateways.begin_get_learned_routes(GROUP, "hub-gw").result().value
    same("own routes", {(r.network, r.origin) for r in learned} >= {("10.1.0.0/16", "Network")}, True)
    sessions = gateways.begin_get_bgp_peer_status(GROUP, "hub-gw").result().value
    same("sessions", [(p.neighbor, p.asn, p.state) for p in sessions], [("10.7.0.1", 65021, "Unknown")])
    told = gateways.begin_get_advertised_routes(GROUP, "hub-gw", peer="10.7.0.1").result().value
    same("nobody tells yet", told, [])
    table = client.express_route_circuits.begin_list_routes_table(GROUP, "er1", "AzurePrivatePeering", "primary")
    same("linked VNets", {(r.network, r.path) for r in table.result().value} >= {("10.1.0.0/16", "65515")}, True)

    same("the connection's authorization", authorizations.get(GROUP, "er1", "owner").authorization_use_status, "InUse")
    refused("a circuit with connections", "XCircuitCannotBeDeleted",
            lambda: client.express_route_circuits.begin_delete(GROUP, "er1"))
    refused("a site with connections", "XLocalNetworkGatewayCannotBeDeleted",
            lambda: client.local_network_gateways.begin_delete(GROUP, "loc1"))
    for name in ("to-loc1", "to-er1"):
        connections.begin_delete(GROUP, name).result()
    authorizations.begin_delete(GROUP, "er1", "owner").result()
    same("authorizations", list(authorizations.list(GROUP, "er1")), [])
    gateways.begin_delete(GROUP, "hub-er").result()
    client.express_route_circuit_peerings.begin_delete(GROUP, "er1", "AzurePrivatePeering").result()
    client.express_route_circuits.begin_delete(GROUP, "er1").result()
    client.local_network_gateways.begin_delete(GROUP, "loc1").result()
    same("sites", list(client.local_network_gateways.list(GROUP)), [])
    same("circuits", list(client.express_route_circuits.list_all()), [])


def security(client):
    """Security groups: created, given rules, attached to a subnet and a NIC, not deletable while in use, and deleted."""
    asg = client.application_security_groups.begin_create_or_update(
        GROUP, "web", models.ApplicationSecurityGroup(location=LOCATION)
    ).result()
    groups, rules = client.network_security_groups, client.security_rules
    # Azure's command line sends a group without any property, too.
    group = groups.begin_create_or_update(GROUP, "guard", models.NetworkSecurityGroup(location=LOCATION)).result()
    same("group state", (group.provisioning_state, group.security_rules), ("Succeeded", []))
    same("nobody uses the group yet", (group.subnets, group.network_interfaces), ([], []))
    default = {(r.name, r.priority, r.direction, r.access, r.protocol) for r in group.default_security_rules}
    for expected in (
        ("AllowVnetInBound", 65000, "Inbound", "Allow", "*"),
        ("DenyAllOutBound", 65500, "Outbound", "Deny", "*"),
    ):
        if expected not in default:
            sys.exit(f"default rules (N2): {expected} is not in {sorted(default)}")
    same("default rules (N2)", sorted(r.name for r in client.default_security_rules.list(GROUP, "guard")),
         sorted(r.name for r in group.default_security_rules))
    same("a default rule", client.default_security_rules.get(GROUP, "guard", "DenyAllInBound").source_port_range, "*")

    https = models.SecurityRule(
        protocol="Tcp", access="Allow", direction="Inbound", priority=100, description="The site's own port",
        source_address_prefix="VirtualNetwork", source_port_range="*",
        destination_application_security_groups=[asg], destination_port_range="443",
    )
    made = rules.begin_create_or_update(GROUP, "guard", "https", https).result()
    same("one value", (made.source_address_prefix, made.destination_port_range), ("VirtualNetwork", "443"))
    same("no list", (made.source_address_prefixes, made.source_port_ranges, made.destination_port_ranges), ([], [], []))
    same("the rule's group (N9)", [g.id for g in made.destination_application_security_groups], [asg.id])
    several = models.SecurityRule(
        protocol="*", access="Deny", direction="Inbound", priority=200,
        source_address_prefixes=["10.4.0.0/16", "10.3.0.4"], source_port_range="*",
        destination_address_prefix="*", destination_port_ranges=["22", "3389-3400"],
    )
    made = rules.begin_create_or_update(GROUP, "guard", "no-login", several).result()
    same("several values (N11)", (made.source_address_prefixes, made.destination_port_ranges),
         (["10.4.0.0/16", "10.3.0.4"], ["22", "3389-3400"]))
    same("rules", sorted(r.name for r in rules.list(GROUP, "guard")), ["https", "no-login"])
    again = rules.begin_create_or_update(GROUP, "guard", "no-login", rules.get(GROUP, "guard", "no-login")).result()
    same("a rule written back", again.etag, made.etag)
    group = groups.get(GROUP, "guard")
    again = groups.begin_create_or_update(GROUP, "guard", group).result()
    same("a group written back", (again.etag, len(again.security_rules)), (group.etag, 2))
    refused("two rules with one priority (N1)", "SecurityRuleConflict",
            lambda: rules.begin_create_or_update(GROUP, "guard", "second", https))
    https.priority = 99
    refused("a priority outside (N1)", "SecurityRuleInvalidPriority",
            lambda: rules.begin_create_or_update(GROUP, "guard", "second", https))

    subnet = client.subnets.get(GROUP, "spoke-a", "workload")
    subnet.network_security_group = group
    subnet = client.subnets.begin_create_or_update(GROUP, "spoke-a", "workload", subnet).result()
    same("the subnet's group", subnet.network_security_group.id.lower(), group.id.lower())
    nic = client.network_interfaces.get(GROUP, "spoke-a-nic")
    nic.network_security_group = group
    nic.ip_configurations[0].application_security_groups = [asg]
    nic = client.network_interfaces.begin_create_or_update(GROUP, "spoke-a-nic", nic).result()
    same("the NIC's group", nic.network_security_group.id.lower(), group.id.lower())
    same("the NIC's application groups", [g.id for g in nic.ip_configurations[0].application_security_groups], [asg.id])
    group = groups.get(GROUP, "guard")
    same("users", ([s.id for s in group.subnets], [n.id for n in group.network_interfaces]), ([subnet.id], [nic.id]))
    gateways = client.subnets.get(GROUP, "hub", "GatewaySubnet")
    gateways.network_security_group = group
    refused("a group of GatewaySubnet (N13)", "XGatewaySubnetCannotHaveSecurityGroup",
            lambda: client.subnets.begin_create_or_update(GROUP, "hub", "GatewaySubnet", gateways))
    refused("a group in use", "InUseNetworkSecurityGroupCannotBeDeleted", lambda: groups.begin_delete(GROUP, "guard"))
    refused("an application group in use", "InUseApplicationSecurityGroupCannotBeDeleted",
            lambda: client.application_security_groups.begin_delete(GROUP, "web"))

    subnet.network_security_group = None
    subnet = client.subnets.begin_create_or_update(GROUP, "spoke-a", "workload", subnet).result()
    same("the subnet has none", subnet.network_security_group, None)
    nic.network_security_group = None
    nic.ip_configurations[0].application_security_groups = []
    nic = client.network_interfaces.begin_create_or_update(GROUP, "spoke-a-nic", nic).result()
    same("the NIC has none", nic.network_security_group, None)
    rules.begin_delete(GROUP, "guard", "https").result()
    same("rules", [r.name for r in groups.get(GROUP, "guard").security_rules], ["no-login"])
    # A body without rules removes them (N1).
    group = groups.begin_create_or_update(GROUP, "guard", models.NetworkSecurityGroup(location=LOCATION)).result()
    same("rules", group.security_rules, [])
    tagged = groups.update_tags(GROUP, "guard", models.TagsObject(tags={"purpose": "guard"}))
    same("tags", tagged.tags, {"purpose": "guard"})
    groups.begin_delete(GROUP, "guard").result()
    client.application_security_groups.begin_delete(GROUP, "web").result()
    same("groups", (list(groups.list(GROUP)), list(groups.list_all())), ([], []))


def flow_logs(client):
    """Creates, changes, lists and deletes flow logs (N14, M9)."""
    group, watcher = "NetworkWatcherRG", f"NetworkWatcher_{LOCATION}"
    logs = client.flow_logs
    storage = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Storage/storageAccounts/logs"
    same("flow logs", list(logs.list(group, watcher)), [])
    hub = client.virtual_networks.get(GROUP, "hub")
    body = models.FlowLog(
        location=LOCATION, target_resource_id=hub.id, storage_id=storage, enabled=True,
        format=models.FlowLogFormatParameters(type="JSON", version=0),
    )
    made = logs.begin_create_or_update(group, watcher, "hub", body).result()
    same("target", (made.target_resource_id, made.target_resource_guid), (hub.id, hub.resource_guid))
    same("defaults", (made.format.version, made.retention_policy.days, made.enabled), (2, 0, True))
    refused("a second log of a target", "XFlowLogExists",
            lambda: logs.begin_create_or_update(group, watcher, "other", body))
    made.enabled = False
    made.retention_policy = models.RetentionPolicyParameters(days=7, enabled=True)
    changed = logs.begin_create_or_update(group, watcher, "hub", made).result()
    same("changed", (changed.enabled, changed.retention_policy.days), (False, 7))
    tagged = logs.update_tags(group, watcher, "hub", models.TagsObject(tags={"purpose": "audit"}))
    same("tags", tagged.tags, {"purpose": "audit"})
    same("flow logs", [log.id for log in logs.list(group, watcher)], [made.id])
    query = models.FlowLogStatusParameters(target_resource_id=hub.id)
    status = client.network_watchers.begin_get_flow_log_status(group, watcher, query).result()
    same("status", (status.storage_id, status.enabled), (storage, False))
    logs.begin_delete(group, watcher, "hub").result()
    try:
        logs.get(group, watcher, "hub")
        sys.exit("the flow log is still there")
    except ResourceNotFoundError:
        pass


def delete(client):
    client.virtual_network_peerings.begin_delete(GROUP, "spoke-b", "to-hub").result()
    left = client.virtual_network_peerings.get(GROUP, "hub", "to-spoke-b")
    same("the surviving side", left.peering_state, "Disconnected")
    for local, remote in (("hub", "spoke-b"), ("spoke-a", "hub"), ("hub", "spoke-a")):
        client.virtual_network_peerings.begin_delete(GROUP, local, f"to-{remote}").result()
    for name in ("hub-to-branch", "branch-to-hub"):
        client.virtual_network_gateway_connections.begin_delete(GROUP, name).result()
    for name in ("hub", "branch"):
        client.virtual_network_gateways.begin_delete(GROUP, f"{name}-gw").result()
        client.public_ip_addresses.begin_delete(GROUP, f"{name}-pip").result()
    client.public_ip_addresses.begin_delete(GROUP, "spare-pip").result()
    for name in VNETS:
        client.network_interfaces.begin_delete(GROUP, f"{name}-nic").result()
    for name in VNETS:
        client.virtual_networks.begin_delete(GROUP, name).result()
    client.route_tables.begin_delete(GROUP, "rt-a").result()
    same("VNets", list(client.virtual_networks.list(GROUP)), [])
    same("connections", list(client.virtual_network_gateway_connections.list(GROUP)), [])


def main():
    base, authority, token = sys.argv[1:]
    with NetworkManagementClient(
        Token(token),
        SUBSCRIPTION,
        base_url=base,
        credential_scopes=[f"{base}/.default"],
        connection_verify=authority,
    ) as client:
        for step in (create, read, rules, security, flow_logs, outside, delete):
            begin = time.time()
            step(client)
            print(f"{step.__name__}: {time.time() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
