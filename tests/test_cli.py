"""The command line: results on stdout, exit codes, terms written on a shell."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import sys
import warnings
from pathlib import Path

import gate_fixtures
import pytest

from laion_fmri_fetchers import __version__, access_status, load_betas
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.demo.server import UPLOADED

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test


@pytest.fixture(autouse=True)
def warnings_as_before(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


@pytest.fixture
def run(capfd):
    """Run a command; return its exit code, stdout in lines, and stderr."""

    def run(command):
        words = shlex.split(command) if isinstance(command, str) else command
        try:
            code = main(words)
        except SystemExit as stop:  # of argparse
            code = stop.code
        out, err = capfd.readouterr()
        return code, out.splitlines(), err

    return run


# --- Data -----------------------------------------------------------------------------


def test_fetch_prints_paths_and_a_dry_run_the_plan(server, data_dir, run):
    fetch = "fetch --sessions 1 2 --rois PPA -q"
    code, plan, _ = run(f"{fetch} --dry-run")
    assert code == 0
    assert all(re.fullmatch(r"\d+\tmissing\t\S+", line) for line in plan)
    assert not list(data_dir.rglob("*.nii.gz"))
    code, paths, err = run(fetch)
    assert (code, len(paths), err) == (0, 3, "")
    assert all(Path(path).is_file() for path in paths)
    terms = "--where n_reps>=12 --image-where 'session in ses-01,ses-02'"
    code, paths, _ = run(f"fetch --subjects all --rois none {terms}")
    names = [Path(path).name[:13] for path in paths]
    assert (code, names) == (0, ["sub-01_ses-01", "sub-03_ses-02"])


def test_betas_of_regions(server, data_dir, run):
    fetch = "fetch-betas --rois PPA --sessions 1 2 -q"
    _, plan, _ = run(f"{fetch} --dry-run --subjects 1 3")
    found = [re.search(r"\tvoxels\t.*(sub-..)_.*model.h5$", line)[1] for line in plan]
    assert found == ["sub-01", "sub-01", "sub-03", "sub-03"]
    assert run(fetch) == (0, ["sub-01: 128 trials x 12 voxels"], "")
    assert not list(data_dir.rglob("*Betas_statmap.nii.gz"))
    requests = len(server.requests)
    file = data_dir / "ppa.npz"
    assert run(f"{fetch} --mode offline --output {file}")[0] == 0
    assert len(server.requests) == requests
    assert load_betas(file).data.shape == (128, 12)
    _, lines, _ = run(f"{fetch} --subjects 1 3")
    assert [line.partition(":")[0] for line in lines] == ["sub-01", "sub-03"]


def test_images_that_are_packed_can_be_removed(server, data_dir, run):
    _, (image, _), _ = run("fetch --sessions 1 --rois PPA -q")
    assert run("pack-betas --sessions 1 -q --rois PPA --remove-images")[0] == 0
    assert Path(image).exists(), "other voxels are in it alone"
    assert run("pack-betas --sessions 1 -q --remove-images")[0] == 0
    assert not Path(image).exists()
    assert run("verify -q")[0] == 0
    _, (line,), _ = run("fetch-betas --sessions 1 --mode offline -q --rois PPA")
    assert line.endswith(" trials x 12 voxels")


@pytest.mark.parametrize("command", ["fetch --rois PPA", "fetch-betas --rois PPA"])
def test_ranges_of_sessions(command, server, data_dir, run):
    _, plan, _ = run(f"{command} --sessions 1-2 ses-04 --dry-run -q")
    found = {*re.findall("/(ses-[^/]+)/", "\n".join(plan))}
    assert found - {"ses-PrismaAnat"} == {"ses-01", "ses-02", "ses-04"}


def test_report_opens_no_connection(server, cached, tmp_path, run):
    file = tmp_path / "sub-01.html"
    words = f"--sessions 1 --rois face --title Faces --output {file}"
    assert run(f"make-report {words}")[:2] == (0, [str(file)])
    assert server.requests == []
    assert "<title>Faces</title>" in file.read_text()


def test_stimuli_by_label(server, data_dir, run):
    code, (header, *rows), _ = run("fetch-stimulus-metadata -q --where n_reps=12")
    assert code == 0
    assert header.startswith("image_name,dataset,")
    assert {row[:13] for row in rows} == {"shared_12rep_"}
    name = rows[0].partition(",")[0]
    _, lines, _ = run(["fetch-stimulus-metadata", "-q", "--labels", name])
    assert lines == [header, rows[0]]
    for what in ("captions", "embeddings", "segmentations"):
        _, paths, err = run([f"fetch-{what}", "-q", "--labels", name])
        assert [Path(path).is_file() for path in paths] == [True] * len(paths) != []
    # Images without masks are common, so an unknown name is only a warning there.
    code, _, err = run("fetch-segmentations -q --labels nope.jpg")
    assert (code, "'nope.jpg'" in err) == (0, True)


def test_splits_as_a_table_and_as_json(server, data_dir, run):
    fetch = "fetch-splits --names ood --ood-types shape -q"
    _, (header, row), _ = run(fetch)
    assert header.split() == ["split", "train", "test", "source"]
    _, lines, _ = run(f"{fetch} --json")
    (split,) = json.loads("\n".join(lines))
    assert row.split()[:3] == ["ood", f"{len(split['train'])}", f"{len(split['test'])}"]
    assert {"pool", "source", "generation"} <= split.keys()


# --- Set up and look ------------------------------------------------------------------


def test_initialize(tmp_path, run, monkeypatch):
    assert run(["initialize", str(tmp_path / "new")])[:2] == (0, [f"{tmp_path}/new"])
    assert run("initialize")[:2] == (0, [f"{tmp_path}/new"])
    monkeypatch.setenv("LAION_FMRI_DATA_DIR", str(tmp_path))
    code, lines, err = run(["initialize", str(tmp_path / "other")])
    assert (code, lines) == (0, [f"{tmp_path}/other"])
    assert err.startswith("Warning: LAION_FMRI_DATA_DIR is set, so calls keep using")


def test_what_is_printed_fits_a_terminal(server, data_dir, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command, words in (
        ("--version", __version__),
        ("fetch -h", "--image-where TERM"),
        ("get-rois --subjects 1 --category place", "MPA\nOPA\nPPA"),
        ("accept-license --show", "CC0"),
        ("describe", "\nsub-03 "),
        ("status", "CC0 terms"),
    ):
        code, lines, _ = run(command)
        assert code == 0
        assert words in "\n".join(lines)
        assert max(map(len, lines[3:]), default=0) <= 80
    assert run("accept-license")[0] == 0
    assert (data_dir / ".laion_fmri" / "license_accepted").exists()


def test_a_terminal_is_not_flooded(server, data_dir, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(command, code=0):
        monkeypatch.setattr(sys, "stdout", Terminal())
        assert main(command.split()) == code
        return sys.stdout.getvalue().splitlines()

    fetch = "fetch --sessions 1 --rois PPA -q"
    rows = [line.split() for line in shown(f"{fetch} --dry-run")]
    assert rows[0] == ["kind", "files", "size"]
    assert int(rows[-1][1]) == sum(int(row[1]) for row in rows[1:-1])
    assert shown(fetch) == []
    paths = shown(f"{fetch} --paths")
    assert [Path(path).is_file() for path in paths] == [True, True]
    Path(paths[0]).write_bytes(b"cut")
    assert shown("verify", code=1) == []
    (line,) = shown("verify --paths", code=1)
    assert line == f"truncated\t{Path(paths[0]).relative_to(data_dir)}"


# --- Errors and warnings, in words of the shell ---------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("", 2, "COMMAND"),
        ("pack", 2, "invalid choice"),
        ("fetch --nope", 2, "usage: laion-fmri-fetchers fetch "),
        ("fetch --rois FA1", 2, "did you mean 'FFA1'"),
        ("fetch --where n_reps", 2, "Cannot parse 'n_reps'"),
        *(
            (f"fetch --where '{term}'", 2, "Cannot parse")
            for term in ("", ">=3", "n reps>3", "a?b")
        ),
        *(
            (f"fetch --where '{term}'", 2, "is a number")
            for term in ("size>1GB", "run in 1,two", "repetition=")
        ),
        ("fetch --sessions 31", 1, "held out"),
        ("fetch --sessions 4-1", 2, "sessions holds '4-1'"),
        *(
            (f"{command} --output /nowhere/x", 2, "no folder /nowhere for --output")
            for command in ("make-report", "fetch-betas --rois PPA", "demo")
        ),
        (
            "fetch-betas --subjects all --output x",
            2,
            "--output is for the betas of one",
        ),
        ("fetch --mode offline", 1, "--mode download_new"),
        ("fetch --n-connections 0", 2, "--n-connections is 0"),
        ("fetch-captions --labels x.jpg", 2, "--allow-missing leaves"),
        ("fetch --data-dir /proc/x", 2, "/proc/x cannot be made"),
        ("fetch --image-where n_reps=12", 2, "use --where instead"),
        ("fetch-captions --where src=x", 2, "--where can test"),
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
    server, data_dir, run, command, code, words
):
    found, lines, err = run(command)
    assert (found, lines) == (code, [])
    assert words in err
    assert "Traceback" not in err
    assert "--mode" not in err or "fetch" in command.split("-")[0]


def test_warnings_are_in_words_of_the_shell(cached, server, run):
    terms = "--where n_reps>=13 --where label~shared"
    code, _, err = run(f"fetch --dry-run --rois none {terms}")
    assert code == 0
    assert "Nothing passes --where, n_reps >= 13 & label ~ 'shared'." in err
    assert "No image file matches the selection." in err
    key = "stimuli/task-images_desc-captions.csv"
    assert run("fetch-captions -q")[0] == 0
    before = (cached / key).read_bytes()
    server.put(key, before + b"\n")
    try:
        _, _, err = run("fetch-captions -q")
    finally:
        server.put(key, before, last_modified=UPLOADED)
    assert re.fullmatch("Warning: .*--mode overwrite.*\n", err)


def test_no_server_is_one_message(data_dir, run):
    code, _, err = run("describe")
    assert code == 1
    assert "LAION_FMRI_BUCKET_URL" in err


def test_terms(server, cached, run):
    _, (_, *every), _ = run("fetch-stimulus-metadata -q")
    for term, names in {
        **dict.fromkeys(("n_reps>=12", "n_reps > 4", "n_reps=12"), "_12rep_"),
        **dict.fromkeys(("n_reps<=4", "n_reps<12"), "_4rep_|unique"),
        "n_reps!=12": "_4rep_|unique|fixation",
        "dataset=THINGS+": r"_THINGS\+_",
        "dataset = null": "fixation",
        "image_name~shared_4rep_N.*": "_NSD_",
        "dataset in NSD, OOD": "_NSD_|_OOD_",
        "dataset='NSD'": "_NSD_",
    }.items():
        _, (_, *rows), _ = run(["fetch-stimulus-metadata", "-q", "--where", term])
        expected = [row for row in every if re.search(names, row.partition(",")[0])]
        assert rows == expected, term


# --- Access, and the demo -------------------------------------------------------------


def form(**changes):
    fields = {
        "--name": "Ada Example",
        "--email": "ada@university.example",
        "--institution": "University of Examples",
        "--research-purpose": "Encoding models of natural images",
        "--accept-terms-version": "1.0",
    }
    words = itertools.chain(*{**fields, **changes}.items())
    return ["request-access", *words, "--acknowledge-privacy"]


def test_request_access(access, data_dir, run):
    for changes, words in (
        ({"--email": "nowhere"}, "email is 'nowhere', which is not valid"),
        ({"--accept-terms-version": "0.9"}, "Version 1.0 of the Data Use Agreement is"),
    ):
        code, lines, err = run(form(**changes))
        assert (code, lines) == (1, [])
        assert words in err
        assert access_status()["request_id"] is None
    assert "There is no request_id" in run("logout")[2]
    access.requests.clear()
    code, _, err = run(form(**{"--pi": "P. Example"}))
    assert (code, "Access is granted" in err) == (0, True)
    (asked,) = [body for _, path, body in access.requests if "request" in path]
    assert asked["pi_or_supervisor"] == "P. Example"
    assert asked["research_purpose"] == "Encoding models of natural images"
    assert "no form was sent" in run("request-access")[2]
    assert run([*form(), "--renew"])[0] == 0
    assert access.requests[-1][1].endswith("request")


def test_demo_walks_through_the_package(tmp_path, run, monkeypatch):
    for name in ("BUCKET_URL", "ACCESS_URL", "SPLITS_URL"):
        monkeypatch.delenv(f"LAION_FMRI_{name}")
    monkeypatch.setattr(sys, "stdin", None)
    code, lines, err = run(f"demo --output {tmp_path}/demo")
    assert code == 0
    assert "Warning" not in err
    out = "\n".join(lines)
    for name in ("rois.png", "stimuli.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
        assert f"{tmp_path}/demo/{name}" in out
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    # Four of the twelve tables are on disk by then: those of the sessions with betas.
    n_announced = re.search(r"Downloading (\d+) files", err)[1]
    for words in (
        *("access is granted", "offline", "256 trials x 4 voxels of 4 sessions"),
        f"8 trial tables and {n_announced} other files",
    ):
        assert words in out
