//! Filters of captures as words.

use tombolo_client::fabric::CaptureFilterText;

/// Parses words such as `tcp remote=10.0.0.4 remote-port=80-90;443`. The controller checks addresses and ports.
pub(super) fn filter(text: &str) -> Result<CaptureFilterText, String> {
    let mut filter = CaptureFilterText::default();
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let field = match name {
            "tcp" | "udp" | "any" => &mut filter.protocol,
            "local" => &mut filter.local_address,
            "local-port" => &mut filter.local_port,
            "remote" => &mut filter.remote_address,
            "remote-port" => &mut filter.remote_port,
            _ => {
                return Err(format!(
                    "'{word}' is not one of tcp, udp, any, local=, local-port=, remote=, remote-port="
                ));
            }
        };
        let is_protocol = ["tcp", "udp", "any"].contains(&name);
        let value = match (is_protocol, value) {
            (true, "") if name == "any" => "Any".to_owned(),
            (true, "") => name.to_ascii_uppercase(),
            (true, _) => return Err(format!("'{word}': a protocol has no value")),
            (false, "") => return Err(format!("'{word}': a value is needed after =")),
            (false, value) => value.to_owned(),
        };
        if field.replace(value).is_some() {
            return Err(format!("'{word}': {name} is given twice"));
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d42_filters_are_words() {
        let given = |text: &str| Some(text.to_owned());
        let parsed = filter("tcp local=10.0.0.4  remote=10.1.0.0-10.1.0.9;10.2.0.4 remote-port=80-90;443").unwrap();
        let expected = CaptureFilterText {
            protocol: given("TCP"),
            local_address: given("10.0.0.4"),
            local_port: None,
            remote_address: given("10.1.0.0-10.1.0.9;10.2.0.4"),
            remote_port: given("80-90;443"),
        };
        assert_eq!(parsed, expected);
        assert_eq!(filter("any").unwrap().protocol, given("Any"));
        for bad in [
            "icmp",
            "tcp udp",
            "tcp=1",
            "local",
            "local=",
            "port=80",
            "remote=1 remote=2",
        ] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
