//! The faults of gateways and connections: M8.

use super::{World, net};
use crate::resource::Binding;
use crate::topology::AgentStatuses;
use crate::troubleshoot::diagnose;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{AgentStatus, LinkState, LinkStatus};

/// The names of the faults of a gateway or connection, and their details.
fn faults(w: &World, statuses: &AgentStatuses, target: &str) -> (Vec<&'static str>, String) {
    let found = diagnose(&w.now, statuses, &ResourceId::new(net(target))).unwrap();
    let details: Vec<_> = found.iter().map(|fault| fault.detail.clone()).collect();
    for fault in &found {
        assert_eq!(fault.action.is_empty(), fault.kind.name() == "NoFault", "{fault:?}");
        assert!(fault.summary.ends_with('.') && !fault.detail.is_empty(), "{fault:?}");
    }
    (found.iter().map(|fault| fault.kind.name()).collect(), details.join("|"))
}

/// M8: each state that agents report, and each lack of the desired state, has its fault.
#[test]
fn m8_every_fault_comes_from_the_real_state() {
    let mut w = World::new();
    for (vnet, space, subnet) in [
        ("hub", "10.1.0.0/16", "10.1.255.0/27"),
        ("branch", "10.2.0.0/16", "10.2.255.0/27"),
    ] {
        w.vnet(vnet, &[space]).unwrap();
        w.gateway(vnet, subnet).unwrap();
    }
    let (gateway, connection) = ("virtualNetworkGateways/hub-gw", "connections/there");
    let mut statuses = AgentStatuses::default();
    assert_eq!(
        faults(&w, &statuses, gateway).0,
        ["ServiceNotRunning", "NoConnectionsFoundForGateway"]
    );
    w.connect("there", "hub", "branch").unwrap();
    assert_eq!(
        faults(&w, &statuses, gateway).0,
        ["ServiceNotRunning", "ConnectionsNotConnected"]
    );
    assert_eq!(faults(&w, &statuses, connection).0, ["ServiceNotRunning"]);
    for vnet in ["hub", "branch"] {
        let binding = Binding::Gateway {
            gateway: ResourceId::new(net(&format!("virtualNetworkGateways/{vnet}-gw"))),
            ip_configuration: "default".to_owned(),
        };
        w.join(&format!("{vnet}-agent"), binding).unwrap();
    }
    let (hub, branch) = (
        AgentId::new("hub-agent").unwrap(),
        AgentId::new("branch-agent").unwrap(),
    );
    let (names, details) = faults(&w, &statuses, gateway);
    assert_eq!(names, ["VipUnResponsive", "ConnectionsNotConnected"]);
    assert!(details.contains("hub-agent"), "{details}");
    assert_eq!(faults(&w, &statuses, connection).0, ["VipUnResponsive"]);

    statuses.connected.insert(hub.clone());
    statuses.agents.insert(hub.clone(), AgentStatus::default());
    let (names, details) = faults(&w, &statuses, connection);
    assert_eq!(names, ["ConnectionNotConfiguredOnGateway"]);
    assert!(details.contains("no counterpart connection"), "{details}");
    w.connect("back", "branch", "hub").unwrap();
    for (state, of_connection, of_gateway) in [
        (
            LinkState::Connecting,
            "ConnectionIsMarkedDisconnected",
            "ConnectionsNotConnected",
        ),
        (
            LinkState::AuthenticationFailed,
            "Authentication",
            "ConnectionsNotConnected",
        ),
        (LinkState::Unreachable, "PeerReachability", "ConnectionsNotConnected"),
        (LinkState::NoEndpoint, "PeerReachability", "ConnectionsNotConnected"),
        (LinkState::Up, "NoFault", "NoFault"),
    ] {
        let link = LinkStatus {
            state,
            ..LinkStatus::new(branch.clone())
        };
        statuses.agents.get_mut(&hub).unwrap().links = vec![link];
        assert_eq!(faults(&w, &statuses, connection).0, [of_connection], "{state:?}");
        assert_eq!(faults(&w, &statuses, gateway).0, [of_gateway], "{state:?}");
    }
    // The last report stays after an agent has gone, but it says nothing about the present.
    statuses.connected.clear();
    assert_eq!(faults(&w, &statuses, connection).0, ["VipUnResponsive"]);
    let vnet = ResourceId::new(net("virtualNetworks/hub"));
    assert_eq!(diagnose(&w.now, &statuses, &vnet), None);
}
