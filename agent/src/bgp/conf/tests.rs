//! Tests the rendered text, refused neighbours, and attempts to inject configuration.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::*;
use proptest::prelude::*;
use tombolo_proto::id::Secret;
use tombolo_proto::route::RouteOrigin;

fn neighbour(id: &str, address: &str) -> Neighbour {
    Neighbour {
        id: ResourceId::new(id),
        address: address.parse().unwrap(),
        local_address: if address.contains(':') { "fd00::1" } else { "192.0.2.1" }
            .parse()
            .unwrap(),
        asn: 65_021,
        multihop: false,
        bfd: false,
        password: None,
        max_prefixes: 4000,
        hold_time: 180,
    }
}

fn spec(neighbours: Vec<Neighbour>) -> BgpSpec {
    BgpSpec {
        speaker: Some(Speaker {
            asn: 65_515,
            router_id: Ipv4Addr::new(192, 0, 2, 1),
            neighbours,
        }),
        ..BgpSpec::default()
    }
}

fn rendered(spec: &BgpSpec) -> Rendered {
    let loopback = Loopback {
        bird: Ipv4Addr::new(127, 3, 4, 1),
        password: Some("0123456789abcdef".into()),
    };
    let neighbours = spec.speaker.iter().flat_map(|s| &s.neighbours);
    let slots = (2..).zip(neighbours).map(|(slot, n)| (n.id.clone(), slot)).collect();
    render(spec, &loopback, &slots)
}

fn route(prefix: &str, as_path: &[u32]) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        via: None,
        as_path: as_path.to_vec(),
        weight: 0,
        origin: RouteOrigin::Vnet,
    }
}

/// Whether the quotes in a text are balanced, and the text outside of the quotes has only the characters that BIRD's
/// grammar needs here.
fn is_plain(text: &str) -> bool {
    let outside: String = text.split('"').step_by(2).collect();
    text.matches('"').count().is_multiple_of(2)
        && outside
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "\n {};,_.:/()<>=".contains(c))
}

#[test]
fn a_neighbour_is_its_tables_its_session_and_its_feed() {
    let mut spec = spec(vec![neighbour("/c/1", "192.0.2.2"), neighbour("/c/2", "fd00::2")]);
    let speaker = spec.speaker.as_mut().unwrap();
    speaker.neighbours[0].password = Some(Secret("it's {a} #secret".into()));
    speaker.neighbours[1].multihop = true;
    spec.addresses = vec!["192.0.2.1".parse().unwrap()];
    let routes = vec![
        route("10.1.0.0/16", &[]),
        route("10.2.0.0/16", &[65_099, 7]),
        route("10.2.0.0/16", &[8]),
        route("10.3.0.0/16", &[0]),
        route("fd01::/64", &[]),
    ];
    spec.announce.insert(ResourceId::new("/c/1"), routes);
    let Rendered { text, names, refused } = rendered(&spec);
    assert_eq!((names.len(), refused.len()), (2, 0));
    assert!(is_plain(&text), "{text}");
    for expected in [
        "router id 192.0.2.1;",
        "local 192.0.2.1 as 65515;\nneighbor 192.0.2.2 as 65021;\ndirect; check link yes;",
        "local fd00::1 as 65515;\nneighbor fd00::2 as 65021;\nmultihop;",
        "password \"it's {a} #secret\";",
        "hold time 180;",
        "route 10.1.0.0/16 blackhole { };",
        "route 10.2.0.0/16 blackhole { bgp_path.prepend(7); bgp_path.prepend(65099); };",
        "route fd01::/64 blackhole { };",
        "local 127.3.4.1 as 65515;\nneighbor 127.3.4.2 as 65515;",
        "neighbor 127.3.4.3 as 65515;",
        "extended next hop yes; next hop address 192.0.2.1;",
        "import limit 4000 action restart;",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("prepend(8)") && !text.contains("10.3.0.0"), "{text}");
    // Equal specifications give equal texts. A text that changed without need would make BIRD reload its configuration.
    assert_eq!(rendered(&spec).text, text);
}

/// D19: BFD monitors single-hop sessions with neighbours that support it, and no other sessions.
#[test]
fn bfd_monitors_single_hop_neighbours() {
    let mut near = neighbour("/c/1", "192.0.2.2");
    let bfd = |n: Neighbour| {
        let text = rendered(&spec(vec![n])).text;
        assert!(is_plain(&text), "{text}");
        (text.contains("protocol bfd {"), text.contains("\nbfd on;\n"))
    };
    assert_eq!(bfd(near.clone()), (false, false));
    near.bfd = true;
    assert_eq!(bfd(near.clone()), (true, true));
    near.multihop = true;
    assert_eq!(bfd(near), (false, false));
}

#[test]
fn a_bad_neighbour_costs_itself_only() {
    let good = neighbour("/c/good", "192.0.2.2");
    let change = |f: &dyn Fn(&mut Neighbour)| {
        let mut bad = neighbour("/c/bad", "192.0.2.3");
        f(&mut bad);
        let rendered = rendered(&spec(vec![bad, good.clone()]));
        assert_eq!(rendered.names.values().collect::<Vec<_>>(), [&good.id]);
        rendered.refused[&ResourceId::new("/c/bad")].clone()
    };
    let password = |p: &str| {
        let p = Secret(p.to_owned());
        change(&|n| n.password = Some(p.clone()))
    };
    for bad in ["", "a\"; x", "a\nb", "ä", "tab\t", &"x".repeat(81)] {
        let why = password(bad);
        assert!(why.starts_with("password: "), "{bad}: {why}");
        assert!(bad.is_empty() || !why.contains(bad), "{why}");
    }
    for bad in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.5",
        "169.254.1.1",
        "fe80::1",
        "::ffff:192.0.2.9",
    ] {
        assert!(
            change(&|n| n.address = bad.parse().unwrap()).starts_with("address: "),
            "{bad}"
        );
    }
    assert!(change(&|n| n.local_address = "fd00::1".parse().unwrap()).starts_with("localAddress: "));
    assert!(change(&|n| n.address = n.local_address).starts_with("localAddress: "));
    for bad in [0, 23_456, 65_515, u32::MAX] {
        assert!(change(&|n| n.asn = bad).starts_with("asn: "), "{bad}");
    }
    assert!(change(&|n| n.hold_time = 2).starts_with("holdTime: "));
    assert!(change(&|n| n.max_prefixes = 0).starts_with("maxPrefixes: "));

    // If two neighbours have the same addresses, only the first one is configured.
    let mut twin = good.clone();
    twin.id = ResourceId::new("/c/twin");
    let refused = rendered(&spec(vec![good.clone(), twin])).refused;
    assert!(refused[&ResourceId::new("/c/twin")].contains("192.0.2.2"));

    let mut without_id = spec(vec![good]);
    without_id.speaker.as_mut().unwrap().router_id = Ipv4Addr::UNSPECIFIED;
    let rendered = rendered(&without_id);
    assert!(rendered.names.is_empty() && rendered.refused.values().all(|r| r.starts_with("speaker.routerId: ")));
}

proptest! {
    /// Strings of the specification appear inside quotes in the configuration, or not at all.
    #[test]
    fn nothing_is_injected(id in "\\PC{0,40}", password in "[ -~\\n\"äÿ]{0,90}", asn: u32, hold_time: u16, max_prefixes: u32, path: Vec<u32>) {
        let mut n = neighbour(&format!("/c/{id}"), "192.0.2.2");
        (n.asn, n.hold_time, n.max_prefixes) = (asn, hold_time, max_prefixes);
        n.password = Some(Secret(password.clone()));
        let id = n.id.clone();
        let mut spec = spec(vec![n]);
        spec.announce.insert(id, vec![route("10.0.0.0/8", &path)]);
        let text = rendered(&spec).text;
        prop_assert!(is_plain(&text), "{}", text);
        let quoted: Vec<&str> = text.split('"').skip(1).step_by(2).collect();
        prop_assert!(quoted.iter().all(|q| ["%s", "0123456789abcdef", &password].contains(q)), "{:?}", quoted);
    }
}
