//! The names and addresses that the server certificate carries.

use std::net::{IpAddr, SocketAddr};

/// The names and addresses by which clients may reach a server that listens on `listen`: loopback, the host's name, the
/// listening address, and `public`. If the listening address is unspecified, the result has all present addresses of
/// the host's interfaces instead. `public` is not checked. Sorted, without duplicates and empty names.
pub(super) fn certificate_names(listen: SocketAddr, public: &[String]) -> Vec<String> {
    let mut names: Vec<String> = vec!["localhost".into(), "127.0.0.1".into(), "::1".into()];
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    if let Ok(host) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        names.push(host.trim().to_owned());
    }
    if listen.ip().is_unspecified() {
        names.extend(interface_addresses().iter().map(IpAddr::to_string));
    }
    names.extend(public.iter().cloned());
    names.sort();
    names.dedup();
    names.retain(|n| !n.is_empty());
    names
}

/// The IPv4 and IPv6 addresses of this host's interfaces. Empty if the kernel does not show them: the certificate then
/// still carries the names that operators configured.
///
/// The addresses are read from `/proc/net`. `getifaddrs` would need a netlink socket, which the controller's systemd unit
/// does not permit (`RestrictAddressFamilies`).
fn interface_addresses() -> Vec<IpAddr> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    local_addresses(&read("fib_trie"), &read("if_inet6"))
}

/// The addresses in the texts of `/proc/net/fib_trie` and `/proc/net/if_inet6`. The first text shows an address in the
/// line before each `/32 host LOCAL`. Each line of the second text begins with an address in 32 hexadecimal digits.
/// Other lines are ignored.
fn local_addresses(fib_trie: &str, if_inet6: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in fib_trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<IpAddr>().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.take());
        }
    }
    for line in if_inet6.lines() {
        let digits = line.split_whitespace().next().unwrap_or_default();
        if let Ok(bits) = u128::from_str_radix(digits, 16) {
            found.push(IpAddr::V6(bits.into()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_texts_of_the_kernel() {
        let fib_trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 192.0.2.0/24 2 0 2\n        \
                        |-- 192.0.2.0\n           /24 link UNICAST\n        |-- 192.0.2.7\n           /32 host LOCAL\n        \
                        |-- 192.0.2.255\n           /32 link BROADCAST\n";
        let if_inet6 = "20010db8000000000000000000000001 02 40 00 80     eth0\nbroken\n";
        let expected: [IpAddr; 2] = ["192.0.2.7".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(local_addresses(fib_trie, if_inet6), expected);
        assert!(local_addresses("", "").is_empty());
    }

    #[test]
    fn a_listener_on_all_addresses_is_named_by_those_of_the_interfaces() {
        let all = certificate_names("0.0.0.0:1".parse().unwrap(), &["controller.example".into()]);
        for name in ["127.0.0.1", "::1", "localhost", "controller.example"] {
            assert!(all.iter().any(|n| n == name), "{name}: {all:?}");
        }
        // Every network namespace has the loopback interface. It is down in a new namespace.
        let addresses = interface_addresses();
        assert!(addresses.iter().all(|a| all.contains(&a.to_string())), "{addresses:?}");
        let one = certificate_names("192.0.2.1:1".parse().unwrap(), &[]);
        assert!(one.contains(&"192.0.2.1".to_owned()), "{one:?}");
    }
}
