//! The files of flow logs: one for each log, NIC and hour (N14).
//!
//! A file is valid JSON at all times, except while a record is appended. Each record is one line:
//!
//! ```text
//! {"records":[
//! {…}
//! ,{…}
//! ]}
//! ```
//! If the process ends while it appends, the next start removes the unfinished line. The directory is locked, so that two agents
//! do not write the same files. Files that do not begin like these are somebody else's, and are left alone.

use super::record::FILE;
use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::libc::O_NOFOLLOW;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

const HEAD: &[u8] = b"{\"records\":[\n";
const TAIL: &[u8] = b"]}";

/// Largest depth of directories that are searched. Paths of resource ids have 9 segments, and hours have 5.
const MAX_DEPTH: usize = 32;

/// Part of a path: the hour of a file, as text whose order is that of time.
type Hour = String;

/// The files of all flow logs of an agent.
#[derive(Debug)]
pub struct LogFiles {
    root: PathBuf,
    /// Held while the value exists.
    _lock: Flock<File>,
    /// The largest sum of the files' lengths, in bytes.
    limit: u64,
    /// The lengths of the files by hour and path.
    files: BTreeMap<(Hour, PathBuf), u64>,
    used: u64,
}

impl LogFiles {
    /// Opens the directory `root`, which is created if it is missing. Finds the files that are there already, and removes
    /// unfinished lines at their ends. The sum of the files' lengths will be at most `limit` bytes.
    ///
    /// # Errors
    /// The directory cannot be created or read, or another agent uses it. A single file that cannot be read is left alone.
    pub fn open(root: &Path, limit: u64) -> Result<Self> {
        create_directories(root).with_context(|| format!("creating {}", root.display()))?;
        let directory = File::open(root).with_context(|| format!("opening {}", root.display()))?;
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e);
        let lock = lock.with_context(|| {
            format!(
                "flow_logs.directory: {} is in use by another agent: each agent needs a directory of its own",
                root.display()
            )
        })?;
        let mut files = Self {
            root: root.to_owned(),
            _lock: lock,
            limit,
            files: BTreeMap::new(),
            used: 0,
        };
        files.find(root, MAX_DEPTH)?;
        Ok(files)
    }

    /// The sum of the files' lengths, in bytes.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Appends a record, one line of JSON, to the file `path`, which is relative to the directory. Creates the file if it is
    /// missing. If the files would become too long together, removes those of the earliest hours first, but none of the
    /// record's own hour.
    ///
    /// # Errors
    /// There is no room, even without the files of other hours, which stay then; or the file cannot be written, or is somebody
    /// else's. The file has the same records as before.
    pub fn append(&mut self, path: &Path, record: &str) -> Result<()> {
        let hour = hour_of(path);
        // Head, comma and line break of a record.
        let needed = (record.len() + HEAD.len() + TAIL.len() + 2) as u64;
        self.make_room(needed, &hour)?;
        let full = self.root.join(path);
        let step = || -> std::io::Result<u64> {
            if let Some(directory) = full.parent() {
                create_directories(directory)?;
            }
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            let mut file = options.custom_flags(O_NOFOLLOW).mode(0o600).open(&full)?;
            let end = repair(&mut file)?;
            let mut bytes = Vec::with_capacity(record.len() + HEAD.len() + TAIL.len() + 2);
            match end {
                0 => bytes.extend(HEAD),
                end if end == HEAD.len() as u64 => {}
                _ => bytes.push(b','),
            }
            bytes.extend(record.as_bytes());
            bytes.push(b'\n');
            bytes.extend(TAIL);
            file.write_all_at(&bytes, end).inspect_err(|_| {
                // The file stays valid without the record.
                let _ = finish(&file, end);
            })?;
            Ok(end + bytes.len() as u64)
        };
        let length = step().with_context(|| format!("writing {}", full.display()))?;
        let before = self.files.insert((hour, path.to_owned()), length);
        self.used = self.used + length - before.unwrap_or(0);
        Ok(())
    }

    fn make_room(&mut self, needed: u64, hour: &str) -> Result<()> {
        if self.used + needed <= self.limit {
            return Ok(());
        }
        let of_hour = self.files.range((hour.to_owned(), PathBuf::new())..);
        let of_hour = of_hour.take_while(|((of, _), _)| of == hour).map(|(_, length)| length);
        // Otherwise all other hours would be removed in vain.
        ensure!(
            of_hour.sum::<u64>() + needed <= self.limit,
            "the flow logs of this hour have reached the limit of {} bytes",
            self.limit
        );
        while self.used + needed > self.limit {
            // The clock may have been set back, so later hours may have files too.
            let oldest = self.files.iter().find(|((of, _), _)| of != hour);
            let Some(((of, path), length)) = oldest else { break };
            let (key, length) = ((of.clone(), path.clone()), *length);
            let full = self.root.join(&key.1);
            match fs::remove_file(&full) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("removing {}", full.display()));
                }
                _ => {}
            }
            // Directories that still have entries stay.
            let above = full.ancestors().skip(1).take_while(|d| *d != self.root);
            let _ = above.map(fs::remove_dir).take_while(std::io::Result::is_ok).count();
            self.files.remove(&key);
            self.used -= length;
        }
        Ok(())
    }

    fn find(&mut self, directory: &Path, depth: usize) -> Result<()> {
        let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
            let (path, kind) = (entry.path(), entry.file_type());
            let Ok(kind) = kind else { continue };
            if kind.is_dir() && depth > 0 {
                self.find(&path, depth - 1)?;
            } else if kind.is_file() && entry.file_name() == FILE {
                self.take_up(&path);
            }
        }
        Ok(())
    }

    /// Repairs a file of an earlier run, and notes its length. A file that cannot be repaired, or is no flow log of an agent, is
    /// left alone.
    fn take_up(&mut self, full: &Path) {
        let Ok(path) = full.strip_prefix(&self.root) else {
            return;
        };
        let hour = hour_of(path);
        if hour.is_empty() {
            return;
        }
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_NOFOLLOW)
            .open(full);
        let repaired = open.and_then(|mut file| {
            repair(&mut file)?;
            file.metadata().map(|metadata| metadata.len())
        });
        match repaired {
            Ok(length) => {
                self.files.insert((hour, path.to_owned()), length);
                self.used += length;
            }
            Err(e) => {
                tracing::warn!(file = %full.display(), error = %e, "file left alone: it is not a flow log of this agent")
            }
        }
    }
}

/// Creates directories to which only the agent's user has access.
fn create_directories(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The hour in the path of a file: the values of year, month, day and hour. Empty if there is none.
fn hour_of(path: &Path) -> Hour {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let names: Vec<&str> = names.collect();
    let year = names.iter().rposition(|name| name.starts_with("y="));
    let values = year.and_then(|year| names.get(year..year + 4));
    values.map_or_else(String::new, |values| values.join("/"))
}

/// Removes an unfinished line at the end of a file, and returns the position at which the next record begins: 0 if the
/// file is empty, otherwise that of [`TAIL`]. A file that does not begin with [`HEAD`], or with a part of it if it is shorter, is
/// an error, and stays as it is.
fn repair(file: &mut File) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(0);
    }
    let mut head = Vec::with_capacity(HEAD.len());
    file.seek(SeekFrom::Start(0))?;
    (&mut *file).take(HEAD.len() as u64).read_to_end(&mut head)?;
    if !HEAD.starts_with(&head) {
        return Err(std::io::Error::new(
            ErrorKind::InvalidData,
            "another program has written the file",
        ));
    }
    let complete = [b"\n", TAIL].concat();
    if length >= complete.len() as u64 {
        let mut end = vec![0; complete.len()];
        file.read_exact_at(&mut end, length - complete.len() as u64)?;
        if end == complete {
            return Ok(length - TAIL.len() as u64);
        }
    }
    let end = last_line(file, length)?;
    finish(file, end)?;
    Ok(end)
}

/// Cuts a file at `end`, and closes its JSON there.
fn finish(file: &File, end: u64) -> std::io::Result<()> {
    file.set_len(end)?;
    if end > 0 {
        file.write_all_at(TAIL, end)?;
    }
    Ok(())
}

/// The position after the last line break of a file. JSON texts have none inside of strings.
fn last_line(file: &mut File, length: u64) -> std::io::Result<u64> {
    const CHUNK: u64 = 65_536;
    let mut end = length;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.take(end - start).read_to_end(&mut chunk)?;
        if let Some(position) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + position as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests;
