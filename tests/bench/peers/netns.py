"""Network namespaces for the bench: two nodes A-B, or three A-H-B for transit.

Everything lives in namespaces named `bp-*`, made here and removed here. No traffic can leave
them: each has only its loopback, its veth ends and what a contender adds.

  A-B    : bp-a 10.99.0.1/30 --veth-- 10.99.0.2/30 bp-b
  A-H-B  : bp-a 10.99.1.1/30 --veth-- 10.99.1.2/30 bp-h 10.99.2.2/30 --veth-- 10.99.2.1/30 bp-b
"""
import atexit
import os
import signal
import subprocess
import sys
import time

# Another one lets several benches stand side by side.
PREFIX = os.environ.get("BENCH_PREFIX", "bp-")
TIED = ["setpriv", "--pdeathsig", "TERM"]  # a child of a killed bench must not live on and eat a core


def sh(*cmd, check=True, inp=None, timeout=30):
    r = subprocess.run(list(cmd), input=inp, capture_output=True, text=True, timeout=timeout)
    if check and r.returncode:
        raise RuntimeError(f"{' '.join(cmd)}: rc {r.returncode}: {r.stderr.strip() or r.stdout.strip()}")
    return r.stdout


class Lab:
    """A set of namespaces plus every process started inside them. Use as a context manager."""

    def __init__(self, transit=False, cc="cubic", underlay_offload=True, mtu=1500):
        self.transit, self.cc, self.offload, self.mtu = transit, cc, underlay_offload, mtu
        self.nodes = ["a", "h", "b"] if transit else ["a", "b"]
        if transit:
            self.links = [("a", "va", "10.99.1.1/30", "h", "vha", "10.99.1.2/30"),
                          ("b", "vb", "10.99.2.1/30", "h", "vhb", "10.99.2.2/30")]
            self.underlay = {"a": "10.99.1.1", "b": "10.99.2.1", ("h", "a"): "10.99.1.2", ("h", "b"): "10.99.2.2"}
        else:
            self.links = [("a", "va", "10.99.0.1/30", "b", "vb", "10.99.0.2/30")]
            self.underlay = {"a": "10.99.0.1", "b": "10.99.0.2"}
        self.procs = []  # Popen objects that WE started; only these are ever signalled
        self.up_done = False
        self.made = []

    # -- namespaces ----------------------------------------------------------------------
    def __enter__(self):
        atexit.register(self.down)
        for s in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, lambda *_: sys.exit(1))
        have = sh("ip", "netns", "list").split()
        clash = [n for n in [*self.nodes, "c"] if PREFIX + n in have]
        if clash:
            raise SystemExit(f"namespaces {clash} exist: another bench is running, or run `netns.py clean`")
        self.up_done = True
        for n in self.nodes:
            self.add_node(n)
        for link in self.links:
            self.cable(*link)
        if self.transit:
            self.run("h", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        return self

    def add_node(self, n):
        sh("ip", "netns", "add", PREFIX + n)
        self.made.append(n)
        self.ip(n, "link", "set", "lo", "up")
        # The congestion control is chosen per iperf3 (-C): a namespace may not select one the host restricts.
        self.run(n, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")

    def cable(self, n1, i1, a1, n2, i2, a2):
        sh("ip", "link", "add", i1, "netns", PREFIX + n1, "type", "veth", "peer", "name", i2, "netns", PREFIX + n2)
        for n, i, a in ((n1, i1, a1), (n2, i2, a2)):
            self.ip(n, "addr", "add", a, "dev", i)
            self.ip(n, "link", "set", i, "mtu", str(self.mtu), "up")
            if not self.offload:  # a plain NIC: every frame on the wire <= MTU, software GSO in the sender
                self.run(n, "ethtool", "-K", i, "tso", "off", "gso", "off", "gro", "off", "tx-udp-segmentation", "off")

    def __exit__(self, *exc):
        self.down()
        atexit.unregister(self.down)

    def down(self):
        self.stop_procs()
        if self.up_done:
            self.up_done = False
            for n in self.made:
                subprocess.run(["ip", "netns", "del", PREFIX + n], capture_output=True)

    # -- commands ------------------------------------------------------------------------
    def run(self, node, *cmd, **kw):
        return sh("ip", "netns", "exec", PREFIX + node, *cmd, **kw)

    def ip(self, node, *args):
        return sh("ip", "-n", PREFIX + node, *args)

    def popen(self, node, *cmd, log=None, env=None, stdout=None):
        """`ip netns exec` and setpriv exec, so .pid is the program's own pid. It ends when we do."""
        out = open(log, "ab") if log else subprocess.DEVNULL
        p = subprocess.Popen(["ip", "netns", "exec", PREFIX + node, *TIED, *cmd], stdin=subprocess.DEVNULL,
                             stdout=stdout if stdout is not None else out, stderr=out if stdout is None else subprocess.DEVNULL,
                             env={**os.environ, **(env or {})})
        self.procs.append(p)
        return p

    def stop_procs(self):
        for p in self.procs:
            if p.poll() is None:
                p.terminate()
        end = time.time() + 2
        for p in self.procs:
            while p.poll() is None and time.time() < end:
                time.sleep(0.02)
            if p.poll() is None:
                p.kill()
                p.wait()
        self.procs.clear()


if __name__ == "__main__":
    # netns.py clean : remove namespaces a killed run left behind (they are ours by their prefix)
    if sys.argv[1:] == ["clean"]:
        for n in ("a", "h", "b", "c"):
            subprocess.run(["ip", "netns", "del", PREFIX + n], capture_output=True)
