//! The switch for ICMP redirects of the whole host: how an agent turns it off, and how it is restored. This switch is
//! the only setting that an agent changes outside of its own devices, tables and rules.
//!
//! Linux sends ICMP redirects on a device if the switch of that device or the switch `all` is on. An appliance forwards
//! packets out of the device on which they arrived, so Linux would send a redirect for each of them, which D23 forbids.
//! If the switch `all` is off, each other device of the host follows its own switch, which is on by default. So turning
//! `all` off changes nothing for devices at their default.
//!
//! Several agents of a host may need the switch `all` off. Each of them creates a note, which is a file with the name
//! of the agent's device. The last agent to end restores the switch. A note whose device does not exist was left by a
//! crashed agent, and is ignored. Each network namespace has its own switch and notes.

use crate::switches::{ALL_SEND_REDIRECTS, ROOT};
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_nametoindex;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directory of the notes, with one subdirectory for each network namespace. A reboot empties `/run`, and also resets
/// the switch.
const NOTES: &str = "/run/tombolo/redirects";

/// Turns `all/send_redirects` off in the network namespace of the calling thread, and writes a note that the agent with
/// the device `interface` needs the switch off. Does nothing if the switch is off already and no other agent has turned
/// it off, because then the operator has turned it off. Waits for the lock of the notes. A second call has no further
/// effect. Needs root. The device must exist, because other agents ignore notes of devices that do not.
///
/// # Errors
/// The note cannot be written, or the switch cannot be read or set. The switch may then be on.
pub fn quiet_redirects(interface: &str) -> Result<()> {
    Redirects::here()?.quiet(interface, device_exists)
}

/// Removes the note of [`quiet_redirects`] for the device `interface`, in the network namespace of the calling thread,
/// and turns the switch on again unless another agent needs it off. Returns whether the switch was turned on. Returns
/// false if there is no note, and if the operator has turned the switch on meanwhile. Waits for the lock of the notes.
///
/// # Errors
/// The notes cannot be locked, the note cannot be removed, or the switch cannot be read or set.
pub fn restore(interface: &str) -> Result<bool> {
    Redirects::here()?.restore(interface, device_exists)
}

/// Calls [`restore`], and logs an error as a warning. Returns whether the switch was turned on again; false after an
/// error.
pub fn restore_or_warn(interface: &str) -> bool {
    restore(interface).unwrap_or_else(|e| {
        tracing::warn!(error = %format!("{e:#}"), "ICMP redirect switch not restored");
        false
    })
}

fn device_exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// The switch, and the notes of the agents that need it off.
struct Redirects {
    switch: PathBuf,
    notes: PathBuf,
}

impl Redirects {
    fn here() -> Result<Self> {
        let namespace = fs::metadata("/proc/thread-self/ns/net")
            .context("network namespace")?
            .ino();
        Ok(Self {
            switch: Path::new(ROOT).join(ALL_SEND_REDIRECTS),
            notes: Path::new(NOTES).join(namespace.to_string()),
        })
    }

    fn quiet(&self, interface: &str, alive: impl Fn(&str) -> bool) -> Result<()> {
        // If the switch is off and there are no notes, the operator has turned it off. Then nothing is written, because
        // a write could fail: a container may have a read-only /proc and /run.
        if self.value()? != "1" && !self.notes.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.notes).with_context(|| self.notes.display().to_string())?;
        let _lock = self.lock()?;
        // The switch is off, and no other agent needs it off, so the operator turned it off. This agent writes no note,
        // so that its end does not turn the switch on.
        if self.value()? != "1" && self.others(interface, &alive)? == 0 {
            return Ok(());
        }
        let note = self.notes.join(interface);
        fs::write(&note, "").with_context(|| note.display().to_string())?;
        self.set("0")
    }

    fn restore(&self, interface: &str, alive: impl Fn(&str) -> bool) -> Result<bool> {
        let note = self.notes.join(interface);
        if !note.exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        match fs::remove_file(&note) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).context(note.display().to_string()),
            _ => {}
        }
        // If the switch is on although this agent has turned it off, the operator has turned it on meanwhile.
        if self.others(interface, &alive)? > 0 || self.value()? != "0" {
            return Ok(false);
        }
        self.set("1")?;
        Ok(true)
    }

    /// The number of other agents that need the switch off. Removes the notes that crashed agents left.
    fn others(&self, interface: &str, alive: &impl Fn(&str) -> bool) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(&self.notes).with_context(|| self.notes.display().to_string())? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Some(name) if name == interface => {}
                Some(name) if alive(name) => count += 1,
                _ => drop(fs::remove_file(entry.path())),
            }
        }
        Ok(count)
    }

    /// Locks the notes, so that notes and switch change together. Waits for other agents.
    fn lock(&self) -> Result<Flock<File>> {
        let file = File::open(&self.notes).with_context(|| self.notes.display().to_string())?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| e)
            .with_context(|| format!("locking {}", self.notes.display()))
    }

    fn value(&self) -> Result<String> {
        let text = fs::read_to_string(&self.switch).with_context(|| self.switch.display().to_string())?;
        Ok(text.trim().to_owned())
    }

    fn set(&self, value: &str) -> Result<()> {
        fs::write(&self.switch, value).with_context(|| self.switch.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirects(dir: &Path, value: &str) -> Redirects {
        let switch = dir.join("send_redirects");
        fs::write(&switch, format!("{value}\n")).unwrap();
        let notes = dir.join("notes/1");
        Redirects { switch, notes }
    }

    #[test]
    fn the_last_of_several_agents_restores() {
        let dir = tempfile::tempdir().unwrap();
        let r = redirects(dir.path(), "1");
        r.quiet("a", |_| true).unwrap();
        r.quiet("b", |_| true).unwrap();
        r.quiet("b", |_| true).unwrap();
        assert!(!r.restore("a", |_| true).unwrap());
        assert_eq!(r.value().unwrap(), "0", "b forwards still");
        assert!(r.restore("b", |_| true).unwrap());
        assert_eq!(r.value().unwrap(), "1");
        assert!(!r.restore("b", |_| true).unwrap());
    }

    #[test]
    fn the_operators_choice_stays() {
        let dir = tempfile::tempdir().unwrap();
        let r = redirects(dir.path(), "0");
        r.quiet("a", |_| true).unwrap();
        assert!(!r.restore("a", |_| true).unwrap());
        assert_eq!(r.value().unwrap(), "0", "the operator's choice before");
        r.set("1").unwrap();
        r.quiet("a", |_| true).unwrap();
        r.set("1").unwrap();
        assert!(!r.restore("a", |_| true).unwrap(), "the operator's choice meanwhile");
    }

    #[test]
    fn notes_of_crashed_agents_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let r = redirects(dir.path(), "1");
        r.quiet("crashed", |_| true).unwrap();
        r.quiet("a", |_| true).unwrap();
        assert!(r.restore("a", |name| name != "crashed").unwrap());
        assert_eq!(r.value().unwrap(), "1");
    }
}
