//! A hostile BGP neighbour sends raw messages over TCP. The neighbour's own session ends, and no other session is
//! affected.

use crate::common::Wire;
use crate::far::Far;
use crate::near::{Near, announced, eventually, id, learned, neighbour, within};
use crate::{SITE, SITE_V6, site, wire};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tombolo_proto::status::BgpPeerState;

const ASN: u32 = 65_023;
const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ORIGIN: [u8; 4] = [0x40, 1, 1, 0];
const NEXT_HOP: [u8; 7] = [0x40, 3, 4, 192, 0, 2, 3];

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap();
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

fn as_path(path: &[u32]) -> Vec<u8> {
    let count = u8::try_from(path.len()).unwrap();
    let length = 2 + 4 * u16::from(count);
    let mut out = vec![0x50, 2];
    out.extend(length.to_be_bytes());
    out.extend([2, count]);
    out.extend(path.iter().flat_map(|a| a.to_be_bytes()));
    out
}

fn prefixes(prefixes: &[(Ipv4Addr, u8)]) -> Vec<u8> {
    let one = |(address, length): &(Ipv4Addr, u8)| {
        let bytes = usize::from(*length).div_ceil(8);
        [&[*length][..], &address.octets()[..bytes]].concat()
    };
    prefixes.iter().flat_map(one).collect()
}

fn update(withdrawn: &[(Ipv4Addr, u8)], attributes: &[u8], reached: &[(Ipv4Addr, u8)]) -> Vec<u8> {
    let counted = |bytes: Vec<u8>| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat();
    let body = [
        counted(prefixes(withdrawn)),
        counted(attributes.to_vec()),
        prefixes(reached),
    ]
    .concat();
    message(UPDATE, &body)
}

/// An UPDATE that announces 11.0.`third`.0/24 with a valid path and further attributes.
fn route(third: u8, path: &[u32], more: &[u8]) -> Vec<u8> {
    let attributes = [&ORIGIN[..], &as_path(path), &NEXT_HOP, more].concat();
    update(&[], &attributes, &[(Ipv4Addr::new(11, 0, third, 0), 24)])
}

/// Moves the calling thread into the namespace of the hostile neighbour.
fn enter(wire: &Wire) {
    let namespace = File::open(format!("/run/netns/{}", wire.ns[2])).unwrap();
    setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
}

fn connect() -> std::io::Result<TcpStream> {
    let to: SocketAddr = "192.0.2.1:179".parse().unwrap();
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Establishes a session. Tries for a minute, because BIRD refuses connections for a while after an error.
fn session() -> TcpStream {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(60), "no session");
        if let Ok(stream) = connect().and_then(|mut s| greet(&mut s).map(|()| s)) {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn greet(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut open = vec![4];
    open.extend(u16::try_from(ASN).unwrap().to_be_bytes());
    open.extend([0, 90, 198, 51, 100, 3]);
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 65, 4];
    capabilities.extend(ASN.to_be_bytes());
    let length = u8::try_from(capabilities.len()).unwrap();
    open.extend([length + 2, 2, length]);
    open.extend(capabilities);
    stream.write_all(&message(OPEN, &open))?;
    stream.write_all(&message(KEEPALIVE, &[]))?;
    loop {
        match read(stream)? {
            KEEPALIVE => return Ok(()),
            NOTIFICATION => return Err(ErrorKind::ConnectionRefused.into()),
            _ => {}
        }
    }
}

/// Reads the next message, and returns its type.
fn read(stream: &mut TcpStream) -> std::io::Result<u8> {
    let mut header = [0; 19];
    stream.read_exact(&mut header)?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    stream.read_exact(&mut vec![0; length - 19])?;
    Ok(header[18])
}

/// Waits until BIRD closes the session.
fn expect_close(mut stream: TcpStream) {
    let begun = Instant::now();
    while read(&mut stream).is_ok_and(|kind| kind != NOTIFICATION) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the session is still open");
    }
}

/// UPDATEs with unknown or invalid attributes. None of them ends the session.
fn strange() -> Vec<Vec<u8>> {
    let long: Vec<u32> = std::iter::once(ASN).chain(1..=254).collect();
    let mut longer = as_path(&long);
    longer[2..4].copy_from_slice(&u16::try_from(2 * (2 + 4 * 255)).unwrap().to_be_bytes());
    longer.extend([2, 255]);
    longer.extend(long.iter().flat_map(|a| a.to_be_bytes()));
    let too_long = [&ORIGIN[..], &longer, &NEXT_HOP].concat();
    let set = [
        &ORIGIN[..],
        &[0x40, 2, 12, 2, 1, 0, 0, 0xfd, 0xff, 1, 1, 0, 0, 0, 9],
        &NEXT_HOP,
    ]
    .concat();
    let malformed_path = [&ORIGIN[..], &[0x40, 2, 3, 2, 9, 1], &NEXT_HOP].concat();
    let without_path = [&ORIGIN[..], &NEXT_HOP].concat();
    let bad_origin = [&[0x40, 1, 1, 9][..], &as_path(&[ASN]), &NEXT_HOP].concat();
    let at = |third| [(Ipv4Addr::new(11, 0, third, 0), 24)];
    vec![
        // The speaker accepts these routes, and learns their AS paths unchanged, although most of them also have
        // attributes that are optional, unknown or invalid. The last route has a path with an AS_SET.
        route(1, &[ASN, 7], &[]),
        route(2, &[ASN, 7], &[0xc0, 40, 3, 0xff, 0xff, 0xff]),
        route(3, &[ASN, 7], &[0xc0, 25, 5, 1, 2, 3, 4, 5]),
        route(4, &[ASN, 7], &[0xc0, 29, 4, 0, 1, 0xff, 0xff]),
        route(5, &[ASN, 7], &[0xc0, 128, 2, 0, 0]),
        route(6, &[ASN, 7], &[0xc0, 16, 8, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        update(&[], &set, &at(7)),
        // BIRD or the agent's parser rejects these routes. They have, in this order: a loop, a wrong first AS, a path
        // that is too long, a malformed path, no path, an invalid origin, and martian prefixes.
        route(20, &[ASN, 65_515], &[]),
        route(21, &[65_099, ASN], &[]),
        update(&[], &too_long, &at(22)),
        update(&[], &malformed_path, &at(23)),
        update(&[], &without_path, &at(24)),
        update(&[], &bad_origin, &at(25)),
        update(
            &[],
            &[&ORIGIN[..], &as_path(&[ASN]), &NEXT_HOP].concat(),
            &[(Ipv4Addr::new(127, 0, 0, 0), 8)],
        ),
        update(
            &[],
            &[&ORIGIN[..], &as_path(&[ASN]), &NEXT_HOP].concat(),
            &[(Ipv4Addr::new(224, 0, 0, 0), 4)],
        ),
    ]
}

#[test]
fn a_hostile_neighbour_costs_its_own_session_only() {
    let wire = wire("hostile", 3);
    let far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    let (strange_said, strange_seen) = (oneshot::channel(), oneshot::channel::<()>());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (said, seen) = (strange_said.0, strange_seen.1);
        let (wire, over) = (&wire, &over);
        scope.spawn(move || {
            // Sets the flag when the thread ends, even by a panic, so that the other part of the test ends too.
            struct Over<'a>(&'a AtomicBool);
            impl Drop for Over<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let _over = Over(over);
            enter(wire);
            let mut stream = session();
            strange().iter().for_each(|m| stream.write_all(m).unwrap());
            said.send(()).unwrap();
            seen.blocking_recv().unwrap();
            // Sends announcements and withdrawals as fast as possible, then an invalid message.
            for i in 0..2000_u32 {
                let prefix = [(Ipv4Addr::from(0x0b01_0000 | (i % 7) << 8), 24)];
                let attributes = [&ORIGIN[..], &as_path(&[ASN, i]), &NEXT_HOP].concat();
                stream.write_all(&update(&[], &attributes, &prefix)).unwrap();
                stream.write_all(&update(&prefix, &[], &[])).unwrap();
            }
            stream.write_all(&[0; 100]).unwrap();
            expect_close(stream);

            let mut stream = session();
            let attributes = [&ORIGIN[..], &as_path(&[ASN]), &NEXT_HOP].concat();
            let all: Vec<(Ipv4Addr, u8)> = (0..100_000_u32)
                .map(|i| (Ipv4Addr::from(0x0c00_0000 | i), 32))
                .collect();
            for some in all.chunks(700) {
                // BIRD closes the session when the prefix limit is exceeded, long before all prefixes are sent.
                if stream.write_all(&update(&[], &attributes, some)).is_err() {
                    break;
                }
            }
            expect_close(stream);

            // Opens connections that send noise or nothing and are closed at once.
            for i in 0..300_u16 {
                if let Ok(mut stream) = connect() {
                    let noise: Vec<u8> = (0..i).map(|b| (b.wrapping_mul(31) ^ i) as u8).collect();
                    let _ = stream.write_all(&noise);
                }
            }
        });
        within(&wire.ns[0], async || {
            let near = Near::start().await;
            near.configure(|spec| {
                let hostile = neighbour("/c/hostile", "192.0.2.3", ASN);
                spec.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021), hostile];
                spec.announce.insert(id("/c/1"), announced());
            });
            near.learns("/c/1", &site(65_021)).await;
            let pid = near.pid();
            strange_said.1.await.unwrap();
            let taken = |n: u8, path: &[u32]| (format!("11.0.{n}.0/24"), path.to_vec());
            let mut expected: Vec<_> = (1..=6).map(|n| taken(n, &[ASN, 7])).collect();
            expected.push(taken(7, &[ASN, 9]));
            near.learns("/c/hostile", &expected).await;
            strange_seen.0.send(()).unwrap();

            let (mut most, mut stopped) = (0, false);
            let mut all = near.bgp.learned();
            while !over.load(Ordering::Relaxed) {
                let _ = tokio::time::timeout(Duration::from_millis(100), all.changed()).await;
                most = most.max(learned(&all.borrow_and_update(), "/c/hostile").len());
                assert_eq!(near.learned("/c/1"), site(65_021));
                let limit = |e: &String| e.contains("Route limit exceeded");
                stopped |= near
                    .bgp
                    .status()
                    .iter()
                    .any(|s| s.last_error.as_ref().is_some_and(limit));
            }
            println!("most routes of the hostile neighbour at once: {most}");
            assert!(most <= 4000, "{most}");
            assert!(stopped, "{:?}", near.bgp.status());
            near.learns("/c/hostile", &[]).await;
            assert_eq!((far.ups("n0"), near.pid()), (1, pid));
            near.is("/c/1", BgpPeerState::Connected).await;
            // The session with the other neighbour still works: this neighbour gets withdrawals.
            near.configure(|spec| spec.announce.clear());
            eventually("withdrawn", async || far.path_of("10.1.0.0/16").is_none()).await;
            near.stop().await;
        });
    });
}
