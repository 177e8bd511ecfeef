"""The measurements, the same for every contender. All loads are bounded in time."""
import json
import os
import re
import statistics
import subprocess
import time

from netns import PREFIX, TIED

HZ = os.sysconf("SC_CLK_TCK")


# -- CPU accounting ----------------------------------------------------------------------
def proc_ticks(pid):
    """utime+stime of a process, all its threads, in seconds (children not included)."""
    with open(f"/proc/{pid}/stat") as f:
        v = f.read().rsplit(")", 1)[1].split()
    return (int(v[11]) + int(v[12])) / HZ


def all_ticks():
    out = {}
    for e in os.listdir("/proc"):
        if e.isdigit():
            try:
                out[int(e)] = proc_ticks(e)
            except (OSError, IndexError):
                pass
    return out


def sys_ticks():
    """(busy, softirq, steal, total) seconds over all cores."""
    with open("/proc/stat") as f:
        v = [int(x) / HZ for x in f.readline().split()[1:9]]
    user, nice, system, idle, iowait, irq, soft, steal = v
    return user + nice + system + irq + soft, soft, steal, sum(v)


def rss_kb(pid, field="VmRSS"):
    with open(f"/proc/{pid}/status") as f:
        m = re.search(rf"^{field}:\s+(\d+)", f.read(), re.M)
    return int(m.group(1)) if m else 0


def wait_quiet(limit=0.08, secs=90):
    """Until the machine was < limit busy for one second. Returns what it waited."""
    t0 = time.time()
    while True:
        b0, _, _, t_0 = sys_ticks()
        time.sleep(1)
        b1, _, _, t_1 = sys_ticks()
        if (b1 - b0) / (t_1 - t_0) < limit or time.time() - t0 > secs:
            return round(time.time() - t0, 1)


class Window:
    """CPU used between enter and exit: by the tunnel, by the rest of us, by strangers."""

    def __init__(self, tunnel_pids, own_pids=()):
        self.tun, self.own = set(tunnel_pids), set(own_pids)

    def __enter__(self):
        self.p0, self.s0, self.t0 = all_ticks(), sys_ticks(), time.time()
        return self

    def __exit__(self, *exc):
        p1, s1 = all_ticks(), sys_ticks()
        d = {p: p1[p] - self.p0.get(p, 0) for p in p1}
        me = os.getpid()
        # A stranger lived before the window; short-lived ones show as busy minus all that is accounted for (table.py).
        strange = {p: v for p, v in d.items() if p in self.p0 and p not in self.tun and p not in self.own
                   and p != me and v >= 0.02}
        self.r = {
            "wall": round(time.time() - self.t0, 2),
            "tunnel_cpu": round(sum(d.get(p, 0) for p in self.tun), 3),
            "busy": round(s1[0] - self.s0[0], 2), "softirq": round(s1[1] - self.s0[1], 2),
            "steal": round(s1[2] - self.s0[2], 2), "strange_cpu": round(sum(strange.values()), 2),
        }


# -- loads -------------------------------------------------------------------------------
def iperf(lab, ip, *args, secs):
    """One bounded iperf3 client run in A; its JSON, or {'error': ...}."""
    try:
        r = subprocess.run(["ip", "netns", "exec", PREFIX + "a", *TIED, "iperf3", "-c", ip, "-t", str(secs), "-J",
                            "--connect-timeout", "3000", *args], capture_output=True, text=True, timeout=secs + 10)
        return json.loads(r.stdout)
    except (subprocess.TimeoutExpired, ValueError) as e:
        return {"error": str(e)[:80]}


def tcp(lab, ip, pids, own, *args, secs=8):
    with Window(pids, own) as w:
        j = iperf(lab, ip, "-C", lab.cc, *args, secs=secs)
    if "error" in j:
        return {"error": j["error"], **w.r}
    e = j["end"]
    gb = e["sum_received"]["bytes"] / 1e9
    c = e["cpu_utilization_percent"]
    return {"mbps": round(e["sum_received"]["bits_per_second"] / 1e6, 1), "gb": round(gb, 3),
            "retr": e["sum_sent"].get("retransmits"),
            "tunnel_cpu_per_gb": round(w.r["tunnel_cpu"] / gb, 3) if gb else None,
            "busy_per_gb": round(w.r["busy"] / gb, 3) if gb else None,
            "iperf_client_pct": round(c["host_total"], 1), "iperf_server_pct": round(c["remote_total"], 1), **w.r}


def udp(lab, ip, pids, own, length, pps, secs):
    """pps=0: as fast as iperf3 can. Delivered packets/s and loss, from the receiver's report."""
    rate = str(int(pps * length * 8)) if pps else "0"
    with Window(pids, own) as w:
        j = iperf(lab, ip, "-u", "-l", str(length), "-b", rate, secs=secs)
    if "error" in j:
        return {"error": j["error"], **w.r}
    s = j["end"]["sum"]
    sent = sum(x["sum"]["packets"] for x in j["intervals"])
    dur = j["end"]["streams"][0]["udp"]["seconds"]
    got = s["packets"] - s["lost_packets"]
    c = j["end"]["cpu_utilization_percent"]
    return {"offered_pps": int(sent / dur), "pps": int(got / dur), "loss": round(1 - got / max(sent, 1), 4),
            "iperf_client_pct": round(c["host_total"], 1), "iperf_server_pct": round(c["remote_total"], 1), **w.r}


LADDER = [5, 10, 20, 30, 40, 50, 60, 75, 90, 110, 130, 160, 200, 250, 300, 400]


def udp_lossfree(lab, ip, pids, own, length, secs=1):
    """Highest rung of the ladder (kpps) delivered with < 1 % loss; binary search, so <= 5 probes."""
    lo, hi, probes = -1, len(LADDER), []
    while hi - lo > 1:
        mid = (lo + hi) // 2
        r = udp(lab, ip, pids, own, length, LADDER[mid] * 1000, secs)
        ok = "error" not in r and r["loss"] < 0.01 and r["offered_pps"] > 0.93 * LADDER[mid] * 1000
        probes.append([LADDER[mid], r.get("pps"), r.get("loss"), r.get("error")])
        lo, hi = (mid, hi) if ok else (lo, mid)
    return {"kpps": LADDER[lo] if lo >= 0 else 0, "probes": probes}


def ping(lab, ip, count=200, interval=0.01):
    r = subprocess.run(["ip", "netns", "exec", PREFIX + "a", *TIED, "ping", "-n", "-i", str(interval), "-c", str(count), "-W", "1", ip],
                       capture_output=True, text=True, timeout=count * interval + 15)
    t = sorted(float(x) for x in re.findall(r"time=([\d.]+)", r.stdout))
    if not t:
        return {"error": "no replies"}
    return {"median_ms": statistics.median(t), "p99_ms": t[min(len(t) - 1, int(len(t) * 0.99))], "max_ms": t[-1],
            "lost": count - len(t)}


def first_ping(lab, ip, t0, secs=20):
    """Seconds from t0 to the first echo reply. One ping process, a probe every 5 ms."""
    p = subprocess.Popen(["ip", "netns", "exec", PREFIX + "a", *TIED, "ping", "-n", "-i", "0.005", "-c", str(int(secs / 0.005)), ip],
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)
    try:
        end = time.time() + secs
        for line in p.stdout:
            if "bytes from" in line:
                return time.time() - t0
            if time.time() > end:
                break
    finally:
        p.kill()
        p.wait()
    return None


def ping_ready(lab, ip, t0, secs=20):
    """As first_ping, but starts over while there is no route or no device yet."""
    while time.time() - t0 < secs:
        r = first_ping(lab, ip, t0, secs=min(3, secs))
        if r is not None:
            return r
        time.sleep(0.02)
    return None


def measure(lab, ip, start, secs=8, udp_len=64, transit=False, quick=False):
    """Brings the tunnel up with start() and runs everything. Returns one result dict."""
    out = {"load_before": open("/proc/loadavg").read().split()[0]}
    t0 = time.time()
    daemons = start()
    out["first_ping_s"] = ping_ready(lab, ip, t0)
    if out["first_ping_s"] is None:
        return {**out, "error": "tunnel never came up"}
    pids = [p.pid for p in daemons]
    srv = lab.popen("b", "iperf3", "-s")
    own = [srv.pid]
    time.sleep(1.0)
    out["rss_idle_kb"] = [rss_kb(p) for p in pids]
    with Window(pids, own) as w:
        out["ping_idle"] = ping(lab, ip)
    out["ping_idle"]["tunnel_cpu"] = w.r["tunnel_cpu"]
    tcp(lab, ip, pids, own, secs=1)  # warm-up: slow start, page faults, JIT-like effects; thrown away
    out["tcp1_up"] = tcp(lab, ip, pids, own, secs=secs)
    out["tcp1_down"] = tcp(lab, ip, pids, own, "-R", secs=secs)
    if not quick:
        out["tcp4"] = tcp(lab, ip, pids, own, "-P", "4", secs=5)
    # RTT while one TCP stream runs
    load = lab.popen("a", "iperf3", "-c", ip, "-t", "4", "-J", "-C", lab.cc)
    time.sleep(1.2)
    out["ping_load"] = ping(lab, ip)
    try:
        load.wait(9)
    except subprocess.TimeoutExpired:
        load.kill()
        load.wait()
    out["udp_flood"] = udp(lab, ip, pids, own, udp_len, 0, 2)
    time.sleep(0.3)
    if not quick:
        out["udp_lossfree"] = udp_lossfree(lab, ip, pids, own, udp_len)
    out["rss_load_kb"] = [rss_kb(p) for p in pids]
    out["rss_peak_kb"] = [rss_kb(p, "VmHWM") for p in pids]
    dead = [p.args[7:9] for p in daemons if p.poll() is not None]
    if dead:
        out["died"] = dead
    return out
