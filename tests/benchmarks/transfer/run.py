"""Compare downloads by this package, bare urllib3, s5cmd, aws and curl.

    python run.py --tools VENV [--repeats N] [--cases NAME ...]

VENV is an environment with requirements.txt of this folder. Every repeat runs all tools
of a case one after the other, so that what else the machine does hits all alike. Times
of this package and of urllib3 are taken in their process, after imports; those of the
others are of their whole process less the shortest time that they take to print their
version.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
MIB = 2**20
N_SMALL = 195
LARGE = 256 * MIB


class Case(NamedTuple):
    """What is fetched, and from what kind of server."""

    title: str
    prefix: str
    server: tuple[str, ...]
    bar: str
    connections: int = 32
    workers: int = 256
    is_tls: bool = False


CASES = {
    "small": Case(
        f"{N_SMALL} files of about 1 kB, 50 ms latency a request; 64 connections, "
        "s5cmd has 256",
        "small/",
        ("--latency", "0.05"),
        "at most 1.2 x urllib3, 1.5 x s5cmd",
        connections=64,
    ),
    "small-default": Case(
        "the same with 32 connections, s5cmd has 256",
        "small/",
        ("--latency", "0.05"),
        "reported",
    ),
    "small-equal": Case(
        "the same with 32 connections each",
        "small/",
        ("--latency", "0.05"),
        "reported",
        workers=32,
    ),
    "capped": Case(
        "one 256 MiB file, 50 ms latency, 25 MB/s a connection",
        "large/0/",
        ("--latency", "0.05", "--rate", "25e6"),
        "at most 0.5 x aws",
    ),
    "uncapped": Case(
        "one 256 MiB file, no latency, no cap", "large/0/", (), "at most 1.3 x curl"
    ),
    "unhashed": Case(
        "the same with an ETag that is not an MD5",
        "large/0/",
        ("--opaque",),
        "at most 1.3 x curl",
    ),
    "single-part": Case(
        "the same with the ETag of a single-part upload (MD5)",
        "large/0/",
        ("--md5",),
        "reported",
    ),
    "four": Case(
        "4 files of 256 MiB, no latency, no cap",
        "large/",
        (),
        "at most 1.2 x curl",
    ),
    "small-tls": Case(
        f"{N_SMALL} files of about 1 kB over TLS, 50 ms latency a request; 64 "
        "connections, s5cmd has 256",
        "small/",
        ("--latency", "0.05"),
        "at most 1.2 x urllib3, 1.5 x s5cmd",
        connections=64,
        is_tls=True,
    ),
    "uncapped-tls": Case(
        "one 256 MiB file over TLS, no latency, no cap",
        "large/0/",
        (),
        "at most 1.6 x curl",
        is_tls=True,
    ),
    "unhashed-tls": Case(
        "the same with an ETag that is not an MD5",
        "large/0/",
        ("--opaque",),
        "at most 1.3 x curl",
        is_tls=True,
    ),
}

CA_VARIABLES = (
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "AWS_CA_BUNDLE",
)

NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 2048; }}
http {{
  access_log off; {places}
  upstream behind {{ server 127.0.0.1:{port}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{tls_port} ssl backlog=1024;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    keepalive_requests 100000;
    location / {{
      proxy_pass http://behind;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_max_temp_file_size 0;
      proxy_buffers 16 64k;
      proxy_busy_buffers_size 128k;
    }}
  }}
}}
"""

ENVIRONMENT = {
    **{n: v for n, v in os.environ.items() if not n.lower().endswith("_proxy")},
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-west-2",
}


def make_files(folder: Path) -> None:
    """Write what the servers offer."""
    chance = random.Random(0)
    (folder / "small").mkdir()
    for i in range(N_SMALL):
        data = chance.randbytes(1000 + i % 50)
        (folder / "small" / f"f{i:03}.tsv").write_bytes(data)
    for i in range(4):
        path = folder / "large" / str(i) / f"f{i}.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(chance.randbytes(MIB) for _ in range(LARGE // MIB)))


@contextlib.contextmanager
def serve(folder: Path, options: tuple[str, ...], is_tls: bool) -> Iterator[str]:
    command = [sys.executable, str(HERE / "server.py"), str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip()
            if is_tls:
                with tls_front(port) as url:
                    yield url
            else:
                yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.contextmanager
def tls_front(port: str) -> Iterator[str]:
    """Run nginx before a server, with an authority that all tools are told of."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        names = ["-subj", "/CN=benchmark", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", f"{folder}/server.key", "-out", f"{folder}/server.pem"]
        subprocess.run([*key, *names, *files], check=True, capture_output=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            tls_port = listener.getsockname()[1]
        places = " ".join(
            f"{name}_temp_path {folder}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf = Path(folder, "nginx.conf")
        conf.write_text(
            NGINX.format(folder=folder, places=places, port=port, tls_port=tls_port)
        )
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        command = [nginx, "-p", folder, "-c", str(conf), "-e", "stderr"]
        process = stack.enter_context(subprocess.Popen(command))
        stack.callback(process.terminate)
        for name in CA_VARIABLES:
            ENVIRONMENT[name] = f"{folder}/server.pem"
            stack.callback(ENVIRONMENT.pop, name)
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", tls_port)).close()
                break
            time.sleep(0.02)
        yield f"https://127.0.0.1:{tls_port}"


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def tools(venv: Path, workers: int) -> dict[str, Callable[[str, str, Path], list[str]]]:
    """Return commands that fetch a prefix of a server into a folder."""
    s5cmd, aws = str(venv / "bin" / "s5cmd"), str(venv / "bin" / "aws")

    def s5cmd_command(url: str, prefix: str, folder: Path) -> list[str]:
        flags = ["--numworkers", str(workers), "--no-sign-request"]
        flags += ["--endpoint-url", url]
        return [s5cmd, *flags, "cp", f"s3://bucket/{prefix}*", f"{folder}/"]

    def aws_command(url: str, prefix: str, folder: Path) -> list[str]:
        flags = ["--no-sign-request", "--endpoint-url", url, "s3", "cp"]
        quiet = ["--only-show-errors", "--recursive"]
        return [aws, *flags, *quiet, f"s3://bucket/{prefix}", str(folder)]

    def curl_command(url: str, prefix: str, folder: Path) -> list[str]:
        base = f"{url}/bucket/{prefix}"
        if prefix == "small/":
            flags = ["-sfZ", "--parallel-max", "32", "--parallel-immediate"]
            names = f"{base}f[000-{N_SMALL - 1}].tsv"
            return ["curl", *flags, "-o", f"{folder}/f#1", names]
        if prefix == "large/":
            names = [f"{base}{i}/f{i}.bin" for i in range(4)]
            outputs = [part for i in range(4) for part in ("-o", f"{folder}/{i}")]
            return ["curl", "-sfZ", *outputs, *names]
        return ["curl", "-sf", "-o", f"{folder}/f", f"{base}f0.bin"]

    return {"s5cmd": s5cmd_command, "aws s3 cp": aws_command, "curl": curl_command}


def version_time(command: list[str], repeats: int) -> float:
    version = [command[0], "version" if "s5cmd" in command[0] else "--version"]
    return min(timed(version) for _ in range(repeats))


def run_script(
    script: str, url: str, prefix: str, folder: Path, connections: int
) -> dict[str, float]:
    command = [sys.executable, str(HERE / script), f"{url}/bucket", prefix]
    command += [str(folder), "--connections", str(connections)]
    paths = [str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout)


def measure(case: Case, files: Path, work: Path, args: argparse.Namespace) -> None:
    """Run a case and print its table."""
    times: dict[str, list[float]] = {"ours": [], "urllib3": []}
    memory, alone = [], []
    commands = tools(args.tools, case.workers)
    with serve(files, case.server, case.is_tls) as url:
        startup = {
            name: version_time(command(url, case.prefix, work), args.repeats)
            for name, command in commands.items()
        }
        for i in range(args.repeats):
            if not case.server and not case.is_tls:
                target = f"{url}/bucket/large/0/f0.bin"
                alone.append(timed(["curl", "-sf", "-o", os.devnull, target]))
            for name in ("ours", "urllib3", *commands):
                folder = work / f"{name.split()[0]}-{i}"
                folder.mkdir()
                if name in ("ours", "urllib3"):
                    script = "ours.py" if name == "ours" else "bare.py"
                    result = run_script(
                        script, url, case.prefix, folder, case.connections
                    )
                    times[name].append(result["seconds"])
                    memory.append(result.get("memory", 0))
                else:
                    command = commands[name](url, case.prefix, folder)
                    seconds = timed(command) - startup[name]
                    times.setdefault(name, []).append(seconds)
                got = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                want = sum(
                    p.stat().st_size
                    for p in (files / case.prefix).rglob("*")
                    if p.is_file()
                )
                if got != want:
                    raise SystemExit(f"{name} fetched {got} bytes instead of {want}")
                for path in folder.rglob("*.bin" if name != "curl" else "*"):
                    if case.prefix != "small/":
                        path.unlink()
    print(f"\n{case.title} (bar: {case.bar})\n")
    ours = statistics.median(times["ours"])
    for name, seconds in times.items():
        median, best = statistics.median(seconds), min(seconds)
        print(
            f"  {name:10} median {median:7.3f} s   best {best:7.3f} s   "
            f"ours is {ours / median:5.2f} x (best {min(times['ours']) / best:5.2f} x)"
        )
    print(f"  memory of ours: {max(memory) / 1e6:.0f} MB above import")
    if alone:
        print(f"  server alone (curl to nowhere): {LARGE / min(alone) / 1e9:.2f} GB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, help="where to work")
    args = parser.parse_args()
    for command in (["s5cmd", "version"], ["aws", "--version"]):
        path = str(args.tools / "bin" / command[0])
        shown = subprocess.run([path, *command[1:]], capture_output=True, text=True)
        print(command[0], shown.stdout.strip())
    shown = subprocess.run(["curl", "--version"], capture_output=True, text=True)
    print(shown.stdout.splitlines()[0])
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    base = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        files = base / "files"
        files.mkdir()
        make_files(files)
        for name in args.cases:
            work = base / name
            work.mkdir()
            measure(CASES[name], files, work, args)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
