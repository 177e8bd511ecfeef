//! Files with secrets, and tokens.

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file that only its owner may read, completely or not at all.
///
/// # Errors
/// The file system's.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes an empty file that only its owner may read; sets that mode on one that exists.
///
/// # Errors
/// The file system's.
pub fn make_private(path: &Path) -> anyhow::Result<()> {
    let make = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o600).open(path)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))
    };
    make().with_context(|| format!("cannot make {}", path.display()))
}

/// 256 random bits as text.
#[must_use]
pub fn random() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// What is stored of a secret: BLAKE3, hex. A 256-bit random secret needs no slow hash.
#[must_use]
pub fn hash(secret: &str) -> String {
    blake3::hash(secret.as_bytes()).to_hex().to_string()
}

/// Compares a presented secret with a stored hash in constant time.
#[must_use]
pub fn matches(secret: &str, stored: &str) -> bool {
    blake3::Hash::from_hex(stored).is_ok_and(|stored| blake3::hash(secret.as_bytes()) == stored)
}
