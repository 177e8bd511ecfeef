//! The blocks of a capture in pcapng. A capture that Ctrl-C ends must not end within a block.

/// Smallest length of a block in bytes.
const MIN_BLOCK: usize = 12;
/// Longest block that is kept until it is complete. A packet has at most 64 KiB.
const MAX_BLOCK: usize = 1 << 20;

/// Splits a stream after complete blocks.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The beginning of a block that is not complete.
    rest: Vec<u8>,
    /// Whether the first byte of a number is the lowest. `None`: the first block has not come yet.
    is_little: Option<bool>,
}

impl Blocks {
    /// The complete blocks up to the end of these bytes. If the stream is no pcapng, all bytes.
    pub(super) fn complete(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.rest.extend(bytes);
        let mut end = 0;
        while let Some(length) = self.length(end) {
            if !(MIN_BLOCK..=MAX_BLOCK).contains(&length) {
                end = self.rest.len();
                break;
            }
            if self.rest.len() - end < length {
                break;
            }
            end += length;
        }
        let rest = self.rest.split_off(end);
        std::mem::replace(&mut self.rest, rest)
    }

    /// The bytes after the last complete block.
    pub(super) fn rest(self) -> Vec<u8> {
        self.rest
    }

    /// The length of the block that begins at `at`. `None`: it has not come yet.
    fn length(&mut self, at: usize) -> Option<usize> {
        let word = |at: usize| self.rest.get(at..at + 4)?.try_into().ok();
        let length: [u8; 4] = word(at + 4)?;
        let is_little = match self.is_little {
            Some(known) => known,
            // The magic number of the first block is 0x1A2B3C4D.
            None => word(at + 8)? == 0x1a2b_3c4d_u32.to_le_bytes(),
        };
        self.is_little = Some(is_little);
        let length = if is_little {
            u32::from_le_bytes(length)
        } else {
            u32::from_be_bytes(length)
        };
        usize::try_from(length).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A section header and two blocks of 16 and 12 bytes.
    fn file(word: fn(u32) -> [u8; 4]) -> Vec<u8> {
        let section = [0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, 0, 0, 28];
        let blocks = [6, 16, 0xdead_beef, 16, 5, 12, 12];
        section.into_iter().chain(blocks).flat_map(word).collect()
    }

    #[test]
    fn d42_a_stream_is_cut_between_blocks_only() {
        for file in [file(u32::to_le_bytes), file(u32::to_be_bytes)] {
            for size in 1..=file.len() {
                let (mut blocks, mut written) = (Blocks::default(), Vec::new());
                for part in file.chunks(size) {
                    written.extend(blocks.complete(part));
                    assert!(
                        [0, 28, 44, 56].contains(&written.len()),
                        "{} in parts of {size}",
                        written.len()
                    );
                }
                assert_eq!(written, file);
                assert_eq!(blocks.rest(), b"");
            }
            let mut blocks = Blocks::default();
            assert_eq!(blocks.complete(&file[..43]), file[..28]);
            assert_eq!(blocks.rest(), file[28..43]);
        }
        let other = b"this is no file in pcapng";
        assert_eq!(Blocks::default().complete(other), other);
    }
}
