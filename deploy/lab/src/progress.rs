//! Says what is being done while it takes longer than a moment: a moving line on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long something may take before a plain line says that it still goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where progress goes. Cheap to clone.
#[derive(Clone, Default)]
pub struct Progress {
    sink: Option<Arc<Sink>>,
}

struct Sink {
    bar: Option<ProgressBar>,
    warned: AtomicBool,
    current: Mutex<Option<(String, Instant, bool)>>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("shown", &self.sink.is_some()).finish()
    }
}

impl Progress {
    /// Says nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self::default()
    }

    /// Talks to standard error.
    #[must_use]
    pub fn stderr() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let sink = Arc::new(Sink {
            bar,
            warned: AtomicBool::new(false),
            current: Mutex::default(),
        });
        if sink.bar.is_none() {
            let watched = Arc::downgrade(&sink);
            std::thread::spawn(move || {
                while let Some(sink) = watched.upgrade() {
                    sink.remind();
                    drop(sink);
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        Self { sink: Some(sink) }
    }

    /// What is being done now. On a terminal it shows at once, elsewhere if it takes over a second.
    pub fn doing(&self, what: impl Into<String>) {
        let Some(sink) = &self.sink else { return };
        let what = what.into();
        match &sink.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_message(what);
            }
            None => *sink.current() = Some((what, Instant::now(), false)),
        }
    }

    /// Nothing is being done.
    pub fn idle(&self) {
        let Some(sink) = &self.sink else { return };
        match &sink.bar {
            Some(bar) => bar.set_message(""),
            None => *sink.current() = None,
        }
    }

    /// Prints to standard output without tearing the moving line.
    pub fn print(&self, line: &str) {
        let print = || {
            let mut out = std::io::stdout().lock();
            // A closed pipe must not stop the tidying up that follows.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        };
        match self.sink.as_ref().and_then(|s| s.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Says on standard error that something could not be tidied up, even where progress is silent.
    pub fn warn(&self, text: &str) {
        let say = || {
            let _ = writeln!(std::io::stderr(), "error: {text}");
        };
        let Some(sink) = &self.sink else { return say() };
        sink.warned.store(true, Ordering::Relaxed);
        match &sink.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    /// Whether [`Self::warn`] had something to say.
    #[must_use]
    pub fn warned(&self) -> bool {
        self.sink.as_ref().is_some_and(|s| s.warned.load(Ordering::Relaxed))
    }

    /// Takes the moving line away.
    pub fn finish(&self) {
        self.idle();
        if let Some(bar) = self.sink.as_ref().and_then(|s| s.bar.as_ref()) {
            bar.finish_and_clear();
        }
    }
}

impl Sink {
    fn current(&self) -> std::sync::MutexGuard<'_, Option<(String, Instant, bool)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remind(&self) {
        if let Some((what, since, said)) = self.current().as_mut()
            && !*said
            && since.elapsed() > PATIENCE
        {
            *said = true;
            let _ = writeln!(std::io::stderr(), "    … {what}");
        }
    }
}
