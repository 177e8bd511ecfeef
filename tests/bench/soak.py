"""Pings every 10 ms during a rekey, while the hub's other peerings are created and deleted, and the controller is killed and
restarted."""

import re
import subprocess
import time

PAIRS = [
    ("spoke-a-vm", "hub-vm", "across a peering"),
    ("spoke-a-vm", "spoke-b-vm", "through the hub's appliance"),
    ("spoke-a-vm", "branch-vm", "through the hub's VPN gateway"),
    ("hub-vm", "hub-fw", "inside the hub"),
]


def soak(lab, seconds, background):
    pings = {}
    for source, target, what in PAIRS:
        lab.reach(source, lab.address(target))
    load = []
    if background:
        lab.start("hub-vm", "iperf3", "-s")
        time.sleep(0.5)
        # A tenth of the link's capacity: background load that does not fill queues by itself.
        load.append(lab.start("spoke-a-vm", "iperf3", "-c", lab.address("hub-vm"), "-t", str(seconds + 5), "-b", "50M"))
    for source, target, what in PAIRS:
        command = ["ping", "-n", "-q", "-i", "0.01", "-c", str(seconds * 100), "-W", "2", lab.address(target)]
        pings[what] = lab.start(source, *command, stdout=subprocess.PIPE)
    churn = lab.worker("churn.py", stdout=subprocess.PIPE)
    begin = time.time()
    time.sleep(seconds / 3)
    again = lab.kill_controller()
    time.sleep(seconds / 10)
    again()
    lost_total = 0
    for what, ping in pings.items():
        out, _ = ping.communicate(timeout=seconds * 2 + 60)
        sent, got = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", out).groups())
        times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)", out)
        lost_total += sent - got
        print(f"  {what:32} {sent} sent, {sent - got} lost, rtt min/avg/max {'/'.join(times.groups()) if times else '-'} ms")
    # If the load has ended, the pings were not under load.
    churning = churn.poll() is None
    churn.terminate()
    said = churn.communicate()[0].splitlines()
    cycles = said.count("cycle")
    if not churning:
        print(f"  churn.py ended by itself: {said[-3:]}")
    kind = "with background traffic" if background else "idle"
    print(f"zero-loss pings, {kind}: {time.time() - begin:.0f} s at 10 ms, {lost_total} lost in all; meanwhile {cycles} times "
          "two halves of another peering of the hub made and deleted, controller killed once and back")
    return lost_total == 0 and cycles > 0 and churning
