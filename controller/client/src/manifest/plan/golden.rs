//! Golden files of the JSON output of `tombolo diff` and `tombolo apply`.

use super::{Action, Plan, Step};
use crate::manifest::order::Rank;
use crate::path::Group;
use serde_json::{Value, json};
use tombolo_golden::{all_of, golden};
use tombolo_proto::arm::Kind;

fn step(action: Action, kind: Kind, note: Option<String>) -> Step {
    let group = Group::new("s", "lab");
    Step {
        action,
        kind,
        name: "hub".into(),
        path: group.path(),
        group,
        note,
        before: Value::Null,
        after: json!({"location": "region1"}),
        body: json!({"secret": "not shown"}),
        sync: true,
        rank: Rank::Vnet,
    }
}

#[test]
fn plans() {
    let kinds = all_of!(Kind {
        ResourceGroup,
        RouteTable,
        PublicIpAddress,
        VirtualNetwork,
        Subnet,
        VirtualNetworkGateway,
        Peering,
        NetworkInterface,
        LocalNetworkGateway,
        Circuit,
        Connection,
        ApplicationSecurityGroup,
        NetworkSecurityGroup,
        LoadBalancer,
        // Manifests cannot contain resources of these kinds: `Kind` also has kinds that only the REST interface uses.
        Route,
        NicIpConfiguration,
        GatewayIpConfiguration,
        CircuitPeering,
        CircuitAuthorization,
        SecurityRule,
        DefaultSecurityRule,
        FrontEnd,
        BackendPool,
        LoadBalancingRule,
        Probe,
        InboundNatRule,
        OutboundRule,
        VirtualMachine,
        VirtualMachineExtension,
        FlowLog
    });
    let actions = all_of!(Action {
        Create,
        Update,
        Unchanged,
        Delete
    });
    let steps = kinds.into_iter().zip(actions.into_iter().cycle());
    let mut steps: Vec<_> = steps.map(|(kind, action)| step(action, kind, None)).collect();
    steps.push(step(Action::Update, Kind::Peering, Some("is synced".into())));
    golden!().written("plan", &[("steps", Plan { steps })]);
}
