//! Records the kinds of ARM items: their names in plans, in ARM's types, and in messages.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use tombolo_golden::golden;
use tombolo_proto::arm::Kind;

#[test]
fn kinds_of_items() {
    let row = |kind: Kind| {
        let name = json!(kind).as_str().unwrap().to_owned();
        (name, json!({"type": kind.type_name(), "title": kind.title()}))
    };
    let kinds: BTreeMap<String, Value> = Kind::all().map(row).collect();
    golden!().written("kinds", &[("kinds", kinds)]);
}
