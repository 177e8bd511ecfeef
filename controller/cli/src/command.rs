//! The commands of `tombolo`: one file for each kind of resource, and one file for each other command.

pub(crate) mod agent;
pub(crate) mod api_token;
pub(crate) mod apply;
pub(crate) mod backup;
pub(crate) mod circuit;
pub(crate) mod connection;
pub(crate) mod explain;
pub(crate) mod gateway;
pub(crate) mod group;
pub(crate) mod lab;
pub(crate) mod link;
pub(crate) mod local_gateway;
pub(crate) mod login;
pub(crate) mod nic;
pub(crate) mod peering;
pub(crate) mod plain;
pub(crate) mod probe;
pub(crate) mod public_ip;
pub(crate) mod route_table;
pub(crate) mod routes;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod subnet;
pub(crate) mod token;
pub(crate) mod vnet;
pub(crate) mod wait;
