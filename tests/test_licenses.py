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

CODE = "from laion_fmri_fetchers import accept_license; accept_license({!r})"


def at_a_terminal(code, answer):
    """Run code with a real terminal as stdin, and type an answer."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(follower)
    os.write(leader, b"".join(line.encode() + b"\n" for line in answer.split("|")))
    out, err = process.communicate(timeout=240)
    os.close(leader)
    return process.returncode, out, err


@pytest.mark.parametrize("answer", ["I AGREE", "i agree", '"I AGREE"', "yes|I AGREE"])
def test_accepted_at_a_terminal(tmp_path, answer):
    code, out, err = at_a_terminal(CODE.format(str(tmp_path)), answer)
    assert code == 0
    assert license_text().strip() in err
    assert out == "", "a redirected stdout holds results alone"
    marker = tmp_path / ".laion_fmri" / "license_accepted"
    assert marker.read_bytes() == b""
    accept_license(tmp_path)


@pytest.mark.parametrize(
    "answer",
    ["", "no", "yes|", "I DISAGREE|yes|yes", pytest.param("\x04", id="end of input")],
)
def test_declined_at_a_terminal(tmp_path, answer):
    code, _, err = at_a_terminal(CODE.format(str(tmp_path)), answer)
    assert code != 0
    assert "LicenseNotAcceptedError" in err
    assert "declined" in err
    assert "EOFError" not in err
    assert not (tmp_path / ".laion_fmri" / "license_accepted").exists()


def test_no_terminal_never_prompts(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(str(tmp_path))],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "LAION_FMRI_LICENSE" in done.stderr
    assert done.stdout == ""


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


@pytest.mark.parametrize("takes_input", [True, False])
def test_notebook(tmp_path, monkeypatch, takes_input):
    kernel = SimpleNamespace(_allow_stdin=takes_input)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr("builtins.input", lambda prompt: "I AGREE")
    if takes_input:
        accept_license(tmp_path)
        assert (tmp_path / ".laion_fmri" / "license_accepted").exists()
    else:
        with pytest.raises(LicenseNotAcceptedError):
            accept_license(tmp_path)
