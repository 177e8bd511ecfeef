//! User-data for cloud-init. A machine that is created with this user-data installs the agent's package, joins the
//! controller, and runs the agent.

use crate::failure::{NotFound, UsageError};
use anyhow::Result;
use serde::Serialize;
use tombolo_client::fabric::{Package as Served, Packages};

/// The file that contains the token on the new machine until the agent has joined. /run is in memory, so the token is
/// gone after a reboot.
const TOKEN_FILE: &str = "/run/tombolo-join.token";

/// The file with the controller's CA certificate on the new machine, for the download of the package. All users may
/// read it, because apt downloads as the user `_apt`.
const CA_FILE: &str = "/run/tombolo-controller-ca.pem";

/// The options with which apt trusts only the certificate in [`CA_FILE`]. The options also bypass the proxy that the
/// image configures, because the proxy may not reach the controller. Agents use no proxy either.
const TRUST: [&str; 4] = [
    "-o",
    "Acquire::https::CAInfo=/run/tombolo-controller-ca.pem",
    "-o",
    "Acquire::https::Proxy=DIRECT",
];

/// Script that downloads and installs the package. `$1` is its URL and `$2` its SHA-256; the further arguments are
/// options of apt-helper.
///
/// Every Debian or Ubuntu image has apt-helper, which follows the image's proxy settings. While a server is busy or
/// unreachable, apt-helper tries again after 1, 2, 4, … s. It deletes a file whose hash is not `$2`.
const INSTALL: &str = "\
url=$1 sha256=$2
shift 2
apt-get update
/usr/lib/apt/apt-helper -o Acquire::Retries=6 \"$@\" download-file \"$url\" /var/cache/apt/archives/tombolo-agent.deb \"SHA256:$sha256\"
DEBIAN_FRONTEND=noninteractive apt-get install --yes /var/cache/apt/archives/tombolo-agent.deb
rm -f /var/cache/apt/archives/tombolo-agent.deb /run/tombolo-controller-ca.pem
";

/// Script that joins and starts the agent. `$1` is the agent's name, `$2` the controller's URL, `$3` the token's file.
const JOIN: &str = "\
tombolo-agent join --state-dir \"/var/lib/tombolo-agent/$1\" --controller \"$2\" --token-file \"$3\"
rm \"$3\"
systemctl enable --now \"tombolo-agent@$1\"
";

/// A Debian package. The machine checks the package's hash, so the server need not be trusted.
#[derive(Debug, Clone)]
pub(super) struct Package {
    pub(super) url: String,
    /// SHA-256 of the file, in hexadecimal digits.
    pub(super) sha256: String,
    /// The certificate, in PEM, of the CA that must have issued the server's certificate. `None`: the authorities of
    /// the image are trusted.
    pub(super) ca: Option<String>,
}

/// Returns the controller's package with this name, or its only package.
///
/// # Errors
/// [`UsageError`]: the controller has no package, or has several packages and `name` is `None`. [`NotFound`]: it has no
/// package with this name.
pub(super) fn choose<'a>(served: &'a Packages, name: Option<&str>) -> Result<&'a Served> {
    let names: Vec<&str> = served.value.iter().map(|p| p.name.as_str()).collect();
    let all = names.join(", ");
    match (name, served.value.as_slice()) {
        (_, []) => {
            let what = format!(
                "the controller has no package of the agent in its folder {}",
                served.folder
            );
            let hint = "install the package tombolo-controller there, which brings the agent's, or copy a \
                        tombolo-agent_VERSION_ARCHITECTURE.deb into that folder; or give --package-url and \
                        --package-sha256; or --no-package, if the machine's image has the package";
            Err(UsageError::new(what, hint).into())
        }
        (Some(name), all_served) => {
            let found = all_served.iter().find(|p| p.name == name);
            found.ok_or_else(|| NotFound(format!("--package {name}: the controller has {all}")).into())
        }
        (None, [only]) => Ok(only),
        (None, _) => {
            let hint = format!("add --package with one of: {all}");
            Err(UsageError::new("the controller has several packages of the agent", hint).into())
        }
    }
}

#[derive(Serialize)]
struct UserData<'a> {
    write_files: Vec<File<'a>>,
    runcmd: Vec<Vec<&'a str>>,
}

#[derive(Serialize)]
struct File<'a> {
    path: &'a str,
    owner: &'a str,
    permissions: &'a str,
    content: String,
}

/// Returns the user-data, which contains the token. If `package` is `None`, the image must contain the agent.
///
/// # Errors
/// A text cannot be written as YAML.
pub(super) fn user_data(agent: &str, controller: &str, token: &str, package: Option<&Package>) -> Result<String> {
    let owner = "root:root";
    let mut files = vec![File {
        path: TOKEN_FILE,
        owner,
        permissions: "0600",
        content: format!("{token}\n"),
    }];
    // A name or URL could contain shell syntax. The values are therefore arguments of the scripts and no part of the
    // scripts' text, so the shell never executes them.
    let mut steps = Vec::new();
    if let Some(Package { url, sha256, ca }) = package {
        let mut install = vec!["sh", "-euc", INSTALL, "sh", url, sha256];
        if let Some(ca) = ca {
            files.push(File {
                path: CA_FILE,
                owner,
                permissions: "0644",
                content: ca.clone(),
            });
            install.extend(TRUST);
        }
        steps.push(install);
    }
    steps.push(vec!["sh", "-euc", JOIN, "sh", agent, controller, TOKEN_FILE]);
    let data = UserData {
        write_files: files,
        runcmd: steps,
    };
    Ok(format!("#cloud-config\n{}", serde_norway::to_string(&data)?))
}

/// Checks an `http:`, `https:` or `file:` URL, and returns it unchanged. Plain HTTP is allowed, because the hash
/// protects the package.
pub(super) fn url(text: &str) -> Result<String, String> {
    let known = ["https://", "http://", "file:///"];
    // In apt's internal protocols, blanks separate fields, so apt would cut a URL at a blank.
    if known.iter().any(|scheme| text.starts_with(scheme)) && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("must be the URL of a .deb, beginning with https://, http:// or file:///, without blanks".to_owned())
    }
}

/// Parses a SHA-256, 64 hexadecimal digits. Returns it in lower case.
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

    fn package(ca: Option<&str>) -> Package {
        Package {
            url: URL.to_owned(),
            sha256: "ab".to_owned(),
            ca: ca.map(str::to_owned),
        }
    }

    fn served(names: &[&str]) -> Packages {
        let package = |name: &&str| Served {
            name: (*name).to_owned(),
            size: 1,
            sha256: "ab".to_owned(),
        };
        Packages {
            folder: "/folder".to_owned(),
            value: names.iter().map(package).collect(),
        }
    }

    #[test]
    fn the_only_package_is_chosen_and_of_several_the_named_one() {
        let one = served(&["one"]);
        assert_eq!(choose(&one, None).unwrap().name, "one");
        let two = served(&["one", "two"]);
        assert_eq!(choose(&two, Some("two")).unwrap().name, "two");
        let refused = choose(&two, Some("three")).unwrap_err();
        assert!(
            refused.is::<NotFound>() && refused.to_string().contains("one, two"),
            "{refused}"
        );
        for several_or_none in [&two, &served(&[])] {
            assert!(choose(several_or_none, None).unwrap_err().is::<UsageError>());
        }
        let none = choose(&served(&[]), Some("one")).unwrap_err();
        assert!(none.to_string().contains("/folder"), "{none}");
    }

    #[test]
    fn the_authority_of_the_controller_is_trusted_for_its_own_package_alone() {
        let pem = "-----BEGIN CERTIFICATE-----\n";
        let data = read(&user_data("left-vm", CONTROLLER, "t", Some(&package(Some(pem)))).unwrap());
        let file = &data["write_files"][1];
        assert_eq!(
            (file["path"].as_str(), file["permissions"].as_str()),
            (Some(CA_FILE), Some("0644"))
        );
        assert_eq!(file["content"], pem);
        let words = data["runcmd"][0].as_sequence().unwrap();
        let option = format!("Acquire::https::CAInfo={CA_FILE}");
        assert!(words.iter().any(|w| *w == option.as_str()), "{words:?}");
        let data = read(&user_data("left-vm", CONTROLLER, "t", Some(&package(None))).unwrap());
        assert_eq!(data["write_files"].as_sequence().unwrap().len(), 1);
        assert!(!serde_norway::to_string(&data).unwrap().contains("CAInfo"));
    }

    #[test]
    fn the_token_is_in_a_private_file_and_in_no_command() {
        let data = read(&user_data("left-vm", CONTROLLER, "tmb1.a.b.c", Some(&package(None))).unwrap());
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
        let pem = "-----BEGIN CERTIFICATE-----\n";
        let data = user_data("left-vm", CONTROLLER, "tmb1.a.b.c", Some(&package(Some(pem)))).unwrap();
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
