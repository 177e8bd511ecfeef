//! Questions about the traffic of resources.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A question what each resource has carried, and what that costs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UsageRequest {
    /// Hours and days that begin at this time or later, in seconds of Unix time.
    pub from: u64,
    /// Hours and days that begin before this time.
    pub to: u64,
    /// Prices in place of the defaults, as a JSON object; names that are left out keep their defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<Value>,
}
