//! The one-time join token: its format, and the places from which it is read. The token is never a command-line
//! argument, because every user of the host can see the arguments of every process.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

/// The environment variable with a token, for containers.
const VARIABLE: &str = "TOMBOLO_JOIN_TOKEN";

/// Longest line that is read as a token, in bytes. Tokens have about 150. The limit bounds the memory that is used if
/// the file contains something else than a token.
const MAX_LINE: u64 = 4096;

/// A join token: `tmb1.<id>.<secret>.<SHA-256 of the authority's certificate, hex>`. With this hash an agent verifies
/// the authority's certificate, which it fetches over an untrusted network. `Debug` does not print the token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub(super) text: String,
    pub(super) pin: [u8; 32],
    /// Whether the token is that of a site probe (M10), and begins with `tmb1probe`.
    pub(super) site_probe: bool,
}

impl JoinToken {
    /// Reads the token from the first line of a file, or of standard input if `file` is `-`. Without a file the token
    /// comes from the environment variable `TOMBOLO_JOIN_TOKEN`. May block at standard input; at a terminal it asks for
    /// the token. Spaces around the token are ignored, and later lines are not read. Only the format is checked, not
    /// whether the token is valid.
    ///
    /// # Errors
    /// `file` is none and the variable is not set, the file cannot be read, users other than the file's owner have
    /// access to it, or the text is not a token. Errors do not quote the text.
    pub fn from_file_or_environment(file: Option<&Path>) -> Result<Self> {
        match file {
            Some(path) if path == Path::new("-") => Self::from_stdin(),
            Some(path) => Self::from_file(path),
            None => match std::env::var(VARIABLE) {
                Ok(text) => text.parse().with_context(|| format!("{VARIABLE} in the environment")),
                Err(_) => bail!(
                    "there is no join token: give --token-file FILE, or '--token-file -' for standard input, or set {VARIABLE}"
                ),
            },
        }
    }

    fn from_stdin() -> Result<Self> {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            eprintln!("Paste the token that 'tombolo token create' printed, then press Enter:");
        }
        Self::from_line(stdin.lock()).context("--token-file -: standard input")
    }

    fn from_file(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("--token-file {shown}"))?;
        let mode = file.metadata().with_context(|| format!("--token-file {shown}"))?.mode() & 0o777;
        ensure!(
            mode & 0o077 == 0,
            "--token-file {shown}: its mode is {mode:04o}, and only its owner may have access to a token: chmod 0600 {shown}"
        );
        Self::from_line(BufReader::new(file)).with_context(|| format!("--token-file {shown}"))
    }

    /// Reads only the first line, so that input from a terminal ends with Enter.
    fn from_line(input: impl BufRead) -> Result<Self> {
        let mut line = String::new();
        input.take(MAX_LINE).read_line(&mut line)?;
        line.parse()
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

impl FromStr for JoinToken {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let parts: Vec<_> = text.split('.').collect();
        let [prefix @ ("tmb1" | "tmb1probe"), id, secret, pin] = parts[..] else {
            bail!("not a join token: it has the form tmb1.ID.SECRET.PIN");
        };
        if id.is_empty() || secret.is_empty() {
            bail!("not a join token: ID or SECRET in tmb1.ID.SECRET.PIN is empty");
        }
        let pin = unhex(pin).context("not a join token: its last part must be 64 hexadecimal digits")?;
        Ok(Self {
            text: text.to_owned(),
            pin,
            site_probe: prefix == "tmb1probe",
        })
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn text() -> String {
        format!("tmb1.id.secret.{}", "ab".repeat(32))
    }

    #[test]
    fn tokens_are_checked_and_do_not_print() {
        let pin = "ab".repeat(32);
        let token: JoinToken = format!("{}\n", text()).parse().unwrap();
        assert_eq!(token.pin, [0xab; 32]);
        assert!(!format!("{token:?}").contains("secret"));
        for bad in [
            "",
            "tmb1.id.secret",
            "tmb2.id.secret.00",
            &format!("tmb1..secret.{pin}"),
            "tmb1.a.b.zz",
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_file_that_others_may_access_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("left.token");
        std::fs::write(&path, format!("{}\n", text())).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o644, 0o666] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = JoinToken::from_file_or_environment(Some(&path))
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.ends_with(&format!("chmod 0600 {}", path.display())), "{error}");
        }
        for mode in [0o600, 0o400] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let token = JoinToken::from_file_or_environment(Some(&path)).unwrap();
            assert_eq!(token, text().parse().unwrap());
        }
    }

    #[test]
    fn a_file_that_is_missing_or_holds_something_else_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none");
        let refused = || format!("{:#}", JoinToken::from_file_or_environment(Some(&path)).unwrap_err());
        let error = refused();
        assert!(error.contains("none") && error.contains("No such file"), "{error}");
        std::fs::write(&path, "secret words\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let error = refused();
        assert!(
            error.contains("none") && error.contains("tmb1.ID.SECRET.PIN"),
            "{error}"
        );
        // The file may contain another secret, so errors must not quote it.
        assert!(!error.contains("words"), "{error}");
    }

    #[test]
    fn the_first_line_is_the_token_and_reading_ends() {
        let input = format!("{}\nand more", text());
        assert_eq!(JoinToken::from_line(input.as_bytes()).unwrap(), text().parse().unwrap());
        assert!(JoinToken::from_line(BufReader::new(std::io::repeat(b'x'))).is_err());
    }
}
