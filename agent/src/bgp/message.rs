//! Parser and writer of the BGP messages that BIRD and the agent exchange on loopback: IPv4 and IPv6 unicast with
//! ADD-PATH (RFC 7911) and 4-octet ASNs (RFC 6793).
//!
//! The parser decodes three attributes of an UPDATE: AS_PATH, MP_REACH_NLRI and MP_UNREACH_NLRI (RFC 4760). It skips
//! all other attributes by their length. BIRD forwards an attribute that it does not know, without a change. So the
//! neighbour, and networks behind the neighbour, control the contents of such attributes. Whatever such attributes
//! contain, no route may lose its AS path, and the session must not end.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::Ipv4Addr;

/// Length of the header in bytes: marker, length and type (RFC 4271, section 4.1).
const HEADER_LENGTH: usize = 19;
/// Longest message in bytes (RFC 4271). The agent does not offer extended messages (RFC 8654).
const MAX_LENGTH: usize = 4096;
/// The 2-octet placeholder for an ASN that does not fit 16 bits (RFC 6793).
const AS_TRANS: u16 = 23_456;

// Message types (RFC 4271, section 4.1; ROUTE-REFRESH: RFC 2918).
const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

// The optional parameter of OPEN that contains the capabilities (RFC 5492), and the codes of capabilities.
const CAPABILITIES: u8 = 2;
const MULTIPROTOCOL: u8 = 1;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_ASN: u8 = 65;
const ADD_PATH: u8 = 69;

// The attribute flag that says that the attribute's length has 2 octets, and the type codes of attributes (RFC 4271,
// section 4.3).
const EXTENDED_LENGTH: u8 = 0x10;
const AS_PATH: u8 = 2;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;

/// A message that cannot be parsed, with the part that is malformed. The caller must close the session, because the
/// start of the next message is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(&'static str);

/// An address family; the SAFI is always unicast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 unicast (AFI 1).
    V4,
    /// IPv6 unicast (AFI 2).
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// AFI (2 octets) and SAFI (1 octet) as encoded in messages.
    const fn code(self) -> [u8; 3] {
        match self {
            Self::V4 => [0, 1, 1],
            Self::V6 => [0, 2, 1],
        }
    }

    fn of(code: [u8; 3]) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.code() == code)
    }
}

/// A BGP message, decoded as far as the agent needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The session parameters, which each side sends as its first message.
    Open(Open),
    /// Routes that are new, changed or withdrawn, or an End-of-RIB.
    Update(Update),
    /// An error that ends the session: code and subcode (RFC 4271, section 4.5).
    Notification(u8, u8),
    /// Shows that the sender is alive, and confirms an OPEN.
    Keepalive,
    /// ROUTE-REFRESH (RFC 2918). The agent does not offer the capability for it, and ignores the message.
    Refresh,
}

/// The decoded part of an OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The sender's ASN: the one in the capability for 4-octet ASNs, or, if the OPEN lacks this capability, the 2-octet
    /// ASN of the OPEN's fixed part.
    pub asn: u32,
    /// Whether the sender encodes ASNs in 4 octets.
    pub four_octets: bool,
    /// The families for which the sender sends path identifiers (RFC 7911).
    pub sends_paths: Vec<Family>,
}

/// A prefix and the path identifier (RFC 7911) of one path to it.
pub type Path = (IpNet, u32);

/// The decoded part of an UPDATE. Paths are in the order of the message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// The paths that the sender withdraws.
    pub withdrawn: Vec<Path>,
    /// Announced paths, which all have `as_path`. Each of them replaces the earlier path with the same prefix and
    /// identifier.
    pub reached: Vec<Path>,
    /// The AS path of all announced paths, nearest AS first. Members of an AS_SET are listed in the order of the
    /// message.
    pub as_path: Vec<u32>,
    /// The family whose initial table is complete, if the message is an End-of-RIB (RFC 4724). None: it is another
    /// UPDATE.
    pub end_of_rib: Option<Family>,
}

/// Removes the first message from the received bytes and parses it. While the message is incomplete, returns none and
/// leaves the bytes in place. After an error the bytes of the message may have been removed. The parser takes every ASN
/// of an AS path as 4 octets, and expects a path identifier before every prefix.
///
/// # Errors
/// The header is invalid, a field is longer than the message or field that contains it, the type is unknown, an OPEN
/// has another version than 4, a prefix is longer than its family permits, or a route has no AS path. The session must
/// then be closed.
pub fn parse_next(received: &mut Vec<u8>) -> Result<Option<Message>, Malformed> {
    let Some((marker, rest)) = received.split_first_chunk::<16>() else {
        return Ok(None);
    };
    let Some((length, _)) = rest.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    if *marker != [0xff; 16] || !(HEADER_LENGTH..=MAX_LENGTH).contains(&length) {
        return Err(Malformed("header"));
    }
    if received.len() < length {
        return Ok(None);
    }
    let message: Vec<u8> = received.drain(..length).collect();
    let (kind, body) = message[HEADER_LENGTH - 1..].split_first().ok_or(Malformed("header"))?;
    decode(*kind, body).map(Some)
}

fn decode(kind: u8, body: &[u8]) -> Result<Message, Malformed> {
    match (kind, body) {
        (OPEN, _) => decode_open(body).map(Message::Open),
        (UPDATE, _) => decode_update(body).map(Message::Update),
        (NOTIFICATION, [code, subcode, ..]) => Ok(Message::Notification(*code, *subcode)),
        (KEEPALIVE, []) => Ok(Message::Keepalive),
        (ROUTE_REFRESH, _) => Ok(Message::Refresh),
        _ => Err(Malformed("type")),
    }
}

/// A cursor over the bytes of a message. Each method returns none if fewer bytes remain than it reads.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a field that follows its length in 2 octets.
    fn field_u16(&mut self) -> Option<Self> {
        let count = self.u16()?;
        self.bytes(count.into()).map(Self)
    }

    /// Reads a field that follows its length in 1 octet.
    fn field_u8(&mut self) -> Option<Self> {
        let count = self.u8()?;
        self.bytes(count.into()).map(Self)
    }

    fn has_more(&self) -> bool {
        !self.0.is_empty()
    }
}

fn decode_open(body: &[u8]) -> Result<Open, Malformed> {
    read_open(&mut Reader(body)).ok_or(Malformed("OPEN"))
}

fn read_open(body: &mut Reader<'_>) -> Option<Open> {
    const VERSION: u8 = 4;
    if body.u8()? != VERSION {
        return None;
    }
    let mut open = Open {
        asn: body.u16()?.into(),
        four_octets: false,
        sends_paths: Vec::new(),
    };
    let _hold_time_and_identifier = body.bytes(6)?;
    let mut parameters = body.field_u8()?;
    while parameters.has_more() {
        let (kind, mut value) = (parameters.u8()?, parameters.field_u8()?);
        while kind == CAPABILITIES && value.has_more() {
            let (code, mut value) = (value.u8()?, value.field_u8()?);
            match code {
                FOUR_OCTET_ASN => (open.asn, open.four_octets) = (value.u32()?, true),
                ADD_PATH => {
                    while value.has_more() {
                        let (family, direction) = (Family::of(value.array()?), value.u8()?);
                        // Send/Receive field: 1 receives, 2 sends, 3 does both.
                        open.sends_paths.extend(family.filter(|_| direction & 2 != 0));
                    }
                }
                _ => {}
            }
        }
    }
    Some(open)
}

fn decode_update(body: &[u8]) -> Result<Update, Malformed> {
    read_update(&mut Reader(body)).ok_or(Malformed("UPDATE"))
}

fn read_update(body: &mut Reader<'_>) -> Option<Update> {
    let mut update = Update::default();
    read_paths(Family::V4, &mut body.field_u16()?, &mut update.withdrawn)?;
    let mut attributes = body.field_u16()?;
    let (mut has_path, mut any, mut unreached) = (false, attributes.has_more(), None);
    while attributes.has_more() {
        let (flags, code) = (attributes.u8()?, attributes.u8()?);
        let mut value = if flags & EXTENDED_LENGTH == 0 {
            attributes.field_u8()?
        } else {
            attributes.field_u16()?
        };
        match code {
            AS_PATH if !has_path => {
                has_path = true;
                update.as_path = read_as_path(&mut value)?;
            }
            MP_REACH => {
                // BIRD should not send a family that was not negotiated. If it does, the attribute is skipped.
                let Some(family) = Family::of(value.array()?) else {
                    continue;
                };
                let _next_hop = value.field_u8()?;
                let _reserved = value.u8()?;
                read_paths(family, &mut value, &mut update.reached)?;
            }
            MP_UNREACH => {
                let Some(family) = Family::of(value.array()?) else {
                    continue;
                };
                unreached = Some(family);
                read_paths(family, &mut value, &mut update.withdrawn)?;
            }
            _ => {}
        }
    }
    any |= body.has_more();
    read_paths(Family::V4, body, &mut update.reached)?;
    if update.reached.is_empty() && update.withdrawn.is_empty() {
        update.end_of_rib = if any { unreached } else { Some(Family::V4) };
    }
    // A route without an AS path would pass every loop check, so the UPDATE counts as malformed.
    (update.reached.is_empty() || has_path).then_some(update)
}

/// Reads an AS_PATH with 4-octet ASNs. The segments, whether sequences or sets, are concatenated.
fn read_as_path(value: &mut Reader<'_>) -> Option<Vec<u32>> {
    let mut path = Vec::new();
    while value.has_more() {
        let _set_or_sequence = value.u8()?;
        for _ in 0..value.u8()? {
            path.push(value.u32()?);
        }
    }
    Some(path)
}

/// Appends all prefixes that remain in `from`, with their path identifiers. Clears host bits that are set.
fn read_paths(family: Family, from: &mut Reader<'_>, to: &mut Vec<Path>) -> Option<()> {
    while from.has_more() {
        let (identifier, length) = (from.u32()?, from.u8()?);
        let bytes = from.bytes(usize::from(length).div_ceil(8))?;
        let prefix = match family {
            Family::V4 => Ipv4Net::new(pad::<4>(bytes)?.into(), length).ok()?.trunc().into(),
            Family::V6 => Ipv6Net::new(pad::<16>(bytes)?.into(), length).ok()?.trunc().into(),
        };
        to.push((prefix, identifier));
    }
    Some(())
}

/// Pads bytes with zeros at the end. None: there are more than `N` bytes.
fn pad<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut full = [0; N];
    full.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(full)
}

/// Encodes a message with this type and body.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    // The bodies that this module writes are far shorter than the longest one, 4,077 bytes.
    out.extend(
        u16::try_from(HEADER_LENGTH + body.len())
            .unwrap_or(u16::MAX)
            .to_be_bytes(),
    );
    out.push(kind);
    out.extend(body);
    out
}

/// Encodes the agent's OPEN, with the BGP identifier `identifier`. The OPEN offers both families and 4-octet ASNs. It
/// says that the agent receives path identifiers, but sends none. The hold time is 0, which turns keepalives off: when
/// one end of a loopback connection dies, the kernel always closes the connection. The capability for graceful restart
/// has restart time 0 and no families: the agent keeps BIRD's routes while BIRD restarts, and does not ask BIRD to keep
/// routes of the agent (RFC 4724). A restarted BIRD therefore first receives its neighbours' tables, and then sends all
/// routes to the agent at once. An `asn` above 65535 is in the capability only, and the 2-octet field has AS_TRANS (RFC
/// 6793).
#[must_use]
pub fn open(asn: u32, identifier: Ipv4Addr) -> Vec<u8> {
    let mut capabilities = Vec::new();
    for family in Family::ALL {
        let [afi, afi_low, safi] = family.code();
        capabilities.extend([MULTIPROTOCOL, 4, afi, afi_low, 0, safi]);
    }
    capabilities.extend([FOUR_OCTET_ASN, 4]);
    capabilities.extend(asn.to_be_bytes());
    capabilities.extend([ADD_PATH, 8]);
    for family in Family::ALL {
        capabilities.extend(family.code());
        // Send/Receive field: receives only.
        capabilities.push(1);
    }
    capabilities.extend([GRACEFUL_RESTART, 2, 0, 0]);
    let mut body = vec![4];
    body.extend(u16::try_from(asn).unwrap_or(AS_TRANS).to_be_bytes());
    body.extend([0, 0]);
    body.extend(identifier.octets());
    let length = u8::try_from(capabilities.len()).unwrap_or(u8::MAX);
    body.extend([length.saturating_add(2), CAPABILITIES, length]);
    body.extend(capabilities);
    message(OPEN, &body)
}

/// Encodes a KEEPALIVE, which is a header without a body.
#[must_use]
pub fn keepalive() -> Vec<u8> {
    message(KEEPALIVE, &[])
}

/// Encodes End-of-RIB (RFC 4724) for both families, as two UPDATEs one after the other, because the agent announces no
/// routes. A restarting BIRD waits for both.
#[must_use]
pub fn end_of_rib() -> Vec<u8> {
    let [afi, afi_low, safi] = Family::V6.code();
    let mut out = message(UPDATE, &[0; 4]);
    out.extend(message(UPDATE, &[0, 0, 0, 6, 0x80, MP_UNREACH, 3, afi, afi_low, safi]));
    out
}

#[cfg(test)]
mod tests;
