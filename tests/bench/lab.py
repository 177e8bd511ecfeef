"""A lab for the benchmarks, which `tombolo lab` brings up and takes down. Its hosts are network namespaces."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

GROUP = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/lab"
NETWORK = GROUP + "/providers/Microsoft.Network"


def run(*command, check=True, timeout=60, **options):
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Lab:
    """A lab by the path or name of its topology; use as a context manager."""

    def __init__(self, binaries, topology, name):
        self.tombolo = os.path.join(binaries, "tombolo")
        self.topology, self.name = topology, name
        self.started = []  # only these are ever signalled
        self.pids = {}  # of hosts whose program was started again
        self.environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}:/usr/sbin:/sbin"}

    def __enter__(self):
        run(self.tombolo, "lab", "up", "--replace", self.topology, timeout=120, env=self.environment)
        return self

    def __exit__(self, *_):
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            if process.poll() is None:
                process.kill()
                process.wait()
        run(self.tombolo, "lab", "down", self.name, timeout=120, env=self.environment, check=False)

    @property
    def folder(self):
        return f"/run/tombolo-lab/{self.name}"

    def wrap(self, host, *command):
        return ["ip", "netns", "exec", f"tb-{self.name}-{host}", *command]

    def on(self, host, *command, **options):
        return run(*self.wrap(host, *command), **options)

    def start(self, host, *command, **options):
        options.setdefault("stdout", subprocess.DEVNULL)
        process = subprocess.Popen(
            self.wrap(host, "setpriv", "--pdeathsig", "KILL", *command), stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, text=True, **options
        )
        self.started.append(process)
        return process

    def worker(self, script, *arguments, **options):
        """Starts a script of this folder on the controller's host, with the controller's address and files."""
        here = os.path.dirname(os.path.abspath(__file__))
        return self.start("controller", sys.executable, os.path.join(here, script), *self.access(), *arguments, **options)

    def state(self):
        with open(f"{self.folder}/lab.json") as file:
            return json.load(file)

    def access(self):
        """Base URL, CA file and token file."""
        controller = self.state()["topology"]["underlay"]["controller"]
        data = next(
            folder for folder, _, files in os.walk(self.folder) if "admin.token" in files and "ca.pem" in files
        )
        return f"https://{controller['address']}:{controller['port']}", f"{data}/ca.pem", f"{data}/admin.token"

    def address(self, host):
        """The host's first IPv4 address in the overlay."""
        return next(a for a in self.state()["addresses"][host] if "." in a)

    def reach(self, host, address, seconds=30):
        """Waits until a ping is answered."""
        end = time.time() + seconds
        while run(*self.wrap(host, "ping", "-n", "-c", "1", "-W", "1", address), check=False).count(" 0% packet") == 0:
            if time.time() > end:
                raise RuntimeError(f"{host} does not reach {address}")

    def cli(self, *arguments):
        return run(self.tombolo, *arguments, env=self.environment)

    def end(self, host, how=signal.SIGKILL):
        """Ends the host's agent, or the controller, by a signal. Returns the arguments that start it again."""
        pid = self.pids.get(host) or self.state()["processes"][host]["pid"]
        with open(f"/proc/{pid}/cmdline") as file:
            command = file.read().rstrip("\0").split("\0")
        os.kill(pid, how)
        return command

    def again(self, host, command):
        """Starts an ended process again."""
        process = self.start(host, *command)
        self.pids[host] = process.pid
        return process

    def kill_controller(self):
        """Sends SIGKILL. Returns the arguments that start it again."""
        command = self.end("controller")
        return lambda: self.again("controller", command)
