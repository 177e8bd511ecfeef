//! The preshared key of a connection's links (D14).

use crate::resource::Connection;
use hkdf::Hkdf;
use sha2::Sha256;
use tombolo_proto::id::{PresharedKey, ResourceId};

impl Connection {
    /// D14: HKDF-SHA256 of the shared key, bound to both ends (two gateways, or a gateway and a local network gateway):
    /// their ids in lower case, in order, one a line. None without a shared key.
    #[must_use]
    pub fn preshared_key(&self) -> Option<PresharedKey> {
        let shared_key = self.shared_key.as_deref()?;
        let mut ends = [&self.gateway1, &self.gateway2].map(ResourceId::key);
        ends.sort_unstable();
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(None, shared_key.as_bytes())
            .expand(ends.join("\n").as_bytes(), &mut key)
            .ok()?;
        Some(PresharedKey(key))
    }
}
