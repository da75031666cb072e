"""The command line: results on stdout, exit codes, terms written on a shell."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_server as faults
import gate_fixtures
import pytest
from fault_server import FaultServer, always

from laion_fmri_fetchers import __version__, access_status, load_betas
from laion_fmri_fetchers.cli.main import main
from laion_fmri_fetchers.cli.terms import parse_terms
from laion_fmri_fetchers.demo.server import UPLOADED
from laion_fmri_fetchers.exceptions import InvalidQueryError

access = gate_fixtures.access
secrets_of_test = gate_fixtures.secrets_of_test

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
        return main(command)
    except SystemExit as stop:
        return stop.code


def test_fetch_prints_paths(server, data_dir, capsys):
    assert main(["fetch", "--sessions", "1", "2", "--rois", "PPA", "-q"]) == 0
    out, err = capsys.readouterr()
    paths = [Path(line) for line in out.splitlines()]
    assert len(paths) == 3
    assert all(path.is_file() for path in paths)
    assert err == ""


def test_fetch_with_terms(server, data_dir, capsys):
    command = ["fetch", "--subjects", "all", "--rois", "none", "--where", "n_reps>=12"]
    assert main([*command, "--image-where", "session in ses-01,ses-02"]) == 0
    names = [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()]
    assert [name[:13] for name in names] == ["sub-01_ses-01", "sub-03_ses-02"]


def test_dry_run(server, data_dir, capsys):
    assert main(["fetch", "--sessions", "1", "--rois", "PPA", "--dry-run", "-q"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert all(size.isdecimal() and reason == "missing" for size, reason, _ in rows)
    assert not list(data_dir.rglob("*.nii.gz"))


def test_betas_of_a_region(server, data_dir, capsys):
    command = ["fetch-betas", "--rois", "PPA", "--sessions", "1", "2", "-q"]
    assert main([*command, "--dry-run"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(reason, path[-8:]) for _, reason, path in rows] == [
        ("voxels", "model.h5")
    ] * 2
    assert main(command) == 0
    assert capsys.readouterr() == ("sub-01: 128 trials x 12 voxels\n", "")
    assert not list(data_dir.rglob("*Betas_statmap.nii.gz"))
    requests = len(server.requests)
    assert main([*command, "--mode", "offline"]) == 0
    assert len(server.requests) == requests
    assert main([*command, "--output", str(data_dir / "ppa.npz")]) == 0
    assert load_betas(data_dir / "ppa.npz").data.shape == (128, 12)
    assert run(["fetch-betas", "--source", "modle"]) == 2
    assert "did you mean 'model'" in capsys.readouterr().err


def test_betas_of_several_subjects(server, data_dir, capsys):
    command = ["fetch-betas", "--rois", "PPA", "--sessions", "1", "-q", "--subjects"]
    assert main([*command, "1", "3", "--dry-run"]) == 0
    ids = [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()]
    assert [re.search("sub-..", one)[0] for one in ids] == ["sub-01", "sub-03"]
    assert main([*command, "1", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["sub-01", "sub-03"]
    for subjects in (["1", "3"], ["all"]):
        assert main([*command, *subjects, "--output", str(data_dir / "x.npz")]) == 2
        assert "--output is for the betas of one subject" in capsys.readouterr().err


def test_a_selection_without_betas_is_an_error(server, data_dir, capsys):
    command = ["fetch-betas", "--rois", "PPA", "--subjects", "3", "1", "-q"]
    assert main([*command, "--where", "n_reps=99"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "No trial of sub-03 is selected" in err
    assert main(["pack-betas", "--subjects", "3", "--rois", "PPA", "-q"]) == 2
    assert "no betas" in capsys.readouterr().err


def test_initialize_without_a_folder_shows_the_directory_in_force(data_dir, capsys):
    assert main(["initialize"]) == 0
    assert capsys.readouterr().out == f"{data_dir}\n"


@pytest.mark.parametrize("command", ["config", "info", "rois", "pack", "completion"])
def test_commands_have_one_name(command, capsys):
    assert run([command]) == 2
    assert "invalid choice" in capsys.readouterr().err


def test_pack(server, data_dir, capsys):
    assert main(["fetch", "--sessions", "1", "--rois", "PPA", "-q"]) == 0
    (image, _) = map(Path, capsys.readouterr().out.splitlines())
    pack = ["pack-betas", "--sessions", "1", "-q"]
    assert main([*pack, "--rois", "PPA"]) == 0
    assert main([*pack, "--rois", "PPA", "--remove-images"]) == 0
    assert image.exists()  # other voxels are in it alone
    assert main([*pack, "--remove-images"]) == 0
    assert not image.exists()
    assert main(["verify", "-q"]) == 0
    command = ["fetch-betas", "--sessions", "1", "--mode", "offline", "-q"]
    assert main([*command, "--rois", "PPA"]) == 0
    assert capsys.readouterr().out.endswith(" trials x 12 voxels\n")


def at_a_terminal(command, code=0):
    """Run a command with a terminal as stdout; return what it shows there."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "laion_fmri_fetchers", *command],
        stdout=follower,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80"},
    ) as process:
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):
            while piece := os.read(leader, 2**16):
                shown += piece
        os.close(leader)
        assert process.stderr.read().count(b"Traceback") == 0
    assert process.returncode == code
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_is_not_flooded(server, data_dir):
    fetch = ["fetch", "--sessions", "1", "--rois", "PPA", "-q"]
    rows = [line.split() for line in at_a_terminal([*fetch, "--dry-run"]).splitlines()]
    assert rows[0] == ["kind", "files", "size"]
    assert {row[0]: int(row[1]) for row in rows[1:]}["betas"] == 1
    assert int(rows[-1][1]) == sum(int(row[1]) for row in rows[1:-1])
    assert at_a_terminal(fetch) == ""
    paths = at_a_terminal([*fetch, "--paths"]).splitlines()
    assert len(paths) == 2
    assert all(Path(path).is_file() for path in paths)


def test_verify_names_a_bad_file_once_at_a_terminal(cached):
    cut = min(cached.rglob("*label-FFA1_mask.nii.gz"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert at_a_terminal(["verify"], code=1) == ""
    (line,) = at_a_terminal(["verify", "--paths"], code=1).splitlines()
    assert line == f"truncated\t{cut.relative_to(cached)}"


def test_an_empty_selection_is_said(server, data_dir, capsys):
    terms = ["--image-where", "session=ses-01", "--image-where", "session=ses-02"]
    assert main(["fetch", *terms, "--rois", "none"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "No image file matches the selection." in err


def test_the_environment_sets_the_mode(server, data_dir, monkeypatch, capsys):
    monkeypatch.setenv("LAION_FMRI_OFFLINE", "1")
    assert main(["fetch"]) == 1
    assert server.requests == []
    assert main(["fetch", "--mode", "download_new", "--dry-run", "--rois"]) == 0


def test_warnings_are_in_words_of_the_shell(cached, server, capsys):
    key = "stimuli/task-images_desc-captions.csv"
    assert main(["fetch-captions", "-q"]) == 0
    before = (cached / key).read_bytes()
    server.put(key, before + b"\n")
    try:
        assert main(["fetch-captions", "-q"]) == 0
        assert "--mode overwrite" in capsys.readouterr().err
    finally:
        server.put(key, before, last_modified=UPLOADED)


def test_report(server, cached, tmp_path, capsys, monkeypatch):
    server.requests.clear()
    file = tmp_path / "sub-01.html"
    words = ["--sessions", "1", "--rois", "face", "--title", "Faces", "--output"]
    assert main(["make-report", *words, str(file)]) == 0
    assert server.requests == []
    assert capsys.readouterr().out == f"{file}\n"
    page = file.read_text()
    assert "<title>Faces</title>" in page
    assert "sub-01" in page


def test_stimulus_metadata(server, data_dir, capsys):
    assert main(["fetch-stimulus-metadata", "-q", "--where", "n_reps=12"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("image_name,dataset,")
    assert rows
    assert all(row.startswith("shared_12rep_") for row in rows)
    name = rows[0].partition(",")[0]
    assert main(["fetch-stimulus-metadata", "-q", "--labels", name]) == 0
    assert capsys.readouterr().out.splitlines() == [header, rows[0]]


@pytest.mark.parametrize("what", ["captions", "embeddings", "segmentations"])
def test_derived_files_of_named_images(server, data_dir, capsys, what):
    assert main(["fetch-stimulus-metadata", "-q", "--where", "n_reps=12"]) == 0
    name = capsys.readouterr().out.splitlines()[1].partition(",")[0]
    assert main([f"fetch-{what}", "-q", "--labels", name]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths
    assert all(Path(path).is_file() for path in paths)
    # Images without masks are common, so an unknown name is only a warning there.
    code = 0 if what == "segmentations" else 2
    assert main([f"fetch-{what}", "-q", "--labels", "nope.jpg"]) == code
    assert "'nope.jpg'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "width"), [(["accept-license", "--show"], 80), (["fetch", "-h"], 80)]
)
def test_lines_fit_a_terminal(capsys, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", "80")
    run(command)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= width


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ([], 2, "COMMAND"),
        (["fech"], 2, "fech"),
        (["fetch", "--max-images", "x"], 2, "max-images"),
        (["fetch", "--rois", "FA1"], 2, "did you mean 'FFA1'"),
        (["fetch", "--where", "n_reps"], 2, "Cannot parse 'n_reps'"),
        (
            ["fetch", "--where", "n_reps >= many"],
            2,
            "n_reps is a number; 'many' is not",
        ),
        (["fetch", "--nope"], 2, "usage: laion-fmri-fetchers fetch "),
        (["fetch", "--where", "nreps=12"], 2, "n_reps"),
        (["fetch", "--mode", "ofline"], 2, "offline"),
        (["fetch", "--sessions", "31"], 1, "held out"),
        (["fetch", "--mode", "offline"], 1, "sub-01"),
        (["fetch", "--mode", "offline"], 1, "--mode download_new"),
        (["fetch", "--max-images", "many"], 2, "usage: laion-fmri-fetchers fetch "),
        (["fetch", "--n-connections", "0"], 2, "--n-connections is 0"),
        (["fetch-captions", "--labels", "x.jpg"], 2, "--allow-missing leaves"),
        (["fetch", "--data-dir", "/proc/x"], 2, "/proc/x cannot be made"),
        (["fetch", "--rois", "nope"], 2, "TO2, V1, V1d, V1v, V2, "),
        (["fetch", "--image-where", "n_reps=12"], 2, "use --where instead"),
        (["fetch-captions", "--where", "src=x"], 2, "--where can test"),
        (["login"], 2, "terminal: set LAION_FMRI_REQUEST_ID"),
        (["demo", "--serve", "--n-trials", "0"], 2, "n_trials=0"),
        (["demo", "--n-trials", "64"], 2, "options of --serve"),
        (["demo", "--serve", "--output", "x"], 2, "--output is one of"),
        (["fetch-stimuli"], 1, "'laion-fmri-fetchers request-access'"),
        (["request-access"], 1, "--research-purpose is missing"),
    ],
)
def test_exit_codes(server, data_dir, capsys, command, code, words):
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_no_server(data_dir, capsys):
    assert main(["describe"]) == 1
    assert "LAION_FMRI_BUCKET_URL" in capsys.readouterr().err


def test_warnings_are_a_line(cached, capsys):
    min(cached.rglob("sub-01_ses-02*_trials.tsv")).unlink()
    assert main(["fetch", "--mode", "offline", "-q"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("Warning: There is no trial table")
    assert len(err.splitlines()) == 1


def test_initialize(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LAION_FMRI_DATA_DIR", raising=False)
    assert main(["initialize", str(tmp_path / "new")]) == 0
    assert main(["initialize"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "new")] * 2


def test_initialize_where_the_environment_names_another(tmp_path, data_dir, capsys):
    assert main(["initialize", str(tmp_path / "new")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'new'}\n"
    assert err.startswith(
        f"Warning: LAION_FMRI_DATA_DIR is set, so calls keep using {data_dir}"
    )


def test_filters_in_messages_are_written_as_on_a_shell(server, data_dir, capsys):
    where = ["--where", "n_reps>=13", "--where", "label~shared"]
    assert main(["fetch", "--dry-run", "--rois", "none", *where]) == 0
    err = capsys.readouterr().err
    assert "Nothing passes --where, n_reps >= 13 & label ~ 'shared'." in err


def test_a_directory_that_does_not_exist_yet_is_noted(server, tmp_path, capsys):
    folder = str(tmp_path / "nowhere")
    for command in ("status", "describe"):
        assert main([command, "--data-dir", folder]) == 0
        assert f"{folder}, which does not exist yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["make-report"], ["fetch-betas", "--rois", "PPA"], ["demo"]]
)
def test_output_to_a_missing_folder_is_refused(
    command, server, cached, tmp_path, capsys
):
    file = tmp_path / "nowhere" / "file"
    assert main([*command, "--output", str(file)]) == 2
    assert f"no folder {file.parent}" in capsys.readouterr().err
    assert not file.parent.exists()


@pytest.mark.parametrize("command", ["fetch --rois PPA", "fetch-betas --rois PPA"])
def test_ranges_of_sessions(command, server, data_dir, capsys):
    sessions = ["--sessions", "1-2", "ses-04", "--dry-run", "-q"]
    assert main([*command.split(), *sessions]) == 0
    out = capsys.readouterr().out
    found = {name for name in out.split("/") if name.startswith("ses-")}
    assert found - {"ses-PrismaAnat"} == {"ses-01", "ses-02", "ses-04"}
    assert main([*command.split(), "--sessions", "4-1"]) == 2
    assert "sessions holds '4-1'" in capsys.readouterr().err


def test_an_empty_folder_name_is_not_a_question(data_dir, capsys):
    assert main(["initialize", ""]) == 2
    assert "data_dir" in capsys.readouterr().err.replace("-", "_")


@pytest.mark.parametrize("command", ["pack-betas", "make-report"])
def test_advice_names_options_that_the_command_has(command, cached, capsys):
    assert main([command, "--sessions", "7"]) == 1
    err = capsys.readouterr().err
    assert "Download it first, with 'laion-fmri-fetchers fetch'." in err
    assert "--mode" not in err


def test_rois_info_license(server, data_dir, capsys):
    assert main(["get-rois", "--subjects", "1", "--category", "place"]) == 0
    assert capsys.readouterr().out.split() == ["MPA", "OPA", "PPA"]
    assert main(["describe"]) == 0
    assert "sub-03" in capsys.readouterr().out
    assert main(["accept-license"]) == 0
    assert (data_dir / ".laion_fmri" / "license_accepted").exists()


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_module_and_closed_pipe(server, data_dir):
    command = f"{sys.executable} -m laion_fmri_fetchers get-rois | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    assert done.stdout == "AFP1\n"
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_it_though_the_bucket_is_silent(tmp_path):
    settings = {"LAION_FMRI_DATA_DIR": str(tmp_path / "data")}
    with FaultServer() as server:
        server.faults[""] = [always(faults.wait(60.0))]
        process = subprocess.Popen(
            [sys.executable, "-m", "laion_fmri_fetchers", "fetch"],
            env={**os.environ, **settings, "LAION_FMRI_BUCKET_URL": server.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not server.requests:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert out == ""
    assert "Repeat the command to resume." in err
    assert "Traceback" not in err


def form(**changes):
    words = itertools.chain(*{**FORM, **changes}.items())
    return ["request-access", *words, "--acknowledge-privacy"]


def test_request_access(access, data_dir, capfd):
    assert main(form(**{"--pi": "P. Example"})) == 0
    (asked,) = [body for _, path, body in access.requests if "request" in path]
    assert asked["pi_or_supervisor"] == "P. Example"
    assert asked["research_purpose"] == FORM["--research-purpose"]
    assert "Access is granted" in capfd.readouterr().err
    n_requests = len(access.requests)
    assert main(["request-access"]) == 0
    assert "no form was sent" in capfd.readouterr().err
    assert main([*form(), "--renew"]) == 0
    assert [path for _, path, _ in access.requests[n_requests:]][-1].endswith("request")


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
    assert main(form(**changes)) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err
    assert access_status()["request_id"] is None


def test_login_where_nobody_can_be_asked(access, data_dir, capfd):
    assert main(["login"]) == 2
    assert "no terminal" in capfd.readouterr().err
    assert main(["logout"]) == 0
    assert "There is no request_id" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("term", "passes", "fails"),
    [
        ("n_reps>=12", {"n_reps": 12}, {"n_reps": 4}),
        ("n_reps <= 4", {"n_reps": 4}, {"n_reps": 12}),
        ("n_reps>4", {"n_reps": 12}, {"n_reps": 4}),
        ("n_reps<12", {"n_reps": 4}, {"n_reps": 12}),
        ("n_reps=12", {"n_reps": 12}, {"n_reps": None}),
        ("n_reps==12", {"n_reps": 12}, {"n_reps": 4}),
        ("n_reps!=12", {"n_reps": 4}, {"n_reps": 12}),
        ("dataset=THINGS+", {"dataset": "THINGS+"}, {"dataset": "THINGS"}),
        ("dataset != null", {"dataset": "NSD"}, {"dataset": None}),
        ("label~unique_.*_p01", {"label": "unique_x_p01"}, {"label": "x"}),
        ("session in ses-01, ses-02", {"session": "ses-02"}, {"session": "ses-03"}),
        ("session in (ses-01)", {"session": "ses-01"}, {"session": "ses-03"}),
        ("label='a = b'", {"label": "a = b"}, {"label": "a"}),
        ("size>1.5e3", {"size": 2000}, {"size": 1000}),
    ],
)
def test_terms(term, passes, fails):
    parsed = parse_terms([term])
    assert parsed(passes)
    assert not parsed(fails)


@pytest.mark.parametrize("term", ["", "n_reps", ">=3", "n reps>3", "a ? b"])
def test_terms_that_cannot_be_parsed(term):
    with pytest.raises(InvalidQueryError, match="Cannot parse"):
        parse_terms([term])


@pytest.mark.parametrize("term", ["size>1GB", "run in 1,two", "repetition="])
def test_numbers_are_not_compared_with_text(term):
    with pytest.raises(InvalidQueryError, match="is a number"):
        parse_terms([term])


def test_no_terms():
    assert parse_terms([]) is None


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252"])
def test_no_character_that_a_terminal_lacks(server, data_dir, tmp_path, encoding):
    """What a code page lacks is escaped; nothing ends by an UnicodeEncodeError."""
    settings = {
        "PYTHONIOENCODING": encoding,
        "PYTHONUTF8": "0",
        "LAION_FMRI_REQUEST_ID": "lfm_0123456789abcdefghijklmn",
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    for command in (
        ["initialize", str(tmp_path / "\u30c7\u30fc\u30bf")],
        ["fetch", "--sessions", "1", "--rois", "FFA1"],
        ["fetch", "--sessions", "1", "--where", "label=\u03b1", "--mode", "offline"],
        ["status"],
        ["describe"],
        ["verify"],
        ["accept-license", "--show"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "laion_fmri_fetchers", *command],
            env={**os.environ, **settings},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        (done.stdout + done.stderr).decode(encoding)


def test_demo_is_served_until_it_is_stopped(tmp_path):
    command = [sys.executable, "-m", "laion_fmri_fetchers"]
    serving = subprocess.Popen(
        [*command, "demo", "--serve", "--subjects", "sub-05", "--n-sessions", "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [serving.stdout.readline() for _ in range(5)]
    settings = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    settings = {name: shlex.split(value)[0] for name, value in settings.items()}
    done = subprocess.run(
        [*command, "get-rois", "--subjects", "sub-05", "--category", "place"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["MPA", "OPA", "PPA", "SPL"], done.stderr
    done = subprocess.run(
        [*command, "describe"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("sub-")]
    assert row.split()[:2] == ["sub-05", "1"]
    serving.send_signal(signal.SIGINT)
    assert serving.wait(240) == 0
    assert not Path(settings["LAION_FMRI_DATA_DIR"]).exists()
    serving.stdout.close()


def test_demo(tmp_path):
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LAION_FMRI")
    }
    command = [sys.executable, "-m", "laion_fmri_fetchers", "demo"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "demo")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    figure = tmp_path / "demo" / "rois.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in done.stdout
    assert (tmp_path / "demo" / "stimuli.png").read_bytes().startswith(b"\x89PNG")
    assert "access is granted" in done.stdout
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert "offline" in done.stdout
    assert "Warning" not in done.stderr
    assert "256 trials x 4 voxels of 4 sessions" in done.stdout
    # Four of the twelve tables are on disk by then: those of the sessions with betas.
    n_announced = re.search(r"Downloading (\d+) files", done.stderr)[1]
    assert f"8 tables of trials and {n_announced} other files" in done.stdout
