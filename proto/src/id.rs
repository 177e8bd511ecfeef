//! Names, keys and secrets, each as a type of its own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The reason why a name or key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The agent id is not 1 to 63 characters of `a-z`, `0-9`, `-` and `.`, or does not start and end with a letter or
    /// digit. Holds the id.
    #[error(
        "agent id '{0}' must be 1 to 63 characters of a-z, 0-9, '-' and '.', and start and end with a letter or digit"
    )]
    Agent(String),
    /// The key is not 32 bytes in base64.
    #[error("a key must be 32 bytes in base64")]
    Key,
    /// The pin is not 32 bytes in hex.
    #[error("a key's pin must be 32 bytes in hex")]
    Pin,
}

/// The name of an agent, unique within a controller: 1 to 63 characters of `a-z`, `0-9`, `-` and `.`, the first and the
/// last one a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AgentId(String);

impl AgentId {
    /// Creates an id from a name. The name of a site's device ([`of_site`](Self::of_site)) is accepted too, although no
    /// agent may have it: the controller refuses such names for agents.
    ///
    /// # Errors
    /// [`InvalidId::Agent`]: the name does not follow the rule for names of agents, which the documentation of this
    /// type states.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidId> {
        let name = name.into();
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.len() <= 63 && edge(name.chars().next()) && edge(name.chars().last()) && name.chars().all(inside) {
            Ok(Self(name))
        } else {
            Err(InvalidId::Agent(name))
        }
    }

    /// The name that links use for the device of a site: [`SITE`](Self::SITE), followed by a hash of the connection's
    /// resource id. The hash ignores the id's case. The device is not an agent, and no agent may have such a name.
    #[must_use]
    pub fn of_site(connection: &ResourceId) -> Self {
        let hash = blake3::hash(connection.key().as_bytes()).to_hex();
        // 64 bits are enough to be unique among the connections of one controller.
        Self(format!("{}{}", Self::SITE, &hash[..16]))
    }

    /// Prefix of the names that links use for devices of sites.
    pub const SITE: &'static str = "site.";

    /// The name as text, as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AgentId {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        Self::new(s)
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(d)?).map_err(de::Error::custom)
    }
}

/// An Azure resource id, in the casing of its creation. Comparison, order and hash ignore the case of ASCII letters. A
/// clone shares the text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceId(Arc<str>);

impl ResourceId {
    /// Creates an id from any text. The text is not checked; [`ArmPath::parse`](crate::arm::ArmPath::parse) checks such
    /// texts.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into().into())
    }

    /// The id in the casing of its creation.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment of the path, which is the resource's own name; the whole text if it has no `/`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The id with ASCII letters in lower case. Equal ids have equal keys, so this text is the key in the store and in
    /// maps whose keys are text.
    #[must_use]
    pub fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

/// Cuts off the leading 16-byte blocks that are equal in both texts, and returns the rest of each text. Resource ids
/// have long common prefixes, mostly in the same casing, and comparing whole blocks is much faster than comparing
/// letters without regard to case.
fn unlike_tails<'a>(a: &'a str, b: &'a str) -> (&'a [u8], &'a [u8]) {
    const BLOCK: usize = 16;
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let equal = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    (&a[equal..], &b[equal..])
}

impl PartialEq for ResourceId {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = unlike_tails(&self.0, &other.0);
        a.eq_ignore_ascii_case(b)
    }
}
impl Eq for ResourceId {}
impl PartialOrd for ResourceId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ResourceId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let (a, b) = unlike_tails(&self.0, &other.0);
        a.iter()
            .map(u8::to_ascii_lowercase)
            .cmp(b.iter().map(u8::to_ascii_lowercase))
    }
}
impl std::hash::Hash for ResourceId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        for b in self.0.bytes() {
            state.write_u8(b.to_ascii_lowercase());
        }
        // A byte that UTF-8 never contains marks the end of the id, as in the hash of `str`. So the keys ("a", "bc")
        // and ("ab", "c") have different hash input.
        state.write_u8(0xff);
    }
}
impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a state of the controller's store. Each committed change increments it; 0 is the state before the
/// first change.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn key_from(text: &str) -> Result<[u8; 32], InvalidId> {
    BASE64
        .decode(text)
        .ok()
        .and_then(|v| v.try_into().ok())
        .ok_or(InvalidId::Key)
}

/// An X25519 public key, which is an agent's identity on its WireGuard links. The text form is base64, as `wg` prints
/// it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}
impl FromStr for PublicKey {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        key_from(s).map(Self)
    }
}
impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// The SHA-256 hash of the SubjectPublicKeyInfo of a public key, which is an agent's identity on QUIC links and towards
/// the controller. The text form is 64 hex digits: lower-case when written, of either case when read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPin(pub [u8; 32]);

impl fmt::Display for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPin({self})")
    }
}
impl FromStr for KeyPin {
    type Err = InvalidId;
    fn from_str(s: &str) -> Result<Self, InvalidId> {
        let mut pin = [0; 32];
        if s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidId::Pin);
        }
        for (byte, digits) in pin.iter_mut().zip(s.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| InvalidId::Pin)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidId::Pin)?;
        }
        Ok(Self(pin))
    }
}
impl Serialize for KeyPin {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for KeyPin {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// A WireGuard preshared key. The key is a secret: `Debug` does not show it, but JSON does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PresharedKey(pub [u8; 32]);

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}
impl Serialize for PresharedKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64.encode(self.0))
    }
}
impl<'de> Deserialize<'de> for PresharedKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        key_from(&String::deserialize(d)?).map(Self).map_err(de::Error::custom)
    }
}

/// A secret in text form, e.g. a password. `Debug` does not show it, but JSON does.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_ids_are_dns_like() {
        for good in ["a", "hub-vm1", "a.b", "1"] {
            assert!(AgentId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", &"x".repeat(64)] {
            assert!(AgentId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn resource_ids_compare_without_case() {
        let (a, b) = (ResourceId::new("/X/Y"), ResourceId::new("/x/y"));
        assert_eq!(a, b);
        assert_eq!(a.cmp(&b), std::cmp::Ordering::Equal);
        assert_eq!(a.name(), "Y");
        let long = |tail: &str| ResourceId::new(format!("/subscriptions/s/resourceGroups/g/{tail}"));
        assert!(long("A/b") < long("a/C") && long("a/C") > long("A/b"));
        assert!(long("a") < long("A/b") && long("a") != long("A/b"));
        assert_eq!(long("Virtual/X"), ResourceId::new(long("virtual/x").key()));
    }

    #[test]
    fn pins_are_hex() {
        let pin = KeyPin([0xa7; 32]);
        assert_eq!(pin.to_string().parse(), Ok(pin));
        for bad in ["", "a7", &"x".repeat(64), &"+7".repeat(32), &"a7".repeat(33)] {
            assert!(bad.parse::<KeyPin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn preshared_keys_do_not_print() {
        assert!(!format!("{:?}", PresharedKey([7; 32])).contains('7'));
    }
}
