//! Reads properties of the bodies of actions.

use crate::rest::failure::{Failure, excerpt};
use serde_json::Value;

/// One of the words that `field` may have, in any casing, as the value that belongs to the word.
pub(super) fn word<T: Copy, const N: usize>(body: &Value, field: &str, words: [(&str, T); N]) -> Result<T, Failure> {
    let text = body.get(field).and_then(Value::as_str).unwrap_or_default();
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("{field}: '{}' is not one of {}", excerpt(text), known.join(", "));
        Failure::bad("InvalidRequestFormat", message).at(field)
    })
}

/// A port of the body, as text or as a number. `None`: `*`, which stands for every port.
pub(super) fn port(body: &Value, field: &str) -> Result<Option<u16>, Failure> {
    let text = match body.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    if text == "*" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let message = format!("{field}: '{}' is not a port from 0 to 65535, nor '*'", excerpt(&text));
        Failure::bad("InvalidRequestFormat", message).at(field)
    })
}
