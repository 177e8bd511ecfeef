//! The rules for names of resources and resource groups.

/// Checks the name of a resource by ARM's common rule: 1 to 80 letters, digits, `.`, `_` and `-`, with a letter, a
/// digit or `_` as first and last character. For peerings this is rule P6.
///
/// # Errors
/// The name breaks the rule. The text is a sentence with the name and the rule.
pub fn check_name(name: &str) -> Result<(), String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let inside = |c: char| word(c) || c == '.' || c == '-';
    if name.len() <= 80 && name.starts_with(word) && name.ends_with(word) && name.chars().all(inside) {
        return Ok(());
    }
    Err(format!(
        "'{name}' cannot be a name: 1 to 80 letters, digits, '.', '_', '-', starting and ending with a letter, digit or '_'"
    ))
}

/// Checks the name of a resource group: 1 to 90 letters, digits, `_`, `-`, `.`, `(` and `)`, without `.` at the end.
///
/// # Errors
/// The name breaks the rule. The text is a sentence with the name and the rule.
pub fn check_group_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-.()".contains(c);
    if (1..=90).contains(&name.len()) && !name.ends_with('.') && name.chars().all(good) {
        return Ok(());
    }
    Err(format!(
        "'{name}' cannot be the name of a resource group: 1 to 90 letters, digits, '_', '-', '.', '(', ')', not ending with '.'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_and_end_with_a_word_character() {
        let long = "a".repeat(80);
        for good in ["hub", "GatewaySubnet", "a.b-c_d", "1", "_", "a_", &long] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let longer = "a".repeat(81);
        for bad in [
            "", ".", "..", "a/b", "a b", "a?b", "a%2f", "-a", "a.", "a-", "a(b)", "ä", &longer,
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn groups_may_have_parentheses_and_hyphens_at_the_end() {
        let long = "a".repeat(90);
        for good in ["lab", "lab(test)", "lab-", "-", "(", &long] {
            assert!(check_group_name(good).is_ok(), "{good}");
        }
        let longer = "a".repeat(91);
        for bad in ["", ".", "..", "a.", "a/b", "a b", "a%2f", &longer] {
            assert!(check_group_name(bad).is_err(), "{bad}");
        }
    }
}
