//! Files that only their owner may read; random secrets, and hashes of secrets.

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces a file atomically by one with mode 0600 and this content, or creates it. Blocks until the file and its
/// directory are synced to the disk. The new content is first written to a second file in the same directory, with the
/// extension `new`.
///
/// # Errors
/// The file system fails. The file then has its old content, or, if only the sync of the directory failed, its new
/// content.
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

/// Creates an empty file with mode 0600. If the file exists, keeps its content and sets its mode to 0600.
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

/// The BLAKE3 hash of a secret in hexadecimal digits, for storage. A random secret of 256 bits cannot be guessed, so a
/// slow password hash would add nothing.
#[must_use]
pub fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// Whether a stored [`hash`] is that of this secret, compared in constant time. False if the hash is malformed.
#[must_use]
pub fn matches(secret: &str, stored: &str) -> bool {
    blake3::Hash::from_hex(stored).is_ok_and(|stored| blake3::hash(secret.as_bytes()) == stored)
}
