//! The ICMP redirect switch: the only host setting that an agent changes outside its own device, tables and rules, and
//! how it is restored.
//!
//! Linux sends ICMP redirects on a device if the switch of that device or of `all` is on. An appliance forwards packets
//! out of the device that they arrived on, so it would send a redirect for each, which D23 forbids. With `all` at 0,
//! each other device follows its own switch, which is on by default.
//!
//! Several agents of a host may need `all` off. Each creates a note named after its device, and the last agent to end
//! restores the switch. A note without a device is that of a crashed agent and is ignored. Switch and notes belong to a
//! network namespace.

use crate::switches::{ALL_SEND_REDIRECTS, ROOT};
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_nametoindex;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Directory of notes, one subdirectory per network namespace. `/run` is empty after a reboot, as the switch is reset.
const NOTES: &str = "/run/tombolo/redirects";

/// Turns `all/send_redirects` off for as long as the agent with this device needs it. Does nothing if the operator
/// turned it off.
///
/// # Errors
/// The note cannot be written, or the switch cannot be set.
pub fn quiet_redirects(interface: &str) -> Result<()> {
    Redirects::here()?.quiet(interface, device_exists)
}

/// Undoes [`quiet_redirects`] if no other agent needs it. Returns whether the switch was turned on again.
///
/// # Errors
/// The note cannot be removed, or the switch cannot be set.
pub fn restore(interface: &str) -> Result<bool> {
    Redirects::here()?.restore(interface, device_exists)
}

/// Calls [`restore`], and logs an error as a warning. Returns whether the switch was turned on again.
pub fn restore_or_warn(interface: &str) -> bool {
    restore(interface).unwrap_or_else(|e| {
        tracing::warn!(error = %format!("{e:#}"), "ICMP redirect switch not restored");
        false
    })
}

fn device_exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// The switch, and the notes of agents that need it off.
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
        // Off without any note: the operator turned it off. Return before writing, since a container may have a
        // read-only /proc and /run.
        if self.value()? != "1" && !self.notes.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.notes).with_context(|| self.notes.display().to_string())?;
        let _lock = self.lock()?;
        // Off, and not by an agent: the operator turned it off, and it stays off.
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
        // On already: the operator turned it on meanwhile.
        if self.others(interface, &alive)? > 0 || self.value()? != "0" {
            return Ok(false);
        }
        self.set("1")?;
        Ok(true)
    }

    /// The number of other agents that need the switch off. Removes the notes of crashed agents.
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

    /// Locks the notes, so that notes and switch change together.
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
