//! Proves that the comparison notices defects of load balancers.

use super::must_be_caught;
use tombolo_engine::routing::RoutingState;
use tombolo_proto::config::{AgentConfig, BalancingRule, Distribution, Role};
use tombolo_tests::world::Mutation;
use tombolo_topology::resource::LoadBalancerSku;

fn balancing_must_be_caught(what: &str, mutation: fn(&mut AgentConfig)) {
    must_be_caught(what, Mutation::Config(mutation));
}

fn for_each_rule(config: &mut AgentConfig, change: impl Fn(&mut BalancingRule)) {
    let rules = config.front_ends.iter_mut().flat_map(|front_end| &mut front_end.rules);
    rules.for_each(change);
}

/// L4: the defect chooses by ports too, whatever the distribution of the rule is.
#[test]
fn switching_off_distributions_is_caught() {
    balancing_must_be_caught("L4", |config| {
        for_each_rule(config, |rule| rule.distribution = Distribution::Default);
    });
}

/// L7: the defect moves the TCP flows of a back end that is down.
#[test]
fn flows_that_leave_a_back_end_that_is_down_are_caught() {
    must_be_caught(
        "L7, established flows",
        Mutation::Learned(|config: &mut AgentConfig, dynamic: &RoutingState| {
            for_each_rule(config, |rule| {
                let probe = rule.probe.as_ref().map(|probe| probe.id.clone());
                let is_down = |address| {
                    let place = probe.clone().map(|probe| (probe, address));
                    place.is_some_and(|place| dynamic.unhealthy.contains(&place))
                };
                rule.back_ends.retain(|address| !is_down(*address));
            });
        }),
    );
}

/// L7: the defect sends new flows to back ends that are down.
#[test]
fn new_flows_to_a_back_end_that_is_down_are_caught() {
    balancing_must_be_caught("L7, new flows", |config| {
        for_each_rule(config, |rule| rule.probe = None);
    });
}

/// L8: with the defect, established TCP flows end if all back ends are down, also with the SKU Standard.
#[test]
fn flows_of_standard_that_end_are_caught() {
    balancing_must_be_caught("L8, Standard", |config| {
        for_each_rule(config, |rule| rule.ends_flows = true);
    });
}

/// L8: with the defect, established TCP flows continue if all back ends are down, also with the SKU Basic.
#[test]
fn flows_of_basic_that_continue_are_caught() {
    balancing_must_be_caught("L8, Basic", |config| {
        for_each_rule(config, |rule| rule.ends_flows = false);
    });
}

/// L5, D10: the defect accepts the address of a front end as source from every agent.
#[test]
fn switching_off_the_source_check_of_front_ends_is_caught() {
    balancing_must_be_caught("L5, source check", |config| {
        let addresses = config.front_ends.iter().map(|f| f.address.into());
        let addresses: Vec<ipnet::IpNet> = addresses.collect();
        for link in &mut config.links {
            link.sources.extend(&addresses);
        }
    });
}

/// L5, D10: the defect refuses the replies of back ends.
#[test]
fn refused_replies_of_back_ends_are_caught() {
    balancing_must_be_caught("L5, replies", |config| {
        let front_ends = config.front_ends.clone();
        for link in &mut config.links {
            let is_front_end = |p: &ipnet::IpNet| front_ends.iter().any(|f| ipnet::IpNet::from(f.address) == *p);
            link.sources.retain(|prefix| !is_front_end(prefix));
        }
    });
}

/// L5: with the defect, the client gets replies from the address of the back end.
#[test]
fn replies_that_are_not_translated_back_are_caught() {
    must_be_caught("L5, translation of replies", Mutation::UntranslatedReplies);
}

/// L3, L5: with the defect, back ends get packets with the port of the front end.
#[test]
fn ports_that_are_not_translated_are_caught() {
    balancing_must_be_caught("L5, ports", |config| {
        for_each_rule(config, |rule| rule.back_end_port = rule.port);
    });
}

/// L3: the defect ignores floating IP.
#[test]
fn ignoring_floating_ip_is_caught() {
    balancing_must_be_caught("L3, floating IP", |config| {
        for_each_rule(config, |rule| rule.floating_ip = false);
    });
}

/// L11: with the defect, an agent chooses none of its own back ends, so that a back end reaches the others.
#[test]
fn switching_off_l11_is_caught() {
    balancing_must_be_caught("L11", |config| {
        let Role::Vm { nics, .. } = &config.role else { return };
        let own: Vec<_> = nics
            .iter()
            .flat_map(|nic| &nic.addresses)
            .map(ipnet::IpNet::addr)
            .collect();
        for_each_rule(config, |rule| rule.back_ends.retain(|address| !own.contains(address)));
    });
}

/// L10, P30: the defect lets VNets of other regions reach the front ends of the SKU Basic.
#[test]
fn switching_off_p30_is_caught() {
    must_be_caught(
        "P30",
        Mutation::Topology(|topology| {
            for balancer in topology.load_balancers.values_mut() {
                let mut changed = (**balancer).clone();
                changed.sku = LoadBalancerSku::Standard;
                *balancer = changed.into();
            }
        }),
    );
}
