//! User-data for cloud-init: a machine that is created with it installs the agent's package, joins, and runs.

use anyhow::Result;
use serde::Serialize;

/// Where the token lies until it was used. The folder is in memory, and gone with the next boot.
const TOKEN_FILE: &str = "/run/tombolo-join.token";

/// Downloads and installs: `$1` is the package's URL, `$2` its SHA-256. apt's own helper is on every image, follows the image's
/// proxy settings, and leaves no file whose hash differs.
const INSTALL: &str = "\
apt-get update
/usr/lib/apt/apt-helper download-file \"$1\" /var/cache/apt/archives/tombolo-agent.deb \"SHA256:$2\"
DEBIAN_FRONTEND=noninteractive apt-get install --yes /var/cache/apt/archives/tombolo-agent.deb
rm -f /var/cache/apt/archives/tombolo-agent.deb
";

/// Joins and starts: `$1` is the agent's name, `$2` the controller's URL, `$3` the file with the token.
const JOIN: &str = "\
tombolo-agent join --state-dir \"/var/lib/tombolo-agent/$1\" --controller \"$2\" --token-file \"$3\"
rm \"$3\"
systemctl enable --now \"tombolo-agent@$1\"
";

/// A Debian package that anybody may serve: its hash says which one it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Package<'a> {
    pub(super) url: &'a str,
    /// In hexadecimal digits.
    pub(super) sha256: &'a str,
}

#[derive(Serialize)]
struct UserData<'a> {
    write_files: [File<'a>; 1],
    runcmd: Vec<Vec<&'a str>>,
}

#[derive(Serialize)]
struct File<'a> {
    path: &'a str,
    owner: &'a str,
    permissions: &'a str,
    content: String,
}

/// Returns the user-data, which contains the token. Without a package the image must have it installed.
///
/// # Errors
/// YAML cannot express one of the texts.
pub(super) fn user_data(agent: &str, controller: &str, token: &str, package: Option<Package<'_>>) -> Result<String> {
    // The values are arguments of the scripts and no part of them, so nothing in them is ever run.
    let mut steps = Vec::new();
    if let Some(Package { url, sha256 }) = package {
        steps.push(vec!["sh", "-euc", INSTALL, "sh", url, sha256]);
    }
    steps.push(vec!["sh", "-euc", JOIN, "sh", agent, controller, TOKEN_FILE]);
    let data = UserData {
        write_files: [File {
            path: TOKEN_FILE,
            owner: "root:root",
            permissions: "0600",
            content: format!("{token}\n"),
        }],
        runcmd: steps,
    };
    Ok(format!("#cloud-config\n{}", serde_norway::to_string(&data)?))
}

/// An `http:`, `https:` or `file:` URL. The hash protects what comes over plain HTTP.
pub(super) fn url(text: &str) -> Result<String, String> {
    let known = ["https://", "http://", "file:///"];
    // apt takes the rest of the line after a blank for something else.
    if known.iter().any(|scheme| text.starts_with(scheme)) && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must be the URL of a .deb, beginning with https://, http:// or file:///, without blanks".to_owned())
    }
}

/// 64 hexadecimal digits.
pub(super) fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("must be 64 hexadecimal digits, as `sha256sum FILE` prints them".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_norway::Value;

    const URL: &str = "https://203.0.113.10/tombolo-agent.deb";
    const CONTROLLER: &str = "https://203.0.113.10:8443";

    fn read(text: &str) -> Value {
        let rest = text
            .strip_prefix("#cloud-config\n")
            .expect("cloud-init knows it by this line");
        serde_norway::from_str(rest).unwrap()
    }

    #[test]
    fn the_token_is_in_a_private_file_and_in_no_command() {
        let package = Package { url: URL, sha256: "ab" };
        let data = read(&user_data("left-vm", CONTROLLER, "tmb1.a.b.c", Some(package)).unwrap());
        let file = &data["write_files"][0];
        assert_eq!(file["content"], "tmb1.a.b.c\n");
        assert_eq!(file["permissions"], "0600");
        assert_eq!(file["path"], TOKEN_FILE);
        let commands = serde_norway::to_string(&data["runcmd"]).unwrap();
        assert!(!commands.contains("tmb1"), "{commands}");
        assert!(
            commands.contains(URL) && commands.contains("systemctl enable --now"),
            "{commands}"
        );
    }

    #[test]
    fn golden_user_data() {
        let package = Package { url: URL, sha256: "ab" };
        let data = user_data("left-vm", CONTROLLER, "tmb1.a.b.c", Some(package)).unwrap();
        tombolo_golden::golden!().text("user_data.yaml", &data);
    }

    #[test]
    fn without_a_package_nothing_is_downloaded() {
        let data = read(&user_data("left-vm", CONTROLLER, "tmb1.a.b.c", None).unwrap());
        assert_eq!(data["runcmd"].as_sequence().unwrap().len(), 1);
        assert!(!serde_norway::to_string(&data).unwrap().contains("apt"));
    }

    #[test]
    fn values_stay_arguments() {
        let data = read(&user_data("x; reboot", "$(reboot)\n", "t", None).unwrap());
        let words: Vec<_> = data["runcmd"][0]
            .as_sequence()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(
            words,
            ["sh", "-euc", JOIN, "sh", "x; reboot", "$(reboot)\n", TOKEN_FILE]
        );
    }

    #[test]
    fn urls_and_hashes_are_checked() {
        assert!(url(URL).is_ok() && url("file:///tmp/a.deb").is_ok());
        for bad in ["", "ftp://x/a.deb", "a.deb", "https://x/a b", "https://x/a\nb"] {
            assert!(url(bad).is_err(), "{bad}");
        }
        assert_eq!(sha256(&"AB".repeat(32)), Ok("ab".repeat(32)));
        for bad in ["", "ab", &"zz".repeat(32), &"a".repeat(65)] {
            assert!(sha256(bad).is_err(), "{bad}");
        }
    }
}
