//! Files that only their owner may read; random secrets, and hashes of secrets.

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces a file atomically by one with this content, or creates it. Blocks until the file and its directory are
/// synced to the disk. `path` must name the directory too: for a file name alone, the sync of the directory fails.
///
/// The new content is first written to a second file in the same directory, whose name is that of `path` with the
/// extension replaced by `new`. So calls for the same path, or for paths that differ only in their extension, must not
/// overlap. The mode of the new file is 0600; if the second file exists already, its mode is kept instead.
///
/// # Errors
/// The file system fails. The file then has its old content, or, if only the sync of the directory failed, its new
/// content. The second file may remain.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Creates an empty file with mode 0600. If the file exists, keeps its content and sets its mode to 0600. Symbolic
/// links are followed.
///
/// # Errors
/// The file cannot be opened for writing, or its mode cannot be set.
pub fn make_private(path: &Path) -> anyhow::Result<()> {
    let make = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
    };
    make().with_context(|| format!("cannot create {}", path.display()))
}

/// A new secret: 256 random bits in base64url without padding (43 characters).
#[must_use]
pub fn random() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// The BLAKE3 hash of a secret in 64 lower-case hexadecimal digits, for storage. A random secret of 256 bits cannot be
/// guessed, so a slow password hash would add nothing.
#[must_use]
pub fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// Whether a stored [`hash`] is that of this secret, compared in constant time. False if the hash is malformed.
#[must_use]
pub fn matches(secret: &str, stored: &str) -> bool {
    blake3::Hash::from_hex(stored).is_ok_and(|stored| blake3::hash(secret.as_bytes()) == stored)
}
