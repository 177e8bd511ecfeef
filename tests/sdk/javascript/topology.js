// Creates, reads and deletes two VNets that are joined by peering and VPN, with the stock Azure client for JavaScript.
//
//     node topology.js BASE_URL TOKEN_FILE
//
// NODE_EXTRA_CA_CERTS names the certificate of the controller's authority. Only the address, the certificate and the token
// differ from those of Azure.

import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import { readFileSync } from "node:fs";
import { NetworkManagementClient } from "@azure/arm-network";

// The client needs this global, which Node.js 18, of Debian 12, does not define.
globalThis.crypto ??= webcrypto;

const SUBSCRIPTION = "00000000-0000-0000-0000-000000000001";
const GROUP = "sdk-js";
const location = "region1";

const [base, tokenFile] = process.argv.slice(2);
const token = readFileSync(tokenFile, "utf8").trim();
const credential = { getToken: async () => ({ token, expiresOnTimestamp: Date.now() + 3_600_000 }) };
const client = new NetworkManagementClient(credential, SUBSCRIPTION, {
  endpoint: base,
  credentialScopes: [`${base}/.default`],
});

/** All items of a list, which the client reads page by page. */
async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

/** Expects that a request is refused with a code of Azure. */
async function refused(what, code, request) {
  await assert.rejects(request, (error) => {
    const found = error.details?.error?.code ?? error.code;
    assert.equal(found, code, `${what}: ${error.message}`);
    return true;
  });
}

async function create() {
  for (const [name, n] of [["hub", 1], ["branch", 2]]) {
    const vnet = await client.virtualNetworks.beginCreateOrUpdateAndWait(GROUP, name, {
      location,
      addressSpace: { addressPrefixes: [`10.${n}.0.0/16`] },
      subnets: [
        { name: "workload", addressPrefix: `10.${n}.0.0/24` },
        { name: "GatewaySubnet", addressPrefix: `10.${n}.255.0/27` },
      ],
    });
    assert.equal(vnet.provisioningState, "Succeeded");
    assert.deepEqual(vnet.dhcpOptions.dnsServers, []);
    const subnet = await client.subnets.get(GROUP, name, "workload");
    const nic = await client.networkInterfaces.beginCreateOrUpdateAndWait(GROUP, `${name}-nic`, {
      location,
      ipConfigurations: [{ name: "one", subnet: { id: subnet.id }, privateIPAllocationMethod: "Dynamic" }],
    });
    assert.deepEqual(nic.dnsSettings.dnsServers, []);
    assert.deepEqual(nic.dnsSettings.appliedDnsServers, []);
    assert.deepEqual(nic.ipConfigurations[0].applicationSecurityGroups, []);
    assert.equal(nic.ipConfigurations[0].privateIPAddress, `10.${n}.0.4`);

    const address = await client.publicIPAddresses.beginCreateOrUpdateAndWait(GROUP, `${name}-pip`, {
      location,
      sku: { name: "Standard" },
      publicIPAllocationMethod: "Static",
    });
    assert.match(address.ipAddress, /^198\.1[89]\./);
    const gateways = await client.subnets.get(GROUP, name, "GatewaySubnet");
    const gateway = await client.virtualNetworkGateways.beginCreateOrUpdateAndWait(GROUP, `${name}-gw`, {
      location,
      gatewayType: "Vpn",
      vpnType: "RouteBased",
      sku: { name: "VpnGw1", tier: "VpnGw1" },
      ipConfigurations: [{ name: "default", subnet: { id: gateways.id }, publicIPAddress: { id: address.id } }],
    });
    const [instance] = gateway.bgpSettings.bgpPeeringAddresses;
    assert.deepEqual(instance.tunnelIpAddresses, [address.ipAddress]);
    const again = await client.virtualNetworkGateways.beginCreateOrUpdateAndWait(GROUP, `${name}-gw`, gateway);
    assert.equal(again.etag, gateway.etag, "a gateway written back");
  }
  for (const [local, remote] of [["hub", "branch"], ["branch", "hub"]]) {
    const connection = await client.virtualNetworkGatewayConnections.beginCreateOrUpdateAndWait(GROUP, `${local}-${remote}`, {
      location,
      connectionType: "Vnet2Vnet",
      virtualNetworkGateway1: await client.virtualNetworkGateways.get(GROUP, `${local}-gw`),
      virtualNetworkGateway2: await client.virtualNetworkGateways.get(GROUP, `${remote}-gw`),
      sharedKey: "abc123",
    });
    assert.equal(connection.connectionProtocol, "IKEv2");
  }
  const peer = async (local, remote) => {
    const { id } = await client.virtualNetworks.get(GROUP, remote);
    const body = { remoteVirtualNetwork: { id }, allowVirtualNetworkAccess: true };
    return client.virtualNetworkPeerings.beginCreateOrUpdateAndWait(GROUP, local, `to-${remote}`, body);
  };
  assert.equal((await peer("hub", "branch")).peeringState, "Initiated");
  assert.equal((await peer("branch", "hub")).peeringState, "Connected");
}

async function read() {
  const names = (await all(client.virtualNetworks.list(GROUP))).map((vnet) => vnet.name);
  assert.deepEqual(names.sort(), ["branch", "hub"]);
  const free = await client.virtualNetworks.checkIPAddressAvailability(GROUP, "hub", "10.1.0.4");
  assert.deepEqual([free.available, free.availableIPAddresses[0]], [false, "10.1.0.5"]);
  const [subnet] = await all(client.virtualNetworks.listUsage(GROUP, "hub"));
  assert.deepEqual([subnet.currentValue, subnet.limit], [1, 251]);
  const used = await all(client.usages.list(location));
  assert.equal(used.find((line) => line.name.value === "VirtualNetworks").currentValue, 2);
  assert.equal((await client.serviceTags.list(location)).values[0].name, "AzureLoadBalancer");
  const routes = await client.networkInterfaces.beginGetEffectiveRouteTableAndWait(GROUP, "hub-nic");
  const peering = routes.value.find((route) => route.addressPrefix[0] === "10.2.0.0/16" && route.state === "Active");
  assert.equal(peering.nextHopType, "VNetPeering");
  const gateway = await client.virtualNetworkGateways.beginResetAndWait(GROUP, "hub-gw");
  assert.equal(gateway.name, "hub-gw");
  await client.virtualNetworkGatewayConnections.beginResetConnectionAndWait(GROUP, "hub-branch");
}

async function rules() {
  await refused("a Standard address is static", "StandardSkuPublicIPAddressesMustBeStatic", () =>
    client.publicIPAddresses.beginCreateOrUpdateAndWait(GROUP, "dynamic", {
      location,
      sku: { name: "Standard" },
      publicIPAllocationMethod: "Dynamic",
    }),
  );
  const { id } = await client.subnets.get(GROUP, "hub", "workload");
  await refused("a NIC in another region (P1)", "InvalidResourceReference", () =>
    client.networkInterfaces.beginCreateOrUpdateAndWait(GROUP, "far", {
      location: "region2",
      ipConfigurations: [{ name: "one", subnet: { id } }],
    }),
  );
  await refused("a subnet in use (P3)", "InUseSubnetCannotBeDeleted", () =>
    client.subnets.beginDeleteAndWait(GROUP, "hub", "workload"),
  );
  await refused("a VNet that does not exist", "ResourceNotFound", () => client.virtualNetworks.get(GROUP, "nobody"));
  const stranger = new NetworkManagementClient(credential, "11111111-2222-3333-4444-555555555555", { endpoint: base });
  await refused("an unknown subscription", "SubscriptionNotFound", () => all(stranger.virtualNetworks.listAll()));
}

async function security() {
  const group = await client.networkSecurityGroups.beginCreateOrUpdateAndWait(GROUP, "guard", { location });
  assert.deepEqual([group.securityRules.length, group.defaultSecurityRules.length], [0, 6]);
  const rule = await client.securityRules.beginCreateOrUpdateAndWait(GROUP, "guard", "https", {
    protocol: "Tcp",
    access: "Allow",
    direction: "Inbound",
    priority: 100,
    sourceAddressPrefix: "VirtualNetwork",
    sourcePortRange: "*",
    destinationAddressPrefix: "*",
    destinationPortRange: "443",
  });
  assert.deepEqual([rule.destinationPortRange, rule.destinationPortRanges], ["443", []]);
  const nic = await client.networkInterfaces.get(GROUP, "hub-nic");
  nic.networkSecurityGroup = { id: group.id };
  await client.networkInterfaces.beginCreateOrUpdateAndWait(GROUP, "hub-nic", nic);
  const effective = await client.networkInterfaces.beginListEffectiveNetworkSecurityGroupsAndWait(GROUP, "hub-nic");
  const [applied] = effective.value;
  assert.equal(applied.association.networkInterface.id, nic.id);
  assert.equal(applied.association.subnet.id, nic.ipConfigurations[0].subnet.id);
  nic.networkSecurityGroup = undefined;
  await client.networkInterfaces.beginCreateOrUpdateAndWait(GROUP, "hub-nic", nic);
  await client.networkSecurityGroups.beginDeleteAndWait(GROUP, "guard");
}

async function remove() {
  for (const name of ["hub-branch", "branch-hub"]) {
    await client.virtualNetworkGatewayConnections.beginDeleteAndWait(GROUP, name);
  }
  for (const name of ["hub", "branch"]) {
    await client.virtualNetworkGateways.beginDeleteAndWait(GROUP, `${name}-gw`);
    await client.publicIPAddresses.beginDeleteAndWait(GROUP, `${name}-pip`);
    await client.networkInterfaces.beginDeleteAndWait(GROUP, `${name}-nic`);
    await client.virtualNetworks.beginDeleteAndWait(GROUP, name);
  }
  assert.deepEqual(await all(client.virtualNetworks.list(GROUP)), []);
}

for (const step of [create, read, rules, security, remove]) {
  const begin = Date.now();
  await step();
  console.log(`${step.name}: ${((Date.now() - begin) / 1000).toFixed(1)} s`);
}
