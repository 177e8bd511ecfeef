//! A YAML map from names to values that keeps the file's order and refuses duplicate names.

use crate::path::check_name;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

/// Values by name, in the file's order. Names are compared case-insensitively. Deserialization refuses duplicate names
/// and names that rule P6 forbids. If a `Named` is collected from an iterator, its names are not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T>(Vec<(String, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Named<T> {
    /// Returns names and values in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the value of a name, which is compared case-insensitively; `None` if the name does not occur.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&T> {
        self.0
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Returns the number of names, each of which has one value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no names and values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> FromIterator<(String, T)> for Named<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to settings")
            }

            fn visit_unit<E: Error>(self) -> Result<Named<T>, E> {
                Ok(Named::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut seen = BTreeSet::new();
                let mut items = Vec::new();
                while let Some(name) = map.next_key_seed(Key(&mut seen))? {
                    items.push((name, map.next_value()?));
                }
                Ok(Named(items))
            }
        }
        deserializer.deserialize_any(Names(PhantomData))
    }
}

/// Checks a key while the key is read, so that an error has the line and column of the key.
struct Key<'a>(&'a mut BTreeSet<String>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        struct Text<'a>(&'a mut BTreeSet<String>);
        impl Visitor<'_> for Text<'_> {
            type Value = String;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
                check_name(name).map_err(E::custom)?;
                if self.0.insert(name.to_ascii_lowercase()) {
                    Ok(name.to_owned())
                } else {
                    Err(E::custom(format_args!(
                        "'{name}' occurs twice here (names are compared case-insensitively)"
                    )))
                }
            }
        }
        deserializer.deserialize_str(Text(self.0))
    }
}
