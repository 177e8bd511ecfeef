//! Logging of controller and agents: text on a terminal and in systemd's journal, JSON elsewhere for log collectors.

use clap::ValueEnum;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text if standard error is a terminal or systemd's journal, otherwise JSON.
    #[default]
    Auto,
    /// Lines of text for people.
    Text,
    /// One JSON object for each line.
    Json,
}

impl LogFormat {
    fn is_json(self) -> bool {
        match self {
            Self::Auto => {
                !std::io::stderr().is_terminal() && !is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref())
            }
            Self::Text => false,
            Self::Json => true,
        }
    }
}

/// Whether standard error is the stream that systemd connected to its journal. `variable` is the value of
/// `JOURNAL_STREAM`, in which systemd names the stream by device and inode (systemd.exec(5)). Device and inode are
/// compared with those of standard error, because a child process inherits the variable even if its standard error is
/// redirected.
fn is_journal(variable: Option<&str>) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let Some((device, inode)) = variable.and_then(|v| v.split_once(':')) else {
        return false;
    };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    let Ok(stream) = stderr.and_then(|file| file.metadata()) else {
        return false;
    };
    number(device) == Some(stream.dev()) && number(inode) == Some(stream.ino())
}

/// Starts logging to standard error, for the rest of the process. `default` has the level of each target. The
/// environment variable `TOMBOLO_LOG`, e.g. `info,boringtun=off`, replaces all of `default`; a value that cannot be
/// parsed is ignored.
///
/// # Panics
/// If a logger is installed already, e.g. by an earlier call.
pub fn init(format: LogFormat, default: Targets) {
    let configured = std::env::var("TOMBOLO_LOG").ok().and_then(|text| text.parse().ok());
    let filter: Targets = configured.unwrap_or(default);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry();
    if format.is_json() {
        registry.with(lines.json().flatten_event(true)).with(filter).init();
    } else {
        registry.with(lines).with(filter).init();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let stream = File::from(std::io::stderr().as_fd().try_clone_to_owned().unwrap());
        let stream = stream.metadata().unwrap();
        let (device, inode) = (stream.dev(), stream.ino());
        assert!(is_journal(Some(&format!("{device}:{inode}"))));
        for other in [
            format!("{device}:{}", inode + 1),
            format!("{}:{inode}", device + 1),
            String::new(),
        ] {
            assert!(!is_journal(Some(&other)), "{other}");
        }
        assert!(!is_journal(None));
    }

    #[test]
    fn a_given_format_is_taken() {
        assert!(LogFormat::Json.is_json());
        assert!(!LogFormat::Text.is_json());
    }
}
