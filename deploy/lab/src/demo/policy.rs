//! The demo of network security groups, and of appliances behind HA ports: three tiers in two peered VNets. The hosts and
//! resources are those of the built-in topology `policy`.

use super::appliances::Pair;
use super::stage::Stage;
use crate::echo::{EchoServer, Port};
use crate::topology::Topology;
use anyhow::{Context, Result};
use serde_json::json;

const WEB: &str = "web-1";
const APP: &str = "app-1";
const APP_2: &str = "app-2";
const DB: &str = "db";
const HOSTS: [&str; 5] = [WEB, "web-2", APP, APP_2, DB];
const APPLIANCES: [&str; 2] = ["nva-1", "nva-2"];

const SITE: Port = Port::Tcp(8080);
const SQL: Port = Port::Tcp(5432);
const LOGS: Port = Port::Udp(514);
/// Port of an appliance that the health probe connects to.
const HEALTH: Port = Port::Tcp(8000);

/// Route tables of the application servers' and of the database's subnet, and the prefix of the other subnet.
const ROUTES: [(&str, &str, &str); 2] = [
    ("app-routes", "to-data", "10.2.1.0/24"),
    ("data-routes", "to-app", "10.2.0.0/24"),
];
/// The route table of the application servers' subnet, and a route for the web server's network.
const REPLIES: (&str, &str, &str) = ("app-routes", "retired", "10.1.0.0/16");
/// The front end of the appliances' load balancer.
const FRONT: &str = "10.2.2.36";

/// Returns the hosts, groups, route tables and load balancers that the steps need and that the topology does not have, each
/// as a text for an error.
pub(super) fn missing(topology: &Topology) -> Vec<String> {
    let hosts = HOSTS.into_iter().chain(APPLIANCES).filter(|name| {
        let host = topology.hosts.get(*name);
        host.is_none_or(|host| host.vm.is_none())
    });
    let groups = ["app", "data"].into_iter();
    let groups = groups.filter(|name| topology.resources.network_security_groups.find(name).is_none());
    let tables = ROUTES.into_iter().map(|(table, _, _)| table);
    let tables = tables.filter(|name| topology.resources.route_tables.find(name).is_none());
    let balancer = Some("appliances").filter(|name| topology.resources.load_balancers.find(name).is_none());
    hosts
        .map(|name| format!("host '{name}' with a vm"))
        .chain(groups.map(|name| format!("network security group '{name}'")))
        .chain(tables.map(|name| format!("route table '{name}'")))
        .chain(balancer.map(|name| format!("load balancer '{name}'")))
        .collect()
}

/// Runs all steps. Stops after the first step with a failed check, because later steps depend on it.
pub(super) async fn walk(s: &mut Stage<'_>) -> Result<()> {
    let _servers = servers(s)?;
    let mut pair = Pair::start(s, APPLIANCES, HEALTH)?;
    macro_rules! step {
        ($step:expr) => {
            $step.await?;
            if !s.report.good() {
                return Ok(());
            }
        };
    }
    step!(tiers(s));
    step!(flows(s));
    step!(application_group(s));
    step!(mistake(s));
    step!(appliances(s, &pair));
    step!(appliance_stops(s, &mut pair));
    step!(repair(s));
    Ok(())
}

/// Starts a server at each port that the steps try, on all hosts. So if a port does not answer, a rule is the reason.
fn servers(s: &Stage<'_>) -> Result<Vec<EchoServer>> {
    let mut all = Vec::new();
    for host in HOSTS {
        for port in [SITE, SQL, LOGS] {
            let netns = s.lab.hosts().netns(host);
            all.push(EchoServer::start(&netns, s.address(host)?, port).with_context(|| format!("{host} {port}"))?);
        }
    }
    Ok(all)
}

async fn tiers(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("Three tiers behind groups on a subnet and on a network interface (N3, N4)");
    s.opens(WEB, APP, SITE).await?;
    s.opens(APP, DB, SQL).await?;
    s.opens(WEB, DB, LOGS).await?;
    s.reaches(WEB, APP).await?;
    s.closed(WEB, DB, SQL).await?;
    s.closed(WEB, APP, SQL).await?;
    s.closed(APP, APP_2, SITE).await?;
    s.silent(WEB, DB).await?;
    s.denied_by(WEB, DB, SQL, "nothing-else").await?;
    s.counted("data", "nothing-else").await
}

async fn flows(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("Replies need no rule: the database may open no connection, and answers (N6)");
    s.closed(DB, APP, SITE).await?;
    s.denied_by(DB, APP, SITE, "no-new-connections").await?;
    s.opens(APP, DB, SQL).await
}

async fn application_group(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("An application security group decides by membership, not by address (N9)");
    s.opens(APP_2, DB, SQL).await?;
    s.set_application_groups("app-2-nic", &[]).await?;
    s.closed(APP_2, DB, SQL).await?;
    s.opens(APP, DB, SQL).await?;
    s.set_application_groups("app-2-nic", &["app-servers"]).await?;
    s.opens(APP_2, DB, SQL).await
}

async fn mistake(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("A rule that breaks the site: explain finds it, and its removal repairs it (N1, N3, N6)");
    let mut open = s.connection(APP, DB, SQL).await?;
    let rule = json!({"properties": {
        "priority": 150, "direction": "Inbound", "access": "Deny", "protocol": "Tcp",
        "sourceAddressPrefix": "10.2.0.0/24", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": "5432",
    }});
    s.put_rule("data", "retire-old-servers", &rule).await?;
    s.closed(APP, DB, SQL).await?;
    s.still_works(&mut open, "the connection that was open before").await?;
    s.denied_by(APP, DB, SQL, "retire-old-servers").await?;
    s.counted("data", "retire-old-servers").await?;
    s.delete_rule("data", "retire-old-servers").await?;
    s.opens(APP, DB, SQL).await?;
    s.opens(WEB, APP, SITE).await
}

async fn appliances(s: &mut Stage<'_>, pair: &Pair) -> Result<()> {
    s.report
        .step("Two appliances between the tiers, behind a load balancer with HA ports (L9, R11)");
    s.passes_none(pair, (APP, DB), SQL).await?;
    for (table, name, prefix) in ROUTES {
        s.route_to(table, name, prefix, FRONT).await?;
    }
    s.pass(pair, (APP, DB), &[SQL, LOGS], [true, true]).await?;
    s.explain_passes(pair, (APP, DB), SQL).await?;
    s.closed(DB, APP, SITE).await?;
    s.opens(WEB, APP, SITE).await
}

async fn appliance_stops(s: &mut Stage<'_>, pair: &mut Pair) -> Result<()> {
    s.report
        .step("An appliance is down: new flows pass the other one, and old connections go on (L7)");
    let mut open = s.connection_through(pair, 0, (APP, DB), SQL).await?;
    s.set_appliance(pair, 0, false)?;
    s.pass(pair, (APP, DB), &[SQL, LOGS], [false, true]).await?;
    s.explain_passes(pair, (APP, DB), SQL).await?;
    s.still_works(&mut open, "the connection through nva-1").await?;
    s.set_appliance(pair, 0, true)?;
    s.pass(pair, (APP, DB), &[SQL, LOGS], [true, true]).await
}

async fn repair(s: &mut Stage<'_>) -> Result<()> {
    s.report
        .step("A route that swallows the replies: explain --fix finds it and repairs it (D40, R13)");
    let (table, name, prefix) = REPLIES;
    s.black_hole(table, name, prefix).await?;
    s.closed(WEB, APP, SITE).await?;
    s.repair(WEB, APP, SITE, &format!("delete the route {name}")).await?;
    s.opens(WEB, APP, SITE).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_topology_has_what_the_steps_need() {
        assert_eq!(missing(&Topology::load("policy").unwrap()), Vec::<String>::new());
        let other = missing(&Topology::load("hub-spoke").unwrap()).join(", ");
        assert!(other.contains("host 'db'") && other.contains("group 'data'"), "{other}");
    }
}
