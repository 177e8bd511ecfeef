//! Records the JSON of enums without fields, and keys in text form.

use super::id;
use serde::{Deserialize, Serialize};
use tombolo_golden::{all_of, golden};
use tombolo_proto::config::{CircuitLink, ForeignSources, GatewayKind, SiteTtl, Transport};
use tombolo_proto::id::{AgentId, KeyPin, PresharedKey, PublicKey, ResourceId, Revision, Secret};
use tombolo_proto::installed::KernelRoute;
use tombolo_proto::probe::ProbeKind;
use tombolo_proto::route::{RouteOrigin, RouteSource, RouteState};
use tombolo_proto::status::{BgpPeerState, Carrier, LinkState};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Words {
    transport: Vec<Transport>,
    gateway_kind: Vec<GatewayKind>,
    foreign_sources: Vec<ForeignSources>,
    circuit_link: Vec<CircuitLink>,
    site_ttl: Vec<SiteTtl>,
    kernel_route: Vec<KernelRoute>,
    probe_kind: Vec<ProbeKind>,
    route_source: Vec<RouteSource>,
    route_state: Vec<RouteState>,
    route_origin: Vec<RouteOrigin>,
    bgp_peer_state: Vec<BgpPeerState>,
    carrier: Vec<Carrier>,
    link_state: Vec<LinkState>,
}

#[test]
fn words_of_the_contract() {
    let words = Words {
        transport: all_of!(Transport {
            Automatic,
            WireGuard,
            Quic
        }),
        gateway_kind: all_of!(GatewayKind { Vpn, ExpressRoute }),
        foreign_sources: all_of!(ForeignSources {
            None,
            OutsideOwnSpace,
            Any
        }),
        circuit_link: all_of!(CircuitLink { Primary, Secondary }),
        site_ttl: all_of!(SiteTtl { SilentHop, Transparent }),
        kernel_route: all_of!(KernelRoute { Device, Throw, Line }),
        probe_kind: all_of!(ProbeKind { Ping, Trace, Connect }),
        route_source: all_of!(RouteSource {
            Default,
            User,
            VirtualNetworkGateway
        }),
        route_state: all_of!(RouteState { Active, Invalid }),
        route_origin: all_of!(RouteOrigin { Vnet, Site }),
        bgp_peer_state: all_of!(BgpPeerState {
            Unknown,
            Stopped,
            Idle,
            Connecting,
            Connected
        }),
        carrier: all_of!(Carrier { WireGuard, Quic }),
        link_state: all_of!(LinkState {
            Idle,
            Connecting,
            Up,
            Unreachable,
            AuthenticationFailed,
            NoEndpoint
        }),
    };
    golden!().document("words", &words);
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ids {
    agent: AgentId,
    site: AgentId,
    resource: ResourceId,
    revision: Revision,
    public_key: PublicKey,
    key_pin: KeyPin,
    preshared_key: PresharedKey,
    secret: Secret,
}

#[test]
fn ids_and_keys() {
    let ids = Ids {
        agent: "hub-vm".parse().unwrap(),
        site: AgentId::of_site(&id("connections/To-Site")),
        resource: id("virtualNetworks/Hub"),
        revision: Revision(7),
        public_key: PublicKey([1; 32]),
        key_pin: KeyPin([0xa7; 32]),
        preshared_key: PresharedKey([2; 32]),
        secret: Secret("secret".into()),
    };
    golden!().document("ids", &ids);
}
