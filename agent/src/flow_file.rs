//! The file with which the flows of security groups survive a planned restart of the agent (D34). An agent that ends by
//! SIGTERM, SIGINT or SIGHUP writes it, and the next start reads and removes it. After a crash there is no file.

use crate::state::{StateDir, file};
use anyhow::{Context, Result, ensure};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use std::fs::{Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use tombolo_engine::security::{BootTime, Flows};

/// Saves the flows to the file [`FLOWS`](file::FLOWS) in the directory `dir`, and returns the length of the file in
/// bytes. Without flows, writes no file and returns 0. Does not wait until the file is on the disk, because the file is
/// not used after a crash of the host.
///
/// # Errors
/// The time since the boot cannot be read, or the file cannot be written. An older file may be left then.
pub fn save(dir: &StateDir, flows: &Flows) -> Result<usize> {
    let Some(bytes) = flows.save(&boot_time()?, Instant::now()) else {
        return Ok(0);
    };
    dir.write_without_sync(file::FLOWS, &bytes)?;
    Ok(bytes.len())
}

/// Adds the flows of the file [`FLOWS`](file::FLOWS) in the directory `dir` to `flows`, and returns their number. Must
/// be called before the first configuration is installed. Removes the file in any case, so that no later start uses it.
/// `None`: there is no file.
///
/// # Errors
/// The file cannot be read or removed, or its flows cannot be used, for instance because they are more than 60 s old,
/// of another boot, or malformed. Then no flow is added.
pub fn load(dir: &StateDir, flows: &Flows) -> Result<Option<usize>> {
    dir.sweep();
    let path = dir.path(file::FLOWS);
    let folder = std::fs::metadata(dir.path("")).map_err(anyhow::Error::from);
    let folder = folder.and_then(|metadata| check_owner(&metadata));
    let read = folder.and_then(|()| read(&path, flows.longest_saved()));
    let read = read.with_context(|| format!("reading {}", path.display()));
    dir.remove(file::FLOWS)?;
    let Some(bytes) = read? else { return Ok(None) };
    let count = flows.load(&bytes, &boot_time()?, Instant::now());
    count.map(Some).with_context(|| path.display().to_string())
}

/// The contents of a regular file of at most `longest` bytes. `None`: there is no file with this name.
fn read(path: &Path, longest: usize) -> Result<Option<Vec<u8>>> {
    let mut options = OpenOptions::new();
    // A pipe or a device in place of the file must not delay the start.
    let options = options.read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK);
    let file = match options.open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "not a regular file");
    check_owner(&metadata)?;
    let longest = longest as u64;
    ensure!(
        metadata.len() <= longest,
        "{} bytes; flows take at most {longest} bytes",
        metadata.len()
    );
    let mut bytes = Vec::new();
    file.take(longest).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Refuses a file or directory that another user can write: a file with flows lets packets pass that the rules deny.
///
/// # Errors
/// Another user owns the file or directory, or may write to it.
fn check_owner(metadata: &Metadata) -> Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    ensure!(metadata.uid() == own, "owned by user {}, not by {own}", metadata.uid());
    let mode = metadata.mode();
    ensure!(mode & 0o022 == 0, "others may write to it (mode {:o})", mode & 0o7777);
    Ok(())
}

/// The present time by a clock that all processes of this boot share.
fn boot_time() -> Result<BootTime> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    const UPTIME: &str = "/proc/uptime";
    let id = std::fs::read_to_string(BOOT_ID).context(BOOT_ID)?;
    let uptime = std::fs::read_to_string(UPTIME).context(UPTIME)?;
    Ok(BootTime {
        boot: parse_boot_id(&id).with_context(|| format!("{BOOT_ID}: '{}' is no UUID", id.trim()))?,
        since_boot: parse_uptime(&uptime).with_context(|| format!("{UPTIME}: no time in '{}'", uptime.trim()))?,
    })
}

fn parse_boot_id(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let is_valid = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| is_valid)?;
    Some(number.to_be_bytes())
}

/// The first number of `/proc/uptime`: the seconds since the boot, time of suspension included, with two decimals.
fn parse_uptime(text: &str) -> Option<Duration> {
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use tombolo_engine::security::{FROM_HOST, FlowKey, FlowTable};
    use tombolo_proto::config::Direction;

    fn key(port: u16) -> FlowKey {
        FlowKey {
            nic: 0,
            direction: Direction::Inbound,
            protocol: 17,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            ports: (port, 53),
        }
    }

    /// A table with flows from these ports.
    fn with_flows(ports: std::ops::Range<u16>) -> Flows {
        let table = FlowTable::new(1024, 1, 1);
        for port in ports {
            table.insert(&key(port), FROM_HOST, 240, 0).unwrap();
        }
        let (flows, at) = (empty(), boot_time().unwrap());
        flows.load(&table.save(&at, 0), &at, Instant::now()).unwrap();
        flows
    }

    fn empty() -> Flows {
        Flows::new(1024, 1)
    }

    #[test]
    fn d34_the_next_start_has_the_flows_and_no_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        assert_eq!(save(&state, &empty()).unwrap(), 0, "nothing to save");
        assert!(!state.path(file::FLOWS).exists());
        assert_eq!(load(&state, &empty()).unwrap(), None);

        assert!(save(&state, &with_flows(1..101)).unwrap() > 5000);
        let mode = std::fs::metadata(state.path(file::FLOWS)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let next = empty();
        assert_eq!(load(&state, &next).unwrap(), Some(100));
        assert_eq!(next.table().unwrap().len(), 100);
        assert_eq!(load(&state, &empty()).unwrap(), None, "the file is gone");
    }

    #[test]
    fn d34_a_file_that_cannot_be_used_is_removed_and_adds_no_flow() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let path = state.path(file::FLOWS);
        save(&state, &with_flows(1..11)).unwrap();
        let good = std::fs::read(&path).unwrap();
        let mut of_another_boot = good.clone();
        of_another_boot[12] ^= 1;
        for (name, bytes) in [
            ("empty", Vec::new()),
            ("cut off", good[..good.len() - 1].to_vec()),
            ("of another boot", of_another_boot),
            ("too large", vec![0; empty().longest_saved() + 1]),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let flows = empty();
            assert!(load(&state, &flows).is_err(), "{name}");
            assert!(flows.table().is_none_or(|table| table.is_empty()), "{name}");
            assert!(!path.exists(), "{name}");
        }
        // A link to a file of somebody else is not followed, and that file stays.
        let victim = dir.path().join("victim");
        std::fs::write(&victim, &good).unwrap();
        symlink(&victim, &path).unwrap();
        assert!(load(&state, &empty()).is_err());
        assert!(!path.exists() && victim.exists());
    }

    #[test]
    fn the_time_since_the_boot_is_read() {
        let id = parse_boot_id("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0\n").unwrap();
        assert_eq!(id[..4], [0x0f, 0x1e, 0x2d, 0x3c]);
        for bad in [
            "",
            "0f1e",
            "zf1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
            "+f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
        ] {
            assert_eq!(parse_boot_id(bad), None, "{bad}");
        }
        assert_eq!(
            parse_uptime("350735.47 234388.90\n"),
            Some(Duration::from_secs_f64(350_735.47))
        );
        for bad in ["", "x", "-1 2", "inf 1"] {
            assert_eq!(parse_uptime(bad), None, "{bad}");
        }
        assert!(boot_time().unwrap().since_boot > Duration::ZERO);
    }
}
