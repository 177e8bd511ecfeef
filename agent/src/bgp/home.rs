//! BIRD's files: a directory that the agent writes and BIRD's group may read, and one of BIRD's own.
//!
//! BIRD parses what neighbours send. A BIRD that a neighbour has taken over must not have the agent write anywhere else, so
//! the agent writes only where BIRD cannot change a name. In BIRD's own directory the agent removes names and connects to
//! the control socket, nothing more.

use super::BirdService;
use anyhow::{Context, Result, ensure};
use nix::libc::{O_DIRECTORY, O_NOFOLLOW};
use nix::unistd::{User, geteuid};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Names in the agent's directory.
pub(super) const CONFIG: &str = "bird.conf";
const NEW_CONFIG: &str = "bird.conf.new";
pub(super) const START_SOCKET: &str = "start.sock";
/// BIRD's own directory in it, where BIRD is the agent's child.
pub(super) const RUN_DIR: &str = "run";
/// Names in BIRD's own directory.
pub(super) const CONTROL_SOCKET: &str = "bird.ctl";
pub(super) const PID_FILE: &str = "bird.pid";

/// Longest path of a socket, bytes: one byte of `sun_path` ends it.
const MAX_SOCKET_PATH: usize = 107;

/// The two directories, and the user that BIRD runs as.
#[derive(Debug)]
pub(super) struct Home {
    config_dir: PathBuf,
    run_dir: PathBuf,
    /// None: BIRD runs as the agent's own user.
    user: Option<User>,
}

impl Home {
    /// Makes the directories of a BIRD that is the agent's child.
    pub(super) fn of_child(dir: &Path, user: Option<User>) -> Result<Self> {
        let config_dir = make_dir(dir, 0o750, user.as_ref())?;
        // BIRD makes its socket and its file there. Nothing that the agent writes is in it.
        let run_dir = make_dir(&config_dir.join(RUN_DIR), 0o770, user.as_ref())?;
        Self::new(config_dir, run_dir, user)
    }

    /// Makes the agent's directory for a BIRD that a service manager starts. BIRD's own is the service manager's to make.
    pub(super) fn of_service(service: &BirdService) -> Result<Self> {
        let name = &service.user;
        let user = User::from_name(name)?;
        let user =
            user.with_context(|| format!("bird user: '{name}' is no user of this host: make it, or name another"))?;
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
                "{}: longer than the {MAX_SOCKET_PATH} bytes of a socket's path: choose a shorter directory",
                socket.display()
            );
        }
        Ok(home)
    }

    pub(super) fn config_dir(&self) -> &Path {
        &self.config_dir
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.run_dir.join(CONTROL_SOCKET)
    }

    pub(super) fn start_socket(&self) -> PathBuf {
        self.config_dir.join(START_SOCKET)
    }

    pub(super) const fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// The user ID of a BIRD that the agent may talk to.
    pub(super) fn uid(&self) -> u32 {
        self.user.as_ref().map_or(geteuid(), |user| user.uid).as_raw()
    }

    /// Replaces the configuration. It contains passwords.
    pub(super) fn write(&self, text: &str) -> Result<()> {
        let (path, new) = (self.config_dir.join(CONFIG), self.config_dir.join(NEW_CONFIG));
        let step = || -> std::io::Result<()> {
            // A killed agent leaves one behind, with its old owner and mode.
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

    /// Takes the configuration away: no service manager starts BIRD from then on.
    pub(super) fn remove_config(&self) {
        let _ = remove(&self.config_dir.join(CONFIG));
    }

    /// Removes the configuration and the files that BIRD leaves.
    pub(super) fn clear(&self) {
        self.remove_config();
        for name in [CONTROL_SOCKET, PID_FILE] {
            let _ = remove(&self.run_dir.join(name));
        }
    }
}

/// Gives a file to the group of BIRD's user. As a service the agent has that group itself, and no right to change groups.
fn give_to_group(file: &File, user: &User) -> std::io::Result<()> {
    let group = user.gid.as_raw();
    if file.metadata()?.gid() != group {
        fchown(file, None, Some(group))?;
    }
    Ok(())
}

/// Removes a name if it is there; not what a symbolic link points to.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes a directory of the agent's unless it is there, and gives BIRD's group the rights of `mode`. Returns its absolute path.
fn make_dir(path: &Path, mode: u32, user: Option<&User>) -> Result<PathBuf> {
    let step = || -> Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // The group gets its rights by descriptor: in a directory that BIRD may write, the name could become a link.
        let dir = OpenOptions::new()
            .read(true)
            .custom_flags(O_DIRECTORY | O_NOFOLLOW)
            .open(path)?;
        let (owner, own) = (dir.metadata()?.uid(), geteuid().as_raw());
        ensure!(
            owner == own,
            "belongs to the user {owner}, not to the agent's ({own}): remove it"
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
