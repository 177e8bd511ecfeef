//! The tree of commands.

use crate::command::{
    agent, api_token, apply, assertion, backup, capture, check, circuit, connection, explain, flow_log, gateway, group,
    lab, lb, link, local_gateway, login, monitor, nic, nsg, peering, plain, probe, public_ip, reach, route_table,
    routes, settings, subnet, token, usage, vnet, wait,
};
use crate::options::Global;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Azure-style virtual networks, peerings and gateways between your own machines.
///
/// The controller and the token are taken from the options below, from the environment, or from the file that
/// `tombolo login` writes, in this order.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, propagate_version = true, max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Save a controller and a token in the configuration file, after a test of both
    Login(login::Login),
    /// Show the state of the controller and its agents, all gateways and connections, and the peerings that have
    /// problems
    Status,
    /// Create and update resources from manifest files; shows the difference and asks first
    Apply(apply::Apply),
    /// Show what `tombolo apply` would change
    Diff(apply::Diff),
    /// Manage resource groups
    #[command(subcommand)]
    Group(group::Group),
    /// Manage virtual networks
    #[command(subcommand)]
    Vnet(vnet::Vnet),
    /// Manage subnets, named VNET/SUBNET
    #[command(subcommand)]
    Subnet(subnet::Subnet),
    /// Manage peerings, named VNET/PEERING; each of the two VNets has one half of a peering
    #[command(subcommand)]
    Peering(peering::Peering),
    /// Manage network interfaces
    #[command(subcommand)]
    Nic(nic::Nic),
    /// Manage public addresses
    #[command(subcommand, name = "public-ip")]
    PublicIp(public_ip::PublicIp),
    /// Manage route tables and their routes
    #[command(subcommand)]
    RouteTable(route_table::RouteTable),
    /// Manage network security groups and their rules
    #[command(subcommand)]
    Nsg(nsg::Nsg),
    /// Manage flow logs, which record the flows of network interfaces
    #[command(subcommand)]
    FlowLog(flow_log::FlowLog),
    /// Manage internal load balancers with their front ends, pools, probes and rules
    #[command(subcommand)]
    Lb(lb::Lb),
    /// Manage VPN and ExpressRoute gateways
    #[command(subcommand)]
    Gateway(gateway::Gateway),
    /// Manage connections of gateways to other gateways, sites and circuits
    #[command(subcommand)]
    Connection(connection::Connection),
    /// Manage local network gateways, which describe sites and their VPN devices
    #[command(subcommand)]
    LocalGateway(local_gateway::LocalGateway),
    /// Manage ExpressRoute circuits
    #[command(subcommand)]
    Circuit(circuit::Circuit),
    #[command(flatten)]
    Plain(plain::Plain),
    /// Manage agents, the programs that carry packets on machines, gateways and edges
    #[command(subcommand)]
    Agent(agent::Agent),
    /// Manage the one-time tokens with which agents join
    #[command(subcommand)]
    Token(token::Token),
    /// Manage the tokens of people and programs that use the controller
    #[command(subcommand)]
    ApiToken(api_token::ApiToken),
    /// Show or change the settings of the controller
    #[command(subcommand)]
    Settings(settings::Settings),
    /// Show the effective routes of a network interface or machine
    Routes(routes::Routes),
    /// Explain how a packet from A to B is forwarded or why it is dropped; sends nothing
    Explain(explain::Explain),
    /// Show which addresses reach which, by which protocols and ports; sends nothing
    Reach(reach::Reach),
    /// Check the connection from A to B with real packets, sent by A's agent: hops, latency, and what stops it
    Check(check::Check),
    /// Capture packets at a machine, live or into a file of its agent
    Capture(capture::Capture),
    /// Manage the assertions: what every change must leave reachable, or unreachable
    #[command(subcommand)]
    Assertion(assertion::Assertion),
    /// Ping from A to B with real packets, sent by A's agent
    Ping(probe::Ping),
    /// Trace the path from A to B with real packets, sent by A's agent
    Trace(probe::Trace),
    /// Show connection monitors, which repeat checks, with their results
    #[command(subcommand)]
    Monitor(monitor::Monitor),
    /// Show what peerings, connections and circuits have carried, and what that costs
    Usage(usage::Usage),
    /// Show the encrypted links between agents, as the agents report them
    Link(link::Link),
    /// Wait until a revision is in force at every connected agent
    Wait(wait::Wait),
    /// Save the controller's store to a file while the controller runs
    Backup(backup::Backup),
    /// Run a whole topology on this machine, in network namespaces
    Lab(lab::Lab),
    /// Print the completion script of a shell
    Completions {
        /// Shell that reads the completion script
        shell: clap_complete::Shell,
    },
    /// Write manual pages and shell completions into an existing directory, for packages
    #[command(hide = true)]
    Manual { dir: PathBuf },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
