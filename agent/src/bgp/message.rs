//! The part of BGP that BIRD and the agent speak on loopback: IPv4 and IPv6 unicast with ADD-PATH (RFC 7911) and 4-octet ASNs.
//!
//! Of an UPDATE's attributes only three are looked at: AS_PATH, MP_REACH_NLRI and MP_UNREACH_NLRI. All others are skipped
//! by their length alone, because BIRD passes on what it does not know with whatever a neighbour, or somebody behind it,
//! has put there: it must not be able to cost a route its path, or the session its life.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::Ipv4Addr;

const HEADER: usize = 19;
/// Longest message without RFC 8654, which is not offered.
const MAX: usize = 4096;
/// Stands for an ASN that does not fit 16 bits (RFC 6793).
const AS_TRANS: u16 = 23_456;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

const CAPABILITIES: u8 = 2;
const MULTIPROTOCOL: u8 = 1;
const GRACEFUL_RESTART: u8 = 64;
const FOUR_OCTET_ASN: u8 = 65;
const ADD_PATH: u8 = 69;

const EXTENDED_LENGTH: u8 = 0x10;
const AS_PATH: u8 = 2;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;

/// What cannot be understood: the session that it came by ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(&'static str);

/// An address family, always with unicast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// AFI and SAFI on the wire.
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

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first of each side.
    Open(Open),
    /// Routes.
    Update(Update),
    /// The session ends; code and subcode (RFC 4271, 4.5).
    Notification(u8, u8),
    /// Nothing new.
    Keepalive,
    /// Asks for all routes again; not offered, so not heeded.
    Refresh,
}

/// What an OPEN says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// 4 octets if the sender can, else the 2 of the header.
    pub asn: u32,
    /// The sender writes ASNs in 4 octets.
    pub four_octets: bool,
    /// The families in which the sender writes path identifiers.
    pub sends_paths: Vec<Family>,
}

/// A prefix and the identifier of one path to it.
pub type Path = (IpNet, u32);

/// What an UPDATE says, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Paths that are gone.
    pub withdrawn: Vec<Path>,
    /// Paths that are there, all of them with `as_path`; each replaces what there was under its identifier.
    pub reached: Vec<Path>,
    /// The nearest first; members of a set as they stand.
    pub as_path: Vec<u32>,
    /// The first table of this family is complete (RFC 4724).
    pub end_of_rib: Option<Family>,
}

/// Takes the first message from received bytes; none while it is not complete.
///
/// # Errors
/// Not a message, or one that breaks its own lengths. What follows cannot be told apart then.
pub fn take(received: &mut Vec<u8>) -> Result<Option<Message>, Malformed> {
    let Some((marker, rest)) = received.split_first_chunk::<16>() else {
        return Ok(None);
    };
    let Some((length, _)) = rest.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*length));
    if *marker != [0xff; 16] || !(HEADER..=MAX).contains(&length) {
        return Err(Malformed("header"));
    }
    if received.len() < length {
        return Ok(None);
    }
    let message: Vec<u8> = received.drain(..length).collect();
    let (kind, body) = message[HEADER - 1..].split_first().ok_or(Malformed("header"))?;
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

/// What is left to read of a message.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
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

    /// As many bytes as the two before them say.
    fn counted(&mut self) -> Option<Self> {
        let count = self.u16()?;
        self.bytes(count.into()).map(Self)
    }

    /// As many bytes as the one before them says.
    fn shortly_counted(&mut self) -> Option<Self> {
        let count = self.u8()?;
        self.bytes(count.into()).map(Self)
    }

    fn more(&self) -> bool {
        !self.0.is_empty()
    }
}

fn decode_open(body: &[u8]) -> Result<Open, Malformed> {
    read_open(&mut Rest(body)).ok_or(Malformed("OPEN"))
}

fn read_open(body: &mut Rest<'_>) -> Option<Open> {
    if body.u8()? != 4 {
        return None;
    }
    let mut open = Open {
        asn: body.u16()?.into(),
        four_octets: false,
        sends_paths: Vec::new(),
    };
    let _hold_time_and_identifier = body.bytes(6)?;
    let mut parameters = body.shortly_counted()?;
    while parameters.more() {
        let (kind, mut value) = (parameters.u8()?, parameters.shortly_counted()?);
        while kind == CAPABILITIES && value.more() {
            let (code, mut value) = (value.u8()?, value.shortly_counted()?);
            match code {
                FOUR_OCTET_ASN => (open.asn, open.four_octets) = (value.u32()?, true),
                ADD_PATH => {
                    while value.more() {
                        let (family, direction) = (Family::of(value.array()?), value.u8()?);
                        // 2: sends; 3: sends and receives.
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
    read_update(&mut Rest(body)).ok_or(Malformed("UPDATE"))
}

fn read_update(body: &mut Rest<'_>) -> Option<Update> {
    let mut update = Update::default();
    read_paths(Family::V4, &mut body.counted()?, &mut update.withdrawn)?;
    let mut attributes = body.counted()?;
    let (mut has_path, mut any, mut unreached) = (false, attributes.more(), None);
    while attributes.more() {
        let (flags, code) = (attributes.u8()?, attributes.u8()?);
        let mut value = if flags & EXTENDED_LENGTH == 0 {
            attributes.shortly_counted()?
        } else {
            attributes.counted()?
        };
        match code {
            AS_PATH if !has_path => {
                has_path = true;
                update.as_path = read_as_path(&mut value)?;
            }
            MP_REACH => {
                // Families that were not agreed on are nobody's here.
                let Some(family) = Family::of(value.array()?) else {
                    continue;
                };
                let _next_hop = value.shortly_counted()?;
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
    any |= body.more();
    read_paths(Family::V4, body, &mut update.reached)?;
    if update.reached.is_empty() && update.withdrawn.is_empty() {
        update.end_of_rib = if any { unreached } else { Some(Family::V4) };
    }
    // A route without a path would pass every check for loops.
    (update.reached.is_empty() || has_path).then_some(update)
}

fn read_as_path(value: &mut Rest<'_>) -> Option<Vec<u32>> {
    let mut path = Vec::new();
    while value.more() {
        let _set_or_sequence = value.u8()?;
        for _ in 0..value.u8()? {
            path.push(value.u32()?);
        }
    }
    Some(path)
}

fn read_paths(family: Family, from: &mut Rest<'_>, to: &mut Vec<Path>) -> Option<()> {
    while from.more() {
        let (identifier, length) = (from.u32()?, from.u8()?);
        let bytes = from.bytes(usize::from(length).div_ceil(8))?;
        let prefix = match family {
            Family::V4 => Ipv4Net::new(fill::<4>(bytes)?.into(), length).ok()?.trunc().into(),
            Family::V6 => Ipv6Net::new(fill::<16>(bytes)?.into(), length).ok()?.trunc().into(),
        };
        to.push((prefix, identifier));
    }
    Some(())
}

/// The bytes, and zeros after them.
fn fill<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    let mut full = [0; N];
    full.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(full)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    // No body in here comes near the 4,077 bytes that fit.
    out.extend(u16::try_from(HEADER + body.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}

/// The agent's OPEN: both families, path identifiers received, no keepalives (the other end of a loopback session cannot
/// vanish unnoticed), and graceful restart as one who helps, so that a restarted BIRD first hears its neighbours out and then
/// says all at once.
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
        // 1: receives.
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

/// A KEEPALIVE.
#[must_use]
pub fn keepalive() -> Vec<u8> {
    message(KEEPALIVE, &[])
}

/// "I have no routes for you", in both families: what a restarting BIRD waits for.
#[must_use]
pub fn nothing_to_tell() -> Vec<u8> {
    let [afi, afi_low, safi] = Family::V6.code();
    let mut out = message(UPDATE, &[0; 4]);
    out.extend(message(UPDATE, &[0, 0, 0, 6, 0x80, MP_UNREACH, 3, afi, afi_low, safi]));
    out
}

#[cfg(test)]
mod tests;
