//! How QUIC is set up for carrying packets.

use aws_lc_rs::hmac;
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    AckFrequencyConfig, EndpointConfig, MtuDiscoveryConfig, RandomConnectionIdGenerator, ServerConfig, TransportConfig,
    VarInt,
};
use rustls::pki_types::PrivateKeyDer;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Datagrams of one transmit: as many full ones as one system call sends.
pub(super) const MAX_SEGMENTS: usize = 44;

/// Silence after which a connection is over. A link that is used again opens another within a round trip or two.
const IDLE: Duration = Duration::from_secs(30);

/// Bytes of a connection id: long enough not to be hit by chance, short enough to leave a full inner packet its room.
const CONNECTION_ID: usize = 5;

/// UDP payload of a full-sized packet on an Ethernet over IPv4. Tried first; a narrower path is found out.
const FIRST_MTU: u16 = 1472;

/// What may wait for congestion control, bytes. The oldest goes first: what waits behind it is worth more. A quarter of it
/// dropped so much that a stream got a third less; this much is 2 ms of waiting.
const SEND_QUEUE: usize = 1 << 20;

/// Whatever arrives is taken at once.
const RECEIVE_QUEUE: usize = 1 << 20;

/// Packets that one acknowledgement may stand for: each costs a packet and both ends a cipher.
const ACKNOWLEDGE: u32 = 24;

/// What WireGuard adds, bytes.
const WIREGUARD: u16 = 32;

/// Least UDP payload of a path for QUIC (RFC 9000, section 14).
const LEAST_MTU: u16 = 1200;

/// Settings for a path that is narrower than usual: over WireGuard it carries packets of so many bytes whole.
pub(super) fn narrow(longest: u16) -> TransportConfig {
    let mut transport = transport();
    transport.initial_mtu(longest.saturating_add(WIREGUARD).clamp(LEAST_MTU, FIRST_MTU));
    transport
}

/// The transport's settings, for both roles.
pub(super) fn transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(FIRST_MTU);
    let mut acknowledge = AckFrequencyConfig::default();
    acknowledge
        .ack_eliciting_threshold(VarInt::from_u32(ACKNOWLEDGE))
        .max_ack_delay(Some(Duration::from_millis(5)));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(IDLE.try_into().ok())
        .initial_mtu(FIRST_MTU)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acknowledge))
        .datagram_receive_buffer_size(Some(RECEIVE_QUEUE))
        .datagram_send_buffer_size(SEND_QUEUE)
        .allow_spin(false);
    transport
}

/// The endpoint's settings. Its first byte never has the shape of a WireGuard message: the fixed bit stays.
pub(super) fn endpoint(reset: hmac::Key) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(reset));
    config
        .grease_quic_bit(false)
        .cid_generator(|| Box::new(RandomConnectionIdGenerator::new(CONNECTION_ID)));
    // Cannot fail: it is within the protocol's bounds.
    let _ = config.max_udp_payload_size(65_527);
    config
}

/// The answering side's settings.
pub(super) fn server(crypto: Arc<QuicServerConfig>, transport: Arc<TransportConfig>) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(crypto);
    config.transport_config(transport).migration(true);
    config
}

/// The same after a restart, so that peers hear at once that their connection is gone.
pub(super) fn reset_key(key: &PrivateKeyDer<'_>) -> hmac::Key {
    let mut hash = Sha256::new();
    hash.update(b"tombolo stateless reset");
    hash.update(key.secret_der());
    hmac::Key::new(hmac::HMAC_SHA256, &hash.finalize())
}
