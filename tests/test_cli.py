"""The command line: results on stdout, exit codes, terms written on a shell."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gate_fixtures
import pytest

from laion_fmri_fetchers import __version__, access_status, load_betas
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.cli.terms import parse_terms
from laion_fmri_fetchers.demo.server import UPLOADED
from laion_fmri_fetchers.exceptions import InvalidQueryError

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test

COMMAND = [sys.executable, "-m", "laion_fmri_fetchers"]
FORM = {
    "--name": "Ada Example",
    "--email": "ada@university.example",
    "--institution": "University of Examples",
    "--research-purpose": "Encoding models of natural images",
    "--accept-terms-version": "1.0",
}


@pytest.fixture(autouse=True)
def warnings_as_before(monkeypatch):
    import warnings

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def run(command):
    """Run a command; return its exit code, also where argparse exits."""
    try:
        return main(shlex.split(command) if isinstance(command, str) else command)
    except SystemExit as stop:
        return stop.code


# --- Data ---------------------------------------------------------------------------


def test_fetch_prints_paths_and_a_dry_run_the_plan(server, data_dir, capsys):
    fetch = "fetch --sessions 1 2 --rois PPA -q"
    assert run(f"{fetch} --dry-run") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert all(size.isdecimal() and reason == "missing" for size, reason, _ in rows)
    assert not list(data_dir.rglob("*.nii.gz"))
    assert run(fetch) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3
    assert all(Path(line).is_file() for line in out.splitlines())
    assert err == ""


def test_fetch_takes_terms(server, data_dir, capsys):
    fetch = "fetch --subjects all --rois none --where n_reps>=12"
    assert run(f"{fetch} --image-where 'session in ses-01,ses-02'") == 0
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    assert [name[:13] for name in names] == ["sub-01_ses-01", "sub-03_ses-02"]


def test_betas_of_a_region(server, data_dir, capsys):
    fetch = "fetch-betas --rois PPA --sessions 1 2 -q"
    assert run(f"{fetch} --dry-run") == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    plan = [(reason, path[-8:]) for _, reason, path in rows]
    assert plan == [("voxels", "model.h5")] * 2
    assert run(fetch) == 0
    assert capsys.readouterr() == ("sub-01: 128 trials x 12 voxels\n", "")
    assert not list(data_dir.rglob("*Betas_statmap.nii.gz"))
    requests = len(server.requests)
    file = data_dir / "ppa.npz"
    assert run(f"{fetch} --mode offline --output {file}") == 0
    assert len(server.requests) == requests
    assert load_betas(file).data.shape == (128, 12)


def test_betas_of_several_subjects(server, data_dir, capsys):
    fetch = "fetch-betas --rois PPA --sessions 1 -q --subjects"
    assert run(f"{fetch} 1 3 --dry-run") == 0
    ids = [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()]
    assert [re.search("sub-..", path)[0] for path in ids] == ["sub-01", "sub-03"]
    assert run(f"{fetch} 1 3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["sub-01", "sub-03"]
    for subjects in ("1 3", "all"):
        assert run(f"{fetch} {subjects} --output {data_dir / 'x.npz'}") == 2
        assert "--output is for the betas of one subject" in capsys.readouterr().err


def test_images_that_are_packed_can_be_removed(server, data_dir, capsys):
    assert run("fetch --sessions 1 --rois PPA -q") == 0
    (image, _) = map(Path, capsys.readouterr().out.splitlines())
    assert run("pack-betas --sessions 1 -q --rois PPA --remove-images") == 0
    assert image.exists()  # other voxels are in it alone
    assert run("pack-betas --sessions 1 -q --remove-images") == 0
    assert not image.exists()
    assert run("verify -q") == 0
    assert run("fetch-betas --sessions 1 --mode offline -q --rois PPA") == 0
    assert capsys.readouterr().out.endswith(" trials x 12 voxels\n")


@pytest.mark.parametrize("command", ["fetch --rois PPA", "fetch-betas --rois PPA"])
def test_ranges_of_sessions(command, server, data_dir, capsys):
    assert run(f"{command} --sessions 1-2 ses-04 --dry-run -q") == 0
    out = capsys.readouterr().out
    found = {name for name in out.split("/") if name.startswith("ses-")}
    assert found - {"ses-PrismaAnat"} == {"ses-01", "ses-02", "ses-04"}
    assert run(f"{command} --sessions 4-1") == 2
    assert "sessions holds '4-1'" in capsys.readouterr().err


def test_report_opens_no_connection(server, cached, tmp_path, capsys):
    server.requests.clear()
    file = tmp_path / "sub-01.html"
    words = f"--sessions 1 --rois face --title Faces --output {file}"
    assert run(f"make-report {words}") == 0
    assert server.requests == []
    assert capsys.readouterr().out == f"{file}\n"
    assert "<title>Faces</title>" in file.read_text()


@pytest.mark.parametrize("command", ["make-report", "fetch-betas --rois PPA", "demo"])
def test_output_to_a_missing_folder_is_refused(command, cached, tmp_path, capsys):
    file = tmp_path / "nowhere" / "file"
    assert run(f"{command} --output {file}") == 2
    assert f"no folder {file.parent}" in capsys.readouterr().err
    assert not file.parent.exists()


def test_stimuli_by_label(server, data_dir, capsys):
    assert run("fetch-stimulus-metadata -q --where n_reps=12") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("image_name,dataset,")
    assert rows
    assert all(row.startswith("shared_12rep_") for row in rows)
    name = rows[0].partition(",")[0]
    assert run(["fetch-stimulus-metadata", "-q", "--labels", name]) == 0
    assert capsys.readouterr().out.splitlines() == [header, rows[0]]
    for what in ("captions", "embeddings", "segmentations"):
        assert run([f"fetch-{what}", "-q", "--labels", name]) == 0
        paths = capsys.readouterr().out.splitlines()
        assert paths
        assert all(Path(path).is_file() for path in paths)
        # Images without masks are common, so an unknown name is only a warning there.
        code = 0 if what == "segmentations" else 2
        assert run(f"fetch-{what} -q --labels nope.jpg") == code
        assert "'nope.jpg'" in capsys.readouterr().err


def test_splits_as_a_table_and_as_json(server, data_dir, capsys):
    import json

    assert run("fetch-splits --names ood --ood-types shape -q") == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["split", "train", "test", "source"]
    assert run("fetch-splits --names ood --ood-types shape -q --json") == 0
    (split,) = json.loads(capsys.readouterr().out)
    assert row.split()[:3] == ["ood", f"{len(split['train'])}", f"{len(split['test'])}"]
    assert {"pool", "source", "generation"} <= split.keys()


# --- Set up and look ------------------------------------------------------------------


def test_initialize(tmp_path, capsys, monkeypatch):
    assert run(["initialize", str(tmp_path / "new")]) == 0
    assert run("initialize") == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "new")] * 2
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(tmp_path))
    assert run(["initialize", str(tmp_path / "other")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'other'}\n"
    assert err.startswith("Warning: LAION_FMRI_DATA_DIR is set, so calls keep using")


def test_rois_description_and_license(server, data_dir, capsys):
    assert run("get-rois --subjects 1 --category place") == 0
    assert capsys.readouterr().out.split() == ["MPA", "OPA", "PPA"]
    assert run("describe") == 0
    assert "sub-03" in capsys.readouterr().out
    assert run("accept-license") == 0
    assert (data_dir / ".laion_fmri" / "license_accepted").exists()


def test_version(capsys):
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", ["accept-license --show", "fetch -h"])
def test_lines_fit_a_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    run(command)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def at_a_terminal(command, code=0):
    """Run a command with a terminal as stdout; return what it shows there."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *command.split()], stdout=follower, stderr=subprocess.PIPE
    ) as process:
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):
            while piece := os.read(leader, 2**16):
                shown += piece
        os.close(leader)
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == code
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_is_not_flooded(server, data_dir):
    fetch = "fetch --sessions 1 --rois PPA -q"
    rows = [line.split() for line in at_a_terminal(f"{fetch} --dry-run").splitlines()]
    assert rows[0] == ["kind", "files", "size"]
    assert int(rows[-1][1]) == sum(int(row[1]) for row in rows[1:-1])
    assert at_a_terminal(fetch) == ""
    paths = at_a_terminal(f"{fetch} --paths").splitlines()
    assert [Path(path).is_file() for path in paths] == [True, True]
    Path(paths[0]).write_bytes(b"cut")
    assert at_a_terminal("verify", code=1) == ""
    (line,) = at_a_terminal("verify --paths", code=1).splitlines()
    assert line == f"truncated\t{Path(paths[0]).relative_to(data_dir)}"


# --- Errors, warnings, interrupts -----------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("", 2, "COMMAND"),
        ("pack", 2, "invalid choice"),
        ("fetch --max-images x", 2, "usage: laion-fmri-fetchers fetch "),
        ("fetch --nope", 2, "usage: laion-fmri-fetchers fetch "),
        ("fetch --rois FA1", 2, "did you mean 'FFA1'"),
        ("fetch --where n_reps", 2, "Cannot parse 'n_reps'"),
        ("fetch --where nreps=12", 2, "n_reps"),
        ("fetch --mode ofline", 2, "offline"),
        ("fetch --sessions 31", 1, "held out"),
        ("fetch --mode offline", 1, "--mode download_new"),
        ("fetch --n-connections 0", 2, "--n-connections is 0"),
        ("fetch-captions --labels x.jpg", 2, "--allow-missing leaves"),
        ("fetch --data-dir /proc/x", 2, "/proc/x cannot be made"),
        ("fetch --image-where n_reps=12", 2, "use --where instead"),
        ("fetch-captions --where src=x", 2, "--where can test"),
        ("fetch-betas --source modle", 2, "did you mean 'model'"),
        ("fetch-betas --rois PPA --where n_reps=99", 2, "No trial of sub-01"),
        ("pack-betas --sessions 7", 1, "first, with 'laion-fmri-fetchers fetch'."),
        ("make-report --sessions 7", 1, "first, with 'laion-fmri-fetchers fetch'."),
        ("initialize ''", 2, "--data-dir is empty"),
        ("login", 2, "terminal: set LAION_FMRI_REQUEST_ID"),
        ("demo --serve --n-trials 0", 2, "n_trials=0"),
        ("demo --n-trials 64", 2, "options of --serve"),
        ("demo --serve --output x", 2, "--output is one of"),
        ("fetch-stimuli", 1, "'laion-fmri-fetchers request-access'"),
        ("request-access", 1, "--research-purpose is missing"),
    ],
)
def test_errors_go_to_stderr_with_an_exit_code(
    server, cached_folder, data_dir, capsys, command, code, words
):
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert "--mode" not in err or "fetch" in command.split("-")[0]


def test_messages_are_in_words_of_the_shell(cached, server, capsys):
    terms = "--where n_reps>=13 --where label~shared"
    assert run(f"fetch --dry-run --rois none {terms}") == 0
    err = capsys.readouterr().err
    assert "Nothing passes --where, n_reps >= 13 & label ~ 'shared'." in err
    assert "No image file matches the selection." in err
    key = "stimuli/task-images_desc-captions.csv"
    assert run("fetch-captions -q") == 0
    before = (cached / key).read_bytes()
    server.put(key, before + b"\n")
    try:
        assert run("fetch-captions -q") == 0
    finally:
        server.put(key, before, last_modified=UPLOADED)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: ")
    assert "--mode overwrite" in line


def test_no_server_is_one_message(data_dir, capsys):
    assert run("describe") == 1
    assert "LAION_FMRI_BUCKET_URL" in capsys.readouterr().err


# --- Access ---------------------------------------------------------------------------


def form(**changes):
    words = itertools.chain(*{**FORM, **changes}.items())
    return ["request-access", *words, "--acknowledge-privacy"]


def test_request_access(access, data_dir, capfd):
    assert run(form(**{"--pi": "P. Example"})) == 0
    (asked,) = [body for _, path, body in access.requests if "request" in path]
    assert asked["pi_or_supervisor"] == "P. Example"
    assert asked["research_purpose"] == FORM["--research-purpose"]
    assert "Access is granted" in capfd.readouterr().err
    assert run("request-access") == 0
    assert "no form was sent" in capfd.readouterr().err
    assert run([*form(), "--renew"]) == 0
    assert access.requests[-1][1].endswith("request")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--email": "nowhere"}, "email is 'nowhere', which is not valid"),
        (
            {"--accept-terms-version": "0.9"},
            "Version 1.0 of the Data Use Agreement is in force",
        ),
    ],
)
def test_request_access_that_is_refused(access, data_dir, capfd, changes, words):
    assert run(form(**changes)) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert access_status()["request_id"] is None
    assert run("logout") == 0
    assert "There is no request_id" in capfd.readouterr().err


# --- Terms ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "passes", "fails"),
    [
        ("n_reps>=12", {"n_reps": 12}, {"n_reps": 4}),
        ("n_reps <= 4", {"n_reps": 4}, {"n_reps": 12}),
        ("n_reps<12", {"n_reps": 4}, {"n_reps": 12}),
        ("n_reps=12", {"n_reps": 12}, {"n_reps": None}),
        ("n_reps!=12", {"n_reps": 4}, {"n_reps": 12}),
        ("dataset=THINGS+", {"dataset": "THINGS+"}, {"dataset": "THINGS"}),
        ("dataset != null", {"dataset": "NSD"}, {"dataset": None}),
        ("label~unique_.*_p01", {"label": "unique_x_p01"}, {"label": "x"}),
        ("session in ses-01, ses-02", {"session": "ses-02"}, {"session": "ses-03"}),
        ("label='a = b'", {"label": "a = b"}, {"label": "a"}),
        ("size>1.5e3", {"size": 2000}, {"size": 1000}),
    ],
)
def test_terms(term, passes, fails):
    parsed = parse_terms([term])
    assert parsed(passes)
    assert not parsed(fails)


@pytest.mark.parametrize(
    ("term", "words"),
    [
        *((term, "Cannot parse") for term in ("", "n_reps", ">=3", "n reps>3", "a?b")),
        *((t, "is a number") for t in ("size>1GB", "run in 1,two", "repetition=")),
    ],
)
def test_terms_that_are_refused(term, words):
    with pytest.raises(InvalidQueryError, match=words):
        parse_terms([term])


# --- Demo -----------------------------------------------------------------------------


def test_demo_walks_through_the_package(tmp_path):
    names = [name for name in os.environ if not name.startswith("LAION_FMRI")]
    done = subprocess.run(
        [*COMMAND, "demo", "--output", str(tmp_path / "demo")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={name: os.environ[name] for name in names},
        check=True,
    )
    for name in ("rois.png", "stimuli.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "demo" / "rois.png") in done.stdout
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert "access is granted" in done.stdout
    assert "offline" in done.stdout
    assert "Warning" not in done.stderr
    assert "256 trials x 4 voxels of 4 sessions" in done.stdout
    # Four of the twelve tables are on disk by then: those of the sessions with betas.
    n_announced = re.search(r"Downloading (\d+) files", done.stderr)[1]
    assert f"8 tables of trials and {n_announced} other files" in done.stdout
