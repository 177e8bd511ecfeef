//! System calls without a safe wrapper in the workspace's crates. This is the only file with `unsafe`.
#![allow(unsafe_code, reason = "each block names the contract of its system call")]

use anyhow::{Result, bail};
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Offloads of the TUN device (`TUN_F_*`) that the agent accepts: the kernel may leave it to the agent to complete
/// checksums and to segment TCP.
const CHECKSUM_AND_TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// Segmentation offload for UDP (`TUN_F_USO*`), which exists since Linux 6.2.
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// `struct ifreq`, with the fields that the TUN driver reads and writes.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

impl Request {
    fn new(name: &str, flags: libc::c_int) -> Result<Self> {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            flags: flags.try_into()?,
            rest: [0; 22],
        };
        let Some(room) = request
            .name
            .get_mut(..name.len())
            .filter(|_| name.len() < libc::IFNAMSIZ)
        else {
            bail!("device name '{name}' is too long");
        };
        room.copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// Creates a multi-queue TUN device with one queue. With `header` reads and writes have a virtio-net header, and the
/// device's offloads are enabled. Returns the queue, and whether the kernel also offers segmentation offload for UDP.
/// The device exists while a queue is open, so the caller must not close this queue before it has added others. Fails
/// if the name is longer than 15 bytes, CAP_NET_ADMIN is missing, or the kernel refuses the offloads.
pub(crate) fn prime(name: &str, header: bool) -> Result<(File, bool)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let with_header = if header { libc::IFF_VNET_HDR } else { 0 };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | with_header;
    let request = Request::new(name, flags)?;
    // SAFETY: the descriptor is open; TUNSETIFF reads an ifreq, and `request` has that layout and outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw const request) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    if !header {
        return Ok((file, false));
    }
    let offload = |mask: libc::c_uint| {
        // SAFETY: the descriptor is open; TUNSETOFFLOAD takes its argument by value.
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(mask)) == 0 }
    };
    if offload(CHECKSUM_AND_TCP | UDP) {
        return Ok((file, true));
    }
    if offload(CHECKSUM_AND_TCP) {
        return Ok((file, false));
    }
    Err(io::Error::last_os_error().into())
}

/// Whether reads and writes of an open queue have a virtio-net header.
pub(crate) fn has_header(queue: &impl AsRawFd) -> Result<bool> {
    let mut request = Request::new("", 0)?;
    // SAFETY: the descriptor is open; TUNGETIFF writes an ifreq, and `request` has that layout and outlives the call.
    if unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(libc::c_int::from(request.flags) & libc::IFF_VNET_HDR != 0)
}

/// Allows or forbids that outer datagrams are fragmented, by this host and by IPv4 routers (D20). `v6`: whether the
/// socket is an IPv6 one, which also sends IPv4 if it is dual-stack. If fragments are forbidden, the kernel also
/// ignores its cache of path MTUs, because a probe must be able to exceed the known MTU (RFC 8899).
pub(crate) fn allow_fragments(socket: &impl AsFd, v6: bool, allow: bool) -> io::Result<()> {
    let (v4_way, v6_way) = if allow {
        (libc::IP_PMTUDISC_DONT, libc::IPV6_PMTUDISC_DONT)
    } else {
        (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE)
    };
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, v4_way)?;
    if v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, v6_way)?;
        set(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_DONTFRAG,
            libc::c_int::from(!allow),
        )?;
    }
    Ok(())
}

/// Drops the pages of the program's code from memory; the kernel reads a page from disk again when it is used. So code
/// that only the start has used does not count as this process's memory any longer.
pub(crate) fn release_text() -> io::Result<()> {
    let exe = std::fs::read_link("/proc/self/exe")?;
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        // The fields of a line: start-end, permissions, offset, device, inode, path.
        let mut words = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp"), Some(path)) = (words.next(), words.next(), words.nth(3)) else {
            continue;
        };
        let ends = range
            .split_once('-')
            .map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)));
        let (Some((Ok(start), Ok(end))), true) = (ends, exe.as_os_str() == path) else {
            continue;
        };
        let at: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a private mapping of a file. This process never writes to its pages, so the kernel reads
        // the same contents from the file again.
        if unsafe { libc::madvise(at, end.saturating_sub(start), libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Datagrams that the kernel dropped because the socket's receive buffer was full, since the socket was opened.
pub(crate) fn overflow(socket: &impl AsFd) -> io::Result<u64> {
    /// Index of `SK_MEMINFO_DROPS` (`linux/sock_diag.h`), the last of the values that the option returns.
    const DROPS: usize = 8;
    let mut values = [0u32; DROPS + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    // SAFETY: the descriptor is open; the option writes at most `len` bytes to `values`, which outlives the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            (&raw mut values).cast(),
            &raw mut len,
        )
    };
    match done {
        0 => Ok(u64::from(values[DROPS])),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let (at, len) = ((&raw const value).cast(), size_of_val(&value) as libc::socklen_t);
    // SAFETY: the descriptor is open; the option reads an int, and `value` is an int and outlives the call.
    match unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, at, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Longest TCP MD5 key that the kernel accepts, in bytes: `TCP_MD5SIG_MAXKEYLEN`.
const MD5_KEY: usize = 80;

/// `struct tcp_md5sig` of `linux/tcp.h`.
#[repr(C)]
struct TcpMd5Sig {
    /// The fields from `family` to `rest` are a `sockaddr_storage` for IPv4: family, port, address, and zeros in
    /// `rest`.
    family: libc::sa_family_t,
    port: u16,
    address: [u8; 4],
    rest: [u8; 120],
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: libc::c_int,
    key: [u8; MD5_KEY],
}

/// Sets the TCP MD5 key (RFC 2385) that a socket uses for connections with `peer`. The key has at most 80 bytes. Fails
/// for a longer key, and if the kernel has no TCP MD5 signatures.
pub(crate) fn sign(socket: &impl AsFd, peer: std::net::Ipv4Addr, key: &[u8]) -> io::Result<()> {
    let mut signature = TcpMd5Sig {
        family: libc::AF_INET as libc::sa_family_t,
        port: 0,
        address: peer.octets(),
        rest: [0; 120],
        flags: 0,
        prefix_length: 0,
        key_length: 0,
        interface: 0,
        key: [0; MD5_KEY],
    };
    let room = signature.key.get_mut(..key.len()).ok_or(io::ErrorKind::InvalidInput)?;
    room.copy_from_slice(key);
    signature.key_length = key.len() as u16;
    let (at, len) = (
        (&raw const signature).cast(),
        size_of_val(&signature) as libc::socklen_t,
    );
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open; the option reads a tcp_md5sig, and `signature` has that layout and outlives the
    // call.
    match unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_MD5SIG, at, len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
