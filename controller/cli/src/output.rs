//! Output as tables for people or as JSON for programs. Colours appear on a terminal only.

use crate::options::Format;
use anyhow::Result;
use comfy_table::{Attribute, Cell, Color, Table, presets};
use serde::Serialize;
use serde_json::Value;
use std::io::{IsTerminal as _, Write as _};

/// One column of a list of ARM resources: its title, and the function that makes a resource's cell.
pub(crate) type Column = (&'static str, fn(&Value) -> Cell);

/// Writes to standard output in one format. Errors of standard output are ignored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) colour: bool,
}

impl Output {
    /// Output in this format. Colours are used if standard output is a terminal and `NO_COLOR` is not set.
    pub(crate) fn new(format: Format) -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { format, colour }
    }

    /// Whether the output format is JSON, so that nothing else may be written to standard output.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Writes a line to standard output.
    pub(crate) fn line(self, text: &str) {
        // A closed pipe (`| head`) is no error of the command.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// Writes a value as indented JSON. Returns an error if the value cannot be represented in JSON.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<()> {
        self.line(&serde_json::to_string_pretty(value)?);
        Ok(())
    }

    /// Writes the title of a table, bold on a terminal.
    pub(crate) fn title(self, text: &str) {
        use owo_colors::OwoColorize as _;
        if self.colour {
            self.line(&text.bold().to_string());
        } else {
            self.line(text);
        }
    }

    /// Writes a line for people; nothing in JSON format.
    pub(crate) fn note(self, text: &str) {
        if !self.is_json() {
            self.line(text);
        }
    }

    /// Writes a list of ARM resources as a table or as JSON. If there are no resources, writes the line `empty` instead
    /// of a table.
    pub(crate) fn list(self, items: &[Value], columns: &[Column], empty: &str) -> Result<()> {
        if self.is_json() {
            return self.json(&items);
        }
        let rows = items
            .iter()
            .map(|item| columns.iter().map(|(_, cell)| cell(item)).collect())
            .collect();
        let titles: Vec<_> = columns.iter().map(|(title, _)| *title).collect();
        self.table(&titles, rows, empty);
        Ok(())
    }

    /// Writes one ARM resource as JSON, or with one line for each column.
    pub(crate) fn item(self, item: &Value, columns: &[Column]) -> Result<()> {
        if self.is_json() {
            return self.json(item);
        }
        let title = |text: &str| {
            if self.colour {
                Cell::new(text).add_attribute(Attribute::Bold)
            } else {
                Cell::new(text)
            }
        };
        let mut table = self.plain();
        for (name, cell) in columns {
            table.add_row([title(name), cell(item)]);
        }
        self.finish(table);
        Ok(())
    }

    /// Writes a table with the cells of `rows`, each in the order of `titles`. If there are no rows, the line `empty`
    /// appears instead.
    pub(crate) fn table(self, titles: &[&str], rows: Vec<Vec<Cell>>, empty: &str) {
        if rows.is_empty() {
            self.line(empty);
            return;
        }
        let mut table = self.plain();
        table.set_header(titles.iter().map(|t| Cell::new(t).add_attribute(Attribute::Bold)));
        table.add_rows(rows);
        self.finish(table);
    }

    fn plain(self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if !self.colour {
            table.force_no_tty();
        }
        table
    }

    fn finish(self, mut table: Table) {
        for index in 0..table.column_count() {
            if let Some(column) = table.column_mut(index) {
                column.set_padding((0, 2));
            }
        }
        self.line(&table.trim_fmt());
    }
}

/// Returns a property as text. Booleans become `yes` and `no`, and the items of a list are joined by commas. The text
/// for null and for a missing property is empty.
pub(crate) fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Array(a)) => a.iter().map(|v| text(Some(v))).collect::<Vec<_>>().join(", "),
        Some(Value::Bool(true)) => "yes".to_owned(),
        Some(Value::Bool(false)) => "no".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// Returns the property at a JSON pointer, formatted by [`text`]; empty if there is no such property.
pub(crate) fn at(item: &Value, pointer: &str) -> String {
    text(item.pointer(pointer))
}

/// Returns the items of the array at a JSON pointer, in their order; none if there is no array.
pub(crate) fn items<'a>(item: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    item.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// Returns the last segment of the id at a JSON pointer, which is the resource's name; empty if there is none.
pub(crate) fn name_at(item: &Value, pointer: &str) -> String {
    tombolo_client::path::last(&at(item, pointer)).to_owned()
}

/// Returns a cell in green for a good state, yellow for a transitional one, and without colour for a neutral one. Every
/// other state counts as bad and is red.
pub(crate) fn state(text: &str) -> Cell {
    let cell = Cell::new(text);
    match text {
        "Connected" | "Active" | "FullyInSync" | "up" | "ok" | "yes" => cell.fg(Color::Green),
        "Initiated" | "Connecting" | "connecting" | "idle" | "Unknown" | "behind" => cell.fg(Color::Yellow),
        "Succeeded" | "" | "Invalid" => cell,
        _ => cell.fg(Color::Red),
    }
}

/// Formats a number of bytes with one decimal and a binary unit, of which GiB is the largest. Numbers below 1 KiB are
/// shown in bytes.
pub(crate) fn bytes(n: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, size)| n >= *size) {
        #[expect(clippy::cast_precision_loss, reason = "the result is rounded to one decimal")]
        Some((unit, size)) => format!("{:.1} {unit}", n as f64 / size as f64),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn properties_become_text() {
        let item = json!({"p": {"list": ["a", "b"], "on": true, "id": "/x/virtualNetworks/hub", "none": null}});
        assert_eq!(at(&item, "/p/list"), "a, b");
        assert_eq!(at(&item, "/p/on"), "yes");
        assert_eq!(at(&item, "/p/none"), "");
        assert_eq!(name_at(&item, "/p/id"), "hub");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(12), "12 B");
    }
}
