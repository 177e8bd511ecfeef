//! The back-end pools of load balancers.

mod address;
pub(super) mod pool;

use super::children::Children;
use crate::context::Context;
use address::Address;
use anyhow::Result;
use clap::Subcommand;
use pool::Pool;

#[derive(Debug, Subcommand)]
pub(crate) enum AddressPool {
    #[command(flatten)]
    Pool(Children<Pool>),
    /// Add addresses to a pool of addresses, or remove them
    #[command(subcommand)]
    Address(Address),
}

impl AddressPool {
    pub(super) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Pool(pool) => pool.run(c).await,
            Self::Address(address) => address.run(c).await,
        }
    }
}
