//! The encoding of the tables of routes that agents advertise inside links.

use super::MAX_AS_PATH;
use ipnet::IpNet;
use tombolo_proto::route::Route;

/// First byte of the encoding. The version must change when the format changes, because receivers refuse versions that
/// they do not know.
const VERSION: u8 = 1;

/// Largest number of routes in one advertised table: more than the customer of a Premium circuit may announce in both
/// address families together (E13).
pub const MAX_ROUTES: usize = 24_000;

/// Largest number of routes in a table for a peer that has not said that it reads longer ones
/// ([`Link::many_routes`](tombolo_proto::config::Link::many_routes)): agents of version 0.1 refuse longer ones.
pub const FEW_ROUTES: usize = 4000;

/// The reason why received bytes are not a table of routes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The sender uses an encoding that this agent does not know.
    #[error("encoding version {0}; this agent reads version 1")]
    Version(u8),
    /// The bytes are truncated or otherwise not decodable.
    #[error("not an encoded table of routes")]
    Malformed,
    /// The table has more than [`MAX_ROUTES`] routes; holds their number.
    #[error("{0} routes; at most {MAX_ROUTES} are accepted (E13)")]
    TooMany(usize),
    /// The AS path of this prefix has more than [`MAX_AS_PATH`] ASNs; holds their number.
    #[error("{0}: an AS path of {1} ASNs; at most 255 are accepted")]
    LongPath(IpNet, usize),
}

/// Encodes a table of routes in the given order. An empty table becomes an empty result. Limits are not checked here:
/// [`decode`] refuses a table of more than [`MAX_ROUTES`] routes, and one with an AS path of more than 255 ASNs.
#[must_use]
pub fn encode(routes: &[Route]) -> Vec<u8> {
    if routes.is_empty() {
        return Vec::new();
    }
    #[expect(
        clippy::unwrap_used,
        reason = "no type in here can fail to serialize, and memory grows"
    )]
    postcard::to_extend(routes, vec![VERSION]).unwrap()
}

/// Decodes bytes that another agent sent as the result of [`encode`]. The bytes are untrusted. Returns the routes in
/// the sender's order, with the host bits of prefixes cleared. If there are no bytes, the table is empty. Duplicates
/// are kept.
///
/// # Errors
/// See [`DecodeError`]; the table is refused as a whole.
pub fn decode(bytes: &[u8]) -> Result<Vec<Route>, DecodeError> {
    let Some((version, bytes)) = bytes.split_first() else {
        return Ok(Vec::new());
    };
    if *version != VERSION {
        return Err(DecodeError::Version(*version));
    }
    // Checked before decoding, so that a forged count cannot cause a large allocation.
    let (count, _) = postcard::take_from_bytes::<usize>(bytes).map_err(|_| DecodeError::Malformed)?;
    if count > MAX_ROUTES {
        return Err(DecodeError::TooMany(count));
    }
    let (mut routes, rest) = postcard::take_from_bytes::<Vec<Route>>(bytes).map_err(|_| DecodeError::Malformed)?;
    if !rest.is_empty() {
        return Err(DecodeError::Malformed);
    }
    for route in &mut routes {
        if route.as_path.len() > MAX_AS_PATH {
            return Err(DecodeError::LongPath(route.prefix, route.as_path.len()));
        }
        route.prefix = route.prefix.trunc();
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tombolo_proto::id::AgentId;
    use tombolo_proto::route::RouteOrigin;

    fn route(n: u32) -> Route {
        Route {
            prefix: format!("10.{}.{}.0/24", n >> 8 & 255, n & 255).parse().unwrap(),
            via: n.is_multiple_of(3).then(|| AgentId::new(format!("edge-{n}")).unwrap()),
            as_path: (0..n % 5).map(|k| 64_500 + k).collect(),
            weight: n,
            origin: if n.is_multiple_of(2) {
                RouteOrigin::Site
            } else {
                RouteOrigin::Vnet
            },
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for count in [0, 1, 4000, 10_000] {
            let routes: Vec<Route> = (0..count).map(route).collect();
            let bytes = encode(&routes);
            assert_eq!(decode(&bytes), Ok(routes));
            assert!(bytes.len() <= 40 * count as usize + 8, "{} bytes", bytes.len());
        }
        let long = |routes: usize, path: usize| {
            let routes: Vec<Route> = (0..routes as u32).map(route).collect();
            let path = Route {
                as_path: vec![1; path],
                ..route(0)
            };
            decode(&encode(&[routes, vec![path]].concat())).map(|routes| routes.len())
        };
        assert_eq!(long(MAX_ROUTES - 1, MAX_AS_PATH), Ok(MAX_ROUTES));
        assert_eq!(long(MAX_ROUTES, 0), Err(DecodeError::TooMany(MAX_ROUTES + 1)));
        let prefix = route(0).prefix;
        assert_eq!(long(0, MAX_AS_PATH + 1), Err(DecodeError::LongPath(prefix, 256)));
        assert_eq!(decode(&[2, 0]), Err(DecodeError::Version(2)));
        let bytes = encode(&[route(3)]);
        assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(DecodeError::Malformed));
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), Err(DecodeError::Malformed));
    }

    proptest! {
        #[test]
        fn anything_else_is_refused_and_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            if let Ok(routes) = decode(&bytes) {
                prop_assert!(routes.iter().all(|r| r.prefix == r.prefix.trunc()));
            }
        }
    }
}
