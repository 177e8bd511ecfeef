"""The contenders: each class or factory brings up one tunnel.

A contender's start() starts daemons in the lab's namespaces and returns their Popen objects;
after it A must (soon) reach B at .ip_b. Tunnel addresses: A 10.98.0.1, B 10.98.0.2, H 10.98.0.3.

Binaries: looked up on PATH and in $BENCH_BIN (a folder, e.g. a `cargo install --root`'s bin/).
A contender whose binary is absent is skipped. $TUNFWD overrides where tunfwd lies.
"""
import os
import shutil
import time

from netns import sh

MTU = "1420"  # one inner MTU for all that let it be set: 1420 + 60 (IPv4, UDP, WireGuard) <= 1500


def which(name):
    p = os.environ.get("BENCH_BIN", "")
    return shutil.which(name, path=p + ":" + os.environ.get("PATH", "") + ":/usr/sbin") if name else None


def wait_path(path, secs=10):
    end = time.time() + secs
    while not os.path.exists(path):
        if time.time() > end:
            raise RuntimeError(f"{path} did not appear")
        time.sleep(0.002)


def wait_dev(lab, node, dev, secs=15):
    """Until the interface exists (a daemon that makes it itself)."""
    end = time.time() + secs
    while True:
        try:
            return lab.ip(node, "link", "show", dev)
        except RuntimeError:
            if time.time() > end:
                raise
            time.sleep(0.005)


class Contender:
    transit = False  # can it run A-H-B?
    ip_a, ip_b = "10.98.0.1", "10.98.0.2"

    def __init__(self, name, binary=None, env=None):
        self.name, self.binary, self.env = name, binary, env or {}

    def available(self):
        return self.binary is None or which(self.binary) is not None

    def prepare(self, lab, d):
        """Keys and files, outside the timed start."""

    def start(self, lab, d):
        raise NotImplementedError


class Veth(Contender):
    """No tunnel: the ceiling. In transit H just routes."""
    transit = True

    def prepare(self, lab, d):
        self.ip_a, self.ip_b = lab.underlay["a"], lab.underlay["b"]

    def start(self, lab, d):
        if lab.transit:
            lab.ip("a", "route", "add", "default", "via", lab.underlay["h", "a"])
            lab.ip("b", "route", "add", "default", "via", lab.underlay["h", "b"])
        return []


class Tunfwd(Contender):
    """Our own minimal forwarder (tunfwd/): what each I/O technique is worth. In transit H runs two."""
    transit = True

    def __init__(self, name, *args):
        super().__init__(name)
        self.args = args

    def path(self):
        return os.environ.get("TUNFWD") or which("tunfwd")

    def available(self):
        return bool(self.path())

    def one(self, lab, d, node, dev, local, peer, addr, peer_addr, port):
        p = lab.popen(node, self.path(), "--dev", dev, "--mtu", MTU, "--local", f"{local}:{port}", "--peer",
                      f"{peer}:{port}", *self.extra(node), log=f"{d}/{dev}.log")
        wait_dev(lab, node, dev)
        lab.ip(node, "addr", "add", addr, "peer", peer_addr, "dev", dev)
        lab.ip(node, "link", "set", dev, "up")
        return p

    def extra(self, node):
        return self.args

    def start(self, lab, d):
        u = lab.underlay
        if not lab.transit:
            return [self.one(lab, d, "a", "tfa", u["a"], u["b"], self.ip_a, self.ip_b, 7000),
                    self.one(lab, d, "b", "tfb", u["b"], u["a"], self.ip_b, self.ip_a, 7000)]
        ps = [self.one(lab, d, "a", "tfa", u["a"], u["h", "a"], self.ip_a, "10.98.0.3", 7000),
              self.one(lab, d, "h", "tfha", u["h", "a"], u["a"], "10.98.0.3", self.ip_a, 7000),
              self.one(lab, d, "h", "tfhb", u["h", "b"], u["b"], "10.98.0.3", self.ip_b, 7001),
              self.one(lab, d, "b", "tfb", u["b"], u["h", "b"], self.ip_b, "10.98.0.3", 7001)]
        lab.ip("a", "route", "add", self.ip_b, "dev", "tfa")
        lab.ip("b", "route", "add", self.ip_a, "dev", "tfb")
        return ps


class Wg(Contender):
    """Any userspace WireGuard that speaks the UAPI socket. In transit H is one daemon with two peers."""
    transit = True

    def __init__(self, name, binary, *args, env=None):
        super().__init__(name, binary, env)
        self.args = args

    def prepare(self, lab, d):
        self.keys = {}
        for n in lab.nodes:
            k = sh("wg", "genkey").strip()
            with open(f"{d}/{n}.key", "w") as f:
                f.write(k + "\n")
            self.keys[n] = sh("wg", "pubkey", inp=k).strip()
            if os.path.exists(f"/var/run/wireguard/bpw{n}.sock"):  # some leave theirs behind
                os.unlink(f"/var/run/wireguard/bpw{n}.sock")

    def node(self, lab, d, n, addr, peers):
        dev = f"bpw{n}"
        p = lab.popen(n, which(self.binary), *self.args, "-f", dev, log=f"{d}/{dev}.log", env=self.env)
        wait_path(f"/var/run/wireguard/{dev}.sock")
        for _ in range(200):  # the socket's name may be there before its listener
            try:
                lab.run(n, "wg", "show", dev)
                break
            except RuntimeError:
                time.sleep(0.002)
        cmd = ["wg", "set", dev, "private-key", f"{d}/{n}.key", "listen-port", "51820"]
        for who, allowed, endpoint in peers:
            cmd += ["peer", self.keys[who], "allowed-ips", allowed, "endpoint", f"{endpoint}:51820"]
        lab.run(n, *cmd)
        lab.ip(n, "addr", "add", f"{addr}/24", "dev", dev)
        lab.ip(n, "link", "set", dev, "mtu", MTU, "up")
        return p

    def start(self, lab, d):
        os.makedirs("/var/run/wireguard", exist_ok=True)
        u = lab.underlay
        if not lab.transit:
            return [self.node(lab, d, "a", self.ip_a, [("b", self.ip_b, u["b"])]),
                    self.node(lab, d, "b", self.ip_b, [("a", self.ip_a, u["a"])])]
        return [self.node(lab, d, "h", "10.98.0.3", [("a", self.ip_a, u["a"]), ("b", self.ip_b, u["b"])]),
                self.node(lab, d, "a", self.ip_a, [("h", "10.98.0.0/24", u["h", "a"])]),
                self.node(lab, d, "b", self.ip_b, [("h", "10.98.0.0/24", u["h", "b"])])]


class Nebula(Contender):
    def __init__(self, name, cipher):
        super().__init__(name, "nebula")
        self.cipher = cipher

    def prepare(self, lab, d):
        nc = which("nebula-cert")
        sh(nc, "ca", "-name", "bench", "-out-crt", f"{d}/ca.crt", "-out-key", f"{d}/ca.key")
        for n, ip in (("a", self.ip_a), ("b", self.ip_b)):
            sh(nc, "sign", "-ca-crt", f"{d}/ca.crt", "-ca-key", f"{d}/ca.key", "-name", n, "-ip", f"{ip}/24",
               "-out-crt", f"{d}/{n}.crt", "-out-key", f"{d}/{n}.key")
            o, oip = ("b", self.ip_b) if n == "a" else ("a", self.ip_a)
            with open(f"{d}/{n}.yml", "w") as f:
                f.write(f"""
pki: {{ca: {d}/ca.crt, cert: {d}/{n}.crt, key: {d}/{n}.key}}
static_host_map: {{"{oip}": ["{lab.underlay[o]}:4242"]}}
lighthouse: {{am_lighthouse: false, hosts: []}}
listen: {{host: 0.0.0.0, port: 4242, read_buffer: 7340032, write_buffer: 7340032}}
cipher: {self.cipher}
tun: {{dev: bpn{n}, mtu: {MTU}, tx_queue: 500}}
logging: {{level: warning, format: text}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
""")

    def start(self, lab, d):
        return [lab.popen(n, which("nebula"), "-config", f"{d}/{n}.yml", log=f"{d}/{n}.log") for n in ("a", "b")]


class Tinc(Contender):
    def prepare(self, lab, d):
        for n, ip, o in (("a", self.ip_a, "b"), ("b", self.ip_b, "a")):
            os.makedirs(f"{d}/{n}/hosts")
            with open(f"{d}/{n}/tinc.conf", "w") as f:
                f.write(f"Name = {n}\nInterface = bpt{n}\nAddressFamily = ipv4\nConnectTo = {o}\n")
            with open(f"{d}/{n}/hosts/{n}", "w") as f:
                f.write(f"Address = {lab.underlay[n]}\nSubnet = {ip}/32\n")
            with open(f"{d}/{n}/tinc-up", "w") as f:
                f.write(f"#!/bin/sh\nip addr add {ip}/24 dev $INTERFACE\nip link set $INTERFACE mtu {MTU} up\n")
            os.chmod(f"{d}/{n}/tinc-up", 0o755)
            sh(which("tincd"), "-c", f"{d}/{n}", "-K2048", inp="\n\n")
        shutil.copy(f"{d}/a/hosts/a", f"{d}/b/hosts/a")
        shutil.copy(f"{d}/b/hosts/b", f"{d}/a/hosts/b")

    def start(self, lab, d):
        return [lab.popen(n, which("tincd"), "-D", "-c", f"{d}/{n}", f"--pidfile={d}/{n}.pid", log=f"{d}/{n}.log")
                for n in ("b", "a")]


class Openvpn(Contender):
    """Point to point over UDP, TLS key exchange with fingerprints, AES-256-GCM, userspace (no DCO)."""

    def prepare(self, lab, d):
        fp = {}
        for n in ("a", "b"):
            sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", f"/CN={n}", "-keyout", f"{d}/{n}.key", "-out", f"{d}/{n}.crt")
            fp[n] = sh("openssl", "x509", "-in", f"{d}/{n}.crt", "-noout", "-fingerprint", "-sha256").split("=")[1].strip()
        self.fp = fp

    def start(self, lab, d):
        ps = []
        for n, o, ip, oip in (("b", "a", self.ip_b, self.ip_a), ("a", "b", self.ip_a, self.ip_b)):
            tls = ["--tls-server", "--dh", "none"] if n == "b" else ["--tls-client"]
            ps.append(lab.popen(n, which("openvpn"), "--dev", f"bpo{n}", "--dev-type", "tun", "--ifconfig", ip, oip,
                                "--local", lab.underlay[n], "--remote", lab.underlay[o], "--port", "1194", "--proto", "udp",
                                *tls, "--cert", f"{d}/{n}.crt", "--key", f"{d}/{n}.key", "--peer-fingerprint", self.fp[o],
                                "--cipher", "AES-256-GCM", "--data-ciphers", "AES-256-GCM", "--disable-dco",
                                "--tun-mtu", MTU, "--mssfix", "0", "--sndbuf", "4194304", "--rcvbuf", "4194304",
                                "--verb", "2", log=f"{d}/{n}.log"))
        return ps


class Quincy(Contender):
    """QUIC datagrams on quinn, TUN offload on, Noise key exchange. B is the server; addresses come from its pool."""
    ip_a, ip_b = "10.98.0.2", "10.98.0.1"

    def prepare(self, lab, d):
        priv = {n: sh("wg", "genkey").strip() for n in "ab"}  # plain X25519 keys, base64: the same format
        pub = {n: sh("wg", "pubkey", inp=priv[n]).strip() for n in "ab"}
        conn = f"[connection]\nmtu = {MTU}\n[log]\nlevel = \"warn\"\n"
        with open(f"{d}/users.toml", "w") as f:
            f.write(f'[users.a]\nauthorized_keys = ["{pub["a"]}"]\nauthorized_certs = []\n')
        with open(f"{d}/b.toml", "w") as f:
            f.write(f'name = "b"\ninterface_name = "bpqb"\nbind_address = "{lab.underlay["b"]}"\nbind_port = 55555\n'
                    f'tunnel_network = "{self.ip_b}/24"\nusers_file = "{d}/users.toml"\n'
                    f'[protocol]\nmode = "noise"\nprivate_key = "{priv["b"]}"\n' + conn)
        with open(f"{d}/a.toml", "w") as f:
            f.write(f'connection_string = "{lab.underlay["b"]}:55555"\n'
                    f'[protocol]\nmode = "noise"\nserver_public_key = "{pub["b"]}"\nprivate_key = "{priv["a"]}"\n'
                    f'[network]\ninterface_name = "bpqa"\n' + conn)

    def start(self, lab, d):
        s = lab.popen("b", which("quincy-server"), "--config-path", f"{d}/b.toml", log=f"{d}/b.log")
        wait_dev(lab, "b", "bpqb")
        time.sleep(0.05)  # the server binds its socket right after its interface
        return [lab.popen("a", which("quincy-client"), "--config-path", f"{d}/a.toml", log=f"{d}/a.log"), s]


class Vpncloud(Contender):
    def __init__(self, name, alg):
        super().__init__(name, "vpncloud")
        self.alg = alg

    def start(self, lab, d):
        u, ps = lab.underlay, []
        for n, o, ip in (("b", "a", self.ip_b), ("a", "b", self.ip_a)):
            # It panics without a default route (it asks the kernel for its own address). It leads to the other namespace.
            lab.ip(n, "route", "add", "default", "via", u[o])
            ps.append(lab.popen(n, which("vpncloud"), "-d", f"bpv{n}", "-t", "tun", "-m", "router",
                                "-l", f"{u[n]}:3210", "-c", f"{u[o]}:3210", "-p", "bench", "--algorithm", self.alg,
                                "--no-port-forwarding", "--no-auto-claim", "--claim", f"{ip}/32", log=f"{d}/{n}.log"))
        for n, ip in (("a", self.ip_a), ("b", self.ip_b)):
            wait_dev(lab, n, f"bpv{n}")
            time.sleep(0.02)  # it sets an MTU of its own right after opening the device
            lab.ip(n, "addr", "add", f"{ip}/24", "dev", f"bpv{n}")  # 2.3.0's --ip sets a garbage address on this toolchain
            lab.ip(n, "link", "set", f"bpv{n}", "mtu", MTU, "up")
        return ps


class Easytier(Contender):
    def start(self, lab, d):
        u = lab.underlay
        return [lab.popen(n, which("easytier-core"), "--ipv4", ip, "--network-name", "bench", "--network-secret", "bench",
                          "--hostname", n, "--dev-name", f"bpe{n}", "--listeners", f"udp://{u[n]}:11010",
                          *(["--peers", f"udp://{u['b']}:11010"] if n == "a" else []),
                          "--rpc-portal", "127.0.0.1:15888", log=f"{d}/{n}.log")
                for n, ip in (("b", self.ip_b), ("a", self.ip_a))]


class WgSpike(Tunfwd):
    """wgspike/: WireGuard on one thread with every offload and nothing else. Its UDP receive buffer (RCVBUF) sets the queue."""
    transit = False

    def path(self):
        return which("wgspike")

    def extra(self, node):
        return ("--node", node)


ALL = [
    Veth("veth"),
    Tunfwd("tunfwd-plain", "--io", "plain"),
    Tunfwd("tunfwd-mmsg", "--io", "mmsg"),
    Tunfwd("tunfwd-vnet", "--io", "vnet"),
    Tunfwd("tunfwd-gso", "--io", "gso"),
    Tunfwd("tunfwd-plain-chacha", "--io", "plain", "--aead", "chacha"),
    Tunfwd("tunfwd-gso-chacha", "--io", "gso", "--aead", "chacha"),
    Tunfwd("tunfwd-gso-aes", "--io", "gso", "--aead", "aes256", "--lib", "aws"),
    WgSpike("wgspike"),
    Wg("wg-go-deb12", "wireguard-go"),
    Wg("wg-go-bpo", os.environ.get("WG_GO_BPO", "wireguard-go-bpo")),
    Wg("wg-go-new", os.environ.get("WG_GO_NEW", "wireguard-go-new")),
    Wg("boringtun", "boringtun-cli", "--disable-drop-privileges"),
    Wg("gotatun", "gotatun", "--disable-drop-privileges"),
    Nebula("nebula-aes", "aes"),
    Nebula("nebula-chacha", "chachapoly"),
    Tinc("tinc", "tincd"),
    Openvpn("openvpn", "openvpn"),
    Quincy("quincy", "quincy-server"),
    Vpncloud("vpncloud", "aes256"),
    Easytier("easytier", "easytier-core"),
]
