//! BIRD's configuration as a pure function of what is wanted.
//!
//! Each neighbour has a pair of tables, one for each family. Its session puts what it announces into them; a static protocol puts
//! what is announced to it beside that; and a session on loopback, one for each neighbour, carries what came from it to the
//! agent. ADD-PATH on that one, because the best path of a prefix may be the announced one. No next hop is looked up: packets
//! go where the agent sends them. There is no kernel protocol.
//!
//! Names are made of hashes, numbers are numbers, and passwords have no quotes: nothing that is configured can become
//! configuration of another kind.

use super::{GRACE, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use tombolo_proto::config::{Neighbour, Speaker};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::Route;

/// Longest AS path that is taken or announced. Real ones stay below a hundred.
const LONGEST_PATH: usize = 255;
/// ASNs that nobody has: 0, AS_TRANS (RFC 6793), and the last of both sizes (RFC 7300).
const NOBODYS: [u32; 4] = [0, 23_456, 65_535, u32::MAX];
/// RFC 2385's key as the kernel takes it, bytes.
const LONGEST_PASSWORD: usize = 80;
/// BFD as Azure's edges have it: every 300 ms, and three in a row are a failure. `strict bind`: an address of its own each, as
/// another speaker may live on the host.
const BFD: &str =
    "protocol bfd {\naccept direct;\nstrict bind yes;\ninterface \"*\" { interval 300 ms; multiplier 3; };\n}\n";

/// Where BIRD and the agent meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loopback {
    /// BIRD's address, `127.x.y.1`. The others of its /24 are the agent's, one for each neighbour.
    pub bird: Ipv4Addr,
    /// Signs the sessions, so that no other user of the host can be one end; none where the kernel cannot.
    pub password: Option<String>,
}

impl Loopback {
    /// The agent's end of a neighbour's session.
    pub(super) fn agent(&self, slot: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.bird.octets();
        Ipv4Addr::new(a, b, c, slot)
    }
}

/// A configuration, and what it leaves out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rendered {
    pub text: String,
    /// The neighbours in it, by the name of their session.
    pub names: BTreeMap<String, ResourceId>,
    /// The others, and why.
    pub refused: BTreeMap<ResourceId, String>,
}

/// Renders what is wanted; `slots` gives each neighbour's loopback session its last octet.
pub(super) fn render(wanted: &Wanted, loopback: &Loopback, slots: &BTreeMap<ResourceId, u8>) -> Rendered {
    let mut out = Rendered::default();
    let Some(speaker) = &wanted.speaker else { return out };
    let general = check_speaker(speaker);
    let mut pairs = BTreeSet::new();
    for n in &speaker.neighbours {
        let mut admit = || {
            general.clone()?;
            check(speaker, n)?;
            if !pairs.insert((n.address, n.local_address)) {
                return Err(format!("address: another neighbour has {} too", n.address));
            }
            let slot = slots.get(&n.id).copied();
            slot.ok_or_else(|| "neighbours: there are too many".to_owned())
        };
        match admit() {
            Ok(slot) => {
                let name = name(&n.id);
                let announced = wanted.announce.get(&n.id).map(Vec::as_slice).unwrap_or_default();
                // Writing to a String cannot fail.
                let _ = neighbour(&mut out.text, speaker, n, announced, &name, wanted);
                let _ = feed(&mut out.text, speaker, loopback, slot, &name);
                out.names.insert(format!("n_{name}"), n.id.clone());
            }
            Err(why) => {
                out.refused.insert(n.id.clone(), why);
            }
        }
    }
    let judges = speaker.neighbours.iter().any(judged);
    out.text = head(speaker) + if judges { BFD } else { "" } + &out.text;
    out
}

/// A name that is the same for the same neighbour, always.
fn name(id: &ResourceId) -> String {
    let hash = blake3::hash(id.key().as_bytes()).to_hex();
    hash.get(..16).unwrap_or_default().to_owned()
}

fn head(speaker: &Speaker) -> String {
    format!(
        "log stderr all;\n\
         debug protocols {{ states }};\n\
         timeformat protocol \"%s\";\n\
         router id {};\n\
         graceful restart wait 10;\n\
         protocol device {{ }}\n\
         filter sane {{ if bgp_path.len > {LONGEST_PATH} then reject; accept; }}\n",
        speaker.router_id
    )
}

/// Whether BFD judges the way to a neighbour; one that does not speak it is judged by its session alone.
const fn judged(n: &Neighbour) -> bool {
    n.bfd && !n.multihop
}

fn neighbour(
    out: &mut String,
    speaker: &Speaker,
    n: &Neighbour,
    announced: &[Route],
    name: &str,
    wanted: &Wanted,
) -> std::fmt::Result {
    for (family, v6) in [(4, false), (6, true)] {
        let routes = announced.iter().filter(|r| r.prefix.addr().is_ipv6() == v6);
        writeln!(out, "ipv{family} table t{family}_{name};")?;
        writeln!(
            out,
            "protocol static s{family}_{name} {{ ipv{family} {{ table t{family}_{name}; }};"
        )?;
        let mut seen = BTreeSet::new();
        for route in routes.filter(|r| seen.insert(r.prefix.trunc()) && tellable(r)) {
            write!(out, "route {} blackhole {{", route.prefix.trunc())?;
            for asn in route.as_path.iter().rev() {
                write!(out, " bgp_path.prepend({asn});")?;
            }
            writeln!(out, " }};")?;
        }
        writeln!(out, "}}")?;
    }
    writeln!(
        out,
        "protocol bgp n_{name} {{\n\
         local {} as {};\n\
         neighbor {} as {};\n\
         {};\n\
         strict bind yes; free bind yes;\n\
         hold time {};\n\
         connect delay time 1; connect retry time 3; error wait time 1, 10;\n\
         graceful restart yes; graceful restart time {}; long lived graceful restart no;\n\
         enforce first as yes;",
        n.local_address,
        speaker.asn,
        n.address,
        n.asn,
        if n.multihop {
            "multihop"
        } else {
            "direct; check link yes"
        },
        n.hold_time,
        GRACE.as_secs(),
    )?;
    if judged(n) {
        writeln!(out, "bfd on;")?;
    }
    if let Some(password) = &n.password {
        writeln!(out, "password \"{}\";", password.0)?;
    }
    for (family, v6) in [(4, false), (6, true)] {
        write!(
            out,
            "ipv{family} {{ table t{family}_{name}; gateway recursive; import limit {} action restart; \
             import filter sane; export where source = RTS_STATIC;",
            n.max_prefixes
        )?;
        // Over a session of the other family BIRD would look for an address of this one on the interface.
        let foreign = n.local_address.is_ipv6() != v6;
        let own = wanted.addresses.iter().find(|a| a.is_ipv6() == v6);
        match own.filter(|_| foreign) {
            Some(own) => write!(out, " extended next hop yes; next hop address {own};")?,
            None if foreign && !v6 => write!(out, " extended next hop yes;")?,
            None => {}
        }
        writeln!(out, " }};")?;
    }
    writeln!(out, "}}")
}

/// The session that carries what came from a neighbour to the agent, which connects.
fn feed(out: &mut String, speaker: &Speaker, loopback: &Loopback, slot: u8, name: &str) -> std::fmt::Result {
    writeln!(
        out,
        "protocol bgp a_{name} {{\n\
         local {} as {};\n\
         neighbor {} as {};\n\
         strict bind yes; passive yes; hold time 0; error wait time 1, 1;\n\
         graceful restart yes; long lived graceful restart no;",
        loopback.bird,
        speaker.asn,
        loopback.agent(slot),
        speaker.asn
    )?;
    if let Some(password) = &loopback.password {
        writeln!(out, "password \"{password}\";")?;
    }
    for (family, next_hop) in [(4, "127.0.0.1"), (6, "::1")] {
        writeln!(
            out,
            "ipv{family} {{ table t{family}_{name}; add paths tx; next hop self; next hop address {next_hop}; \
             import none; export where source = RTS_BGP; }};"
        )?;
    }
    writeln!(out, "}}")
}

/// Whether BIRD can say it. What should be said is decided elsewhere.
fn tellable(route: &Route) -> bool {
    route.as_path.len() <= LONGEST_PATH && !route.as_path.contains(&0)
}

fn check_speaker(speaker: &Speaker) -> Result<(), String> {
    if NOBODYS.contains(&speaker.asn) {
        return Err(format!("speaker.asn: {} is nobody's", speaker.asn));
    }
    if speaker.router_id.is_unspecified() {
        return Err(format!("speaker.routerId: {} is none", speaker.router_id));
    }
    Ok(())
}

fn check(speaker: &Speaker, n: &Neighbour) -> Result<(), String> {
    for (field, address) in [("address", n.address), ("localAddress", n.local_address)] {
        if !is_usable(address) {
            return Err(format!("{field}: {address} is not an address of one host"));
        }
    }
    if n.address.is_ipv6() != n.local_address.is_ipv6() || n.address == n.local_address {
        return Err(format!(
            "localAddress: {} cannot speak with {}",
            n.local_address, n.address
        ));
    }
    if NOBODYS.contains(&n.asn) || n.asn == speaker.asn {
        return Err(format!("asn: {} is nobody's, or the own one", n.asn));
    }
    if n.hold_time < 3 {
        return Err(format!("holdTime: {} is not 3 to 65535 seconds", n.hold_time));
    }
    if n.max_prefixes == 0 {
        return Err("maxPrefixes: 0 is none".into());
    }
    match &n.password {
        // Its value is not for messages.
        Some(p) if !is_quotable(&p.0) => Err(format!(
            "password: not 1 to {LONGEST_PASSWORD} printable ASCII characters without '\"'"
        )),
        _ => Ok(()),
    }
}

/// BIRD's strings have no escapes: they end at the first quote, and must not have a line's end.
fn is_quotable(password: &str) -> bool {
    (1..=LONGEST_PASSWORD).contains(&password.len())
        && password
            .bytes()
            .all(|b| (b == b' ' || b.is_ascii_graphic()) && b != b'"')
}

/// Link-local addresses would need an interface.
fn is_usable(address: IpAddr) -> bool {
    let odd = match address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() && !is_apipa(a) || a.is_broadcast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    !odd && !address.is_unspecified() && !address.is_multicast()
}

/// G4: where peer addresses may be 169.254.x.y.
fn is_apipa(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [169, 254, 21..=22, _])
}

#[cfg(test)]
mod tests;
