//! Packages of agents for new machines: the files `tombolo-agent_*.deb` of one folder, which are served without a
//! token.
//!
//! A package is not secret, and a new machine verifies it by the SHA-256 in its user-data. Clients without a token can
//! use only limited resources: the names and sizes of files are limited, and so are the number of simultaneous
//! downloads and the time for each.

use crate::admission::Address;
use crate::metrics::{Download, Metrics};
use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncReadExt as _;
use tombolo_proto::fabric::Package;

/// Size of the largest package that is served, in bytes. An agent's package is smaller than a tenth of this.
const MAX_SIZE: u64 = 64 << 20;
/// Length of the longest file name that is looked up, in bytes. Names of packages are shorter.
const MAX_NAME: usize = 128;
/// Maximum number of packages in a list. It is small, because listing reads every file. A folder usually has one
/// package for each architecture.
const MAX_LISTED: usize = 16;
/// Maximum number of simultaneous downloads. Each holds a file descriptor and some 200 KiB of buffers.
pub(crate) const MAX_DOWNLOADS: usize = 32;
/// Maximum number of simultaneous downloads for one address. Machines behind a NAT share this limit. A further download
/// is answered with 503 and `Retry-After`, and `apt-helper`, which the user-data calls, tries again.
pub(crate) const MAX_DOWNLOADS_OF_ADDRESS: usize = 8;
/// Number of bytes that are read from a package at a time. It equals the size of the HTTP/2 send buffer for one stream
/// of a client that is no agent.
const CHUNK_SIZE: usize = 64 << 10;

/// The folder of packages, and the number of downloads in progress for each address.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    downloads: Mutex<HashMap<Address, usize>>,
}

impl Packages {
    /// The packages of a folder. Nothing is read here: each request reads the folder, which may be missing.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            downloads: Mutex::default(),
        }
    }

    /// Opens a package for reading. Blocks on the file system. Returns the file and its size in bytes. `None`: `name`
    /// has not the form of a package's name, the folder has no such file, the file is no regular file (a symbolic link
    /// is none), or the file is larger than [`MAX_SIZE`].
    ///
    /// # Errors
    /// The file exists and cannot be opened.
    pub(crate) fn open(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        if !is_package_name(name) {
            return Ok(None);
        }
        // A symbolic link could lead out of the folder, and opening a FIFO would block until it has a writer.
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits())
            .open(self.folder.join(name));
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            // `O_NOFOLLOW` makes the kernel return this error for a symbolic link.
            Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let served = metadata.is_file() && metadata.len() <= MAX_SIZE;
        Ok(served.then_some((file, metadata.len())))
    }

    /// The first [`MAX_LISTED`] packages of the folder by name, with their SHA-256. Blocks while it reads these files
    /// completely. Empty if the folder does not exist.
    ///
    /// # Errors
    /// The folder or a package cannot be read.
    pub(crate) fn list(&self) -> io::Result<Vec<Package>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| is_package_name(name))
            .collect();
        names.sort();
        names.truncate(MAX_LISTED);
        let mut found = Vec::new();
        for name in names {
            if let Some((file, size)) = self.open(&name)? {
                let sha256 = sha256(file)?;
                found.push(Package { name, size, sha256 });
            }
        }
        Ok(found)
    }

    /// The folder whose packages clients can download. It need not exist.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn downloads(&self) -> MutexGuard<'_, HashMap<Address, usize>> {
        self.downloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a download for this address, without waiting. `None`: [`MAX_DOWNLOADS`] are in progress, or
    /// [`MAX_DOWNLOADS_OF_ADDRESS`] of them are for this address.
    pub(crate) fn begin(self: &Arc<Self>, address: Address) -> Option<Slot> {
        let mut downloads = self.downloads();
        if downloads.values().sum::<usize>() >= MAX_DOWNLOADS {
            return None;
        }
        let of_address = downloads.entry(address).or_default();
        if *of_address >= MAX_DOWNLOADS_OF_ADDRESS {
            return None;
        }
        *of_address += 1;
        drop(downloads);
        let packages = self.clone();
        Some(Slot { packages, address })
    }
}

/// A reserved download. Dropping it releases the reservation.
#[derive(Debug)]
pub(crate) struct Slot {
    packages: Arc<Packages>,
    address: Address,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut downloads = self.packages.downloads();
        if let Some(n) = downloads.get_mut(&self.address) {
            *n -= 1;
            if *n == 0 {
                downloads.remove(&self.address);
            }
        }
    }
}

/// Whether a file name is `tombolo-agent_*.deb` with letters, digits and `._+~-` for `*`, and not longer than
/// [`MAX_NAME`]. Such a name has no `/`, so it cannot name a file outside of the folder.
fn is_package_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._+~-".contains(&b);
    let inner = name
        .strip_prefix("tombolo-agent_")
        .and_then(|rest| rest.strip_suffix(".deb"));
    name.len() <= MAX_NAME && inner.is_some_and(|inner| !inner.is_empty() && inner.bytes().all(plain))
}

/// SHA-256 of a file, in hexadecimal digits.
fn sha256(mut file: File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_SIZE];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect());
        }
        hash.update(buffer.get(..n).unwrap_or_default());
    }
}

/// A download in progress. When this value is dropped, the download is counted in the metrics: as `complete` if all
/// bytes were passed to the connection, otherwise as `incomplete`.
struct Transfer {
    file: tokio::fs::File,
    left: u64,
    metrics: Arc<Metrics>,
    _slot: Slot,
}

impl Transfer {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let mut chunk = BytesMut::with_capacity(CHUNK_SIZE);
        // The response has announced the size, so bytes by which the file has grown since then are not sent.
        let read = (&mut self.file).take(self.left).read_buf(&mut chunk).await?;
        if read == 0 {
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                "the file of the package was truncated during the download",
            ));
        }
        self.left = self.left.saturating_sub(read as u64);
        Ok(Some(chunk.freeze()))
    }
}

/// The content of a package of `size` bytes as a stream of chunks. When the stream is dropped, it releases `slot` and
/// counts the download in `metrics`. It ends with an error if the file cannot be read or has become shorter.
pub(crate) fn content(
    file: File,
    size: u64,
    slot: Slot,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let transfer = Transfer {
        file: tokio::fs::File::from_std(file),
        left: size,
        metrics,
        _slot: slot,
    };
    stream::try_unfold(transfer, |mut transfer| async move {
        io::Result::Ok(transfer.next().await?.map(|chunk| (chunk, transfer)))
    })
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.metrics.downloaded(match self.left {
            0 => Download::Complete,
            _ => Download::Incomplete,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn golden_package() {
        let package = Package {
            name: "tombolo-agent_0.1.0-1_amd64.deb".into(),
            size: 4_000_000,
            sha256: "ab".repeat(32),
        };
        tombolo_golden::golden!().written("package", &[("package", package)]);
    }

    const NAME: &str = "tombolo-agent_0.1.0-1_amd64.deb";

    fn packages() -> (tempfile::TempDir, Arc<Packages>) {
        let folder = tempfile::tempdir().unwrap();
        let packages = Arc::new(Packages::new(folder.path().to_owned()));
        (folder, packages)
    }

    #[test]
    fn only_names_of_packages_are_looked_up() {
        for good in [NAME, "tombolo-agent_1.0~rc1+b2-1_arm64.deb"] {
            assert!(is_package_name(good), "{good}");
        }
        let long = format!("tombolo-agent_{}.deb", "1".repeat(MAX_NAME));
        for bad in [
            "",
            "tombolo-agent_.deb",
            "tombolo-agent.deb",
            "tombolo_0.1.0-1_amd64.deb",
            "tombolo-agent_1_amd64.deb.sig",
            "../tombolo-agent_1_amd64.deb",
            "tombolo-agent_/../x.deb",
            "tombolo-agent_%2e.deb",
            "tombolo-agent_\0.deb",
            "tombolo-agent_ä.deb",
            &long,
        ] {
            assert!(!is_package_name(bad), "{bad}");
        }
    }

    #[test]
    fn only_plain_files_of_the_folder_are_listed() {
        let (folder, packages) = packages();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path(NAME), b"abc").unwrap();
        std::fs::write(path("secret.txt"), b"no package").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", path("tombolo-agent_2_amd64.deb")).unwrap();
        std::fs::create_dir(path("tombolo-agent_3_amd64.deb")).unwrap();
        nix::unistd::mkfifo(&path("tombolo-agent_4_amd64.deb"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let large = File::create(path("tombolo-agent_5_amd64.deb")).unwrap();
        large.set_len(MAX_SIZE + 1).unwrap();
        let listed = packages.list().unwrap();
        // RFC 6234's test vector for "abc".
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        let (name, size) = (NAME.to_owned(), 3);
        assert_eq!(listed, [Package { name, size, sha256 }]);
        for n in 2..=5 {
            let name = format!("tombolo-agent_{n}_amd64.deb");
            assert!(packages.open(&name).unwrap().is_none(), "{name}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_packages() {
        let packages = Packages::new("/nowhere/packages".into());
        assert_eq!(packages.list().unwrap(), []);
        assert!(packages.open(NAME).unwrap().is_none());
    }

    #[test]
    fn downloads_are_limited_for_each_address_and_in_all() {
        let (_folder, packages) = packages();
        let address = |n: u8| Address::from(IpAddr::from([192, 0, 2, n]));
        let mut slots = Vec::new();
        for n in 0..MAX_DOWNLOADS / MAX_DOWNLOADS_OF_ADDRESS {
            let n = u8::try_from(n).unwrap();
            for _ in 0..MAX_DOWNLOADS_OF_ADDRESS {
                slots.push(packages.begin(address(n)).unwrap());
            }
            assert!(packages.begin(address(n)).is_none(), "address {n} has its share");
        }
        assert!(packages.begin(address(200)).is_none(), "all are taken");
        slots.pop();
        slots.push(packages.begin(address(200)).unwrap());
        slots.clear();
        assert!(packages.downloads().is_empty(), "addresses are forgotten");
    }
}
