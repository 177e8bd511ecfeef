//! The names and addresses that the server certificate carries.

use nix::ifaddrs::getifaddrs;
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

/// The IPv4 and IPv6 addresses of this host's interfaces. Empty if the kernel does not answer: the certificate then
/// still carries the names that operators configured.
fn interface_addresses() -> Vec<IpAddr> {
    let interfaces = getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter_map(|interface| interface.address);
    addresses
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
