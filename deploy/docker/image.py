#!/usr/bin/env python3
"""Builds the container image of deploy/docker/Dockerfile and writes it as an archive.

The archive is an OCI layout that also has the manifest.json of `docker save`, so docker load, podman load and ctr import can read it.
If a docker engine runs, it builds the image from the base image that the Dockerfile names. If the engine lacks this base, the base is
made from Debian's packages. Without an engine, this program makes the layers from the same packages and the same Dockerfile.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = ("tombolo", "tombolo-agent", "tombolo-controller")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Files that a container does not need. Licences are kept.
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")


class Failure(Exception):
    """The image cannot be built. The text has the reason and the remedy."""


def say(text):
    print(f"==> {text}", flush=True)


def run(*command, **options):
    done = subprocess.run(command, check=False, **options)
    if done.returncode:
        raise Failure(f"'{shlex.join(map(str, command))}' failed with exit code {done.returncode}")
    return done


# ---- the Dockerfile ----


def instructions(text):
    """Yields each instruction of a Dockerfile as its name in capitals and its argument, with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    for line in joined.splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(int(number) * {"ms": 1e6, "s": 1e9, "m": 60e9}[unit])


def command(text):
    """Returns a command as a list of words. A command that is not in JSON form is run by the shell."""
    return json.loads(text) if text.startswith("[") else ["/bin/sh", "-c", text]


class Dockerfile:
    """A parsed Dockerfile. Only the instructions that our Dockerfile uses are known; all others are refused."""

    def __init__(self, text, base=None):
        self.arguments, self.steps, self.copies = {}, [], []
        self.config = {"Env": [f"PATH={PATH}"]}
        self.base = None
        for name, rest in instructions(text):
            handler = getattr(self, f"read_{name.lower()}", None)
            if handler is None:
                raise Failure(f"Dockerfile: {name} is not understood here: use ARG, FROM, RUN, COPY, ENV, HEALTHCHECK, USER or CMD")
            handler(rest)
            if base and name == "ARG" and "BASE" in self.arguments and self.base is None:
                self.arguments["BASE"] = base

    def read_arg(self, rest):
        name, _, value = rest.partition("=")
        self.arguments[name] = "".join(shlex.split(value))

    def read_from(self, rest):
        self.base = re.sub(r"\$\{(\w+)\}", lambda m: self.arguments[m[1]], rest)

    def read_run(self, rest):
        self.steps.append(rest)

    def read_copy(self, rest):
        *sources, target = rest.split()
        self.copies.append((sources, target))

    def read_env(self, rest):
        self.config["Env"] += shlex.split(rest)

    def read_user(self, rest):
        self.config["User"] = rest

    def read_cmd(self, rest):
        self.config["Cmd"] = command(rest)

    def read_healthcheck(self, rest):
        options, _, check = rest.partition(" CMD ")
        given = dict(option.removeprefix("--").split("=") for option in options.split())
        self.config["Healthcheck"] = {
            "Test": ["CMD", *json.loads(check)] if check.startswith("[") else ["CMD-SHELL", check.strip()],
            "Interval": seconds(given["interval"]),
            "Timeout": seconds(given["timeout"]),
            "StartPeriod": seconds(given["start-period"]),
            "Retries": int(given["retries"]),
        }


# ---- the base, from packages ----


def mirrors(codename):
    """Returns the package mirrors of the release that this host uses, as lines for sources.list."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"],
        check=True, capture_output=True, text=True).stdout
    lines = []
    for line in listed.splitlines():
        uri, release, component = line.split("|")
        if release == codename or release.startswith(f"{codename}-"):
            lines.append(f"deb {uri} {release} {component}")
    if not lines:
        raise Failure(f"this host has no package mirror of {codename}: run 'apt-get update', or name a base image that the engine has: BASE=NAME")
    return sorted(set(lines))


def apt_options():
    """Returns this host's options of apt for its mirrors, such as proxies, as lines for apt.conf."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries")
    return "".join(f"{line}\n" for line in dump.splitlines() if line.startswith(wanted))


def release():
    """Returns the host's distribution and release. The programs were built on it, so the image must have the same."""
    text = Path("/etc/os-release").read_text()
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return fields["ID"].strip('"'), fields.get("VERSION_CODENAME", "").strip('"')


def make_base(dockerfile, work, epoch):
    """Makes a tar file of a root tree with the Dockerfile's packages, in which its RUN instructions were run. Returns its path."""
    if not shutil.which("mmdebstrap"):
        raise Failure("mmdebstrap is missing (package mmdebstrap): install it, or name a base image that the engine has: BASE=NAME")
    distribution, codename = release()
    packages = dockerfile.arguments["PACKAGES"].split()
    steps = [step.split() for step in dockerfile.steps]
    key = hashlib.sha256(json.dumps([codename, packages, steps, EXCLUDED]).encode()).hexdigest()[:12]
    tar = work / f"base-{codename}-{key}.tar"
    if tar.exists():
        say(f"the root of {distribution} {codename} is here already: {tar} (delete it to have newer packages)")
        return tar
    say(f"making a root of {distribution} {codename} with {' '.join(packages)}")
    sources, options, new = work / "sources.list", work / "apt.conf", work / "new-base.tar"
    sources.write_text("\n".join(mirrors(codename)) + "\n")
    options.write_text(apt_options())
    environment = dict(os.environ, SOURCE_DATE_EPOCH=str(epoch), TMPDIR=str(work))
    hooks = []
    for number, step in enumerate(dockerfile.steps):
        environment[f"RUN_{number}"] = step
        hooks.append(f'--customize-hook=env -i PATH={PATH} chroot "$1" /bin/sh -c "$RUN_{number}"')
    excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    excluded.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
    run("mmdebstrap", "--quiet", "--variant=essential", f"--aptopt={options}", *excluded, f"--include={','.join(packages)}",
        *hooks, codename, new, sources, env=environment)
    new.rename(tar)
    return tar


# ---- layers and the archive ----


def programs_layer(dockerfile, context, epoch):
    """Returns the bytes of a tar file with the files that COPY adds. They depend only on the programs and `epoch`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for sources, target in dockerfile.copies:
            for source in sorted(sources):
                content = (context / source).read_bytes()
                entry = tarfile.TarInfo(f"{target.strip('/')}/{source}")
                entry.size, entry.mode, entry.mtime = len(content), 0o755, epoch
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def digest(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Archive:
    """An OCI layout in a tar file, with the manifest.json of `docker save`, which `docker load` reads."""

    def __init__(self, path, epoch):
        self.path, self.epoch, self.blobs = path, epoch, {}

    def blob(self, content, media):
        name = digest(content)
        self.blobs[f"blobs/{name.replace(':', '/')}"] = content
        return {"mediaType": media, "digest": name, "size": len(content)}

    def layer(self, tar):
        packed = tar if tar[:2] == b"\x1f\x8b" else gzip.compress(tar, compresslevel=6, mtime=0)
        return self.blob(packed, "application/vnd.oci.image.layer.v1.tar+gzip")

    def write(self, config, layers, name):
        """Writes the archive. `config` is bytes, because its digest is the image's id in every engine."""
        repository, _, tag = name.partition(":")
        tag = tag or "latest"
        layers = [self.layer(layer) for layer in layers]
        described = self.blob(config, "application/vnd.oci.image.config.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": described, "layers": layers}
        listed = self.blob(json.dumps(manifest).encode(), manifest["mediaType"])
        parts = json.loads(config)
        listed["platform"] = {"architecture": parts["architecture"], "os": parts["os"]}
        listed["annotations"] = {
            "org.opencontainers.image.ref.name": tag,
            "io.containerd.image.name": f"docker.io/library/{repository}:{tag}",
        }
        place = lambda blob: f"blobs/{blob['digest'].replace(':', '/')}"
        files = {
            "oci-layout": json.dumps({"imageLayoutVersion": "1.0.0"}).encode(),
            "index.json": json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode(),
            "manifest.json": json.dumps([{
                "Config": place(described), "RepoTags": [f"{repository}:{tag}"], "Layers": [place(layer) for layer in layers],
            }]).encode(),
            **self.blobs,
        }
        new = self.path.with_name(f"{self.path.name}.new")
        with tarfile.open(new, "w", format=tarfile.GNU_FORMAT) as tar:
            for file in sorted(files):
                entry = tarfile.TarInfo(file)
                entry.size, entry.mode, entry.mtime = len(files[file]), 0o644, self.epoch
                tar.addfile(entry, io.BytesIO(files[file]))
        new.rename(self.path)
        return described["digest"]


def time_text(epoch):
    from datetime import datetime, timezone
    return datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def build_by_hand(dockerfile, context, base, out, name, epoch):
    layers = [base.read_bytes(), programs_layer(dockerfile, context, epoch)]
    config = {
        "created": time_text(epoch),
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": dockerfile.config,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        "history": [
            {"created": time_text(epoch), "created_by": "packages of deploy/docker/Dockerfile"},
            {"created": time_text(epoch), "created_by": "COPY " + " ".join(PROGRAMS)},
        ],
    }
    return Archive(out, epoch).write(json.dumps(config).encode(), layers, name)


# ---- the engine ----


def engine_answers():
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "version"], check=False, capture_output=True).returncode == 0


def has_image(name):
    return subprocess.run(["docker", "image", "inspect", name], check=False, capture_output=True).returncode == 0


def build_with_engine(dockerfile, context, work, out, name, epoch, given_base):
    if given_base is None and not has_image(dockerfile.base):
        base = make_base(dockerfile, work, epoch)
        say(f"importing it as {dockerfile.base}")
        run("docker", "import", base, dockerfile.base, stdout=subprocess.DEVNULL)
    say(f"docker build, from {dockerfile.base}")
    run("docker", "build", "--quiet", "--file", HERE / "Dockerfile", "--build-arg", f"BASE={dockerfile.base}", "--tag", name, context,
        stdout=subprocess.DEVNULL)
    for program in PROGRAMS:
        run("docker", "run", "--rm", "--network=none", name, program, "--version")
    say("docker save")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        saved = Path(folder) / "saved.tar"
        run("docker", "save", "--output", saved, name)
        with tarfile.open(saved) as tar:
            read = lambda file: tar.extractfile(file).read()
            [image] = json.loads(read("manifest.json"))
            layers = [read(layer) for layer in image["Layers"]]
            return Archive(out, epoch).write(read(image["Config"]), layers, name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=Path, required=True, help="folder with the three programs")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made on the way")
    parser.add_argument("--out", type=Path, help="the archive (default: WORK/tombolo.tar)")
    parser.add_argument("--name", default="tombolo:latest", help="name and tag of the image")
    parser.add_argument("--base", help="base image that the engine has, instead of one made from packages")
    parser.add_argument("--engine", choices=("auto", "docker", "none"), default="auto")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    work = given.work.resolve()
    out = (given.out or work / "tombolo.tar").resolve()
    # The image has the time of the last commit, so that two builds of one commit are equal.
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or subprocess.run(
        ["git", "-c", f"safe.directory={HERE.parents[1]}", "-C", HERE, "log", "-1", "--format=%ct"],
        check=True, capture_output=True, text=True).stdout)
    dockerfile = Dockerfile((HERE / "Dockerfile").read_text(), given.base)
    # The build context is a folder with only the three programs, so that the engine does not read the whole source
    # tree.
    context = work / "context"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir()
    for program in PROGRAMS:
        if not (given.programs / program).is_file():
            raise Failure(f"{given.programs / program} is missing: run 'make image', or 'cargo build --release --workspace --bins' first")
        shutil.copy(given.programs / program, context / program)
        (context / program).chmod(0o755)
    engine = engine_answers() if given.engine == "auto" else given.engine == "docker"
    if engine:
        image = build_with_engine(dockerfile, context, work, out, given.name, epoch, given.base)
        say(f"the engine has {given.name}")
    else:
        if given.base:
            raise Failure(f"base {given.base}: no docker engine answers that could have it; without --base one is made from packages")
        if given.engine == "auto":
            say("no docker engine answers here; none is installed for you, and the archive does not need one")
        base = make_base(dockerfile, work, epoch)
        say("packing")
        image = build_by_hand(dockerfile, context, base, out, given.name, epoch)
    say(f"{out}: {out.stat().st_size / 1e6:.0f} MB, image {image.removeprefix('sha256:')[:12]}")
    say(f"elsewhere: docker load -i {out.name}, podman load -i {out.name}, or ctr images import {out.name}")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {failure}")
