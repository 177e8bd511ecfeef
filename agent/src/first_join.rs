//! Unattended joining, as in a container. The token file and the controller may appear only after the agent has
//! started, and the agent waits for both, up to a timeout. An error that waiting cannot cure ends the attempt at once.

use crate::config::Config;
use crate::join::{JoinOptions, JoinSettings, JoinToken, Refused, join};
use crate::state::{StateDir, file};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// First and longest pause between two attempts; the pause doubles after each attempt. The pauses are short because a
/// check for the token file is cheap.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// Parameters of unattended joining.
#[derive(Debug, Clone)]
pub struct FirstJoin {
    /// `https://host:port` of the controller.
    pub controller: String,
    /// Path of the token file, which may not exist yet.
    pub token_file: PathBuf,
    /// How long to wait until both the token file and the controller are there.
    pub timeout: Duration,
    /// Local settings for `agent.toml`.
    pub settings: JoinSettings,
}

/// Whether the state directory has an identity. The directory has an identity if it has the file `agent.toml`, because
/// [`join`] writes this file last. False if the directory cannot be read.
#[must_use]
pub fn has_joined(state: &StateDir) -> bool {
    state.path(file::CONFIG).exists()
}

/// Joins as soon as the token file exists and the controller answers; tries again until `first.timeout` has passed.
/// Returns the settings that were written to the state directory. The caller must hold the directory's lock. An attempt
/// that is in progress when the time has passed is completed, which may take 30 s more. If the future is dropped, keys
/// may have been written and the token may be used up.
///
/// # Errors
/// After the timeout: the token file or the state directory is missing, or the controller does not answer. At once: the
/// token is malformed, used or expired, a setting is out of range, the controller is another one than the token names,
/// or a file cannot be written.
///
/// # Panics
/// As [`join`].
pub async fn join_when_possible(state: &StateDir, first: &FirstJoin) -> Result<Config> {
    let deadline = Instant::now() + first.timeout;
    let (mut pause, mut said) = (BACKOFF.0, String::new());
    loop {
        let error = match attempt(state, first).await {
            Ok(config) => return Ok(config),
            Err(e) if !is_passing(&e) => return Err(e),
            Err(e) => e,
        };
        if Instant::now() + pause > deadline {
            return Err(error.context(format!("not joined within {:?}", first.timeout)));
        }
        let text = format!("{error:#}");
        // A reason is logged only when it differs from the last one. If each attempt until the timeout logged the same
        // line, the journal would fill.
        if text != said {
            tracing::info!(reason = text, controller = first.controller, "waiting to join");
            said = text;
        }
        sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

async fn attempt(state: &StateDir, first: &FirstJoin) -> Result<Config> {
    let token = read_token(&first.token_file)?;
    let options = JoinOptions {
        controller: first.controller.clone(),
        token,
        settings: first.settings.clone(),
    };
    join(state, options)
        .await
        .map_err(|e| match e.downcast_ref::<Refused>() {
            Some(refused) if !refused.is_passing() => e.context(format!(
                "the token in {} is not usable: replace it by a new one from 'tombolo token create'",
                first.token_file.display()
            )),
            _ => e,
        })
}

/// Reads the token file. An empty file counts as missing, because another program may still be writing it.
fn read_token(path: &Path) -> Result<JoinToken> {
    let text = std::fs::read_to_string(path).with_context(|| format!("the token file {}", path.display()))?;
    if text.trim().is_empty() {
        let empty = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(empty).with_context(|| format!("the token file {} is empty", path.display()));
    }
    text.parse()
        .with_context(|| format!("the token file {}", path.display()))
}

/// Whether an error may disappear by itself: the token file is missing, or the controller is unreachable or overloaded.
fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let missing = cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        let unreachable = cause.downcast_ref::<reqwest::Error>().is_some_and(|e| {
            let overloaded = e.status().is_some_and(|s| s.is_server_error());
            e.is_connect() || e.is_timeout() || e.is_request() || overloaded
        });
        let busy = cause.downcast_ref::<Refused>().is_some_and(Refused::is_passing);
        missing || unreachable || busy
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(dir: &Path, milliseconds: u64) -> FirstJoin {
        FirstJoin {
            // No service listens on port 1, so the controller is unreachable at once.
            controller: "https://127.0.0.1:1".into(),
            token_file: dir.join("token"),
            timeout: Duration::from_millis(milliseconds),
            settings: JoinSettings::default(),
        }
    }

    async fn outcome(dir: &Path, milliseconds: u64) -> (String, Duration) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let begun = Instant::now();
        let state = StateDir::new(dir);
        let error = join_when_possible(&state, &first(dir, milliseconds)).await.unwrap_err();
        (format!("{error:#}"), begun.elapsed())
    }

    #[tokio::test]
    async fn waits_for_token_and_controller_up_to_the_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let (text, took) = outcome(dir.path(), 700).await;
        assert!(text.starts_with("not joined within 700ms: the token file"), "{text}");
        assert!(took >= BACKOFF.0, "{took:?}");
        std::fs::write(dir.path().join("token"), "\n").unwrap();
        assert!(outcome(dir.path(), 300).await.0.contains("is empty"));
        let token = format!("tmb1.id.secret.{}", "ab".repeat(32));
        std::fs::write(dir.path().join("token"), token).unwrap();
        let (text, _) = outcome(dir.path(), 700).await;
        assert!(
            text.starts_with("not joined within 700ms: asking https://127.0.0.1:1"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn permanent_errors_fail_at_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "no token").unwrap();
        let (text, took) = outcome(dir.path(), 60_000).await;
        assert!(text.contains("not a join token"), "{text}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}
