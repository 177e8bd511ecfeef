//! BIRD's files: a configuration directory, which the agent writes and BIRD's group may read, and BIRD's own run
//! directory.
//!
//! BIRD parses the messages of untrusted neighbours. A compromised BIRD could place symbolic links where the agent
//! writes, and so redirect these writes. Therefore the agent writes only into a directory whose entries BIRD cannot
//! change. In BIRD's run directory the agent only removes names, and connects to the control socket.

use super::BirdService;
use anyhow::{Context, Result, ensure};
use nix::libc::{O_DIRECTORY, O_NOFOLLOW};
use nix::unistd::{User, geteuid};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Names of files and sockets in the configuration directory.
pub(super) const CONFIG: &str = "bird.conf";
const NEW_CONFIG: &str = "bird.conf.new";
pub(super) const START_SOCKET: &str = "start.sock";
/// Name of the run directory of a BIRD that is a child. It is in the configuration directory.
pub(super) const RUN_DIR: &str = "run";
/// Names of files and sockets in the run directory.
pub(super) const CONTROL_SOCKET: &str = "bird.ctl";
pub(super) const PID_FILE: &str = "bird.pid";

/// Longest path of a Unix socket in bytes: `sun_path` has 108 bytes (`unix(7)`), the last of which is 0.
const MAX_SOCKET_PATH: usize = 107;

/// The configuration directory, the run directory, and BIRD's user.
#[derive(Debug)]
pub(super) struct Home {
    config_dir: PathBuf,
    run_dir: PathBuf,
    /// The user that BIRD runs as. None: the agent's own user.
    user: Option<User>,
}

impl Home {
    /// Creates the directories of a BIRD that is the agent's child: `dir`, and the run directory in it. BIRD's group
    /// may read the first and write the second.
    ///
    /// # Errors
    /// A directory cannot be created or given to BIRD's group, is a symbolic link, or belongs to another user than the
    /// agent's. Or its path is too long for a socket in it.
    pub(super) fn of_child(dir: &Path, user: Option<User>) -> Result<Self> {
        let config_dir = make_dir(dir, 0o750, user.as_ref())?;
        // BIRD creates its control socket and PID file in the run directory, so BIRD's group may write there. The agent
        // writes nothing there.
        let run_dir = make_dir(&config_dir.join(RUN_DIR), 0o770, user.as_ref())?;
        Self::new(config_dir, run_dir, user)
    }

    /// Creates the configuration directory of a BIRD that a service manager starts. The service manager creates the run
    /// directory.
    ///
    /// # Errors
    /// The user does not exist. Or the configuration directory cannot be created or given to BIRD's group, is a
    /// symbolic link, or belongs to another user. Or the path of a directory is too long for a socket in it.
    pub(super) fn of_service(service: &BirdService) -> Result<Self> {
        let name = &service.user;
        let user = User::from_name(name)?;
        let user =
            user.with_context(|| format!("bird user: no user '{name}' on this host: create it, or name another user"))?;
        let config_dir = make_dir(&service.config_dir, 0o750, Some(&user))?;
        Self::new(config_dir, service.run_dir.clone(), Some(user))
    }

    fn new(config_dir: PathBuf, run_dir: PathBuf, user: Option<User>) -> Result<Self> {
        let home = Self {
            config_dir,
            run_dir,
            user,
        };
        for socket in [home.control_socket(), home.start_socket()] {
            let length = socket.as_os_str().len();
            ensure!(
                length <= MAX_SOCKET_PATH,
                "{}: a socket's path has at most {MAX_SOCKET_PATH} bytes, this one has {length}: choose a shorter directory",
                socket.display()
            );
        }
        Ok(home)
    }

    /// The absolute path of the directory into which the agent writes BIRD's configuration.
    pub(super) fn config_dir(&self) -> &Path {
        &self.config_dir
    }

    /// The path of BIRD's control socket, in the run directory.
    pub(super) fn control_socket(&self) -> PathBuf {
        self.run_dir.join(CONTROL_SOCKET)
    }

    /// The path of the socket to which a starting BIRD connects, in the configuration directory.
    pub(super) fn start_socket(&self) -> PathBuf {
        self.config_dir.join(START_SOCKET)
    }

    /// The user that BIRD runs as. None: the agent's own user.
    pub(super) const fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// The user ID that BIRD runs as. The agent exchanges data only with processes of this user.
    pub(super) fn uid(&self) -> u32 {
        self.user.as_ref().map_or(geteuid(), |user| user.uid).as_raw()
    }

    /// Replaces the configuration file atomically. BIRD reads the file only at its start and at the command
    /// `configure`. The text contains passwords, so only the agent and BIRD's group may read the file.
    ///
    /// # Errors
    /// The file cannot be written. The old configuration stays.
    pub(super) fn write(&self, text: &str) -> Result<()> {
        let (path, new) = (self.config_dir.join(CONFIG), self.config_dir.join(NEW_CONFIG));
        let step = || -> std::io::Result<()> {
            // A killed agent may have left this file. `create_new` fails if the file exists, so that the file always
            // has the owner and mode that are set here.
            remove(&new)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .custom_flags(O_NOFOLLOW)
                .mode(0o600)
                .open(&new)?;
            if let Some(user) = &self.user {
                give_to_group(&file, user)?;
                file.set_permissions(Permissions::from_mode(0o640))?;
            }
            file.write_all(text.as_bytes())?;
            fs::rename(&new, &path)
        };
        step().with_context(|| format!("writing {}", path.display()))
    }

    /// Removes the configuration file. Without this file the service manager does not start BIRD.
    pub(super) fn remove_config(&self) {
        // The agent owns the directory and may remove files from it. So the removal fails only if the disk has a fault.
        let _ = remove(&self.config_dir.join(CONFIG));
    }

    /// Removes the configuration, and BIRD's control socket and PID file.
    pub(super) fn clear(&self) {
        self.remove_config();
        for name in [CONTROL_SOCKET, PID_FILE] {
            // The agent may not be allowed to write in the run directory of a service. BIRD replaces these files at its
            // next start.
            let _ = remove(&self.run_dir.join(name));
        }
    }
}

/// Changes the group of a file to that of BIRD's user, unless the file has that group already. An agent whose own group
/// is BIRD's creates its files with that group, and then needs no CAP_CHOWN.
fn give_to_group(file: &File, user: &User) -> std::io::Result<()> {
    let group = user.gid.as_raw();
    if file.metadata()?.gid() != group {
        fchown(file, None, Some(group))?;
    }
    Ok(())
}

/// Removes a file, and does nothing if it does not exist. If the name is a symbolic link, the link is removed and its
/// target stays.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Creates a directory with its parents unless it exists, and sets its mode. Without a user for BIRD, the group gets no
/// rights. Returns the absolute path, without symbolic links.
///
/// # Errors
/// The directory cannot be created, is a symbolic link, or belongs to another user than the agent's.
fn make_dir(path: &Path, mode: u32, user: Option<&User>) -> Result<PathBuf> {
    let step = || -> Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // Group and mode are set by the directory's descriptor. If they were set by name, BIRD could first replace the
        // directory by a link, because BIRD may change the entries of its own directory.
        let dir = OpenOptions::new()
            .read(true)
            .custom_flags(O_DIRECTORY | O_NOFOLLOW)
            .open(path)?;
        let (owner, own) = (dir.metadata()?.uid(), geteuid().as_raw());
        ensure!(
            owner == own,
            "belongs to the user {owner}, not to the agent's user {own}: remove it"
        );
        if let Some(user) = user {
            give_to_group(&dir, user)?;
        }
        let mode = if user.is_some() { mode } else { mode & 0o700 };
        dir.set_permissions(Permissions::from_mode(mode))?;
        Ok(path.canonicalize()?)
    };
    step().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests;
