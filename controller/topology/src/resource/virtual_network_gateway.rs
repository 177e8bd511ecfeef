//! Virtual network gateways: how they are read and shown, their addresses, and their deletion (G1, G4, G6).

mod bandwidth;
mod check;

use crate::arm::body::Shape;
use crate::arm::view::{Views, allocation_method, child, reference};
use crate::draft::Draft;
use crate::net::is_apipa;
use crate::path::{Kind, child_id};
use crate::problems::Problems;
use crate::resource::frame::{Child, Echoed, Put, Resource, view};
use crate::resource::{Binding, Envelope};
use crate::rules::address::AddressRequest;
use crate::rules::place::Place;
use crate::rules::unsupported;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::ResourceId;

/// A virtual network gateway, of type `Vpn` or `ExpressRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNetworkGateway {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The instances, one or two; two if the gateway is active-active. All are in the same `GatewaySubnet` (G1). In
    /// active-standby mode the first one is preferred.
    pub ip_configurations: Vec<GatewayIpConfiguration>,
    /// `gatewayType`. It cannot change after the creation (G2).
    #[serde(default)]
    pub gateway_type: GatewayKind,
    /// `vpnType`: `RouteBased` or `PolicyBased` (G3).
    pub vpn_type: String,
    /// `activeActive`: whether both instances carry traffic (G6). If false, a second instance is a standby.
    pub active_active: bool,
    /// `enableBgp`: kept and shown only. Whether a BGP session exists depends on `enableBgp` of each connection.
    pub enable_bgp: bool,
    /// The ASN, by default 65515 (G4).
    pub asn: u32,
    /// `bgpPeeringAddress`: by default the last free address of `GatewaySubnet` (G4). On an ExpressRoute gateway the
    /// BGP address cannot be set and is not shown: it is the address of the first instance.
    pub bgp_peering_address: IpAddr,
    /// `sku.name`. It decides the figure that is shown, and with the setting `gatewayBandwidth` the limit of bandwidth
    /// (X9); it has no other effect.
    pub sku: String,
}

impl VirtualNetworkGateway {
    /// The BGP address of the instance `number`, counted from 0 in order of `ip_configurations`: the first instance has
    /// the gateway's BGP address, the second one uses its own address. If there is no instance `number`, the result is
    /// the gateway's BGP address.
    #[must_use]
    pub fn peering_address(&self, number: usize) -> IpAddr {
        let other = self.ip_configurations.get(number).filter(|_| number > 0);
        other.map_or(self.bgp_peering_address, |instance| instance.address)
    }
}

/// One instance of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayIpConfiguration {
    /// The name of the ip configuration.
    pub name: String,
    /// The id of the subnet, `…/subnets/GatewaySubnet`.
    pub subnet: ResourceId,
    /// The instance's address in that subnet. The instance answers a traceroute from it. It is allocated at creation
    /// unless the body has one.
    pub address: IpAddr,
    /// Whether the allocation method is `Static`.
    pub is_static: bool,
    /// The public IP address resource, kept and shown only.
    #[serde(default)]
    pub public_ip_address: Option<ResourceId>,
}

/// The properties that are kept and shown. `vpnGatewayGeneration` is a part of the SKU (X9). The others have no effect.
const ECHOED: Echoed = Echoed {
    properties: &[
        ("vpnGatewayGeneration", Shape::Text),
        ("enablePrivateIpAddress", Shape::Bool),
        ("enableDnsForwarding", Shape::Bool),
        ("disableIPSecReplayProtection", Shape::Bool),
        ("adminState", Shape::Text),
        ("enableBgpRouteTranslationForNat", Shape::Bool),
    ],
    ..Echoed::NOTHING
};

impl Resource for VirtualNetworkGateway {
    const KIND: Kind = Kind::VirtualNetworkGateway;
    const ECHOED: Echoed = ECHOED;
    const CHILDREN: &'static [Child] = &[IP_CONFIGURATIONS, CONNECTIONS];

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let (id, properties) = (&put.id, &put.properties);
        let kept = put.echoed(&mut draft.problems);
        let envelope = put.envelope(draft, kept);
        draft.check_supported(properties, unsupported::GATEWAY);
        let kind = draft.gateway_kind(properties, put.old());
        let vpn_type = draft.vpn_type(properties, kind, put.old());
        let active_active = properties.boolean("activeActive", &mut draft.problems).unwrap_or(false);
        let enable_bgp = properties.boolean("enableBgp", &mut draft.problems).unwrap_or(false);
        let sku = draft.gateway_sku(properties, kind, put.old());
        let old_instances = put.old().map_or(&[][..], |g| &g.ip_configurations);
        let held = old_instances
            .iter()
            .flat_map(|c| iter::once(&c.subnet).chain(&c.public_ip_address).cloned())
            .collect();
        let requested = draft.read_ip_configurations(&Place::of(&envelope, held), properties, 2);
        if active_active && requested.len() == 1 {
            let at = properties.at("activeActive");
            let message = format!("{at}: an active-active gateway needs two ip configurations, found 1 (G6)");
            draft.problems.add("XActiveActiveNeedsTwoIpConfigurations", at, message);
        }
        draft.check_gateway_place(id, kind, vpn_type, &requested, put.old());
        let subnet = requested.first().map(|w| w.subnet.clone());
        // An instance that gets a free address must not get the gateway's BGP address, which is that of the body or the
        // present one (G4). So the BGP address is read here, before the instances' addresses are chosen. Problems of
        // this address are ignored here, because `bgp_settings` reads it again below and reports them.
        let given = properties.object("bgpSettings", &mut Problems::default());
        let given = given.and_then(|bgp| bgp.address("bgpPeeringAddress", &mut Problems::default()));
        let bgp_address = given.or_else(|| put.old().map(|o| o.bgp_peering_address));
        let ip_configurations = draft.gateway_addresses(id, requested, put.old(), bgp_address);
        let own: Vec<IpAddr> = ip_configurations.iter().map(|c| c.address).collect();
        let (asn, bgp) = draft.bgp_settings(id, properties, kind, subnet.as_ref(), &own, put.old());
        if let Some(old) = put.old() {
            draft.check_instances_unused(old, &ip_configurations);
        }
        // If there are no problems, `bgp` has an address. So the fallback for a missing address is never stored.
        draft.problems.is_empty().then(|| Self {
            envelope,
            ip_configurations,
            gateway_type: kind,
            vpn_type: vpn_type.to_owned(),
            active_active,
            enable_bgp,
            asn,
            bgp_peering_address: bgp.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            sku,
        })
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, _old: &Self) {
        let users: Vec<String> = draft
            .topology
            .connections
            .values()
            .filter(|c| c.gateway1 == *id || c.gateway2 == *id)
            .map(|c| c.envelope.id.to_string())
            .collect();
        if !users.is_empty() {
            draft.problems.add(
                "VirtualNetworkGatewayCannotBeDeleted",
                id,
                format!(
                    "Virtual network gateway {id} cannot be deleted because it is still referenced by connections: {}.",
                    users.join(", ")
                ),
            );
        }
        if let Some(agent) = draft.gateway_agent(id, None) {
            draft.problems.add(
                "XGatewayInUseByAgent",
                id,
                format!("Virtual network gateway {id} is served by agent '{agent}'. Delete the agent first."),
            );
        }
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let mut bgp = json!({"asn": self.asn, "peerWeight": 0});
        if self.gateway_type == GatewayKind::Vpn {
            bgp["bgpPeeringAddress"] = json!(self.bgp_peering_address);
            bgp["bgpPeeringAddresses"] = self.bgp_address_views(views).into();
        }
        json!({
            "gatewayType": self.gateway_type,
            "vpnType": self.vpn_type,
            "sku": {"name": self.sku, "tier": self.sku},
            "activeActive": self.active_active,
            "enableBgp": self.enable_bgp,
            "bgpSettings": bgp,
            "ipConfigurations": self.ip_configuration_views(),
            "tunnelBandwidth": self.bandwidth_view(views),
        })
    }
}

/// The instances of a gateway as read-only child items.
const IP_CONFIGURATIONS: Child = Child {
    name: "ipConfigurations",
    kind: Some(Kind::GatewayIpConfiguration),
    writes: None,
    item: |views, path| {
        let gateway = views.topology.gateways.get(&path.parent()?.id())?;
        let mut configs = gateway.ip_configurations.iter();
        let found = configs.find(|c| c.name.eq_ignore_ascii_case(path.name()))?;
        Some(found.view(gateway))
    },
    list: |views, parent| Some(views.topology.gateways.get(parent)?.ip_configuration_views()),
};

/// The connections that have the gateway at one of their ends, as bodies of top-level items.
const CONNECTIONS: Child = Child {
    name: "connections",
    kind: None,
    writes: None,
    item: |_, _| None,
    list: |views, parent| {
        views.topology.gateways.get(parent)?;
        let connections = views.topology.connections.values();
        let own = connections.filter(|c| c.gateway1 == *parent || c.gateway2 == *parent);
        Some(own.map(|c| view(&**c, views)).collect())
    },
};

impl VirtualNetworkGateway {
    /// The ARM bodies of the gateway's ip configurations.
    fn ip_configuration_views(&self) -> Vec<Value> {
        self.ip_configurations.iter().map(|c| c.view(self)).collect()
    }

    /// The BGP address and the public address of each instance. The public address is the one of its `publicIPAddress`,
    /// or without such a resource the underlay address of its agent.
    fn bgp_address_views(&self, views: &Views<'_>) -> Vec<Value> {
        let instances = self.ip_configurations.iter().enumerate();
        instances
            .map(|(number, instance)| {
                let id = child_id(&self.envelope.id, "ipConfigurations", &instance.name);
                let public = instance.public_ip_address.as_ref();
                let public = public.and_then(|p| views.topology.public_ips.get(p));
                let outer = match public {
                    Some(public) => public.shown_address(views),
                    None => views.endpoint(&id, |_| true),
                };
                json!({
                    "ipconfigurationId": id,
                    "defaultBgpIpAddresses": [self.peering_address(number)],
                    "customBgpIpAddresses": [],
                    "tunnelIpAddresses": outer.into_iter().collect::<Vec<_>>(),
                })
            })
            .collect()
    }
}

impl GatewayIpConfiguration {
    /// The ARM body of the instance, which belongs to `gateway`.
    fn view(&self, gateway: &VirtualNetworkGateway) -> Value {
        let mut properties = json!({
            "privateIPAddress": self.address,
            "privateIPAllocationMethod": allocation_method(self.is_static),
            "subnet": reference(&self.subnet),
        });
        if let Some(public) = &self.public_ip_address {
            properties["publicIPAddress"] = reference(public);
        }
        let id = ResourceId::new(format!("{}/ipConfigurations/{}", gateway.envelope.id, self.name));
        child(&id, Kind::GatewayIpConfiguration, gateway.envelope.etag, properties)
    }
}

impl Draft<'_> {
    /// The ip configurations with their addresses. Each has the address of the body, or else the present address of the
    /// ip configuration with this name, or else a free one. A configuration without a free address is left out, and a
    /// problem gives the reason. `bgp_address`: the gateway's BGP address, which is never chosen as a free address.
    fn gateway_addresses(
        &mut self,
        id: &ResourceId,
        mut requested: Vec<AddressRequest>,
        old: Option<&VirtualNetworkGateway>,
        bgp_address: Option<IpAddr>,
    ) -> Vec<GatewayIpConfiguration> {
        // Stock clients always send the allocation method `Dynamic`, even if they request an address. So an ip
        // configuration with a requested address is treated as static here.
        let dynamic: Vec<bool> = requested.iter().map(|w| !w.is_static).collect();
        for w in requested.iter_mut().filter(|w| w.address.is_some()) {
            w.is_static = true;
        }
        let before = old.map_or(&[][..], |g| &g.ip_configurations);
        let current: Vec<Option<IpAddr>> = requested
            .iter()
            .map(|w| {
                before
                    .iter()
                    .find(|c| c.name.eq_ignore_ascii_case(w.id.name()))
                    .map(|c| c.address)
            })
            .collect();
        let addresses = self.allocate(id, &requested, &current, bgp_address.filter(|a| !is_apipa(*a)));
        requested
            .into_iter()
            .zip(addresses)
            .zip(dynamic)
            .filter_map(|((w, address), dynamic)| {
                Some(GatewayIpConfiguration {
                    name: w.id.name().to_owned(),
                    subnet: w.subnet.id,
                    address: address?,
                    is_static: !dynamic,
                    public_ip_address: w.public_ip_address,
                })
            })
            .collect()
    }

    /// Refuses the removal of an instance that has an agent.
    fn check_instances_unused(&mut self, old: &VirtualNetworkGateway, new: &[GatewayIpConfiguration]) {
        for gone in &old.ip_configurations {
            if new.iter().any(|c| c.name.eq_ignore_ascii_case(&gone.name)) {
                continue;
            }
            if let Some(agent) = self.gateway_agent(&old.envelope.id, Some(&gone.name)) {
                self.problems.add(
                    "XGatewayInUseByAgent",
                    &old.envelope.id,
                    format!(
                        "Ip configuration '{}' of {} is served by agent '{agent}'. Delete the agent first.",
                        gone.name, old.envelope.id
                    ),
                );
            }
        }
    }

    /// The name of the agent that is bound to a gateway, or to its ip configuration `config`. `None`: there is none, or
    /// only a revoked one.
    fn gateway_agent(&self, id: &ResourceId, config: Option<&str>) -> Option<String> {
        let serves = |binding: &Binding| match binding {
            Binding::Gateway {
                gateway,
                ip_configuration,
            } => gateway == id && config.is_none_or(|c| c.eq_ignore_ascii_case(ip_configuration)),
            Binding::Vm { .. } | Binding::Edge { .. } | Binding::Site { .. } => false,
        };
        let mut agents = self.topology.agents.values().filter(|a| !a.revoked);
        agents.find(|a| serves(&a.binding)).map(|a| a.id.to_string())
    }
}
