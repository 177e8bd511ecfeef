//! The settings with which QUIC carries packets.

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

/// Largest number of datagrams that quinn returns in one call: 44 full-sized datagrams fit into one system call with
/// GSO (65,507 bytes).
pub(super) const MAX_SEGMENTS: usize = 44;

/// Silence after which a connection ends. This costs little: when the link is used again, it opens another connection
/// within two round trips.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Length of a connection ID in bytes. An ID of 5 bytes is hard to guess, and short enough that an inner packet of the
/// default MTU fits into a datagram on an Ethernet.
const CONNECTION_ID_LEN: usize = 5;

/// UDP payload in bytes of a full-sized IPv4 packet on an Ethernet (1,500 - 20 - 8). A connection begins with this
/// payload, and path MTU discovery lowers it if the path carries less.
const INITIAL_MTU: u16 = 1472;

/// Number of bytes that may wait for congestion control. When the queue is full, its oldest packet is dropped. With a
/// quarter of this size, the throughput of a TCP stream was lower by a third. This size adds 2 ms of latency.
const SEND_QUEUE_LEN: usize = 1 << 20;

/// Number of received bytes that may wait for [`Quic`](super::Quic), which fetches the packets out of quinn after each
/// datagram.
const RECEIVE_QUEUE_LEN: usize = 1 << 20;

/// Number of packets per acknowledgement. The number is large because each acknowledgement costs a datagram, which one
/// end encrypts and the other end decrypts.
const PACKETS_PER_ACK: u32 = 24;

/// Longest delay of an acknowledgement while fewer packets than [`PACKETS_PER_ACK`] have come: a fifth of the 25 ms
/// that RFC 9000 (section 18.2) has as default.
const MAX_ACK_DELAY: Duration = Duration::from_millis(5);

/// Number of bytes that WireGuard adds to a packet.
const WIREGUARD_OVERHEAD: u16 = 32;

/// QUIC needs a path that carries a UDP payload of at least this number of bytes (RFC 9000, section 14).
const MIN_MTU: u16 = 1200;

/// Settings for a path with a low MTU, over which WireGuard carries packets of at most `max_packet` bytes without
/// fragmentation. With these settings the first datagrams of the QUIC handshake are short enough for the path.
pub(super) fn narrow(max_packet: u16) -> TransportConfig {
    let mut transport = transport();
    transport.initial_mtu(
        max_packet
            .saturating_add(WIREGUARD_OVERHEAD)
            .clamp(MIN_MTU, INITIAL_MTU),
    );
    transport
}

/// Settings of connections that this end opens or accepts: datagrams only, no streams.
pub(super) fn transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(INITIAL_MTU);
    let mut acknowledge = AckFrequencyConfig::default();
    acknowledge
        .ack_eliciting_threshold(VarInt::from_u32(PACKETS_PER_ACK))
        .max_ack_delay(Some(MAX_ACK_DELAY));
    // The spin bit stays off: it would show the round-trip time to the network.
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok())
        .initial_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acknowledge))
        .datagram_receive_buffer_size(Some(RECEIVE_QUEUE_LEN))
        .datagram_send_buffer_size(SEND_QUEUE_LEN)
        .allow_spin(false);
    transport
}

/// Settings of the endpoint. The fixed bit is always set (no greasing, RFC 9287), so that the first byte of a datagram
/// distinguishes QUIC from WireGuard.
pub(super) fn endpoint(reset: hmac::Key) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(reset));
    config
        .grease_quic_bit(false)
        .cid_generator(|| Box::new(RandomConnectionIdGenerator::new(CONNECTION_ID_LEN)));
    // The call fails only for a payload outside of the protocol's limits, and 65,527 bytes is the longest payload
    // allowed.
    let _ = config.max_udp_payload_size(65_527);
    config
}

/// Settings for connections that peers open.
pub(super) fn server(crypto: Arc<QuicServerConfig>, transport: Arc<TransportConfig>) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(crypto);
    config.transport_config(transport).migration(true);
    config
}

/// The key for stateless resets (RFC 9000, section 10.3). This key is derived from the agent's private key, so it stays
/// the same after a restart. An agent that has restarted can therefore answer datagrams of its earlier connections by a
/// reset, and its peers need not wait for a timeout.
pub(super) fn reset_key(key: &PrivateKeyDer<'_>) -> hmac::Key {
    let mut hash = Sha256::new();
    hash.update(b"tombolo stateless reset");
    hash.update(key.secret_der());
    hmac::Key::new(hmac::HMAC_SHA256, &hash.finalize())
}
