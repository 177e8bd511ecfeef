//! The lines that an agent sends. Agents may be hostile.

use tombolo_proto::flow_tail::{MAX_LINE, TailEntry};

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

impl Lines {
    /// The entries of all lines that end in these bytes.
    ///
    /// # Errors
    /// A text that names what is wrong with a line. It has no text of the agent.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<Vec<TailEntry>, String> {
        let mut entries = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.add(&bytes[..end])?;
            bytes = &bytes[end + 1..];
            entries.push(entry(&self.0)?);
            self.0.clear();
        }
        self.add(bytes)?;
        Ok(entries)
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.0.len() + bytes.len() > MAX_LINE {
            return Err(format!("a line is longer than {MAX_LINE} bytes"));
        }
        self.0.extend(bytes);
        Ok(())
    }
}

fn entry(line: &[u8]) -> Result<TailEntry, String> {
    // The message of the parser may repeat texts of the line.
    let entry: TailEntry = serde_json::from_slice(line).map_err(|e| format!("column {}", e.column()))?;
    match &entry {
        TailEntry::Record(record) => record.check()?,
        TailEntry::Dropped(_) => {}
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn record() -> Value {
        json!({"record": {
            "timeMs": 1, "log": "/log", "format": "network4", "nic": "/nic", "macAddress": "0200DEADBEEF",
            "source": "10.0.0.1", "sourcePort": 1, "destination": "10.0.0.2", "destinationPort": 2, "protocol": 6,
            "direction": "Inbound", "state": "B", "rule": "UserRule_web", "encryption": "X",
            "packetsSent": 0, "bytesSent": 0, "packetsReceived": 0, "bytesReceived": 0,
        }})
    }

    #[test]
    fn d38_lines_are_put_together_from_any_parts() {
        let text = format!("{}\n{{\"dropped\":7}}\n{}\n", record(), record());
        for size in [1, 2, 7, 100, text.len()] {
            let mut lines = Lines::default();
            let mut entries = Vec::new();
            for part in text.as_bytes().chunks(size) {
                entries.extend(lines.read(part).unwrap());
            }
            assert_eq!(entries.len(), 3, "parts of {size}");
            assert_eq!(entries[1], TailEntry::Dropped(7));
            assert_eq!(entries[0], entries[2]);
            assert!(lines.0.is_empty());
        }
        // A newer agent may add fields.
        let mut newer = record();
        newer["record"]["later"] = json!(1);
        let read = Lines::default().read(format!("{newer}\n").as_bytes()).unwrap();
        assert_eq!(read.len(), 1);
    }

    #[test]
    fn d38_malformed_lines_of_agents_are_refused_without_their_texts() {
        let mut escape = record();
        escape["record"]["rule"] = json!("\u{1b}[2J");
        for (line, expected) in [
            ("\u{1b}[2J".to_owned(), "column"),
            (String::new(), "column"),
            ("{\"dropped\":-1}".to_owned(), "column"),
            ("{\"dropped\":1}x".to_owned(), "column"),
            (escape.to_string(), "rule: the character \\u{1b}"),
        ] {
            let problem = Lines::default().read(format!("{line}\n").as_bytes()).unwrap_err();
            assert!(problem.starts_with(expected), "{problem}");
            assert!(!problem.chars().any(char::is_control), "{problem}");
        }
        let mut lines = Lines::default();
        assert_eq!(lines.read(&[b' '; MAX_LINE]), Ok(Vec::new()));
        assert!(lines.read(b" ").unwrap_err().contains("longer than 4096"));
        assert_eq!(lines.0.len(), MAX_LINE, "no more is kept");
    }
}
