"""The outage when a path fails, and the loss when it recovers. The controller is dead during all cases:
agents decide by themselves (D11, D19).

Each case runs a ping every 10 ms. It measures the longest time without an answer after the cut, and counts the pings without
an answer from the recovery until traffic is back on the preferred path.
"""

import contextlib
import os
import re
import signal
import statistics
import subprocess
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SPACING = 0.01
GOAL = 1.0  # seconds, the worst of all runs


class Pings:
    """A running ping: the time of each answer, and the unanswered sequence numbers."""

    def __init__(self, lab, source, address):
        self.answers = {}  # sequence number: when
        command = ["ping", "-n", "-i", str(SPACING), "-W", "1", address]
        self.process = lab.start(source, *command, stdout=subprocess.PIPE)
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        for line in self.process.stdout:
            found = re.search(r"icmp_seq=(\d+) ttl", line)
            if found:
                self.answers.setdefault(int(found[1]), time.monotonic())

    def newest(self):
        return max(self.answers, default=0)

    def answering(self, since, count=20):
        """Waits for this many answers in a row to pings after the sequence number `since`."""
        newest = self.newest()
        return newest >= since + count and all(newest - n in self.answers for n in range(count))

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)
        self.process.wait(5)
        self.thread.join(5)


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


def hop(lab, source, address, ttl):
    """The address that answers at this TTL: a gateway, an edge, or the target itself."""
    out = subprocess.run(lab.wrap(source, "ping", "-n", "-c", "1", "-W", "0.3", "-t", str(ttl), address),
                         capture_output=True, text=True).stdout
    found = re.search(r"From (\S+) |bytes from (\S+):", out)
    return found and (found[1] or found[2])


class Case:
    """`cut`, called with the failed hop, and `restore` change the path; `preferred` and `other` are the hops at TTL `ttl`."""

    def __init__(self, name, source, target, change, preferred, other, ttl=1, planned=False):
        self.name, self.source, self.target = name, source, target
        (self.cut, self.restore), self.preferred, self.other = change, preferred, other
        self.ttl, self.planned = ttl, planned

    def hop(self, lab):
        return hop(lab, self.source, self.target, self.ttl)

    def on_way(self, lab):
        return lambda: self.hop(lab) in self.preferred

    def once(self, lab):
        """Seconds of outage, and pings lost on recovery."""
        until(self.on_way(lab), 30, f"{self.name}: the preferred way")
        here = self.hop(lab)
        pings = Pings(lab, self.source, self.target)
        try:
            until(lambda: pings.answering(1, 50), 10, f"{self.name}: answers")
            before = pings.newest()
            cut = time.monotonic()
            self.cut(lab, here)
            time.sleep(1.5)
            until(lambda: pings.answering(before + 100), 30, f"{self.name}: traffic by another way")
            there = self.hop(lab)
            if there not in self.other - {here}:
                raise RuntimeError(f"{self.name}: expected one of {self.other} instead of {here}, found {there}")
            times = sorted(t for t in pings.answers.values() if t >= cut - 2 * SPACING)
            still = max((b - a for a, b in zip(times, times[1:])), default=float("inf"))
            lost_then = sum(n not in pings.answers for n in range(before - 5, pings.newest()))
            last = pings.newest()
            self.restore(lab)
            until(self.on_way(lab), 40, f"{self.name}: back on the preferred way")
            # A returned instance may take its share of the flows later.
            time.sleep(2.5)
        finally:
            pings.stop()
        lost = sum(n not in pings.answers for n in range(last, pings.newest()))
        return still, lost_then, lost

    def run(self, lab, runs):
        results = [self.once(lab) for _ in range(runs)]
        still, lost_then, lost = zip(*results)
        good = max(still) <= GOAL and not sum(lost) and not (self.planned and sum(lost_then))
        print(f"  {self.name:44} standstill median {1000 * statistics.median(still):4.0f} ms, worst "
              f"{1000 * max(still):4.0f} ms, {sum(lost_then)} lost in {runs} cuts; {sum(lost)} lost on the way back"
              f"{'' if good else '   MISSED'}", flush=True)
        return good


def ended(how, hosts):
    """Ends the gateway that answers at this address by a signal; `hosts` by address."""
    gone = []

    def end(lab, here):
        gone[:] = [hosts[here], lab.end(hosts[here], how)]

    return end, lambda lab: lab.again(*gone)


def event(name):
    return (lambda lab, _: lab.cli("lab", "event", "--lab", lab.name, name)), (
        lambda lab: lab.cli("lab", "event", "--lab", lab.name, "restore"))


def pair(*hosts):
    return (lambda lab, _: lab.cli("lab", "cut", "--lab", lab.name, *hosts)), (
        lambda lab: lab.cli("lab", "restore", "--lab", lab.name, *hosts))


LEFT = {"10.1.255.4": "left-a", "10.1.255.5": "left-b"}
RIGHT = {"10.2.255.4": "right-a", "10.2.255.5": "right-b"}


def gateways():
    """Cases of failover.yaml."""
    cases = [Case("peering link cut, gateways stand in", "left-vm", "10.2.0.4", pair("left-vm", "right-vm"), {"10.2.0.4"},
                  set(LEFT))]
    for how, what in ((signal.SIGKILL, "killed"), (signal.SIGTERM, "stopped")):
        planned = how == signal.SIGTERM
        cases += [
            Case(f"gateway {what}, both active", "left-vm", "10.3.0.4", ended(how, LEFT), set(LEFT), set(LEFT), planned=planned),
            Case(f"gateway {what}, one standing by", "right-vm", "10.3.0.4", ended(how, RIGHT), {"10.2.255.4"},
                 {"10.2.255.5"}, planned=planned),
        ]
    return cases


def circuits():
    """Cases of the published interoperability lab."""
    return [
        Case("circuit cut, VPN stands in", "hub-vm", "10.2.30.10", event("cut"), {"10.10.30.132"}, {"10.10.30.142"}),
        Case("the same from the site", "loc1-vm", "10.10.30.4", event("cut"), {"192.168.30.18"}, {"10.10.30.4"}, ttl=3),
    ]


def failover(lab, cases, runs):
    for case in cases:
        lab.reach(case.source, case.target, 60)
    lab.kill_controller()
    return all([case.run(lab, runs) for case in cases])
