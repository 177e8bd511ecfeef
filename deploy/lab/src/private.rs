//! Writes files with secrets, which only their owner may read.

use anyhow::{Context, Result};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes `text` to a file and replaces its content. A new file gets mode 0600; an existing file keeps its mode and
/// owner. The write is not atomic. The folder must exist. A symbolic link is followed.
///
/// # Errors
/// The file cannot be created or written. Its old content may be lost then.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).with_context(|| path.display().to_string())?;
    file.write_all(text.as_bytes())
        .with_context(|| path.display().to_string())
}
