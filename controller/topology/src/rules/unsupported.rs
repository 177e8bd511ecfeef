//! Azure's properties that would change the treatment of packets and are not implemented here. A request with such a
//! property is refused, and the message names the property, unless its value has no effect. A property that only
//! describes something is kept and shown instead.
//!
//! Stock clients write back what they have read, and fill bodies with empty values. Therefore every property accepts
//! null, `false`, 0, an empty string, and lists and objects that contain only such values.

use crate::arm::body::Object;
use crate::draft::Draft;
use crate::path::shown;
use crate::resource::Settings;
use serde_json::Value;

/// A property of Azure that this product does not have, with the text of its refusal.
pub(crate) struct Unsupported {
    /// The path from the checked object, joined by dots; `[]` after a list means each of its items.
    path: &'static str,
    /// The code of the error.
    code: &'static str,
    /// The rule or decision that the property relates to.
    rule: &'static str,
    /// The effect of the property in Azure, as the end of a sentence.
    effect: &'static str,
    /// The alternative in this product, as the end of a sentence.
    instead: &'static str,
    /// Strings without effect in addition to the empty one, ignoring case.
    harmless: &'static [&'static str],
    /// Names of members that are ignored when an object is checked for an effect. If no other member has an effect, the
    /// object has none.
    ignored: &'static [&'static str],
    /// Whether the value is a secret, which the message must not show.
    secret: bool,
    /// Whether the present settings already cause the property's effect. If so, the property is accepted.
    held_by: fn(&Settings) -> bool,
}

/// An unsupported property with the error code `XNotSupported`. Only empty values of it are accepted.
const fn refuse(path: &'static str, rule: &'static str, effect: &'static str, instead: &'static str) -> Unsupported {
    Unsupported {
        path,
        code: "XNotSupported",
        rule,
        effect,
        instead,
        harmless: &[],
        ignored: &[],
        secret: false,
        held_by: |_| false,
    }
}

impl Unsupported {
    /// Sets the strings that are accepted because they have no effect.
    const fn harmless(self, harmless: &'static [&'static str]) -> Self {
        Self { harmless, ..self }
    }

    /// Sets the members that are ignored when the object is checked for an effect.
    const fn ignored(self, ignored: &'static [&'static str]) -> Self {
        Self { ignored, ..self }
    }

    /// Keeps the value out of messages.
    const fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// Sets the check whether the present settings already cause the property's effect. If they do, the property is
    /// accepted.
    const fn held_by(self, held_by: fn(&Settings) -> bool) -> Self {
        Self { held_by, ..self }
    }

    /// Whether `value` has no effect. Then the property is accepted with this value.
    fn has_no_effect(&self, value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Bool(on) => !on,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty() || self.harmless.iter().any(|h| h.eq_ignore_ascii_case(text)),
            Value::Array(items) => items.iter().all(|item| self.has_no_effect(item)),
            Value::Object(members) => members.iter().all(|(name, value)| {
                self.ignored.iter().any(|i| i.eq_ignore_ascii_case(name)) || self.has_no_effect(value)
            }),
        }
    }
}

/// Unsupported members of the `properties` of a virtual network.
pub(crate) const VIRTUAL_NETWORK: &[Unsupported] = &[refuse(
    "bgpCommunities.virtualNetworkCommunity",
    "E6",
    "edges would announce the network with that BGP community",
    "leave it out, and match the network's prefixes in the customer edge's filters",
)];

/// Unsupported members of the `properties` of a network security group.
pub(crate) const NETWORK_SECURITY_GROUP: &[Unsupported] = &[refuse(
    "flushConnection",
    "N6",
    "changed rules would also apply to flows that exist already",
    "leave it false; to end established flows that changed rules deny, set the setting reevaluate to true",
)];

/// Unsupported members of the `properties` of an ip configuration, of a network interface or a gateway.
pub(crate) const IP_CONFIGURATION: &[Unsupported] = &[
    refuse(
        "gatewayLoadBalancer",
        "R19",
        "packets of the address would pass that load balancer first",
        "leave it out, and send packets through an appliance with a route to VirtualAppliance",
    ),
    refuse(
        "virtualNetworkTaps",
        "P32",
        "packets of the address would be copied to a collector",
        "leave it out, and capture on the machine itself",
    ),
    refuse(
        "applicationGatewayBackendAddressPools",
        "L2",
        "an application gateway would send requests to the address",
        "leave it out",
    ),
    refuse(
        "privateIPAddressPrefixLength",
        "D8",
        "the network interface would have a block of addresses",
        "leave it out, and let the machine serve a whole subnet (tombolo token create --served)",
    ),
];

/// Unsupported members of the `properties` of a load balancer.
pub(crate) const LOAD_BALANCER: &[Unsupported] = &[
    refuse(
        "outboundRules",
        "L1",
        "back ends would reach the Internet by a public front end",
        "leave it out: load balancers are internal, and back ends send as other machines do",
    ),
    refuse(
        "inboundNatPools",
        "L1",
        "the machines of a scale set would get ports of a front end",
        "leave it out, and create an inbound NAT rule for each machine",
    ),
];

/// Unsupported members of the `sku` of a load balancer.
pub(crate) const LOAD_BALANCER_SKU: &[Unsupported] = &[refuse(
    "tier",
    "L1",
    "the load balancer would distribute to load balancers of several regions",
    "leave it out or write Regional, and create a load balancer in each region",
)
.harmless(&["Regional"])];

/// The SKU of gateway load balancers, as a member of `sku`.
pub(crate) const GATEWAY_LOAD_BALANCER: &[Unsupported] = &[refuse(
    "name",
    "L1",
    "packets of other load balancers would pass the back ends first",
    "write Standard, and send packets through appliances with a route to VirtualAppliance",
)];

/// Unsupported members of the `properties` of a front end.
pub(crate) const FRONT_END: &[Unsupported] = &[
    PUBLIC_FRONT_END,
    Unsupported {
        path: "publicIPPrefix",
        ..PUBLIC_FRONT_END
    },
    refuse(
        "gatewayLoadBalancer",
        "L1",
        "packets of the front end would pass that load balancer first",
        "leave it out, and send packets through appliances with a route to VirtualAppliance",
    ),
];
/// A front end with a public address.
const PUBLIC_FRONT_END: Unsupported = refuse(
    "publicIPAddress",
    "L1",
    "the front end would be reachable from the Internet",
    "leave it out, and name a subnet: load balancers are internal",
);

/// Unsupported members of the `properties` of a back-end pool.
pub(crate) const BACKEND_POOL: &[Unsupported] = &[refuse(
    "tunnelInterfaces",
    "L1",
    "the members would get the packets of a gateway load balancer in VXLAN tunnels",
    "leave it out",
)];

/// The member of the `properties` of a back-end pool that is refused if it is a valid number. A configuration depends on
/// the desired state alone, and this state does not have the time at which a member has left.
pub(crate) const DRAIN_PERIOD: &[Unsupported] = &[refuse(
    "drainPeriodInSeconds",
    "L7",
    "connections to a removed member would go on for that time, and then be reset",
    "leave it out or write 0; before you remove a member, let its probe fail until its connections have ended",
)];

/// Unsupported members of the `properties` of an address of a back-end pool.
pub(crate) const POOL_ADDRESS: &[Unsupported] = &[refuse(
    "loadBalancerFrontendIPConfiguration",
    "L1",
    "the member would be a load balancer of another region",
    "leave it out, and name the address of a machine in the virtual network",
)];

/// Unsupported members of an address that a back-end pool shows for a network interface.
pub(crate) const INTERFACE_OF_POOL: &[Unsupported] = &[refuse(
    "adminState",
    "L7",
    "the network interface would get or not get new flows whatever the probe says",
    "leave it None; addresses with ipAddress and virtualNetwork in place of network interfaces can have it",
)
.harmless(&["None"])];

/// Unsupported members of the `properties` of an inbound NAT rule.
pub(crate) const INBOUND_NAT_RULE: &[Unsupported] = &[
    PORT_RANGE,
    Unsupported {
        path: "frontendPortRangeEnd",
        ..PORT_RANGE
    },
    Unsupported {
        path: "backendAddressPool",
        ..PORT_RANGE
    },
];
/// An inbound NAT rule with a port for each member of a pool.
const PORT_RANGE: Unsupported = refuse(
    "frontendPortRangeStart",
    "L1",
    "each member of a pool would get a port of the range",
    "leave it out, and create an inbound NAT rule with a frontendPort for each machine",
);

/// Unsupported members of the `properties` of a virtual network gateway.
pub(crate) const GATEWAY: &[Unsupported] = &[
    refuse(
        "vpnClientConfiguration",
        "G9",
        "single machines could dial in (point-to-site)",
        "leave it out, and join the machine as an agent or describe it as a site with a local network gateway",
    )
    .ignored(&["vpnClientProtocols", "vpnAuthenticationTypes"]),
    refuse(
        "gatewayDefaultSite",
        "G24",
        "what has no other route would go to that site",
        "leave it out, and let the site announce 0.0.0.0/0 over a connection with BGP",
    ),
    refuse(
        "customRoutes.addressPrefixes",
        "G9",
        "machines that dial in would get routes to these prefixes",
        "leave it out: there is no point-to-site here",
    ),
    NAT_RULES_OF_GATEWAY,
    CUSTOM_BGP_ADDRESSES,
    PEER_WEIGHT,
    POLICY_GROUPS,
    refuse(
        "policyGroups",
        "G9",
        "machines that dial in would get addresses by group",
        "leave it out: there is no point-to-site here",
    ),
    refuse(
        "disableIPSecReplayProtection",
        "D6",
        "replayed packets would be accepted",
        "leave it false: links always drop them",
    ),
    refuse(
        "enableDnsForwarding",
        "P33",
        "the gateway would answer DNS queries",
        "leave it false, and run a DNS server in the virtual network",
    ),
    refuse(
        "adminState",
        "G2",
        "the gateway would carry nothing beside another ExpressRoute gateway",
        "leave it Enabled, and delete the gateway's connections to stop it",
    )
    .harmless(&["Enabled"]),
    refuse(
        "allowRemoteVnetTraffic",
        "E6",
        "virtual networks on one circuit would reach this one",
        "create a peering between them, or allow it everywhere: tombolo settings set circuitVnetToVnet=true",
    )
    .held_by(|settings| settings.circuit_vnet_to_vnet),
];

/// Address translation by a gateway, as `properties.natRules` of the gateway.
const NAT_RULES_OF_GATEWAY: Unsupported = refuse(
    "natRules",
    "G16",
    "addresses would be translated between the virtual network and its connections",
    "leave it out, and join networks whose addresses do not overlap",
);
/// Further BGP addresses of a gateway or a site.
const CUSTOM_BGP_ADDRESSES: Unsupported = refuse(
    "bgpSettings.bgpPeeringAddresses[].customBgpIpAddresses",
    "G4",
    "the gateway would speak BGP from these addresses too",
    "leave it out, and set bgpSettings.bgpPeeringAddress, which may be in 169.254.21.0 to 169.254.22.255",
);
/// `peerWeight`, in gateways and sites.
const PEER_WEIGHT: Unsupported = refuse(
    "bgpSettings.peerWeight",
    "R7",
    "routes of this speaker would have that weight",
    "leave it 0, and set routingWeight of the connection",
);
/// Groups of the clients that dial in by point-to-site VPN.
const POLICY_GROUPS: Unsupported = refuse(
    "virtualNetworkGatewayPolicyGroups",
    "G9",
    "machines that dial in would get addresses by group",
    "leave it out: there is no point-to-site here",
);

/// Unsupported members of the `properties` of a local network gateway.
pub(crate) const LOCAL_GATEWAY: &[Unsupported] = &[CUSTOM_BGP_ADDRESSES, PEER_WEIGHT];

/// Unsupported members of the `properties` of a connection.
pub(crate) const CONNECTION: &[Unsupported] = &[
    refuse(
        "usePolicyBasedTrafficSelectors",
        "G3",
        "only packets between chosen prefixes would pass the tunnel",
        "leave it false: what may pass follows from the prefixes of both ends",
    ),
    refuse(
        "trafficSelectorPolicies",
        "G3",
        "only packets between these prefixes would pass the tunnel",
        "leave it out: what may pass follows from the prefixes of both ends",
    ),
    refuse(
        "ipsecPolicies",
        "D16",
        "the tunnel would use these algorithms and lifetimes",
        "leave it out: tunnels are WireGuard's, which has one set of algorithms",
    ),
    refuse(
        "ingressNatRules",
        "G16",
        "addresses would be translated at the gateway",
        "leave it out, and join networks whose addresses do not overlap",
    ),
    refuse(
        "egressNatRules",
        "G16",
        "addresses would be translated at the gateway",
        "leave it out, and join networks whose addresses do not overlap",
    ),
    refuse(
        "gatewayCustomBgpIpAddresses",
        "G4",
        "the gateway would speak BGP from these addresses on this connection",
        "leave it out, and set bgpSettings.bgpPeeringAddress of the gateway",
    ),
    refuse(
        "tunnelProperties",
        "G4",
        "each tunnel would have a BGP peer of its own",
        "leave it out, and describe each device with a local network gateway and a connection",
    ),
    refuse(
        "expressRouteGatewayBypass",
        "T4",
        "packets from the circuit would pass the gateway by (FastPath)",
        "leave it false",
    ),
    refuse(
        "enablePrivateLinkFastPath",
        "T4",
        "packets to private endpoints would pass the gateway by (FastPath)",
        "leave it false",
    ),
    refuse(
        "useLocalAzureIpAddress",
        "E17",
        "the tunnel would run between private addresses",
        "leave it false, and give the gateway's agent the endpoint that the other end is to use (--endpoint)",
    ),
    refuse(
        "connectionMode",
        "D16",
        "one end alone would start the tunnel",
        "leave it Default: a gateway calls a site whose gatewayIpAddress is known, and waits for others",
    )
    .harmless(&["Default"]),
    refuse(
        "authenticationType",
        "G11",
        "the ends would prove themselves with certificates",
        "leave it PSK, and set a shared key",
    )
    .harmless(&["PSK"]),
    refuse(
        "certificateAuthentication",
        "G11",
        "the ends would prove themselves with certificates",
        "leave it out, and set a shared key",
    ),
];

/// Unsupported members of the `properties` of a connection that is not to a circuit, in addition to [`CONNECTION`].
pub(crate) const TUNNEL_CONNECTION: &[Unsupported] = &[refuse(
    "authorizationKey",
    "E3",
    "it is the key of an authorization of a circuit",
    "leave it out: only a connection of type ExpressRoute may have it",
)
.secret()];

/// Unsupported members of the `properties` of a connection to a circuit, in addition to [`CONNECTION`].
pub(crate) const CIRCUIT_CONNECTION: &[Unsupported] = &[Unsupported {
    code: "XSharedKeyNotUsed",
    ..refuse(
        "sharedKey",
        "G11",
        "the ends of a tunnel prove themselves with it, and a connection to a circuit has no tunnel of that kind",
        "leave it out; the key that signs a circuit's BGP sessions is sharedKey of its peering",
    )
    .secret()
}];

/// Unsupported members of the `properties` of a circuit.
pub(crate) const CIRCUIT: &[Unsupported] = &[refuse(
    "enableDirectPortRateLimit",
    "X9",
    "packets beyond the circuit's bandwidth would be dropped",
    "leave it false, and limit the rate on the edge's customer interface",
)];

/// Unsupported members of the `properties` of a circuit's private peering.
pub(crate) const CIRCUIT_PEERING: &[Unsupported] = &[
    refuse(
        "microsoftPeeringConfig",
        "E1",
        "public prefixes would be announced to the provider",
        "leave it out: a circuit has its private peering only",
    )
    .harmless(&["NotConfigured", "NONE"]),
    refuse(
        "routeFilter",
        "E1",
        "only chosen public services would be announced",
        "leave it out: a circuit has its private peering only",
    ),
    refuse(
        "ipv6PeeringConfig",
        "E1",
        "each line would have a second address family",
        "leave it out; both prefixes may be IPv6 /126",
    ),
    refuse(
        "connections",
        "E7",
        "sites of two circuits would reach each other (Global Reach)",
        "leave it out, and join the sites by VPN with BGP",
    ),
];

impl Draft<'_> {
    /// Adds a problem for each member of `object` that `table` lists. A member is accepted if its value has no effect,
    /// or if the present settings already cause its effect.
    pub(crate) fn check_supported(&mut self, object: &Object<'_>, table: &[Unsupported]) {
        for entry in table.iter().filter(|entry| !(entry.held_by)(&self.topology.settings)) {
            let mut found = Vec::new();
            object.find(entry.path, &mut |at, value| {
                if !entry.has_no_effect(value) {
                    found.push((at, value.clone()));
                }
            });
            for (at, value) in found {
                let value = if entry.secret {
                    "a value".to_owned()
                } else {
                    shown(&value.to_string())
                };
                let message = format!(
                    "{at}: {value} is not supported: in Azure {}. Here, {} ({}).",
                    entry.effect, entry.instead, entry.rule
                );
                self.problems.add(entry.code, at, message);
            }
        }
    }
}
