//! The regions of resources for which a document names none.

use super::{DesiredResource, expanded};

const TWO_REGIONS: &str = "
location: region1
virtualNetworks:
  hub: {addressSpace: [10.1.0.0/16], subnets: {workload: {addressPrefix: 10.1.0.0/24}}}
  branch: {location: region2, addressSpace: [10.9.0.0/16], subnets: {workload: {addressPrefix: 10.9.0.0/24}}}
networkInterfaces:
  hub-nic: {subnet: hub/workload, publicIPAddress: hub-nic-pip}
  branch-nic: {ipConfigurations: {a: {subnet: branch/workload, publicIPAddress: branch-nic-pip}}}
publicIPAddresses: {hub-nic-pip: {}, branch-nic-pip: {}, hub-gw-pip: {}, branch-gw-pip: {}, far-pip: {location: region3}, free-pip: {}}
virtualNetworkGateways:
  hub-gw: {virtualNetwork: hub, publicIPAddress: hub-gw-pip}
  branch-gw: {virtualNetwork: branch, ipConfigurations: {a: {publicIPAddress: branch-gw-pip}, b: {publicIPAddress: far-pip}}}
  other-gw: {location: region3, virtualNetwork: branch}
loadBalancers:
  lb: {frontEnds: {front: {subnet: branch/workload}}}
connections:
  out: {virtualNetworkGateway1: hub-gw, virtualNetworkGateway2: branch-gw}
  back: {virtualNetworkGateway1: branch-gw, virtualNetworkGateway2: hub-gw}
  other: {virtualNetworkGateway1: other-gw, virtualNetworkGateway2: hub-gw}
  named: {location: region4, virtualNetworkGateway1: branch-gw, virtualNetworkGateway2: hub-gw}
";

/// P1: what a resource uses is in its region. So a resource without a region is in the region of what it uses or of what
/// uses it. A region that the document names is kept, for the controller to refuse it where it is wrong.
#[test]
fn p1_a_resource_is_in_the_region_of_what_it_uses() {
    let all = expanded(TWO_REGIONS);
    let region = |name: &str| {
        let found = all.iter().find(|e: &&DesiredResource| e.name == name).unwrap();
        found.body["location"].as_str().unwrap()
    };
    for name in ["hub-nic", "hub-nic-pip", "hub-gw", "hub-gw-pip", "free-pip", "out"] {
        assert_eq!(region(name), "region1", "{name}");
    }
    for name in [
        "branch-nic",
        "branch-nic-pip",
        "branch-gw",
        "branch-gw-pip",
        "lb",
        "back",
    ] {
        assert_eq!(region(name), "region2", "{name}");
    }
    for name in ["far-pip", "other-gw", "other"] {
        assert_eq!(region(name), "region3", "{name}");
    }
    assert_eq!(region("named"), "region4");
}
