#!/usr/bin/env python3
"""Makes the disk image, kernel and keys from which `tombolo lab up --runtime vm` starts its virtual machines.

    image.py --programs DIR --work DIR [--out DIR]

The machines have the same release of Debian as this host, from this host's package mirrors, with Debian's kernel for clouds. The
kernel is unpacked inside the root, so nothing is installed on the host. The root stays in the work directory for the next run.
tests/vm/run uses the functions of this file too.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNEL = "linux-image-cloud-amd64"
# Packages that each machine needs for its boot and its network, and packages with programs for diagnosis.
BASE = [
    KERNEL,
    "bird2",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "nftables",
    "procps",
    "systemd",
    "systemd-sysv",
    "zstd",
]
# Further packages with programs that the lab calls on its machines.
LAB = ["openssh-server", "tcpdump", "traceroute"]
PROGRAMS = ["tombolo", "tombolo-agent"]
# Folders with documentation and translations. They are left out, because the machines do not need them.
LEAN = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ["doc", "man", "locale"]]


def fail(message):
    sys.exit(f"vm image: {message}")


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def codename():
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.split("=", 1)[1].strip('"')
    fail("/etc/os-release: VERSION_CODENAME is missing: run this on Debian")


def sources(release):
    """Returns the package mirrors of the release that this host uses, as lines for sources.list."""
    lines = output("apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages")
    found = []
    for line in lines.splitlines():
        uri, name, component = line.split("|")
        if name == release or name.startswith(release + "-"):
            found.append(f"deb {uri} {name} {component}\n")
    if not found:
        fail(f"this host has no package mirror of {release}: run 'apt-get update' first")
    return "".join(found)


def apt_options():
    """Returns this host's options of apt for its mirrors, such as proxies, as lines for apt.conf."""
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries")
    return "".join(f"{line}\n" for line in output("apt-config", "dump").splitlines() if line.startswith(wanted))


def make_root(work, packages, options=()):
    """Makes a Debian root in the work directory, unless an earlier run made one with the same packages. Returns its path."""
    release, root, stamp = codename(), work / "root", work / "root.stamp"
    key = hashlib.sha256(" ".join([release, *packages, *options]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == key:
        return root
    print(f"==> making a root of {release}", flush=True)
    stamp.unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    mirrors, apt = work / "sources.list", work / "apt.conf"
    mirrors.write_text(sources(release))
    apt.write_text(apt_options())
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--aptopt={apt}", *options]
    command += [f"--include={','.join(packages)}", release, str(root), str(mirrors)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(work)})
    stamp.write_text(key)
    return root


def newest(root, pattern):
    found = sorted((root / "boot").glob(pattern))
    if not found:
        fail(f"{root}/boot: no {pattern}: remove {root.parent} and run this again")
    return found[-1]


def make_image(root, image, spare=384):
    """Makes a disk image with the root's files and about `spare` mebibytes of free space. Replaces an earlier one."""
    used = sum(f.lstat().st_blocks * 512 for f in root.rglob("*"))
    megabytes = used // (1 << 20) + spare
    image.unlink(missing_ok=True)
    command = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(root), str(image), f"{megabytes}M"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_keys(work):
    """Generates the operator's key and the machines' host key, unless an earlier run has. Only labs of this host use them."""
    for name in ["key", "host_key"]:
        if not (work / name).is_file():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tombolo-lab", "-f", str(work / name)]
            subprocess.run(command, check=True)
    (work / "known_hosts").write_text("tombolo-lab " + (work / "host_key.pub").read_text())


def put(source, target, mode):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def furnish(root, programs, keys):
    """Installs the product's programs without debug information, and the lab's access by SSH."""
    for program in PROGRAMS:
        if not (programs / program).is_file():
            fail(f"{programs / program}: no such program: run 'make build' first, or name its directory with --programs")
        subprocess.run(["strip", "-o", str(root / "usr/bin" / program), str(programs / program)], check=True)
    put(HERE / "guest/run", root / "usr/lib/tombolo-lab/run", 0o755)
    put(HERE / "guest/init", root / "usr/lib/tombolo-lab/init", 0o755)
    put(HERE / "guest/sshd.conf", root / "etc/ssh/sshd_config.d/lab.conf", 0o644)
    put(keys / "host_key", root / "etc/ssh/lab_host_key", 0o600)
    put(keys / "key.pub", root / "root/.ssh/authorized_keys", 0o600)
    (root / "root/.ssh").chmod(0o700)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        fail("the root needs files of several users: run this as root")
    if os.uname().machine != "x86_64":
        fail(f"this makes machines with an x86_64 processor, and the programs are {os.uname().machine}'s")
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o700)
    root = make_root(work, BASE + LAB, LEAN)
    make_keys(work)
    furnish(root, arguments.programs, work)
    put(newest(root, "vmlinuz-*"), work / "kernel", 0o644)
    put(newest(root, "initrd.img-*"), work / "initrd", 0o644)
    make_image(root, work / "root.img")
    print(f"==> {work} has the image of the lab's virtual machines")


if __name__ == "__main__":
    main()
