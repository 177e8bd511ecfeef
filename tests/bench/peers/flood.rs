//! Sends datagrams of one kind to a UDP port, at a rate, for a time. Standard library only: `rustc -O flood.rs`.
//!
//!   flood ADDRESS:PORT garbage|handshake|data|quic|small RATE SECONDS      prints how many it sent
//!
//! RATE is in datagrams a second; 0 means as many as possible. No two datagrams are equal, so a receiver cannot
//! recognise a datagram by comparing it with earlier ones.
use std::net::UdpSocket;
use std::time::{Duration, Instant};

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (to, kind) = (&a[1], a[2].as_str());
    let (rate, seconds): (f64, f64) = (a[3].parse().unwrap(), a[4].parse().unwrap());
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    let (len, head): (usize, &[u8]) = match kind {
        "garbage" => (200, &[]),
        "handshake" => (148, &[1, 0, 0, 0]),
        "data" => (200, &[4, 0, 0, 0]),
        // A frame of 64 bytes on Ethernet, with its checksum, has 18 bytes of UDP payload.
        "small" => (18, &[]),
        // A QUIC Initial (RFC 9000, section 17.2.2): a long header of version 1, with connection ids of eight bytes each.
        "quic" => (1200, &[0xc0, 0, 0, 0, 1, 8]),
        other => panic!("no kind '{other}'"),
    };
    let mut x = 0x9e37_79b9_7f4a_7c15_u64 ^ std::process::id() as u64;
    let mut buffer = vec![0u8; len];
    let (begin, mut sent) = (Instant::now(), 0u64);
    loop {
        let elapsed = begin.elapsed();
        if elapsed.as_secs_f64() >= seconds {
            break;
        }
        let due = if rate > 0.0 { (elapsed.as_secs_f64() * rate) as u64 } else { sent + 64 };
        if sent >= due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        while sent < due {
            for chunk in buffer.chunks_mut(8) {
                // xorshift64*: fast enough not to slow down the flood.
                x ^= x >> 12;
                x ^= x << 25;
                x ^= x >> 27;
                let random = x.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
                chunk.copy_from_slice(&random[..chunk.len()]);
            }
            buffer[..head.len()].copy_from_slice(head);
            if kind == "quic" {
                buffer[14] = 8;
            }
            // While the attacked program restarts, ICMP reports its port as closed. That must not end the flood.
            let _ = socket.send(&buffer);
            sent += 1;
        }
    }
    println!("{sent}");
}
