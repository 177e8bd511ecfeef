//! Renders BIRD's configuration from a [`BgpSpec`]. The module is pure: equal specifications give equal texts.
//!
//! Each neighbour has two routing tables in BIRD, one for each address family, and these protocols:
//!
//! * an eBGP session, which imports the neighbour's routes into the tables;
//! * a static protocol for each family, with the routes to announce to the neighbour;
//! * an iBGP session on loopback, which exports the neighbour's routes to the agent. The session uses ADD-PATH (RFC
//!   7911), because BIRD's best path to a prefix may be the one that the agent announces. Without ADD-PATH BIRD would
//!   then not export the neighbour's path.
//!
//! BIRD resolves no next hops, and there is no protocol `kernel`, because the agent routes packets itself.
//!
//! No input can inject configuration: protocol names are hashes, numbers are formatted integers, and passwords with
//! quotes or control characters are refused.

use super::{BgpSpec, GRACE};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use tombolo_proto::config::{Neighbour, Speaker};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::Route;

/// Longest AS path to import or announce, in ASNs. One AS_PATH segment has at most 255, because its length is one octet
/// (RFC 4271, section 4.3). Paths on the Internet have fewer than a hundred.
const MAX_AS_PATH: usize = 255;
/// ASNs that no network may use: 0 (RFC 7607), AS_TRANS (RFC 6793), and the last ASN of 16 and of 32 bits (RFC 7300).
const RESERVED_ASNS: [u32; 4] = [0, 23_456, 65_535, u32::MAX];
/// Longest key of a TCP MD5 signature (RFC 2385) in bytes: Linux's `TCP_MD5SIG_MAXKEYLEN`.
const MAX_PASSWORD: usize = 80;
/// Shortest hold time in seconds that RFC 4271 (section 4.2) permits besides 0.
const MIN_HOLD_TIME: u16 = 3;
/// BIRD's protocol for BFD, with the timers of Azure's ExpressRoute edges: 300 ms interval, multiplier 3. `strict bind`
/// binds BFD to single local addresses, so that another BFD speaker on this host keeps working.
const BFD: &str =
    "protocol bfd {\naccept direct;\nstrict bind yes;\ninterface \"*\" { interval 300 ms; multiplier 3; };\n}\n";

/// Last octets of the agent's loopback addresses, one for each neighbour. BIRD's own address has the last octet 1; the
/// octets 0 and 255 make the network address and the broadcast address of the /24.
pub(super) const SLOTS: RangeInclusive<u8> = 2..=254;

/// The loopback endpoints of the iBGP sessions between BIRD and the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loopback {
    /// BIRD's address, `127.x.y.1`. The agent uses other addresses of the same /24, one for each neighbour.
    pub bird: Ipv4Addr,
    /// The TCP MD5 key of the sessions, which keeps other local users from posing as one end of a session. None: the
    /// kernel has no TCP MD5 signatures.
    pub password: Option<String>,
}

impl Loopback {
    /// The agent's loopback address for one neighbour. `slot`: the last octet of this address.
    pub(super) fn agent(&self, slot: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.bird.octets();
        Ipv4Addr::new(a, b, c, slot)
    }
}

/// A configuration text, with the neighbours that it contains and those that were left out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rendered {
    pub text: String,
    /// The configured neighbours, by the name of their eBGP protocol.
    pub names: BTreeMap<String, ResourceId>,
    /// The refused neighbours, each with the reason.
    pub refused: BTreeMap<ResourceId, String>,
}

/// Renders a specification. `slots` has, for each neighbour, the last octet of the agent's loopback address. A
/// neighbour with invalid parameters or without a slot is left out and listed as refused. If the speaker is invalid,
/// all neighbours are refused. Without a speaker the text is empty.
pub(super) fn render(spec: &BgpSpec, loopback: &Loopback, slots: &BTreeMap<ResourceId, u8>) -> Rendered {
    let mut out = Rendered::default();
    let Some(speaker) = &spec.speaker else { return out };
    let speaker_ok = check_speaker(speaker);
    let mut pairs = BTreeSet::new();
    for n in &speaker.neighbours {
        let mut admit = || {
            speaker_ok.clone()?;
            check_neighbour(speaker, n)?;
            if !pairs.insert((n.address, n.local_address)) {
                return Err(format!(
                    "address: another neighbour already uses {} with the local address {}",
                    n.address, n.local_address
                ));
            }
            let slot = slots.get(&n.id).copied();
            slot.ok_or_else(|| format!("neighbours: more than {} are configured: remove some", SLOTS.len()))
        };
        match admit() {
            Ok(slot) => {
                let name = name(&n.id);
                let announced = spec.announce.get(&n.id).map(Vec::as_slice).unwrap_or_default();
                // Writing to a String cannot fail.
                let _ = write_neighbour(&mut out.text, speaker, n, announced, &name, spec);
                let _ = write_feed(&mut out.text, speaker, loopback, slot, &name);
                out.names.insert(format!("n_{name}"), n.id.clone());
            }
            Err(why) => {
                out.refused.insert(n.id.clone(), why);
            }
        }
    }
    let bfd = speaker.neighbours.iter().any(uses_bfd);
    out.text = global_options(speaker) + if bfd { BFD } else { "" } + &out.text;
    out
}

/// The name of a neighbour's protocols: 16 hexadecimal digits of the hash of the neighbour's ID. The name must not
/// change from one rendering, or version of this program, to the next, because BIRD resets a session when the name of
/// its protocol changes.
fn name(id: &ResourceId) -> String {
    let hash = blake3::hash(id.key().as_bytes()).to_hex();
    hash.get(..16).unwrap_or_default().to_owned()
}

fn global_options(speaker: &Speaker) -> String {
    format!(
        "log stderr all;\n\
         debug protocols {{ states }};\n\
         timeformat protocol \"%s\";\n\
         router id {};\n\
         graceful restart wait 10;\n\
         protocol device {{ }}\n\
         filter sane {{ if bgp_path.len > {MAX_AS_PATH} then reject; accept; }}\n",
        speaker.router_id
    )
}

/// Whether BFD monitors a session. A session uses BFD if it is a single-hop session and the configuration asks for BFD
/// (D19). In other sessions the hold timer detects failures.
const fn uses_bfd(n: &Neighbour) -> bool {
    n.bfd && !n.multihop
}

/// Writes a neighbour's tables, its static protocols and its eBGP session.
fn write_neighbour(
    out: &mut String,
    speaker: &Speaker,
    n: &Neighbour,
    announced: &[Route],
    name: &str,
    spec: &BgpSpec,
) -> std::fmt::Result {
    for (family, v6) in [(4, false), (6, true)] {
        let routes = announced.iter().filter(|r| r.prefix.addr().is_ipv6() == v6);
        writeln!(out, "ipv{family} table t{family}_{name};")?;
        writeln!(
            out,
            "protocol static s{family}_{name} {{ ipv{family} {{ table t{family}_{name}; }};"
        )?;
        let mut seen = BTreeSet::new();
        for route in routes.filter(|r| seen.insert(r.prefix.trunc()) && is_exportable(r)) {
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
    if uses_bfd(n) {
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
        // Without `next hop address`, BIRD takes the next hop of the other family from the interface, which may have no
        // address of this family.
        let foreign = n.local_address.is_ipv6() != v6;
        let own = spec.addresses.iter().find(|a| a.is_ipv6() == v6);
        match own.filter(|_| foreign) {
            Some(own) => write!(out, " extended next hop yes; next hop address {own};")?,
            None if foreign && !v6 => write!(out, " extended next hop yes;")?,
            None => {}
        }
        writeln!(out, " }};")?;
    }
    writeln!(out, "}}")
}

/// Writes the passive iBGP session that exports a neighbour's routes to the agent. `hold time 0` turns keepalives off.
/// Keepalives have no purpose on loopback: when a process dies, the kernel closes its connections, and the other end
/// notices.
fn write_feed(out: &mut String, speaker: &Speaker, loopback: &Loopback, slot: u8, name: &str) -> std::fmt::Result {
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
    // BIRD cannot announce a route without a next hop. The agent ignores the next hop: BIRD has a separate session to
    // the agent for each neighbour, so the session tells the agent which neighbour a route comes from.
    for (family, next_hop) in [(4, "127.0.0.1"), (6, "::1")] {
        writeln!(
            out,
            "ipv{family} {{ table t{family}_{name}; add paths tx; next hop self; next hop address {next_hop}; \
             import none; export where source = RTS_BGP; }};"
        )?;
    }
    writeln!(out, "}}")
}

/// Whether BIRD can announce a route: its path has at most [`MAX_AS_PATH`] ASNs, and none of these is 0 (RFC 7607).
/// [`tombolo_engine::routing`] decides whether the agent wants to announce the route.
fn is_exportable(route: &Route) -> bool {
    route.as_path.len() <= MAX_AS_PATH && !route.as_path.contains(&0)
}

fn check_speaker(speaker: &Speaker) -> Result<(), String> {
    if RESERVED_ASNS.contains(&speaker.asn) {
        return Err(format!(
            "speaker.asn: {} is reserved: choose an ASN that the neighbours expect",
            speaker.asn
        ));
    }
    if speaker.router_id.is_unspecified() {
        return Err(format!(
            "speaker.routerId: {} is not a router ID: choose an IPv4 address of the agent",
            speaker.router_id
        ));
    }
    Ok(())
}

fn check_neighbour(speaker: &Speaker, n: &Neighbour) -> Result<(), String> {
    for (field, address) in [("address", n.address), ("localAddress", n.local_address)] {
        if !is_usable(address) {
            return Err(format!(
                "{field}: {address} is not a unicast address that BGP can use; link-local is allowed in 169.254.21.0/24 \
                 and 169.254.22.0/24 only"
            ));
        }
    }
    if n.address.is_ipv6() != n.local_address.is_ipv6() || n.address == n.local_address {
        return Err(format!(
            "localAddress: {} must be another address of the same family as the neighbour's {}",
            n.local_address, n.address
        ));
    }
    if RESERVED_ASNS.contains(&n.asn) || n.asn == speaker.asn {
        return Err(format!(
            "asn: {} is reserved or the speaker's own: eBGP needs another ASN",
            n.asn
        ));
    }
    if n.hold_time < MIN_HOLD_TIME {
        return Err(format!(
            "holdTime: {} is not within {MIN_HOLD_TIME} to 65535 seconds",
            n.hold_time
        ));
    }
    if n.max_prefixes == 0 {
        return Err("maxPrefixes: 0 must be at least 1".into());
    }
    match &n.password {
        // The error text does not quote the password, because the text goes into logs and the status.
        Some(p) if !is_quotable(&p.0) => Err(format!(
            "password: must have 1 to {MAX_PASSWORD} printable ASCII characters, none of them '\"'"
        )),
        _ => Ok(()),
    }
}

/// Whether a password can be written as a quoted string. BIRD's strings have no escape sequences: they end at the first
/// quote and must not contain a line break. The length must be within 1 to [`MAX_PASSWORD`].
fn is_quotable(password: &str) -> bool {
    (1..=MAX_PASSWORD).contains(&password.len())
        && password
            .bytes()
            .all(|b| (b == b' ' || b.is_ascii_graphic()) && b != b'"')
}

/// Whether an address can be one end of a session. Link-local addresses are refused, because a session with such an
/// address needs an interface. The exceptions are the addresses that Azure uses for BGP ([`is_azure_apipa`]).
fn is_usable(address: IpAddr) -> bool {
    let odd = match address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() && !is_azure_apipa(a) || a.is_broadcast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    !odd && !address.is_unspecified() && !address.is_multicast()
}

/// Whether an address is in Azure's APIPA ranges for BGP peers, 169.254.21.0/24 and 169.254.22.0/24 (G4).
fn is_azure_apipa(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [169, 254, 21..=22, _])
}

#[cfg(test)]
mod tests;
