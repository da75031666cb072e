"""Machines as users have them: odd standard streams, few open files, no display."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys

import pytest

from laion_fmri_fetchers import fetch_laion_betas, fetch_laion_fmri, verify_cache
from laion_fmri_fetchers.cli.main import main


class Writer:
    """What GUIs and loggers put in the place of a stream."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


class BrokenPipe(Writer):
    def flush(self):
        raise BrokenPipeError


STREAMS = {
    "object with write and flush": Writer,
    "none": lambda: None,
    "closed": closed,
    "broken pipe": BrokenPipe,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), "ascii"),
}
any_stream = pytest.mark.parametrize("kind", STREAMS)


@any_stream
def test_any_streams_work(kind, server, data_dir, tmp_path, monkeypatch):
    """In a call, and on the command line, which says if nobody reads what it prints."""
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    folder = tmp_path / "données"
    assert fetch_laion_fmri("sub-01", "PPA", 1, data_dir=folder, verbose=2).images
    assert set(verify_cache(data_dir=folder, verbose=2)["status"]) == {"ok"}
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    is_broken = kind == "broken pipe"
    assert main(["fetch", "--rois", "PPA", "--sessions", "1"]) == int(is_broken)
    assert len(list(data_dir.rglob("*Betas_statmap.nii.gz"))) == 1
    assert main(["fetch", "--rois", "PPX"]) == 2
    assert main(["describe"]) == main(["status"]) == int(is_broken)


def test_warnings_to_any_stderr_are_no_error(server, data_dir):
    """A process of its own, as pytest records warnings."""
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    code += "from test_streams import STREAMS, fetch_laion_fmri\n"
    code += "for kind in STREAMS:\n"
    code += "    sys.stderr = STREAMS[kind]()\n"
    code += "    fetch_laion_fmri([1, 3], ['PPA', 'AFP2'], 1, dry_run=True)\n"
    code += "sys.stdout.write('done')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert done.stdout == b"done"


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ("status <&- >&- 2>&-", b""),
        ("get-rois | head -n 1", b"AFP1\n"),
        ("fetch-splits --names ood --json 2>&-", None),
    ],
    ids=["no streams", "closed pipe", "json without stderr"],
)
def test_a_shell_that_closes_streams(server, data_dir, words, out):
    """Not even where stderr is missing do messages go to stdout."""
    shell = f"{sys.executable} -m laion_fmri_fetchers {words}"
    done = subprocess.run(shell, shell=True, capture_output=True, check=True)
    assert done.stderr == b""
    assert json.loads(done.stdout) if out is None else done.stdout == out


@pytest.mark.parametrize(
    "words", [("initialize", "{}/\u30c7\u30fc"), ("fetch", "--where", "label=\u03b1")]
)
def test_characters_that_a_terminal_lacks_are_escaped(
    server, data_dir, tmp_path, words
):
    settings = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    words = [word.replace("{}", str(tmp_path)) for word in words]
    command = [sys.executable, "-m", "laion_fmri_fetchers", *words]
    done = subprocess.run(command, env=settings, capture_output=True, check=True)
    assert b"\\u" in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr


@pytest.fixture
def few_open_files():
    """Leave room for 40 more open files, as some clusters and macOS do."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/dev/fd"))) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_few_open_files_are_enough(server, data_dir, few_open_files):
    assert fetch_laion_fmri("all", "all", [1, 2], verbose=0).failed == []
    betas = fetch_laion_betas("sub-01", "all", [3, 4], source="model", verbose=0)
    assert len(betas.data)


def test_report_needs_no_display(cached, tmp_path):
    """A process of its own, in which no backend was chosen yet."""
    code = "import laion_fmri_fetchers as p\n"
    code += "data = p.fetch_laion_fmri(1, 'face', mode='offline', verbose=0)\n"
    code += f"p.make_report(data).save_as_html({str(tmp_path / 'report.html')!r})\n"
    environment = {**os.environ, "MPLBACKEND": "TkAgg", "DISPLAY": ""}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert "<img" in (tmp_path / "report.html").read_text()
