//! Metering: for which resources the traffic of a link counts, and what it costs (Meter-1 to Meter-6, D39).
//!
//! * `payers`: the resources.
//! * `price`: the table of prices, and charges.

mod payers;
mod price;

pub use payers::{Kind, Payer, Payers};
pub use price::{Amounts, Charge, Prices};
