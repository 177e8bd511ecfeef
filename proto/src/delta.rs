//! A configuration as a change of an earlier one, so that a small change of a large configuration is a small message
//! (D27). After a change of one application security group, the controller then does not send the rules and links of
//! each agent again.
//!
//! ```text
//! base ──┐
//!        ├─▶ controller: encode ──▶ pieces ──▶ agent: decode ──▶ new
//! new ───┘                                        ▲
//!                                          base ──┘
//! ```
//! Each piece is either new bytes or a part of the base.

use std::ops::Range;

/// A piece of the new text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'a> {
    /// New bytes.
    Data(&'a [u8]),
    /// The bytes of the base in this range.
    Base(Range<usize>),
}

/// The reason why pieces cannot be put together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// A piece names bytes that the base does not have.
    #[error("a piece names the bytes {} to {} of a base of {length} bytes", .part.start, .part.end)]
    OutsideBase {
        /// The range of the piece.
        part: Range<usize>,
        /// The length of the base.
        length: usize,
    },
    /// The text would be longer than the limit.
    #[error("the pieces have more than {limit} bytes together")]
    TooLong {
        /// The largest accepted length in bytes.
        limit: usize,
    },
}

/// Puts pieces together. The pieces may come from anyone: nothing is read outside of `base`, and no more than `limit`
/// bytes are produced. Only the digest of the result shows whether it is the text that the sender meant.
///
/// # Errors
/// A piece is outside of the base, or the result is longer than `limit`.
pub fn decode<'a>(
    base: &[u8],
    pieces: impl IntoIterator<Item = Piece<'a>>,
    limit: usize,
) -> Result<Vec<u8>, DeltaError> {
    let mut text = Vec::new();
    for piece in pieces {
        let bytes = match piece {
            Piece::Data(data) => data,
            Piece::Base(part) => base.get(part.clone()).ok_or(DeltaError::OutsideBase {
                part,
                length: base.len(),
            })?,
        };
        if bytes.len() > limit - text.len() {
            return Err(DeltaError::TooLong { limit });
        }
        text.extend_from_slice(bytes);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_anyone_stay_within_the_base_and_the_limit() {
        let outside = decode(b"abc", [Piece::Base(2..4)], 10).unwrap_err();
        assert_eq!(outside, DeltaError::OutsideBase { part: 2..4, length: 3 });
        let reversed = decode(b"abc", [Piece::Base(Range { start: 2, end: 1 })], 10);
        assert!(reversed.is_err());
        let repeated = decode(b"abcd", std::iter::repeat_n(Piece::Base(0..4), 3), 10).unwrap_err();
        assert_eq!(repeated, DeltaError::TooLong { limit: 10 });
        let text = decode(b"abcd", [Piece::Base(1..3), Piece::Data(b"-"), Piece::Base(0..4)], 7);
        assert_eq!(text.unwrap(), b"bc-abcd");
    }
}
