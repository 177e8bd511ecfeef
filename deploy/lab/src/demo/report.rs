//! The demo's report: prints steps, actions and checks with their durations.

use crate::progress::Progress;
use owo_colors::{OwoColorize, Style};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Prints the demo's steps, actions and checks, and collects the failed checks.
pub(super) struct Report {
    progress: Progress,
    colour: bool,
    started: Instant,
    step: u32,
    step_started: Instant,
    checks: u32,
    failed: Vec<String>,
}

impl Report {
    /// Returns a report that prints through `progress`. Colours follow the terminal, `NO_COLOR`, `CLICOLOR_FORCE` and
    /// `FORCE_COLOR`.
    pub(super) fn new(progress: Progress) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0");
        let forced = set("CLICOLOR_FORCE") || set("FORCE_COLOR");
        let colour = forced || std::io::stdout().is_terminal() && !set("NO_COLOR");
        let now = Instant::now();
        Self {
            progress,
            colour,
            started: now,
            step: 0,
            step_started: now,
            checks: 0,
            failed: Vec::new(),
        }
    }

    fn paint(&self, text: &str, style: Style) -> String {
        if self.colour {
            text.style(style).to_string()
        } else {
            text.to_owned()
        }
    }

    /// Returns the output of the report, for progress messages.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Prints a text and a newline to standard output, without the spinner in its way.
    pub(super) fn line(&self, text: &str) {
        self.progress.print(text);
    }

    /// Prints a text in bold.
    pub(super) fn title(&self, text: &str) {
        self.line(&self.paint(text, Style::new().bold()));
    }

    /// Prints a text in a dim colour.
    pub(super) fn dim(&self, text: &str) {
        self.line(&self.paint(text, Style::new().dimmed()));
    }

    /// Ends the present step, and starts the next one with its number and title.
    pub(super) fn step(&mut self, title: &str) {
        self.close_step();
        self.step += 1;
        self.step_started = Instant::now();
        let number = self.paint(&format!("{:>2}", self.step), Style::new().cyan().bold());
        self.line("");
        self.line(&format!("{number}  {}", self.paint(title, Style::new().bold())));
    }

    /// Prints the duration of the present step, if there is one.
    pub(super) fn close_step(&mut self) {
        if self.step > 0 {
            let took = seconds(self.step_started.elapsed());
            self.dim(&format!("      {took:>66}"));
        }
    }

    /// Prints an action, and `took`, its durations in words.
    pub(super) fn act(&self, what: &str, took: &str) {
        let arrow = self.paint("▸", Style::new().cyan());
        self.line(&format!(
            "    {arrow} {}{}",
            pad(what, 58),
            self.paint(took, Style::new().dimmed())
        ));
    }

    /// Prints a check: the expectation `what`, whether it is met, and the result `seen`. Remembers a failed check.
    pub(super) fn check(&mut self, what: &str, good: bool, seen: &str) {
        self.progress.idle();
        self.checks += 1;
        if good {
            let mark = self.paint("✓", Style::new().green().bold());
            self.line(&format!(
                "    {mark} {}{}",
                pad(what, 58),
                self.paint(seen, Style::new().dimmed())
            ));
        } else {
            let mark = self.paint("✗", Style::new().red().bold());
            let text = self.paint(what, Style::new().red());
            self.line(&format!("    {mark} {text}"));
            for line in seen.lines() {
                self.line(&format!("        {line}"));
            }
            self.failed.push(format!("step {}: {what}: {seen}", self.step));
        }
    }

    /// Whether all checks have succeeded so far.
    pub(super) fn good(&self) -> bool {
        self.failed.is_empty()
    }

    /// Ends the present step and prints the summary with all failed checks. Returns whether all checks have succeeded.
    pub(super) fn finish(&mut self) -> bool {
        self.close_step();
        let took = seconds(self.started.elapsed());
        self.line("");
        if self.failed.is_empty() {
            let text = match self.checks {
                1 => format!("Everything was as expected, in {took}."),
                checks => format!(
                    "All {checks} checks in {} steps were as announced, in {took}.",
                    self.step
                ),
            };
            self.line(&self.paint(&text, Style::new().green().bold()));
        } else {
            let text = format!(
                "{} of {} checks were not as announced ({took}):",
                self.failed.len(),
                self.checks
            );
            self.line(&self.paint(&text, Style::new().red().bold()));
            for failed in &self.failed {
                self.line(&format!("  {failed}"));
            }
        }
        self.failed.is_empty()
    }
}

/// Fills a text with spaces up to `width` characters, and adds at least two.
fn pad(text: &str, width: usize) -> String {
    let length = text.chars().count();
    format!("{text}{}", " ".repeat(width.saturating_sub(length).max(2)))
}

/// Formats a duration for people, in milliseconds below one second and in seconds above.
pub(super) fn seconds(d: Duration) -> String {
    if d < Duration::from_secs(1) {
        format!("{:.1} ms", d.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", d.as_secs_f64())
    }
}
