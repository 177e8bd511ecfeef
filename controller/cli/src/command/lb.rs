//! Internal load balancers.

mod address_pool;
mod children;
mod frontend_ip;
mod inbound_nat_rule;
mod part;
mod probe;
mod rule;

use crate::command::plain::{RegionAndTags, UpdateOrDelete};
use crate::context::Context;
use crate::options::{name, subnet, word};
use crate::output::{Column, at, items};
use address_pool::AddressPool;
use anyhow::Result;
use children::Children;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;
use frontend_ip::FrontendIp;
use inbound_nat_rule::InboundNatRule;
use part::Part;
use probe::Probe;
use rule::Rule;
use serde_json::json;
use std::net::IpAddr;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Lb {
    /// Create a load balancer; one that exists keeps its front ends, pools, probes and rules
    Create(Create),
    /// List load balancers
    List,
    /// Show a load balancer with its front ends, pools, probes and rules
    Show {
        /// Name of the load balancer
        #[arg(value_parser = name)]
        name: String,
    },
    #[command(flatten)]
    Other(UpdateOrDelete),
    /// Manage the front ends of a load balancer; a front end is named LB/FRONTEND (L1)
    #[command(subcommand)]
    FrontendIp(Children<FrontendIp>),
    /// Manage the back-end pools of a load balancer; a pool is named LB/POOL (L2)
    #[command(subcommand)]
    AddressPool(AddressPool),
    /// Manage the health probes of a load balancer; a probe is named LB/PROBE (L6)
    #[command(subcommand)]
    Probe(Children<Probe>),
    /// Manage the load-balancing rules of a load balancer; a rule is named LB/RULE (L3)
    #[command(subcommand)]
    Rule(Children<Rule>),
    /// Manage the inbound NAT rules of a load balancer; a rule is named LB/RULE
    #[command(subcommand)]
    InboundNatRule(Children<InboundNatRule>),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the load balancer
    #[arg(value_parser = name)]
    name: String,
    /// SKU, which cannot change after the creation [default of a new load balancer: Standard]
    #[arg(long, value_enum, ignore_case = true)]
    sku: Option<Sku>,
    /// Subnet of the first front end, as VNET/SUBNET or id; without it, the load balancer gets no front end
    #[arg(short, long, value_parser = subnet)]
    subnet: Option<String>,
    /// Static address of the first front end [default: allocated]
    #[arg(short = 'a', long, requires = "subnet")]
    private_ip_address: Option<IpAddr>,
    /// Name of the first front end
    #[arg(long, default_value = "LoadBalancerFrontEnd", value_parser = name)]
    frontend_ip_name: String,
    /// Name of the first back-end pool [default: the load balancer's name with the ending bepool]
    #[arg(long, value_parser = name)]
    backend_pool_name: Option<String>,
    #[command(flatten)]
    own: RegionAndTags,
}

/// The SKU of a load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum Sku {
    Basic,
    Standard,
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("SKU", |v| Cell::new(at(v, "/sku/name"))),
    ("Addresses", |v| {
        let front_ends = items(v, "/properties/frontendIPConfigurations");
        let addresses = front_ends.map(|f| at(f, "/properties/privateIPAddress"));
        Cell::new(addresses.collect::<Vec<_>>().join(", "))
    }),
    ("Pools", |v| {
        let pools = items(v, "/properties/backendAddressPools").map(|p| at(p, "/name"));
        Cell::new(pools.collect::<Vec<_>>().join(", "))
    }),
    ("Rules", |v| {
        Cell::new(items(v, "/properties/loadBalancingRules").count())
    }),
    ("Inbound NAT rules", |v| {
        Cell::new(items(v, "/properties/inboundNatRules").count())
    }),
];

/// The children of a load balancer, each with the title of their list.
const PARTS: [(&str, Part); 5] = [
    ("Front ends", frontend_ip::PART),
    ("Back-end pools", address_pool::pool::PART),
    ("Probes", probe::PART),
    ("Rules", rule::PART),
    ("Inbound NAT rules", inbound_nat_rule::PART),
];

impl Lb {
    /// Creates, changes, deletes or prints load balancers or their children. An update of a load balancer replaces all
    /// its tags.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create(create) => create.run(c).await,
            Self::List => {
                let all = c.list(Kind::LoadBalancer).await?;
                let empty = "No load balancers. Create one: tombolo lb create NAME --subnet VNET/SUBNET";
                c.out.list(&all, COLUMNS, empty)
            }
            Self::Show { name } => {
                let balancer = c.get(Kind::LoadBalancer, name).await?;
                c.out.item(&balancer, COLUMNS)?;
                if !c.out.is_json() {
                    for (title, part) in PARTS {
                        c.out.title(&format!("\n{title}"));
                        c.out.list(&part.of(&balancer), part.columns, "none")?;
                    }
                }
                Ok(())
            }
            Self::Other(verb) => verb.run(c, Kind::LoadBalancer).await,
            Self::FrontendIp(front_end) => front_end.run(c).await,
            Self::AddressPool(pool) => pool.run(c).await,
            Self::Probe(probe) => probe.run(c).await,
            Self::Rule(rule) => rule.run(c).await,
            Self::InboundNatRule(rule) => rule.run(c).await,
        }
    }
}

impl Create {
    async fn run(&self, c: &Context) -> Result<()> {
        let name = &self.name;
        let path = c.item(Kind::LoadBalancer, name)?;
        // A PUT without the lists of children would remove all children of a load balancer that exists, so the body is
        // based on the present one.
        let old = c.client.arm_find(&path).await?;
        let verb = if old.is_some() { "Updated" } else { "Created" };
        let is_new = old.is_none();
        let mut body = old.unwrap_or_else(|| json!({"sku": {"name": "Standard"}, "properties": {}}));
        if let Some(sku) = &self.sku {
            body["sku"]["name"] = word(sku);
        }
        self.own.apply_to(&mut body, c).await?;
        if let Some(subnet) = &self.subnet {
            let properties = frontend_ip::properties(c, subnet, self.private_ip_address)?;
            frontend_ip::PART.set(&mut body, &self.frontend_ip_name, properties);
        }
        let pool = self.backend_pool_name.clone();
        if is_new || pool.is_some() {
            let pool = pool.unwrap_or_else(|| format!("{name}bepool"));
            if address_pool::pool::PART.find(&body, &pool).is_none() {
                address_pool::pool::PART.set(&mut body, &pool, json!({}));
            }
        }
        c.put(&path, &body, &format!("{verb} load balancer {name}.")).await
    }
}

#[cfg(test)]
mod tests;
