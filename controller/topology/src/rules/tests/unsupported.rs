//! Properties of Azure that would change the treatment of packets and are not implemented. A request with such a
//! property is refused, and the message names the property (D3); its default value is accepted.

use super::{World, connection_body, gateway_body, net, peering_properties, with};
use crate::change::Change;
use crate::resource::Settings;
use serde_json::{Value, json};

/// A hub and a branch with VPN gateways, an ExpressRoute gateway in the hub too, a circuit and a site.
fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.vnet("branch", &["10.2.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.1.0.0/24").unwrap();
    w.gateway("hub", "10.1.255.0/24").unwrap();
    w.gateway("branch", "10.2.255.0/27").unwrap();
    w.express_gateway("hub", "10.1.255.0/24").unwrap();
    w.circuit("er1", 30).unwrap();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    w
}

/// Sends a PUT of an item of a kind. `more` overrides properties of a valid body.
fn put(w: &mut World, kind: &str, more: Value) -> Result<Value, crate::change::Rejection> {
    let located = |properties: Value| json!({"location": "region1", "properties": properties});
    let id = |tail: &str| json!({"id": net(tail)});
    match kind {
        "gateway" => w.put(&net("virtualNetworkGateways/hub-gw"), gateway_body("hub", more)),
        "er-gateway" => {
            let more = with(json!({"gatewayType": "ExpressRoute"}), more);
            w.put(&net("virtualNetworkGateways/hub-er"), gateway_body("hub", more))
        }
        "connection" => w.put(&net("connections/c"), connection_body("hub", "branch", more)),
        "circuit-connection" => w.link("er", "hub", "er1", more),
        "site" => w.site("loc", &["10.7.0.0/16"], more),
        "circuit" => w.put(&net("expressRouteCircuits/er1"), located(more)),
        "circuit-peering" => {
            let body = json!({"properties": with(peering_properties(30), more)});
            w.put(&net("expressRouteCircuits/er1/peerings/AzurePrivatePeering"), body)
        }
        "vnet" => {
            let space = json!({"addressSpace": {"addressPrefixes": ["10.1.0.0/16"]}});
            w.put(&net("virtualNetworks/hub"), located(with(space, more)))
        }
        "nic" => {
            let subnet = json!({"subnet": id("virtualNetworks/hub/subnets/s")});
            let configuration = json!({"name": "a", "properties": with(subnet, more)});
            w.put(
                &net("networkInterfaces/n"),
                located(json!({"ipConfigurations": [configuration]})),
            )
        }
        other => panic!("{other}"),
    }
}

/// The refused properties. Each entry has the kind of the item, the property's path below `properties`, and a body that
/// sets the property.
fn refused() -> Vec<(&'static str, &'static str, Value)> {
    let reference = || json!({"id": net("localNetworkGateways/loc")});
    let pool =
        json!({"vpnClientAddressPool": {"addressPrefixes": ["172.16.0.0/24"]}, "vpnClientProtocols": ["OpenVPN"]});
    let rule = json!([{"name": "r", "properties": {"mode": "EgressSnat"}}]);
    let own_addresses = json!({"bgpPeeringAddresses": [
        {"ipconfigurationId": "x", "defaultBgpIpAddresses": ["10.1.255.4"]},
        {"ipconfigurationId": "y", "customBgpIpAddresses": ["169.254.21.9"]},
    ]});
    let custom = "bgpSettings.bgpPeeringAddresses[1].customBgpIpAddresses";
    let policy = json!([{"saLifeTimeSeconds": 3600, "ipsecEncryption": "AES256"}]);
    vec![
        (
            "gateway",
            "vpnClientConfiguration",
            json!({"vpnClientConfiguration": pool}),
        ),
        (
            "gateway",
            "gatewayDefaultSite",
            json!({"gatewayDefaultSite": reference()}),
        ),
        (
            "gateway",
            "customRoutes.addressPrefixes",
            json!({"customRoutes": {"addressPrefixes": ["10.9.0.0/16"]}}),
        ),
        ("gateway", "natRules", json!({"natRules": rule})),
        ("gateway", custom, json!({"bgpSettings": own_addresses})),
        (
            "gateway",
            "bgpSettings.peerWeight",
            json!({"bgpSettings": {"peerWeight": 5}}),
        ),
        (
            "gateway",
            "virtualNetworkGatewayPolicyGroups",
            json!({"virtualNetworkGatewayPolicyGroups": [{"name": "g"}]}),
        ),
        ("gateway", "policyGroups", json!({"policyGroups": [{"name": "g"}]})),
        (
            "gateway",
            "disableIPSecReplayProtection",
            json!({"disableIPSecReplayProtection": true}),
        ),
        ("gateway", "enableDnsForwarding", json!({"enableDnsForwarding": true})),
        ("er-gateway", "adminState", json!({"adminState": "Disabled"})),
        (
            "er-gateway",
            "allowRemoteVnetTraffic",
            json!({"allowRemoteVnetTraffic": true}),
        ),
        (
            "connection",
            "usePolicyBasedTrafficSelectors",
            json!({"usePolicyBasedTrafficSelectors": true}),
        ),
        (
            "connection",
            "trafficSelectorPolicies",
            json!({"trafficSelectorPolicies": [{"localAddressRanges": ["10.1.0.0/16"]}]}),
        ),
        ("connection", "ipsecPolicies", json!({"ipsecPolicies": policy})),
        (
            "connection",
            "ingressNatRules",
            json!({"ingressNatRules": [reference()]}),
        ),
        ("connection", "egressNatRules", json!({"egressNatRules": [reference()]})),
        (
            "connection",
            "gatewayCustomBgpIpAddresses",
            json!({"gatewayCustomBgpIpAddresses": [{"customBgpIpAddress": "169.254.21.9"}]}),
        ),
        (
            "connection",
            "tunnelProperties",
            json!({"tunnelProperties": [{"bgpPeeringAddress": "169.254.21.9"}]}),
        ),
        (
            "connection",
            "useLocalAzureIpAddress",
            json!({"useLocalAzureIpAddress": true}),
        ),
        (
            "connection",
            "connectionMode",
            json!({"connectionMode": "ResponderOnly"}),
        ),
        (
            "connection",
            "authenticationType",
            json!({"authenticationType": "Certificate"}),
        ),
        (
            "connection",
            "certificateAuthentication",
            json!({"certificateAuthentication": {"inboundAuthCertificateSubjectName": "x"}}),
        ),
        (
            "connection",
            "authorizationKey",
            json!({"authorizationKey": "very-secret"}),
        ),
        ("circuit-connection", "sharedKey", json!({"sharedKey": "very-secret"})),
        (
            "circuit-connection",
            "expressRouteGatewayBypass",
            json!({"expressRouteGatewayBypass": true}),
        ),
        (
            "circuit-connection",
            "enablePrivateLinkFastPath",
            json!({"enablePrivateLinkFastPath": true}),
        ),
        (
            "site",
            "bgpSettings.peerWeight",
            json!({"bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.7.0.1", "peerWeight": 1}}),
        ),
        (
            "circuit",
            "enableDirectPortRateLimit",
            json!({"enableDirectPortRateLimit": true}),
        ),
        (
            "circuit-peering",
            "microsoftPeeringConfig",
            json!({"microsoftPeeringConfig": {"advertisedPublicPrefixes": ["192.0.2.0/24"]}}),
        ),
        (
            "circuit-peering",
            "routeFilter",
            json!({"routeFilter": {"id": net("routeFilters/f")}}),
        ),
        (
            "circuit-peering",
            "ipv6PeeringConfig",
            json!({"ipv6PeeringConfig": {"primaryPeerAddressPrefix": "fd00::/126"}}),
        ),
        (
            "circuit-peering",
            "connections",
            json!({"connections": [{"name": "global-reach"}]}),
        ),
        (
            "vnet",
            "bgpCommunities.virtualNetworkCommunity",
            json!({"bgpCommunities": {"virtualNetworkCommunity": "12076:20001"}}),
        ),
        (
            "nic",
            "ipConfigurations[0].properties.gatewayLoadBalancer",
            json!({"gatewayLoadBalancer": reference()}),
        ),
        (
            "nic",
            "ipConfigurations[0].properties.virtualNetworkTaps",
            json!({"virtualNetworkTaps": [reference()]}),
        ),
        (
            "nic",
            "ipConfigurations[0].properties.applicationGatewayBackendAddressPools",
            json!({"applicationGatewayBackendAddressPools": [reference()]}),
        ),
        (
            "nic",
            "ipConfigurations[0].properties.privateIPAddressPrefixLength",
            json!({"privateIPAddressPrefixLength": 28}),
        ),
    ]
}

#[test]
fn what_would_change_packets_is_refused_by_name() {
    let mut w = world();
    for kind in [
        "gateway",
        "er-gateway",
        "connection",
        "circuit-connection",
        "site",
        "circuit",
        "circuit-peering",
        "vnet",
        "nic",
    ] {
        put(&mut w, kind, json!({})).unwrap_or_else(|e| panic!("{kind}: {e:?}"));
    }
    for (kind, place, more) in refused() {
        let before = format!("{:?}", w.now);
        let rejection = put(&mut w, kind, more.clone()).expect_err(place);
        assert!(
            format!("{:?}", w.now) == before,
            "{kind} {place}: something has changed"
        );
        let [problem] = rejection.problems.as_slice() else {
            panic!("{kind} {place}: {rejection:?}");
        };
        let code = if place == "sharedKey" {
            "XSharedKeyNotUsed"
        } else {
            "XNotSupported"
        };
        assert_eq!((rejection.status, problem.code), (400, code), "{place}");
        let place = format!("properties.{place}");
        assert_eq!(problem.target.as_deref(), Some(place.as_str()));
        let message = &problem.message;
        assert!(
            message.starts_with(&place) && message.contains("Here, ") && message.ends_with(")."),
            "{message}"
        );
        assert!(!message.contains("very-secret"), "{message}");
    }
}

/// Empty values of unsupported properties are accepted. Stock clients write back what they have read, and add empty
/// values for properties that they do not use.
#[test]
fn defaults_of_unsupported_properties_are_taken() {
    fn empty(value: &Value) -> Value {
        match value {
            Value::Bool(_) => json!(false),
            Value::Number(_) => json!(0),
            Value::String(_) => json!(""),
            Value::Array(_) => json!([]),
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| (name.clone(), empty(value)))
                .collect(),
            Value::Null => Value::Null,
        }
    }
    let mut w = world();
    for (kind, place, more) in refused() {
        let mut nulls = more.clone();
        let mut empties = empty(&more);
        for value in nulls.as_object_mut().unwrap().values_mut() {
            *value = Value::Null;
        }
        if kind == "site" {
            // In `bgpSettings` of a site, the ASN and the BGP address cannot be empty, so valid ones are sent.
            empties = json!({"bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.7.0.1", "peerWeight": 0}});
        } else if place.starts_with("bgpSettings") {
            empties = json!({"bgpSettings": {"bgpPeeringAddresses": [], "peerWeight": 0}});
        }
        for body in [nulls, empties] {
            // An empty string is no value of an enumeration, so these two properties are left out of the body.
            let body = match place {
                "sharedKey" | "adminState" => json!({}),
                _ => body,
            };
            put(&mut w, kind, body.clone()).unwrap_or_else(|e| panic!("{kind} {body}: {e:?}"));
        }
    }
    for (kind, more) in [
        (
            "gateway",
            json!({"vpnClientConfiguration": {"vpnClientProtocols": ["OpenVPN", "IkeV2"], "vpnClientRootCertificates": [], "radiusServerAddress": ""}}),
        ),
        (
            "gateway",
            json!({"bgpSettings": {"asn": 65515, "bgpPeeringAddresses": [{"ipconfigurationId": "x", "defaultBgpIpAddresses": ["10.1.255.4"], "customBgpIpAddresses": [], "tunnelIpAddresses": ["192.0.2.1"]}]}}),
        ),
        ("er-gateway", json!({"adminState": "enabled"})),
        (
            "connection",
            json!({"connectionMode": "Default", "authenticationType": "PSK", "connectionProtocol": "IKEv2"}),
        ),
        (
            "circuit-peering",
            json!({"microsoftPeeringConfig": {"advertisedPublicPrefixes": [], "advertisedPublicPrefixesState": "NotConfigured", "customerASN": 0, "legacyMode": 0, "routingRegistryName": "NONE"}}),
        ),
        (
            "vnet",
            json!({"bgpCommunities": {"virtualNetworkCommunity": ""}, "encryption": {"enabled": true, "enforcement": "DropUnencrypted"}, "flowTimeoutInMinutes": 10}),
        ),
    ] {
        put(&mut w, kind, more.clone()).unwrap_or_else(|e| panic!("{kind} {more}: {e:?}"));
    }
}

/// E6: `allowRemoteVnetTraffic` of a gateway is refused while the setting `circuitVnetToVnet` is off, and accepted
/// while it is on.
#[test]
fn e6_traffic_of_other_vnets_is_taken_where_a_setting_allows_it() {
    let mut w = world();
    let allowed = || json!({"allowRemoteVnetTraffic": true});
    assert!(put(&mut w, "er-gateway", allowed()).is_err());
    let settings = Settings {
        circuit_vnet_to_vnet: true,
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(settings)).unwrap();
    put(&mut w, "er-gateway", allowed()).unwrap();
}
