//! Opens TCP connections as fast as possible, and accepts them.
//!
//! `connections serve PORT` accepts connections to all addresses, and answers the first byte, and closes the connection.
//! `connections open ADDRESS:PORT THREADS SECONDS` prints how many connections were opened, and how many failed.

use std::env;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Time after which a connection has failed.
const TIMEOUT: Duration = Duration::from_secs(2);

fn serve(port: u16) {
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let accept = |listener: TcpListener| {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(&byte);
            }
        }
    };
    let others: Vec<_> = (0..4)
        .map(|_| listener.try_clone().unwrap())
        .map(|listener| thread::spawn(move || accept(listener)))
        .collect();
    others.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Opens a connection, and waits until one byte has come back and the other end has closed the connection. The end that closes
/// first keeps the ports for a minute; at the client's end, this would soon leave no port.
fn open(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", port] => serve(port.parse().unwrap()),
        ["open", to, threads, seconds] => {
            let to: SocketAddr = to.parse().unwrap();
            let end = Instant::now() + Duration::from_secs_f64(seconds.parse().unwrap());
            let work = move || {
                let (mut opened, mut failed) = (0_u32, 0_u32);
                while Instant::now() < end {
                    match open(to) {
                        Ok(()) => opened += 1,
                        Err(_) => failed += 1,
                    }
                }
                (opened, failed)
            };
            let threads: Vec<_> = (0..threads.parse().unwrap()).map(|_: u32| thread::spawn(work)).collect();
            let (mut opened, mut failed) = (0, 0);
            for thread in threads {
                let (o, f) = thread.join().unwrap();
                opened += o;
                failed += f;
            }
            println!("{opened} {failed}");
        }
        _ => panic!("usage: connections serve PORT | open ADDRESS:PORT THREADS SECONDS"),
    }
}
