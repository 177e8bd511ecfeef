//! The Internet checksum (RFC 1071), vectorized for long packets.

/// The sum of all 16-bit big-endian words, folded to 16 bits but not inverted. An odd last byte counts as the high half
/// of a word.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    // The sum uses eight independent accumulators for 32-bit words, so that the compiler can use vector instructions.
    let mut lanes = [0u64; 8];
    let (wide, rest) = bytes.as_chunks::<32>();
    for block in wide {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().map(|lane| (lane >> 32) + (lane & 0xffff_ffff)).sum();
    let (words, odd) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = odd {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    u64::from(fold(total).to_be())
}

/// Folds the carries of a sum until 16 bits remain, as the ones' complement sum of RFC 1071 demands.
#[expect(clippy::cast_possible_truncation, reason = "the loop ends when 16 bits are left")]
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The value of the checksum field for a sum: the complement of the folded sum.
pub(super) fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plain(bytes: &[u8]) -> u16 {
        let mut total = 0u64;
        for pair in bytes.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
        fold(total)
    }

    proptest! {
        #[test]
        fn equals_the_plain_loop(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(fold(sum(&bytes)), plain(&bytes));
        }
    }
}
