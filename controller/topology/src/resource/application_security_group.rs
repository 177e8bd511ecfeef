//! Application security groups (ASGs). They are kept and shown, but no network interface or security rule can refer to
//! one yet (N9).

use crate::arm::view::Views;
use crate::draft::Draft;
use crate::path::Kind;
use crate::resource::Envelope;
use crate::resource::frame::{Put, Resource};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;

/// An application security group. Besides its name it has only a region and tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApplicationSecurityGroup {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
}

impl Resource for ApplicationSecurityGroup {
    const KIND: Kind = Kind::ApplicationSecurityGroup;

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let kept = put.echoed(&mut draft.problems);
        Some(Self {
            envelope: put.envelope(draft, kept),
        })
    }

    /// Checks nothing, because neither a network interface nor a security rule can refer to a group.
    fn check_unused(_draft: &mut Draft<'_>, _id: &ResourceId, _old: &Self) {}

    fn properties(&self, _views: &Views<'_>) -> Value {
        json!({})
    }
}
