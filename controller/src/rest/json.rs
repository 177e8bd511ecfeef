//! Reads request bodies, with limits for their size, their depth and the time of their arrival. An object with
//! duplicate keys is refused, because parsers disagree on which of the values is valid.

use super::failure::Failure;
use axum::body::Body;
use axum::extract::Request;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Size of the largest request body, in bytes. It is ARM's limit for templates (4 MB).
pub(crate) const MAX_BODY: usize = 4 << 20;
/// Size of the largest body of a request that needs no token, in bytes. The body of a join request has less than 2 KiB.
pub(crate) const MAX_OPEN_BODY: usize = 64 << 10;
/// Time for a whole body to arrive: 4 MiB at 137 KiB/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time until the whole body of a request that needs no token has arrived: 64 KiB take this long at 6.4 KiB/s.
const OPEN_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of levels of nested arrays and objects. No body of this interface needs as many. serde_json's own
/// limit is 128.
const MAX_DEPTH: usize = 64;

/// Reads a whole body of at most `limit` bytes. It must arrive within 10 s if `limit` is at most [`MAX_OPEN_BODY`],
/// otherwise within 30 s.
///
/// # Errors
/// 413 if the body is longer, 408 if it does not arrive in time, 400 if the connection breaks off.
pub(crate) async fn bytes(body: Body, limit: usize) -> Result<bytes::Bytes, Failure> {
    let timeout = if limit <= MAX_OPEN_BODY {
        OPEN_BODY_TIMEOUT
    } else {
        BODY_TIMEOUT
    };
    let collected = tokio::time::timeout(timeout, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if is_too_long(&*error) => Err(Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestContentTooLarge",
            format!("The request body is larger than {limit} bytes."),
        )),
        Ok(Err(error)) => Err(Failure::bad(
            "InvalidRequestContent",
            format!("The request body is incomplete: {error}."),
        )),
        Err(_) => Err(Failure::new(
            StatusCode::REQUEST_TIMEOUT,
            "RequestTimeout",
            format!("The request body did not arrive within {} seconds.", timeout.as_secs()),
        )),
    }
}

fn is_too_long(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Parses a body as JSON. A body that is empty or has only white space is `null`.
///
/// # Errors
/// 400 if the body is malformed, is nested too deeply, or has duplicate keys.
pub(crate) fn value(bytes: &[u8]) -> Result<Value, Failure> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    parse(bytes).map_err(|error| {
        Failure::bad(
            "InvalidRequestContent",
            format!("The request content was invalid and could not be deserialized: '{error}'."),
        )
    })
}

/// Reads the JSON body of a request as a value of type `T`. The type decides whether unknown fields are errors (D3).
///
/// # Errors
/// As [`bytes()`] and [`value`]; 400 if the JSON does not match the type.
pub(crate) async fn typed<T: DeserializeOwned>(request: Request) -> Result<T, Failure> {
    typed_within(request, MAX_BODY).await
}

/// As [`typed`], with a body of at most `limit` bytes.
pub(crate) async fn typed_within<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, Failure> {
    serde_json::from_value(value(&bytes(request.into_body(), limit).await?)?).map_err(|error| {
        Failure::bad(
            "InvalidRequestContent",
            format!("The request content is invalid: {error}."),
        )
    })
}

/// Parses JSON in UTF-8. Refuses duplicate keys, more than [`MAX_DEPTH`] levels, and text after the value.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict(MAX_DEPTH).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Deserializes a value with at most this many levels below it.
#[derive(Clone, Copy)]
struct Strict(usize);

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        self.0
            .checked_sub(1)
            .map(Self)
            .ok_or_else(|| E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Number(n.into()))
    }
    fn visit_f64<E: de::Error>(self, n: f64) -> Result<Value, E> {
        Number::from_f64(n)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is not finite"))
    }
    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(Value::String(s.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                let short: String = key.chars().take(80).collect();
                return Err(de::Error::custom(format_args!("duplicate key \"{short}\"")));
            }
            let value = entries.next_value_seed(inner)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_json_is_what_serde_json_makes_of_it() {
        for text in [
            "null",
            r#"{"a":[1,-2,3.5,"x",true,null],"b":{"a":{}}}"#,
            "[[[]]]",
            "\"\u{1f980}\"",
            "1e3",
        ] {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn bad_json_is_refused() {
        let deep = "[".repeat(100_000);
        let closed = format!("{}{}", "[".repeat(70), "]".repeat(70));
        for text in [
            "",
            "{",
            "{}x",
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":1,"\u0061":1}"#,
            "\u{0}",
            "NaN",
            "1e999",
            &deep,
            &closed,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{}", &text[..text.len().min(40)]);
        }
        assert!(parse(&[b'"', 0xff, b'"']).is_err());
    }
}
