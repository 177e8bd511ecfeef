//! Formats the configuration of a site's VPN device (D16): as files for wg-quick and BIRD 2, and as lines for FRR.

use crate::context::Context;
use anyhow::Result;
use ipnet::IpNet;
use std::fmt::Write as _;
use std::net::IpAddr;
use tombolo_client::fabric::{DeviceBgp, DeviceConfig, DeviceTunnel};
use tombolo_proto::id::ResourceId;

/// Seconds between two keepalives. If the device is behind a NAT, the keepalives preserve the NAT's mapping for the
/// device. WireGuard recommends 25 (wg(8)).
const KEEPALIVE_INTERVAL: u32 = 25;
/// Metric of the routes through the first tunnel. The routes of each further tunnel have a metric that is larger by
/// one.
const FIRST_METRIC: usize = 100;

/// Reads the configuration for the device of a connection, and prints it as text or as JSON. `connection`: the ARM id.
/// The output contains the preshared key.
pub(super) async fn run(c: &Context, connection: &str) -> Result<()> {
    let config = c.client.device_config(&ResourceId::new(connection)).await?;
    if c.out.is_json() {
        return c.out.json(&config);
    }
    c.out.line(&text(&config));
    Ok(())
}

/// Returns the text of all files, one after the other, each with its path in a comment.
fn text(config: &DeviceConfig) -> String {
    let mut out = String::new();
    if config.instances.is_empty() {
        let gateway = config.gateway.name();
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(
            out,
            "# No agent serves gateway {gateway} yet: tombolo token create --gateway {gateway}"
        );
    }
    for (n, tunnel) in config.instances.iter().enumerate() {
        if n > 0 {
            out.push('\n');
        }
        wireguard(&mut out, config, n, tunnel);
    }
    if let Some(session) = &config.bgp {
        out.push('\n');
        bird(&mut out, config, session);
        out.push('\n');
        frr(&mut out, config, session);
    }
    out.trim_end().to_owned()
}

/// Writes the file for wg-quick of tunnel `n`: an interface with one peer. With `Table = off`, wg-quick adds no routes.
fn wireguard(out: &mut String, config: &DeviceConfig, n: usize, tunnel: &DeviceTunnel) {
    let (site, gateway) = (config.site.name(), config.gateway.name());
    let _ = writeln!(
        out,
        "# /etc/wireguard/tombolo{n}.conf: {site} to {gateway}, agent {}",
        tunnel.agent
    );
    out.push_str("[Interface]\n");
    match config.public_key {
        Some(key) => {
            let _ = writeln!(out, "# PrivateKey = the one whose public key is {key}");
        }
        None => {
            let _ = writeln!(
                out,
                "# PrivateKey = a new key, made by `wg genkey`; register its public key with:\n\
                 #   tombolo local-gateway update {site} --public-key KEY"
            );
        }
    }
    if n == 0 {
        let _ = writeln!(out, "ListenPort = {}", config.port);
    } else {
        out.push_str("# No ListenPort: the first tunnel has it, so this end initiates the handshake\n");
    }
    if let Some(session) = &config.bgp {
        let _ = writeln!(out, "Address = {}", IpNet::from(session.address));
    }
    let _ = writeln!(out, "MTU = {}\nTable = off", config.mtu);
    let metric = FIRST_METRIC + n;
    let routes: Vec<IpNet> = match &config.bgp {
        Some(session) => vec![IpNet::from(session.gateway_address)],
        None => config.prefixes.clone(),
    };
    for net in routes {
        let _ = writeln!(out, "PostUp = ip route add {net} dev %i metric {metric}");
    }
    let _ = writeln!(out, "\n[Peer]\nPublicKey = {}", tunnel.public_key);
    let key = serde_json::to_value(config.preshared_key).unwrap_or_default();
    let _ = writeln!(out, "PresharedKey = {}", key.as_str().unwrap_or_default());
    match tunnel.endpoint {
        Some(endpoint) => {
            let _ = writeln!(out, "Endpoint = {endpoint}");
        }
        None => out.push_str("# Endpoint = not known: the agent has reported none\n"),
    }
    let _ = writeln!(
        out,
        "AllowedIPs = 0.0.0.0/0, ::/0\nPersistentKeepalive = {KEEPALIVE_INTERVAL}"
    );
}

/// Returns the prefixes that the device advertises over the session: the site's prefixes in the session's address
/// family.
fn exported(config: &DeviceConfig, session: &DeviceBgp) -> Vec<String> {
    let own = config.site_prefixes.iter();
    let family = own.filter(|p| p.addr().is_ipv4() == session.address.is_ipv4());
    // The local network gateway also has the device's BGP address as a prefix. This prefix is not a network of the
    // site, so the device does not advertise it.
    let networks = family.filter(|p| **p != IpNet::from(session.address));
    networks.map(ToString::to_string).collect()
}

/// Returns BIRD's channel for an address family.
fn channel(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ipv4" } else { "ipv6" }
}

fn bird(out: &mut String, config: &DeviceConfig, session: &DeviceBgp) {
    let networks = exported(config, session);
    let export = match networks.as_slice() {
        [] => "export none; # to advertise the site's networks: export where net ~ [ … ];".to_owned(),
        networks => format!("export where net ~ [ {} ];", networks.join(", ")),
    };
    let symbol = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = config.connection.name().chars().map(symbol).collect();
    let channel = channel(session.address);
    // BIRD does not import the kernel's route to the gateway. So BIRD needs a static route to the gateway itself.
    // Without it, BIRD would consider the next hop of every learned route unreachable.
    let _ = writeln!(
        out,
        "# BIRD 2\n\
         protocol static {name}_gateway {{\n    \
             {channel};\n    \
             route {} via \"tombolo0\";\n\
         }}\n\
         protocol bgp {name} {{\n    \
             local {} as {};\n    \
             neighbor {} as {};\n    \
             multihop;\n    \
             {channel} {{\n        \
                 import all;\n        \
                 {export}\n    \
             }};\n\
         }}",
        IpNet::from(session.gateway_address),
        session.address,
        session.asn,
        session.gateway_address,
        session.gateway_asn,
    );
}

fn frr(out: &mut String, config: &DeviceConfig, session: &DeviceBgp) {
    let (gateway, asn) = (session.gateway_address, session.gateway_asn);
    let family = channel(session.address);
    let _ = writeln!(
        out,
        "# The same for FRR:\n\
         # router bgp {}\n\
         #  neighbor {gateway} remote-as {asn}\n\
         #  neighbor {gateway} ebgp-multihop\n\
         #  neighbor {gateway} update-source {}\n\
         #  address-family {family} unicast\n\
         #   neighbor {gateway} activate",
        session.asn, session.address,
    );
    for network in exported(config, session) {
        let _ = writeln!(out, "#   network {network}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_proto::id::{AgentId, PresharedKey, PublicKey};

    fn sample() -> DeviceConfig {
        let id = |name: &str| ResourceId::new(format!("/subscriptions/s/resourceGroups/g/x/{name}"));
        let tunnel = |agent: &str, key: u8, endpoint: Option<&str>| DeviceTunnel {
            agent: AgentId::new(agent).unwrap(),
            public_key: PublicKey([key; 32]),
            endpoint: endpoint.map(|e| e.parse().unwrap()),
        };
        DeviceConfig {
            connection: id("hub-to-loc1"),
            gateway: id("hub-vpn"),
            site: id("loc1"),
            port: 51820,
            public_key: Some(PublicKey([7; 32])),
            mtu: 1420,
            preshared_key: PresharedKey([9; 32]),
            instances: vec![
                tunnel("hub-vpn-0", 1, Some("192.0.2.1:51820")),
                tunnel("hub-vpn-1", 2, None),
            ],
            prefixes: vec!["10.10.30.0/24".parse().unwrap(), "10.11.30.0/26".parse().unwrap()],
            site_prefixes: vec!["10.2.30.125/32".parse().unwrap(), "10.2.30.0/26".parse().unwrap()],
            bgp: Some(DeviceBgp {
                address: "10.2.30.125".parse().unwrap(),
                asn: 65021,
                gateway_address: "10.10.30.254".parse().unwrap(),
                gateway_asn: 65515,
            }),
        }
    }

    #[test]
    fn d16_with_bgp_there_is_a_file_for_each_instance_and_one_session() {
        let text = text(&sample());
        let first = "# /etc/wireguard/tombolo0.conf: loc1 to hub-vpn, agent hub-vpn-0
[Interface]
# PrivateKey = the one whose public key is BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=
ListenPort = 51820
Address = 10.2.30.125/32
MTU = 1420
Table = off
PostUp = ip route add 10.10.30.254/32 dev %i metric 100

[Peer]
PublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
PresharedKey = CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=
Endpoint = 192.0.2.1:51820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
";
        assert!(text.starts_with(first), "{text}");
        let second = &text[first.len()..];
        for part in [
            "tombolo1.conf",
            "# No ListenPort",
            "metric 101",
            "# Endpoint = not known",
        ] {
            assert!(second.contains(part), "{part}: {second}");
        }
        let bird = "
# BIRD 2
protocol static hub_to_loc1_gateway {
    ipv4;
    route 10.10.30.254/32 via \"tombolo0\";
}
protocol bgp hub_to_loc1 {
    local 10.2.30.125 as 65021;
    neighbor 10.10.30.254 as 65515;
    multihop;
    ipv4 {
        import all;
        export where net ~ [ 10.2.30.0/26 ];
    };
}
";
        assert_eq!(text.matches(bird).count(), 1, "{text}");
        assert!(text.contains("#  neighbor 10.10.30.254 remote-as 65515\n"), "{text}");
        assert!(text.ends_with("#   network 10.2.30.0/26"), "{text}");
    }

    #[test]
    fn without_bgp_there_are_routes() {
        let plain = DeviceConfig {
            bgp: None,
            public_key: None,
            ..sample()
        };
        let text = text(&plain);
        for part in [
            "PostUp = ip route add 10.10.30.0/24 dev %i metric 100\nPostUp = ip route add 10.11.30.0/26 dev %i",
            "tombolo local-gateway update loc1 --public-key KEY",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("Address") && !text.contains("BIRD"), "{text}");
        let nobody = DeviceConfig {
            instances: Vec::new(),
            ..plain
        };
        assert!(super::text(&nobody).starts_with("# No agent serves gateway hub-vpn yet"));
    }
}
