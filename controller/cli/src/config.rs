//! Reads the controller's URL, the token and the defaults from options, the environment and the configuration file.

use crate::failure::UsageError;
use crate::options::Global;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use tombolo_client::Client;
use tombolo_client::path::DEFAULT_SUBSCRIPTION;

/// The configuration file, in TOML. Unknown keys are errors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    /// URL of the controller, `https://HOST:PORT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) controller: Option<String>,
    /// Path of the file with the controller's CA certificate in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// Path of the file with the API token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// The API token itself; used instead of `token_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Resource group of the resources that the user names, unless an option or a variable sets another group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource_group: Option<String>,
    /// Subscription of the resources that the user names, unless an option or a variable sets another subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subscription: Option<String>,
}

/// The configuration that results from options, environment and file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    pub(crate) controller: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    pub(crate) resource_group: Option<String>,
    pub(crate) subscription: String,
}

impl Config {
    /// Reads the configuration file and merges the three sources. For each value, an option takes precedence over the
    /// environment, and the environment over the file. Does not read the files of the token and the CA yet.
    ///
    /// # Errors
    /// The configuration file exists and cannot be read or parsed.
    pub(crate) fn load(global: &Global) -> Result<Self> {
        let file = File::read(&path(global))?;
        Ok(Self::merge(
            global,
            &|name| std::env::var(name).ok().filter(|v| !v.is_empty()),
            file,
        ))
    }

    fn merge(global: &Global, env: &dyn Fn(&str) -> Option<String>, file: File) -> Self {
        let file_env = |name: &str| env(name).map(PathBuf::from);
        // A token and a token file exclude each other. So the first source that has one of them decides, and the later
        // sources' token and token file are ignored.
        let (token, token_file) = [
            (global.token.clone(), global.token_file.clone()),
            (env("TOMBOLO_TOKEN"), file_env("TOMBOLO_TOKEN_FILE")),
            (file.token, file.token_file),
        ]
        .into_iter()
        .find(|(token, file)| token.is_some() || file.is_some())
        .unwrap_or_default();
        Self {
            controller: global
                .controller
                .clone()
                .or_else(|| env("TOMBOLO_CONTROLLER"))
                .or(file.controller),
            token,
            token_file,
            ca: global.ca.clone().or_else(|| file_env("TOMBOLO_CA")).or(file.ca),
            resource_group: global
                .resource_group
                .clone()
                .or_else(|| env("TOMBOLO_RESOURCE_GROUP"))
                .or(file.resource_group),
            subscription: global
                .subscription
                .clone()
                .or_else(|| env("TOMBOLO_SUBSCRIPTION"))
                .or(file.subscription)
                .unwrap_or_else(|| DEFAULT_SUBSCRIPTION.to_owned()),
        }
    }

    /// Reads the files of the token and the CA, and returns a client of the configured controller. Does not connect.
    ///
    /// # Errors
    /// [`UsageError`]: no controller is configured. Otherwise: a file cannot be read, or the URL or the CA is not
    /// valid.
    pub(crate) fn client(&self) -> Result<Client> {
        let controller = self.controller.as_deref().ok_or_else(|| {
            UsageError::new(
                "no controller is set",
                "run `tombolo login --controller https://HOST:PORT --ca DIR/ca.pem --token-file DIR/admin.token` \
                 (DIR: the controller's data folder), or set TOMBOLO_CONTROLLER, TOMBOLO_CA and TOMBOLO_TOKEN_FILE",
            )
        })?;
        let read = |what: &str, path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read the {what} {}", path.display()))
        };
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(path)) => Some(read("token file", path)?),
            (None, None) => None,
        };
        let ca = self.ca.as_deref().map(|path| read("CA file", path)).transpose()?;
        Ok(Client::new(controller, token.as_deref(), ca.as_deref())?)
    }

    /// Returns the content of the configuration file that `login` writes. Paths become absolute, so that they are valid
    /// in any folder. A token that was given by an option or a variable is in the content in plain text.
    ///
    /// # Errors
    /// The file of the token or of the CA does not exist.
    pub(crate) fn to_file(&self) -> Result<File> {
        let full = |path: &Option<PathBuf>| -> Result<Option<PathBuf>> {
            let Some(path) = path else { return Ok(None) };
            fs::canonicalize(path)
                .map(Some)
                .with_context(|| format!("cannot find {}", path.display()))
        };
        Ok(File {
            controller: self.controller.clone(),
            ca: full(&self.ca)?,
            token_file: full(&self.token_file)?,
            token: self.token.clone(),
            resource_group: self.resource_group.clone(),
            subscription: (self.subscription != DEFAULT_SUBSCRIPTION).then(|| self.subscription.clone()),
        })
    }
}

impl File {
    /// Reads and parses the file. If the file does not exist, the result is that of an empty file.
    fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{} is no valid configuration", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Replaces the file atomically. Creates the file's folder if it does not exist. The mode is 0600, because the file
    /// may contain a token. Blocks until the content is on the disk.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).context("cannot write the configuration as TOML")?;
        let failed = || format!("cannot write {}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(failed)?;
        }
        let new = path.with_extension("toml.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .with_context(failed)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(failed)?;
        fs::rename(&new, path).with_context(failed)
    }
}

/// Returns the path of the configuration file: `--config`, or `TOMBOLO_CONFIG`, or `tombolo/config.toml` in the user's
/// configuration folder. Whether the file exists is not checked.
pub(crate) fn path(global: &Global) -> PathBuf {
    let env = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    global
        .config
        .clone()
        .or_else(|| env("TOMBOLO_CONFIG"))
        .unwrap_or_else(|| {
            env("XDG_CONFIG_HOME")
                .or_else(|| env("HOME").map(|home| home.join(".config")))
                .unwrap_or_else(|| PathBuf::from("."))
                .join("tombolo/config.toml")
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// The global options alone, without the command tree.
    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        global: Global,
    }

    fn global(args: &[&str]) -> Global {
        Options::parse_from([&["tombolo"], args].concat()).global
    }

    fn file() -> File {
        File {
            controller: Some("https://file".into()),
            token_file: Some("file.token".into()),
            resource_group: Some("file-group".into()),
            ..File::default()
        }
    }

    #[test]
    fn an_option_beats_the_environment_beats_the_file() {
        let env = |name: &str| (name == "TOMBOLO_CONTROLLER").then(|| "https://env".to_owned());
        let none = |_: &str| None;
        let c = |args: &[&str], env: &dyn Fn(&str) -> Option<String>| {
            Config::merge(&global(args), env, file()).controller.unwrap()
        };
        assert_eq!(c(&["--controller", "https://arg"], &env), "https://arg");
        assert_eq!(c(&[], &env), "https://env");
        assert_eq!(c(&[], &none), "https://file");
        assert_eq!(
            Config::merge(&global(&[]), &none, File::default()).subscription,
            DEFAULT_SUBSCRIPTION
        );
    }

    #[test]
    fn a_token_file_on_the_command_line_beats_a_token_in_the_environment() {
        let env = |name: &str| (name == "TOMBOLO_TOKEN").then(|| "env".to_owned());
        let config = Config::merge(&global(&["--token-file", "arg.token"]), &env, file());
        assert_eq!((config.token, config.token_file), (None, Some("arg.token".into())));
        let config = Config::merge(&global(&[]), &env, file());
        assert_eq!((config.token.as_deref(), config.token_file), (Some("env"), None));
    }

    #[test]
    fn the_file_is_private_and_reads_back() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/config.toml");
        file().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(File::read(&path).unwrap(), file());
        fs::write(&path, "controler = 'x'").unwrap();
        assert!(format!("{:#}", File::read(&path).unwrap_err()).contains("controler"));
        assert_eq!(File::read(&dir.path().join("missing")).unwrap(), File::default());
    }
}
