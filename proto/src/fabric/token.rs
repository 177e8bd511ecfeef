//! Join tokens and the joining of agents; the packages that new machines install; tokens of the REST API.

use crate::config::CircuitLink;
use crate::id::{AgentId, PublicKey, ResourceId};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The maximum number of attachments of a site. A site usually has one or two, for example a circuit and a VPN as its backup.
pub const MAX_ATTACHMENTS: usize = 8;

/// The object for which an agent works. A join token determines this object for the agent that joins with the token
/// (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Binding {
    /// A virtual machine with its NICs.
    Vm {
        /// The VM's resource id, `…/Microsoft.Compute/virtualMachines/{name}`. In ARM the VM is a read-only resource.
        vm: ResourceId,
        /// The VM's NICs, the primary one first. All of them are in one VNet, and no other agent has any of them.
        nics: Vec<ResourceId>,
        /// Subnets of this VNet whose machines have no agents, so that this host carries their packets (D8).
        #[serde(default)]
        served: Vec<ResourceId>,
    },
    /// One instance of a gateway.
    Gateway {
        /// The id of the virtual network gateway.
        gateway: ResourceId,
        /// The name of the gateway's `ipConfiguration`.
        ip_configuration: String,
    },
    /// The provider edge of one link of a circuit.
    Edge {
        /// The id of the circuit.
        circuit: ResourceId,
        /// The circuit's primary or secondary link.
        link: CircuitLink,
    },
    /// A host inside a site, which sends the probes of checks from there (M10). It has no links and gets no configuration.
    Site {
        /// The local network gateways and circuits that attach the site, 1 to [`MAX_ATTACHMENTS`], the one that the site
        /// prefers first.
        attachments: Vec<ResourceId>,
        /// The address of the host inside the site.
        address: IpAddr,
    },
}

/// A request for a join token.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// The name of the agent that joins with the token.
    pub agent: AgentId,
    /// The binding of that agent.
    pub binding: Binding,
    /// The lifetime in seconds, 1 to 2,592,000 (30 days); 3,600 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// A new join token. The token's text is only in this response: the controller does not store it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewToken {
    /// The token's name in later requests, e.g. to delete it.
    pub id: String,
    /// The text for the file of `tombolo-agent join --token-file`. It is a secret.
    pub token: String,
    /// The name of the agent that joins with the token.
    pub agent: AgentId,
    /// End of validity, in seconds since 1970-01-01 UTC.
    pub expires: u64,
}

/// A join token that was not used yet, without its text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    /// The token's name in requests, e.g. to delete it.
    pub id: String,
    /// The name of the agent that joins with the token.
    pub agent: AgentId,
    /// The binding of that agent.
    pub binding: Binding,
    /// End of validity, in seconds since 1970-01-01 UTC.
    pub expires: u64,
}

/// The request of a machine that joins as an agent. The token is its only credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// The text of the join token. A secret.
    pub token: String,
    /// A certificate request for the control stream: PKCS#10, PEM.
    pub csr: String,
    /// The WireGuard public key of the agent.
    pub public_key: PublicKey,
    /// The endpoints at which other agents reach this agent, in the form `ADDRESS:PORT`, the preferred one first. The
    /// unspecified address (0.0.0.0 or ::) stands for the source address of the request as the controller sees it.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// The endpoint of the agent's second port, which accepts only QUIC, in the form of `endpoints`. `None`: the agent
    /// has no second port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<String>,
    /// The number of lanes. `None`: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<u16>,
}

/// The response to a [`JoinRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinReply {
    /// The name of the new agent.
    pub agent: AgentId,
    /// The agent's certificate for the control stream, PEM.
    pub certificate: String,
    /// The certificate of the authority that issued it, PEM.
    pub ca: String,
}

/// The agent packages that a controller serves to new machines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Packages {
    /// The folder of the packages on the controller's host.
    pub folder: String,
    /// The packages, sorted by name.
    pub value: Vec<Package>,
}

/// A package. The controller serves it at `/packages/NAME` without authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// The file name: `tombolo-agent_VERSION_ARCHITECTURE.deb`.
    pub name: String,
    /// The size of the file, bytes.
    pub size: u64,
    /// The SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
}

/// A request for a token of the REST API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiTokenRequest {
    /// A name for people: 1 to 80 bytes without control characters, and not blank.
    pub name: String,
}

/// A new token for the REST API. The token's text is only in this response: the controller does not store it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewApiToken {
    /// The token's name in later requests, e.g. to delete it.
    pub id: String,
    /// The name that its creator chose.
    pub name: String,
    /// The text for the header `Authorization: Bearer`. It is a secret.
    pub token: String,
}
