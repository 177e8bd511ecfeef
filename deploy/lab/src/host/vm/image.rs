//! The disk image that all machines start from.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Environment variable that names the folder of the image; if it is not set, the folder is [`DEFAULT_IMAGE`].
const IMAGE: &str = "TOMBOLO_VM_IMAGE";
/// Name of the folder that `make vm-image` fills. It is one level above the programs: for `target/debug/tombolo` the
/// folder is `target/lab-vm`.
const DEFAULT_IMAGE: &str = "lab-vm";
/// Files of an image: the kernel, its initial file system, the disk, the operator's private SSH key, and the guest's
/// public host key.
const FILES: [&str; 5] = ["kernel", "initrd", "root.img", "key", "known_hosts"];

/// Returns the folder of the image: the value of the environment variable [`IMAGE`] if it is set, otherwise the folder
/// [`DEFAULT_IMAGE`] one level above the folder of the running program. The folder need not exist.
pub(super) fn folder() -> PathBuf {
    if let Some(named) = std::env::var_os(IMAGE) {
        return named.into();
    }
    // The program target/debug/tombolo uses target/lab-vm.
    let own = std::env::current_exe().unwrap_or_default();
    let target = own.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    target.join(DEFAULT_IMAGE)
}

/// Checks that the folder of the image has all files. Their contents are not checked.
///
/// # Errors
/// A file is missing; the message says how to make the image.
pub(super) fn check() -> Result<()> {
    let image = folder();
    for file in FILES {
        if !image.join(file).is_file() {
            bail!(
                "{} has no {file}, so it is no image of a virtual machine: 'make vm-image' makes one, or {IMAGE} names the \
                 folder of another",
                image.display()
            );
        }
    }
    Ok(())
}
