//! Command lines of the SSH client, from this machine into the guests.

use super::image;
use crate::host::{Hosts as _, Namespaces};
use std::path::{Path, PathBuf};

/// Account and address of every guest. Each guest's link for SSH is in a network namespace of its own, so the address
/// can be the same for all guests.
const GUEST: &str = "root@169.254.77.2";

/// The command lines of the SSH client for the guests of a lab.
#[derive(Debug)]
pub(super) struct Ssh {
    namespaces: Namespaces,
    /// Folder of the control sockets. By such a socket several SSH clients share one connection.
    dir: PathBuf,
    image: PathBuf,
}

impl Ssh {
    /// Returns the command lines for the guests of the lab with this name. Control sockets are in `dir`. Starts
    /// nothing.
    pub(super) fn new(lab: &str, dir: &Path) -> Self {
        Self {
            namespaces: Namespaces::new(lab),
            dir: dir.to_owned(),
            image: image::folder(),
        }
    }

    /// Returns the command line of the SSH client with additional `options`. It ends with the guest's name, so a
    /// command for the guest may be appended. All clients for a host share one connection.
    pub(super) fn argv(&self, host: &str, options: &[&str]) -> Vec<String> {
        let control = format!("ControlPath={}", self.dir.join(format!("{host}.ssh")).display());
        let known = format!("UserKnownHostsFile={}", self.image.join("known_hosts").display());
        let key = self.image.join("key").display().to_string();
        let mut argv = vec![
            "ssh".to_owned(),
            "-F".to_owned(),
            "none".to_owned(),
            "-i".to_owned(),
            key,
        ];
        for option in [
            &control,
            &known,
            "StrictHostKeyChecking=yes",
            "HostKeyAlias=tombolo-lab",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=3",
            "ServerAliveInterval=15",
            "LogLevel=ERROR",
            "StreamLocalBindUnlink=yes",
        ] {
            argv.extend(["-o".to_owned(), option.to_owned()]);
        }
        argv.extend(options.iter().map(|o| (*o).to_owned()));
        argv.push(GUEST.to_owned());
        self.namespaces.wrap(host, &argv)
    }

    /// Returns the command line that runs `argv` in the guest. The program has a terminal if standard input is one.
    pub(super) fn run_argv(&self, host: &str, argv: &[String]) -> Vec<String> {
        let mut all = self.argv(host, &["-t"]);
        all.push("--".to_owned());
        all.push(quoted(argv));
        all
    }
}

/// Quotes `argv` as one line for the guest's shell, so that the shell passes every word on unchanged.
pub(super) fn quoted(argv: &[String]) -> String {
    let each = argv.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    each.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::run;

    #[test]
    fn words_reach_the_guest_as_they_are() {
        let words = ["echo", "two words", "it's", "$HOME;`id`", ""].map(str::to_owned);
        let printed = run(&["sh", "-c", &format!("printf '<%s>' {}", quoted(&words))]).unwrap();
        assert_eq!(printed, "<echo><two words><it's><$HOME;`id`><>");
    }
}
