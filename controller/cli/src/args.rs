//! The tree of commands.

use crate::command::{
    agent, api_token, apply, backup, circuit, connection, explain, gateway, group, lab, link, local_gateway, login,
    nic, peering, plain, probe, route_table, routes, settings, subnet, token, vnet, wait,
};
use crate::options::Global;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Azure-style virtual networks, peerings and gateways between your own machines.
///
/// The controller to talk to comes from the options below, from the environment, or from the file that
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
    /// Remember a controller and a token in the configuration file
    Login(login::Login),
    /// The controller, its agents, and what is not as it should be
    Status,
    /// Bring the controller to what a file or folder says; shows the difference first
    Apply(apply::Apply),
    /// Show what `apply` would change
    Diff(apply::Diff),
    /// Resource groups
    #[command(subcommand)]
    Group(group::Group),
    /// Virtual networks
    #[command(subcommand)]
    Vnet(vnet::Vnet),
    /// Subnets, named VNET/SUBNET
    #[command(subcommand)]
    Subnet(subnet::Subnet),
    /// Peerings, named VNET/PEERING: each VNet has its own half
    #[command(subcommand)]
    Peering(peering::Peering),
    /// Network interfaces
    #[command(subcommand)]
    Nic(nic::Nic),
    /// Public addresses
    #[command(subcommand, name = "public-ip")]
    PublicIp(public_ip::PublicIp),
    /// Route tables
    #[command(subcommand)]
    RouteTable(route_table::RouteTable),
    /// Gateways: VPN and ExpressRoute
    #[command(subcommand)]
    Gateway(gateway::Gateway),
    /// Connections of gateways with gateways, sites and circuits
    #[command(subcommand)]
    Connection(connection::Connection),
    /// Local network gateways: sites, as their operators describe them
    #[command(subcommand)]
    LocalGateway(local_gateway::LocalGateway),
    /// ExpressRoute circuits
    #[command(subcommand)]
    Circuit(circuit::Circuit),
    #[command(flatten)]
    Plain(plain::Plain),
    /// Agents: what runs on the machines
    #[command(subcommand)]
    Agent(agent::Agent),
    /// One-time tokens with which agents join
    #[command(subcommand)]
    Token(token::Token),
    /// Tokens for people and programs that use the controller
    #[command(subcommand)]
    ApiToken(api_token::ApiToken),
    /// The controller's switches
    #[command(subcommand)]
    Settings(settings::Settings),
    /// The effective routes of a network interface or machine
    Routes(routes::Routes),
    /// What happens to a packet from A to B, and why, by the agents' own code
    Explain(explain::Explain),
    /// Ping from A to B, live, from A's agent
    Ping(probe::Ping),
    /// Trace the way from A to B, live, from A's agent
    Trace(probe::Trace),
    /// The tunnels between agents, as they report them
    Link(link::Link),
    /// Wait until a revision is in force at every connected agent
    Wait(wait::Wait),
    /// Save the controller's store to a file while it runs
    Backup(backup::Backup),
    /// A whole topology on this machine, in network namespaces
    Lab(lab::Lab),
    /// Print the completion script of a shell
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages and the completions of shells into a directory, for packages
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
