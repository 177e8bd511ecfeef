//! The beginning of a client's text.

/// The first 300 characters of a client's text, for an error message whose length must not depend on the request.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(300).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
