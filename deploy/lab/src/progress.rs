//! Progress messages: a spinner on a terminal, plain lines elsewhere.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Without a spinner, an activity is printed as a line only after it has taken this time. So logs contain only slow
/// activities.
const REMINDER_DELAY: Duration = Duration::from_secs(1);

/// Time between two frames of the spinner. Without a spinner, this is the time between two checks for a slow activity.
const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// The output of progress messages. All clones of an output share its spinner, its present activity and its record of
/// warnings.
#[derive(Clone, Default)]
pub struct Progress {
    sink: Option<Arc<Sink>>,
}

struct Sink {
    /// Spinner on standard error; `None` if standard error is no terminal.
    bar: Option<ProgressBar>,
    warned: AtomicBool,
    /// Present activity, its start, and whether it was printed. Used only without a spinner.
    current: Mutex<Option<(String, Instant, bool)>>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("shown", &self.sink.is_some()).finish()
    }
}

impl Progress {
    /// Returns an output that discards progress messages. [`Self::print`] and [`Self::warn`] still print.
    #[must_use]
    pub fn silent() -> Self {
        Self::default()
    }

    /// Returns an output to standard error: a spinner if standard error is a terminal, otherwise plain lines. A thread
    /// prints these lines until the last clone of the output is dropped.
    #[must_use]
    pub fn stderr() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK_INTERVAL);
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
                    std::thread::sleep(TICK_INTERVAL);
                }
            });
        }
        Self { sink: Some(sink) }
    }

    /// Sets the present activity. A terminal shows the activity at once. Elsewhere a line is printed when the activity
    /// has taken longer than one second. It replaces the earlier one. A silent output ignores it.
    pub fn set_activity(&self, what: impl Into<String>) {
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

    /// Ends the present activity. The spinner stays.
    pub fn idle(&self) {
        let Some(sink) = &self.sink else { return };
        match &sink.bar {
            Some(bar) => bar.set_message(""),
            None => *sink.current() = None,
        }
    }

    /// Prints a line to standard output at once, even if progress messages are silenced. The spinner does not mix with
    /// the line. A closed standard output is no error.
    pub fn print(&self, line: &str) {
        let print = || {
            let mut out = std::io::stdout().lock();
            // An error is ignored, because a closed pipe must not stop the removal of the lab, which may follow.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        };
        match self.sink.as_ref().and_then(|s| s.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Prints `error: ` and `text` as one line to standard error, even if progress messages are silenced, and records
    /// the warning for [`Self::warned`]. A silent output prints but does not record. The spinner does not mix with the
    /// line. A closed standard error is no error.
    pub fn warn(&self, text: &str) {
        let print = || {
            // An error is ignored: there is no other place to report that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {text}");
        };
        let Some(sink) = &self.sink else { return print() };
        sink.warned.store(true, Ordering::Relaxed);
        match &sink.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Whether [`Self::warn`] was called for this output or a clone of it. False for a silent output.
    #[must_use]
    pub fn warned(&self) -> bool {
        self.sink.as_ref().is_some_and(|s| s.warned.load(Ordering::Relaxed))
    }

    /// Ends the present activity and removes the spinner. Afterwards the output can still print and warn, but a
    /// terminal does not show new activities.
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

    /// Prints the present activity, only once, if it has taken longer than [`REMINDER_DELAY`].
    fn remind(&self) {
        if let Some((activity, since, printed)) = self.current().as_mut()
            && !*printed
            && since.elapsed() > REMINDER_DELAY
        {
            *printed = true;
            // An error is ignored: there is no other place to report that standard error is closed.
            let _ = writeln!(std::io::stderr(), "    … {activity}");
        }
    }
}
