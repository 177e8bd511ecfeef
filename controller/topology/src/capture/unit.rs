//! Tests of bodies and filters.

use super::*;
use proptest::prelude::*;
use serde_json::json;

const VM: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/vm";

fn body() -> Value {
    json!({
        "target": VM,
        "storageLocation": {"filePath": "/var/captures/web.cap"},
        "filters": [{
            "protocol": "TCP", "localIPAddress": "10.0.0.4", "localPort": "",
            "remoteIPAddress": "10.1.0.0-10.1.0.9; fd00::1", "remotePort": "80-90;443",
        }],
    })
}

fn range(first: &str, last: &str) -> AddressRange {
    AddressRange {
        first: first.parse().unwrap(),
        last: last.parse().unwrap(),
    }
}

/// D42: lists and ranges as Azure writes them, and the defaults of its clients.
#[test]
fn d42_the_body_of_a_packet_capture() {
    let spec = read(&body()).unwrap();
    assert_eq!(
        spec.filters,
        [CaptureFilter {
            protocol: CaptureProtocol::Tcp,
            local_addresses: vec![range("10.0.0.4", "10.0.0.4")],
            local_ports: Vec::new(),
            remote_addresses: vec![range("10.1.0.0", "10.1.0.9"), range("fd00::1", "fd00::1")],
            remote_ports: vec![PortRange { first: 80, last: 90 }, PortRange { first: 443, last: 443 }],
        }]
    );
    assert_eq!(
        (
            spec.target.as_str(),
            spec.bytes_per_packet,
            spec.total_bytes,
            spec.seconds
        ),
        (VM, 0, 1_073_741_824, 18_000)
    );
    let mut given = body();
    given["bytesToCapturePerPacket"] = json!(128);
    given["totalBytesPerSession"] = json!(0);
    given["timeLimitInSeconds"] = json!(60);
    given["filters"] = Value::Null;
    given["scope"] = json!({"include": [], "exclude": null});
    let spec = read(&given).unwrap();
    assert_eq!(
        (spec.bytes_per_packet, spec.total_bytes, spec.seconds),
        (128, MAX_BYTES, 60)
    );
    assert_eq!(spec.filters, []);
}

/// D42: what is malformed or not supported is refused by the path of its property.
#[test]
fn d42_bad_captures_are_refused_by_field() {
    for (pointer, value, field) in [
        ("/target", json!("vm"), "target"),
        ("/target", Value::Null, "target"),
        ("/targetType", json!("AzureVMSS"), "targetType"),
        ("/continuousCapture", json!(true), "continuousCapture"),
        ("/scope", json!({"include": ["0"]}), "scope"),
        ("/storageLocation", json!({}), "storageLocation"),
        ("/storageLocation", Value::Null, "storageLocation"),
        ("/storageLocation", json!({"filePath": 7}), "storageLocation.filePath"),
        ("/bytesToCapturePerPacket", json!(-1), "bytesToCapturePerPacket"),
        (
            "/bytesToCapturePerPacket",
            json!(4_294_967_296_u64),
            "bytesToCapturePerPacket",
        ),
        ("/totalBytesPerSession", json!(1.5), "totalBytesPerSession"),
        ("/timeLimitInSeconds", json!(18_001), "timeLimitInSeconds"),
        ("/filters", json!({}), "filters"),
        ("/filters", json!(vec![json!({}); 17]), "filters"),
        ("/filters", json!([7]), "filters[0]"),
        ("/filters", json!([{}, {"protocol": "ICMP"}]), "filters[1].protocol"),
        (
            "/filters",
            json!([{"localIPAddress": "10.0.0.0/24"}]),
            "filters[0].localIPAddress",
        ),
        (
            "/filters",
            json!([{"localIPAddress": "10.0.0.9-10.0.0.1"}]),
            "filters[0].localIPAddress",
        ),
        (
            "/filters",
            json!([{"remoteIPAddress": "10.0.0.1-::1"}]),
            "filters[0].remoteIPAddress",
        ),
        (
            "/filters",
            json!([{"remoteIPAddress": "10.0.0.1;"}]),
            "filters[0].remoteIPAddress",
        ),
        ("/filters", json!([{"localPort": 80}]), "filters[0].localPort"),
        ("/filters", json!([{"localPort": "+80"}]), "filters[0].localPort"),
        ("/filters", json!([{"remotePort": "65536"}]), "filters[0].remotePort"),
        ("/filters", json!([{"remotePort": "90-80"}]), "filters[0].remotePort"),
        (
            "/filters",
            json!([{"remotePort": "1;".repeat(65) + "1"}]),
            "filters[0].remotePort",
        ),
    ] {
        let mut bad = body();
        bad[pointer.trim_start_matches('/')] = value.clone();
        let problem = read(&bad).expect_err(pointer);
        assert_eq!(problem.field, field, "{pointer} = {value}: {problem:?}");
        assert!(
            problem.message.starts_with(field) && problem.message.len() < 300,
            "{problem:?}"
        );
    }
    assert_eq!(read(&json!(7)).unwrap_err().field, "properties");
}

/// A list in text form, with the ranges that it stands for.
fn ports_and_text() -> impl Strategy<Value = (Vec<PortRange>, String)> {
    let entry = (any::<u16>(), any::<u16>(), any::<bool>()).prop_map(|(a, b, is_single)| {
        let (first, last) = (a.min(b), a.max(b));
        match is_single {
            true => (PortRange { first, last: first }, format!(" {first}")),
            false => (PortRange { first, last }, format!("{first} -{last} ")),
        }
    });
    prop::collection::vec(entry, 1..MAX_RANGES).prop_map(|entries| {
        let (ranges, texts): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        (ranges, texts.join(";"))
    })
}

proptest! {
    /// D42: a list of ports is read as it was written.
    #[test]
    fn d42_lists_of_ports_are_read_as_written((ranges, text) in ports_and_text()) {
        let given = CaptureFilterText { local_port: Some(text), ..CaptureFilterText::default() };
        prop_assert_eq!(&filters(&[given]).unwrap()[0].local_ports, &ranges);
    }

    /// D42: any text is read or refused, and what is read has valid ranges.
    #[test]
    fn d42_any_filter_is_valid_or_refused(texts in prop::collection::vec("[0-9a-f.:;\\- ]{0,40}|\\PC{0,20}", 4)) {
        let given = CaptureFilterText {
            protocol: None,
            local_address: Some(texts[0].clone()),
            local_port: Some(texts[1].clone()),
            remote_address: Some(texts[2].clone()),
            remote_port: Some(texts[3].clone()),
        };
        if let Ok(read) = filters(&[given]) {
            let request = tombolo_proto::capture::CaptureRequest {
                name: String::new(),
                nics: Vec::new(),
                layer: tombolo_proto::capture::CaptureLayer::Packets,
                filters: read,
                bytes_per_packet: 0,
                total_bytes: 1,
                seconds: 1,
                delivery: tombolo_proto::capture::CaptureDelivery::File,
            };
            prop_assert_eq!(request.check(), Ok(()));
        }
    }
}
