//! Names outside of JSON: command-line options and metrics.

use clap::{Arg, ArgAction, Command};
use std::fmt::Write as _;

/// The options of a program as text for a golden file. Each command has a line with its name, and below this line one
/// for each option or argument. That line has the names of the option, its environment variable, whether it is required
/// or repeatable, its permitted values and its default. Options that every command takes (clap's global ones) are
/// listed once, below the program's name. `--help`, `--version` and help texts are left out.
#[must_use]
pub fn options_of(mut command: Command) -> String {
    command.build();
    let mut text = String::new();
    describe(&command, true, &mut text);
    text
}

fn describe(command: &Command, is_program: bool, text: &mut String) {
    let _ = writeln!(text, "{}", command.get_bin_name().unwrap_or_else(|| command.get_name()));
    for option in command.get_arguments().filter(|a| !is_of_clap(a)) {
        if option.is_global_set() && !is_program {
            continue;
        }
        let _ = write!(text, "   ");
        if option.is_positional() {
            let _ = write!(text, " <{}>", option.get_id());
        }
        if let Some(short) = option.get_short() {
            let _ = write!(text, " -{short}");
        }
        if let Some(long) = option.get_long() {
            let _ = write!(text, " --{long}");
        }
        if let Some(variable) = option.get_env() {
            let _ = write!(text, " [{}]", variable.display());
        }
        if matches!(option.get_action(), ArgAction::Append) {
            let _ = write!(text, " …");
        }
        if option.is_required_set() {
            let _ = write!(text, " required");
        }
        let values = option.get_possible_values();
        // clap lists the permitted values "true" and "false" even for a switch, which users write without a value.
        if !values.is_empty() && option.get_action().takes_values() {
            let names: Vec<_> = values.iter().map(clap::builder::PossibleValue::get_name).collect();
            let _ = write!(text, " {}", names.join("|"));
        }
        for value in option
            .get_default_values()
            .iter()
            .filter(|_| option.get_action().takes_values())
        {
            let _ = write!(text, " default {}", value.display());
        }
        text.push('\n');
    }
    for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
        describe(below, false, text);
    }
}

fn is_of_clap(option: &Arg) -> bool {
    matches!(option.get_id().as_str(), "help" | "version")
}

/// Strips the values from a text in Prometheus' format. Leaves, in the same order, each metric's name and type, and each
/// sample's name and labels. The value of the label `version` becomes `…`, because it changes with each release.
#[must_use]
pub fn metrics_of(text: &str) -> String {
    let mut names = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let _ = writeln!(names, "{rest}");
        } else if let Some((sample, _)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
            let mut sample = sample.to_owned();
            if let Some((before, version)) = sample.split_once("version=\"") {
                let after = version.split_once('"').map_or("", |(_, after)| after);
                sample = format!("{before}version=\"…\"{after}");
            }
            let _ = writeln!(names, "    {sample}");
        }
    }
    names
}
