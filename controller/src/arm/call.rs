//! A parsed request of ARM's dialect.

use crate::rest::external_url;
use crate::rest::failure::{Failure, excerpt};
use crate::rest::json;
use axum::body::Body;
use bytes::Bytes;
use http::header::IF_MATCH;
use http::request::Parts;
use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use tombolo_topology::path::ArmPath;

/// Longest path, in bytes: more than any resource's.
const MAX_PATH_LENGTH: usize = 4096;

/// A parsed ARM request. It has not been compared with any state: its resource may not exist.
pub(super) struct Call {
    pub(super) method: Method,
    /// The segments of the path, decoded, as the client wrote them.
    pub(super) segments: Vec<String>,
    /// The segments in lower case, for the comparison with segments that ARM defines.
    pub(super) lower: Vec<String>,
    /// Query parameters by name in lower case. If a name occurs several times, the last value counts.
    pub(super) query: BTreeMap<String, String>,
    /// The URL `https://HOST:PORT` at which the client reached this controller.
    pub(super) base: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// Parses the head of a request. The body is read later, by [`Self::read_body`].
    ///
    /// # Errors
    /// 400 if the path or the query is malformed, or the path is longer than [`MAX_PATH_LENGTH`].
    pub(super) fn read(head: Parts) -> Result<Self, Failure> {
        let Parts {
            method, uri, headers, ..
        } = head;
        let path = uri.path();
        let bad = |why: &str| Failure::bad("InvalidRequestUri", format!("'{}': {why}.", excerpt(path)));
        if path.len() > MAX_PATH_LENGTH {
            return Err(bad(&format!("the path is longer than {MAX_PATH_LENGTH} bytes")));
        }
        // Some clients encode the slashes of a scope (`/%2Fsubscriptions%2F…`), so the path is decoded before it is
        // split. Others join a base URL that ends in a slash with a path that begins with one, or leave a part of a
        // path empty (`Microsoft.Network//virtualNetworks`), so empty segments are left out.
        let text = decoded(path, false)
            .filter(|text| !text.chars().any(char::is_control))
            .ok_or_else(|| bad("the path is not percent-encoded UTF-8, or has control characters"))?;
        let segments: Vec<String> = text.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        let mut query = BTreeMap::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decoded(name, true), decoded(value, true)) else {
                return Err(bad("the query is not percent-encoded UTF-8"));
            };
            query.insert(name.to_ascii_lowercase(), value);
        }
        Ok(Self {
            lower: segments.iter().map(|s| s.to_ascii_lowercase()).collect(),
            base: external_url(&headers, &uri),
            method,
            segments,
            query,
            headers,
            body: Bytes::new(),
        })
    }

    /// The decoded path, with one leading `/` and none at the end.
    pub(super) fn text(&self) -> String {
        format!("/{}", self.segments.join("/"))
    }

    /// The 404 for a path that this controller does not serve.
    pub(super) fn not_found(&self) -> Failure {
        Failure::missing("NotFound", format!("Nothing is found at '{}'.", excerpt(&self.text())))
    }

    /// The path of the resource that the first `n` segments name, or all segments if there are fewer than `n`. Whether
    /// the resource exists is not checked.
    ///
    /// # Errors
    /// 404 if the segments have not the form of a resource's path.
    pub(super) fn item(&self, n: usize) -> Result<ArmPath, Failure> {
        let text = format!("/{}", self.segments[..n.min(self.segments.len())].join("/"));
        ArmPath::parse(&text).map_err(|why| Failure::missing("NotFound", format!("{why}.")))
    }

    /// Checks that `api-version` has the form of a date, with or without a suffix such as `-preview`. Any date is
    /// accepted.
    ///
    /// # Errors
    /// 400 with Azure's code for a missing or for an invalid `api-version`.
    pub(super) fn check_api_version(&self) -> Result<(), Failure> {
        let version = self.query.get("api-version").map(String::as_str).unwrap_or_default();
        if version.is_empty() {
            let message = "The api-version query parameter (?api-version=) is required for all requests.";
            return Err(Failure::bad("MissingApiVersionParameter", message));
        }
        let day = version.get(..10).unwrap_or_default().as_bytes();
        let date = day.iter().enumerate().all(|(i, b)| match i {
            4 | 7 => *b == b'-',
            _ => b.is_ascii_digit(),
        });
        if day.len() == 10 && date && version.len() <= 40 {
            return Ok(());
        }
        let message = format!(
            "The api-version '{}' is invalid. The format is YYYY-MM-DD.",
            excerpt(version)
        );
        Err(Failure::bad("InvalidApiVersionParameter", message))
    }

    /// `?api-version=…` of the request, to append to URLs in responses. `2024-05-01` if the request has none, or one
    /// with unusual characters.
    pub(super) fn api_version(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let version = self.query.get("api-version").filter(|v| v.chars().all(plain));
        format!("?api-version={}", version.map_or("2024-05-01", String::as_str))
    }

    /// The header `If-Match`: the etag that the resource must have. `None`: the request has no such header.
    pub(super) fn if_match(&self) -> Option<String> {
        let value = self.headers.get(IF_MATCH)?;
        // If a header that is not text were ignored, the write would be allowed. No etag has the value `?`, so such a
        // header matches no resource.
        Some(value.to_str().unwrap_or("?").to_owned())
    }

    /// The headers of the request, as received.
    pub(super) const fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Reads the body, of at most `limit` bytes, and keeps it for [`Self::object`] and [`Self::form`].
    ///
    /// # Errors
    /// As [`json::bytes()`].
    pub(super) async fn read_body(&mut self, body: Body, limit: usize) -> Result<(), Failure> {
        self.body = json::bytes(body, limit).await?;
        Ok(())
    }

    /// The body that [`Self::read_body`] has read, as a JSON object. An empty body is an empty object.
    ///
    /// # Errors
    /// 400 if the body is malformed, nested too deeply, has duplicate keys, or is no object.
    pub(super) fn object(&self) -> Result<Value, Failure> {
        match json::value(&self.body)? {
            Value::Null => Ok(Value::Object(serde_json::Map::new())),
            Value::Object(map) => Ok(Value::Object(map)),
            _ => Err(Failure::bad(
                "InvalidRequestContent",
                "The request content must be a JSON object.",
            )),
        }
    }

    /// The body that [`Self::read_body`] has read, as a form (`application/x-www-form-urlencoded`). The last value of a
    /// repeated field counts. The header `Content-Type` is not checked.
    ///
    /// # Errors
    /// 400 if the body is not percent-encoded UTF-8.
    pub(super) fn form(&self) -> Result<BTreeMap<String, String>, Failure> {
        let bad = || {
            Failure::bad(
                "InvalidRequestContent",
                "The request content is not a form (application/x-www-form-urlencoded).",
            )
        };
        let text = std::str::from_utf8(&self.body).map_err(|_| bad())?;
        let pairs = text.split('&').filter(|p| !p.is_empty());
        pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((decoded(name, true)?, decoded(value, true)?))
            })
            .collect::<Option<_>>()
            .ok_or_else(bad)
    }
}

/// Percent-decodes a path segment, or a name or a value of a query or form. With `plus_is_space`, as in queries and
/// forms, `+` stands for a space. `None`: the result is not UTF-8, or a `%` is not followed by two hexadecimal digits.
fn decoded(text: &str, plus_is_space: bool) -> Option<String> {
    // Without these checks, two spellings could name the same resource: the library leaves malformed escapes as they
    // are, and `form_urlencoded` replaces bytes that are not UTF-8.
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(is_escape) {
        return None;
    }
    let text = if plus_is_space {
        Cow::Owned(text.replace('+', " "))
    } else {
        Cow::Borrowed(text)
    };
    let decoded = percent_decode_str(&text).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(uri: &str) -> Result<Call, Failure> {
        Call::read(http::Request::builder().uri(uri).body(()).unwrap().into_parts().0)
    }

    #[test]
    fn paths_are_decoded_and_keep_their_case() {
        let call = call(
            "https://h:1/subscriptions/S/ResourceGroups/my%20group/?api-version=2024-05-01&%24filter=a+eq+%27b%27",
        )
        .ok()
        .unwrap();
        assert_eq!(call.text(), "/subscriptions/S/ResourceGroups/my group");
        assert_eq!(call.lower[2], "resourcegroups");
        assert_eq!(call.query["$filter"], "a eq 'b'");
        assert_eq!(call.base, "https://h:1");
        assert!(call.check_api_version().is_ok());
    }

    #[test]
    fn encoded_slashes_separate_segments_and_empty_segments_are_left_out() {
        for (written, read) in [
            ("/a//b", "/a/b"),
            ("//a/b/", "/a/b"),
            ("/a%2fb", "/a/b"),
            (
                "/%2Fsubscriptions%2Fs%2FresourceGroups%2Fg/providers/p",
                "/subscriptions/s/resourceGroups/g/providers/p",
            ),
            ("/", "/"),
        ] {
            assert_eq!(call(written).ok().unwrap().text(), read, "{written}");
        }
    }

    #[test]
    fn odd_paths_are_refused() {
        for bad in ["/a%", "/a%zz", "/%ff", "/a%00", &format!("/{}", "x".repeat(5000))] {
            assert!(call(bad).is_err(), "{bad}");
        }
        assert!(call("/a?x=%").is_err());
    }

    #[test]
    fn any_date_is_an_api_version() {
        for (version, good) in [
            ("2024-05-01", true),
            ("2015-06-15-preview", true),
            ("9999-99-99", true),
            ("", false),
            ("latest", false),
            ("2024-05", false),
            ("20240501xx", false),
        ] {
            let call = call(&format!("/tenants?api-version={version}")).ok().unwrap();
            assert_eq!(call.check_api_version().is_ok(), good, "{version}");
        }
    }
}
