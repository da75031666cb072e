"""Machines as users have them: odd standard streams, few open files, no display."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys

import pytest

from laion_fmri_fetchers import (
    describe,
    fetch_laion_betas,
    fetch_laion_fmri,
    status,
    verify_cache,
)
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
def test_any_stderr_works(kind, server, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    folder = tmp_path / "données"
    data = fetch_laion_fmri("sub-01", "PPA", 1, data_dir=folder, verbose=2)
    assert len(data.images) == 1
    assert fetch_laion_betas("sub-01", "PPA", 1, data_dir=folder).data.shape[1] == 12
    report = verify_cache(data_dir=folder, verbose=2)
    assert set(report["status"]) == {"ok"}


@any_stream
def test_warnings_to_any_stderr_are_no_error(kind, server, data_dir):
    """A process of its own, as pytest records warnings."""
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
    code += "from test_streams import STREAMS, fetch_laion_fmri\n"
    code += f"sys.stderr = STREAMS[{kind!r}]()\n"
    code += "fetch_laion_fmri(['sub-01', 'sub-03'], ['PPA', 'AFP2'], 1, dry_run=True)\n"
    code += "sys.stdout.write('done')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert done.stdout == b"done"


@pytest.mark.parametrize("kind", ["object with write and flush", "none", "ascii"])
def test_any_stdout_works(kind, server, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    describe(data_dir=tmp_path / "données")
    status(data_dir=tmp_path / "données")


@pytest.mark.parametrize("kind", sorted({*STREAMS} - {"broken pipe"}))
def test_command_line_with_any_streams(kind, server, data_dir, monkeypatch):
    command = ["fetch", "--rois", "PPA", "--sessions", "1"]
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[kind]())
    assert main(command) == 0
    assert main(["fetch", "--rois", "PPX"]) == 2
    assert len(list(data_dir.rglob("*Betas_statmap.nii.gz"))) == 1


def test_command_line_without_streams(server, data_dir):
    shell = f"{sys.executable} -m laion_fmri_fetchers status <&- >&- 2>&-"
    assert subprocess.run(shell, shell=True).returncode == 0


def test_messages_never_reach_stdout(server, data_dir, tmp_path):
    """Not where stderr is missing either, nor where a question is asked."""
    with open(tmp_path / "out.json", "w") as out:
        shell = f"{sys.executable} -m laion_fmri_fetchers doctor --json 2>&-"
        subprocess.run(shell, shell=True, stdout=out)
    assert json.loads((tmp_path / "out.json").read_text())


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
