//! The one thing that an agent changes on its host outside its own device, table and rules, and how it is undone.
//!
//! Linux sends ICMP redirects on a device if that device *or* `all` says so. An appliance forwards out of the device
//! that a packet came in on, so it would send one for every packet (D23 forbids it). Setting `all` to 0 leaves every
//! other device to its own switch, which is on unless somebody turned it off.
//!
//! Several agents of one host may need it: each leaves a note named after its device, and the last one to go sets the
//! switch back. A note without its device is that of a crash, and counts for nothing. The switch belongs to a network
//! namespace, and so do the notes.

use crate::switches::{ALL_SEND_REDIRECTS, ROOT};
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::net::if_::if_nametoindex;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const NOTES: &str = "/run/tombolo/redirects";

/// Lets devices decide for themselves about redirects, for as long as the agent with this device needs it.
///
/// # Errors
/// The note cannot be written, or the switch not set.
pub fn quiet_redirects(interface: &str) -> Result<()> {
    Redirects::here()?.quiet(interface, device_exists)
}

/// Undoes [`quiet_redirects`] if it was done, and nobody else needs it. Returns whether the switch was set back.
///
/// # Errors
/// The note cannot be removed, or the switch not set.
pub fn restore(interface: &str) -> Result<bool> {
    Redirects::here()?.restore(interface, device_exists)
}

fn device_exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// The switch and the notes of those who need it off.
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
        // Off, and no agent has been here: the operator's choice. Nothing needs to be writable then, as in a container.
        if self.value()? != "1" && !self.notes.exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.notes).with_context(|| self.notes.display().to_string())?;
        let _lock = self.lock()?;
        // Off, and not by one of us: the operator's choice, which stays.
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
        // Whoever switched it on meanwhile wanted it so.
        if self.others(interface, &alive)? > 0 || self.value()? != "0" {
            return Ok(false);
        }
        self.set("1")?;
        Ok(true)
    }

    /// How many others need the switch off; removes the notes of crashes.
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

    /// Held while notes and switch are changed together.
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
    fn what_others_set_stays() {
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
    fn a_crash_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let r = redirects(dir.path(), "1");
        r.quiet("crashed", |_| true).unwrap();
        r.quiet("a", |_| true).unwrap();
        assert!(r.restore("a", |name| name != "crashed").unwrap());
        assert_eq!(r.value().unwrap(), "1");
    }
}
