//! Time spans in ARM's format.

/// A time span in ARM's format, `1.02:03:04`, cut to whole seconds. A negative one is shown as zero.
pub(super) fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "cut to whole seconds; the cast saturates negative and huge values"
    )]
    let seconds = seconds as u64;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days > 0 { format!("{days}.{clock}") } else { clock }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_arm_does() {
        assert_eq!(duration(0.9), "00:00:00");
        assert_eq!(duration(3_723.0), "01:02:03");
        assert_eq!(duration(90_123.0), "1.01:02:03");
        assert_eq!(duration(-1.0), "00:00:00");
    }
}
