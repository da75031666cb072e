"""Acceptance of the CC0 terms: at a terminal, in a batch job, in a notebook."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

from laion_fmri_fetchers import accept_license
from laion_fmri_fetchers.access import license_text
from laion_fmri_fetchers.exceptions import LicenseNotAcceptedError

MARKER = ".laion_fmri/license_accepted"


def accept_in_a_process(folder, answer=None):
    """Type an answer at a real terminal; None: there is no terminal."""
    leader, follower = pty.openpty()
    code = "from laion_fmri_fetchers import accept_license; "
    code += f"accept_license({str(folder)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE if answer is None else follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(follower)
    os.write(leader, (answer or "").replace("|", "\n").encode() + b"\n")
    out, err = process.communicate(timeout=240)
    os.close(leader)
    assert out == "", "a redirected stdout holds results alone"
    return process.returncode, err


@pytest.mark.parametrize("answer", ["I AGREE", "yes|i agree", '"I AGREE"'])
def test_accepted_at_a_terminal(tmp_path, answer):
    """The mark is that of the dataset's own package."""
    code, err = accept_in_a_process(tmp_path, answer)
    assert code == 0
    assert license_text().strip() in err
    assert (tmp_path / MARKER).read_bytes() == b""
    accept_license(tmp_path)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        *((answer, "declined") for answer in ("", "no", "I DISAGREE|yes|yes")),
        pytest.param("\x04", "declined", id="end of input"),
        pytest.param(None, "LAION_FMRI_LICENSE", id="no terminal"),
    ],
)
def test_not_accepted(tmp_path, answer, said):
    code, err = accept_in_a_process(tmp_path, answer)
    assert code != 0
    assert "LicenseNotAcceptedError" in err
    assert said in err
    assert "EOFError" not in err
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("value", ["", "yes", "I DISAGREE", "1"])
def test_another_value_of_the_variable_is_refused_and_shown(
    tmp_path, monkeypatch, value
):
    monkeypatch.setenv("LAION_FMRI_LICENSE", value)
    with pytest.raises(LicenseNotAcceptedError) as error:
        accept_license(tmp_path)
    assert isinstance(error.value, PermissionError)
    assert not value or f"which is {value!r}" in f"{error.value}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["I AGREE", '"I AGREE"', "'I AGREE'", " i agree\r"])
def test_variable_accepts_for_good(tmp_path, monkeypatch, value):
    monkeypatch.setenv("LAION_FMRI_LICENSE", value)
    accept_license(tmp_path)
    monkeypatch.delenv("LAION_FMRI_LICENSE")
    accept_license(tmp_path)


def test_notebook(tmp_path, monkeypatch):
    kernel = SimpleNamespace(_allow_stdin=False)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr("builtins.input", lambda prompt: "I AGREE")
    with pytest.raises(LicenseNotAcceptedError):
        accept_license(tmp_path)
    kernel._allow_stdin = True
    accept_license(tmp_path)
    assert (tmp_path / MARKER).exists()
