//! Captured packets as blocks of pcapng, with the link type RAW: each packet begins with its IP header.

use super::flow::Direction;
use super::ring::Record;
use anyhow::{Context, Result};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness};
use std::borrow::Cow;
use std::time::Duration;

/// The option `if_tsresol`: times are in nanoseconds.
const NANOSECONDS: u8 = 9;

/// The direction in `epb_flags`.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// An interface of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The name of the device.
    pub name: String,
    /// What it belongs to, for people.
    pub description: String,
}

/// Makes blocks.
pub struct Blocks {
    writer: PcapNgWriter<Vec<u8>>,
    interfaces: u32,
}

impl Blocks {
    /// Begins a file with these interfaces. `most`: number of bytes that are kept of each packet.
    ///
    /// # Errors
    /// A name is too long for its block.
    pub fn new(interfaces: &[Interface], most: usize) -> Result<Self> {
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(Cow::Borrowed(concat!(
                "tombolo-agent ",
                env!("CARGO_PKG_VERSION")
            )))],
            ..SectionHeaderBlock::default()
        };
        let mut writer = PcapNgWriter::with_section_header(Vec::new(), section).context("section header")?;
        for interface in interfaces {
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::RAW,
                // 0 stands for "no limit".
                snaplen: u32::try_from(most).unwrap_or_default(),
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(&interface.name)),
                    InterfaceDescriptionOption::IfDescription(Cow::Borrowed(&interface.description)),
                    InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                ],
            };
            writer.write_pcapng_block(block).context("interface description")?;
        }
        Ok(Self {
            writer,
            interfaces: u32::try_from(interfaces.len()).unwrap_or(u32::MAX),
        })
    }

    /// The bytes that have been made, and not been taken yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.writer.get_ref().len()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the bytes.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }

    /// Forgets all bytes after the first `length`.
    pub fn truncate(&mut self, length: usize) {
        self.writer.get_mut().truncate(length);
    }

    /// Adds a packet. The reason why it was dropped becomes its comment.
    ///
    /// # Errors
    /// The interface does not exist.
    pub fn add(&mut self, record: &Record, packet: &[u8]) -> Result<()> {
        let flags = match record.direction {
            Direction::In => INBOUND,
            Direction::Out => OUTBOUND,
        };
        let mut options = vec![EnhancedPacketOption::Flags(flags)];
        if let Some(reason) = record.dropped {
            options.push(EnhancedPacketOption::Comment(Cow::Owned(format!("dropped: {reason}"))));
        }
        let block = EnhancedPacketBlock {
            interface_id: record.interface.into(),
            timestamp: Duration::from_nanos(record.at),
            original_len: record.length,
            data: Cow::Borrowed(packet),
            options,
        };
        self.writer.write_pcapng_block(block).context("packet")?;
        Ok(())
    }

    /// Adds the statistics at the end: the number of packets that were lost, at the first interface, because a copy that
    /// found no room belongs to none. `at`: the time in nanoseconds of Unix time.
    ///
    /// # Errors
    /// There is no interface.
    pub fn end(&mut self, at: u64, lost: u64) -> Result<()> {
        for interface_id in 0..self.interfaces {
            let lost = if interface_id == 0 { lost } else { 0 };
            let block = InterfaceStatisticsBlock {
                interface_id,
                timestamp: high_word_first(at),
                options: vec![InterfaceStatisticsOption::IsbOsDrop(lost)],
            };
            self.writer.write_pcapng_block(block).context("statistics")?;
        }
        Ok(())
    }

    /// Room that [`end`](Self::end) needs, in bytes.
    #[must_use]
    pub fn end_length(&self) -> usize {
        // Block type, two lengths, interface and time; an option of 8 bytes; the end of options.
        (24 + 12 + 4) * self.interfaces as usize
    }
}

/// A time as the statistics have it. The library writes their time as one number in the order of this machine's bytes, but
/// the format has the high word before the low one in any order, as in packets.
const fn high_word_first(at: u64) -> u64 {
    if cfg!(target_endian = "little") {
        at.rotate_left(32)
    } else {
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcapng::{Block, PcapNgReader};
    use tombolo_engine::verdict::DropReason;

    fn interface(name: &str) -> Interface {
        Interface {
            name: name.into(),
            description: format!("/nics/{name}"),
        }
    }

    /// What was written is read back: link type, resolution, times, lengths, directions, reasons and losses.
    #[test]
    fn d42_blocks_are_read_back_as_they_were_written() {
        let mut blocks = Blocks::new(&[interface("tm0"), interface("tm0-1")], 64).unwrap();
        let record = |at, interface, direction, dropped| Record {
            at,
            length: 1500,
            interface,
            direction,
            dropped,
        };
        let records = [
            record(1_800_000_000_123_456_789, 0, Direction::Out, None),
            record(1_800_000_000_123_456_790, 1, Direction::In, Some(DropReason::NoRoute)),
        ];
        blocks.add(&records[0], &[1; 5]).unwrap();
        let before = blocks.len();
        blocks.add(&records[1], &[3; 64]).unwrap();
        blocks.truncate(before);
        blocks.add(&records[1], &[2; 64]).unwrap();
        let before = blocks.len();
        blocks.end(1_800_000_001_000_000_000, 7).unwrap();
        assert_eq!(blocks.len() - before, blocks.end_length());
        let bytes = blocks.take();
        assert!(blocks.is_empty());

        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let mut found = Vec::new();
        while let Some(block) = reader.next_block() {
            found.push(block.unwrap().into_owned());
        }
        let [
            Block::InterfaceDescription(first),
            Block::InterfaceDescription(second),
            rest @ ..,
        ] = &found[..]
        else {
            panic!("{found:?}")
        };
        assert_eq!((first.linktype, first.snaplen), (DataLink::RAW, 64));
        assert!(
            second
                .options
                .contains(&InterfaceDescriptionOption::IfName("tm0-1".into()))
        );
        assert!(second.options.contains(&InterfaceDescriptionOption::IfTsResol(9)));
        let [
            Block::EnhancedPacket(sent),
            Block::EnhancedPacket(dropped),
            Block::InterfaceStatistics(lost),
            _,
        ] = rest
        else {
            panic!("{rest:?}")
        };
        assert_eq!(sent.timestamp, Duration::from_nanos(records[0].at));
        assert_eq!(
            (sent.interface_id, sent.original_len, &sent.data[..]),
            (0, 1500, &[1; 5][..])
        );
        assert_eq!(sent.options, [EnhancedPacketOption::Flags(2)]);
        assert_eq!((dropped.interface_id, &dropped.data[..]), (1, &[2; 64][..]));
        assert_eq!(
            dropped.options,
            [
                EnhancedPacketOption::Flags(1),
                EnhancedPacketOption::Comment("dropped: no_route".into())
            ]
        );
        assert_eq!(lost.options, [InterfaceStatisticsOption::IsbOsDrop(7)]);
        // Block type, length, interface, then the high and the low word of the time.
        let at = &bytes[bytes.len() - 2 * 40..][12..20];
        let words = [0, 4].map(|n| u64::from(u32::from_ne_bytes([at[n], at[n + 1], at[n + 2], at[n + 3]])));
        assert_eq!(words[0] << 32 | words[1], 1_800_000_001_000_000_000);
    }
}
