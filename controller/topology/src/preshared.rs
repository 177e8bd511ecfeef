//! Derives the WireGuard preshared key of a connection (D14).

use crate::resource::Connection;
use hkdf::Hkdf;
use sha2::Sha256;
use tombolo_proto::id::{PresharedKey, ResourceId};

impl Connection {
    /// The WireGuard preshared key of this connection's links: HKDF-SHA256 (RFC 5869) of the shared key, without salt.
    /// The `info` parameter binds the key to both ends, which are two gateways, or a gateway and a local network
    /// gateway. `info` consists of the lower-case ids of the two ends, sorted and joined by a newline. So the two
    /// connection objects between two gateways derive the same key if they have the same shared key. `None`: no shared
    /// key is set (D14).
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
