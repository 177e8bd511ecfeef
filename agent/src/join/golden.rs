//! Compares the request and the response of joining with recorded files. The controller's tests send the recorded
//! request.

use tombolo_golden::golden;
use tombolo_proto::fabric::{JoinReply, JoinRequest};
use tombolo_proto::id::PublicKey;

#[test]
fn requests_to_join() {
    let full = JoinRequest {
        token: "tmb1.0123456789abcdef.secret.pin".into(),
        csr: "csr".into(),
        public_key: PublicKey([1; 32]),
        endpoints: vec!["0.0.0.0:51820".into()],
        quic_endpoint: Some("0.0.0.0:443".into()),
        lanes: Some(4),
    };
    let minimal = JoinRequest {
        token: "tmb1.0123456789abcdef.secret.pin".into(),
        csr: "csr".into(),
        public_key: PublicKey([1; 32]),
        endpoints: vec![],
        quic_endpoint: None,
        lanes: None,
    };
    golden!().written("join_request", &[("full", full), ("minimal", minimal)]);
}

/// The agent can read the answer of a controller: the recorded file that the controller's tests write.
#[test]
fn answers_to_joining() {
    let JoinReply { agent, certificate, ca } = golden!().read("../../../controller/tests/golden/join_reply");
    assert_eq!(
        (agent.as_str(), certificate.is_empty(), ca.is_empty()),
        ("vm-c", false, false)
    );
}
