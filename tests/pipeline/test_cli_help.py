"""The command line itself: help, defaults, version, completion, and one sentence for each mistake."""

import subprocess
import sys

import click
import pytest

from pipeline.cli import main
from pipeline.commands import SECTIONS, top
from tests.conftest import ROOT

COMMANDS = [
    "labels",
    "fit-codes",
    "train",
    "status",
    "stats",
    "doctor",
    "verify",
    "merge",
    "probe",
    "export",
    "features",
]


def helped(capsys, *arguments: str) -> str:
    assert main([*arguments, "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_names_every_command_once_in_its_section(capsys):
    text = helped(capsys)
    places = [text.index(f"{title}: {names[0]} ") for title, names in SECTIONS.items()]
    assert places == sorted(places)
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(COMMANDS) == sorted(top.commands)
    assert "_OVERTONE_COMPLETE=bash_source" in text and "zsh_source" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_explained(capsys, name):
    text = helped(capsys, name)
    assert "--debug" in text and text.startswith(f"Usage: overtone {name} ")
    for option in (p for p in top.commands[name].params if isinstance(p, click.Option)):
        assert option.help and option.opts[0] in text


def test_defaults_are_shown(capsys):
    text = helped(capsys, "features")
    for default in (
        "[default: all]",
        "[default: 8]",
        "[default: latest]",
        "[default: (cuda where there is one)]",
    ):
        assert default in text
    assert "[required]" in text and "[default: (the current ones)]" in helped(capsys, "merge")
    assert "-h, --help" in text and main(["features", "-h"]) == 0


def test_the_version(capsys):
    from importlib.metadata import version

    assert main(["--version"]) == 0 and capsys.readouterr().out == f"overtone {version('overtone')}\n"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ("lables x", "no such command 'lables': did you mean 'labels'?"),
        ("fit_codes x", "no such command 'fit_codes': did you mean 'fit-codes'?"),
        ("qqqq", "no such command 'qqqq': see overtone --help"),
        ("--vresion", "no such option '--vresion': did you mean '--version'?"),
        ("labels x --adio y", "no such option '--adio': did you mean '--audio'?"),
        ("labels x --qqqq", "no such option '--qqqq': see overtone labels --help"),
        ("labels", "missing argument 'CONFIG': see overtone labels --help"),
        ("stats", "missing argument 'OUT|RUN...': see overtone stats --help"),
        ("merge x", "missing option '--to': see overtone merge --help"),
        ("verify x y", "got unexpected extra argument (y): see overtone verify --help"),
        (
            "merge x --to y --split all",
            "invalid value for '--split': 'all' is not one of 'train', 'valid': see overtone merge --help",
        ),
        (
            "features x y --out z --batch many",
            "invalid value for '--batch': 'many' is not a valid integer: see overtone features --help",
        ),
    ],
)
def test_what_the_command_line_does_not_know(capsys, arguments, sentence):
    assert main(arguments.split()) == 2
    assert capsys.readouterr() == ("", f"overtone: {sentence}\n")


def test_no_command_at_all_shows_the_help(capsys):
    assert main([]) == 2
    assert "Labels:" in capsys.readouterr().err


def test_the_shell_completes_commands_and_options(overtone):
    def completed(words: str, number: int) -> list[str]:
        given = {"_OVERTONE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        done = overtone(**given)
        assert done.returncode == 0, done.stderr
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("overtone st", 1) == ["stats", "status"]
    assert completed("overtone labels --re", 2) == ["--refit", "--retry-rejected"]
    done = overtone(_OVERTONE_COMPLETE="bash_source")
    assert done.returncode == 0 and "complete -o nosort -F _overtone_completion overtone" in done.stdout


def test_help_imports_nothing_heavy():
    """The own time of the imports, not the clock's: other work on the machine does not fail it."""
    code = (
        "import sys, time; before = time.process_time();"
        "from pipeline.cli import main; main(['labels', '--help']);"
        "assert time.process_time() - before < 0.5, time.process_time() - before;"
        "found = {'torch', 'ray', 'numpy', 'pyarrow', 'rich', 'stages', 'cluster'} & set(sys.modules);"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_a_command_returns_and_raises_is_the_exit_code(monkeypatch, capsys):
    def run(outcome) -> tuple[int, str]:
        def status(out: str):
            if isinstance(outcome, BaseException):
                raise outcome
            return {}, outcome

        monkeypatch.setattr("pipeline.status.status", status)
        return main(["status", "x"]), capsys.readouterr().err

    stopped = "\novertone: stopped; what is finished is kept, the same command goes on from there\n"
    assert run("fine") == (0, "")
    assert run(ValueError("give another")) == (2, "overtone: give another\n")
    assert run(OSError("disk full")) == (1, "overtone: disk full\n")
    assert run(KeyboardInterrupt()) == (130, stopped)
    assert run(BrokenPipeError()) == (0, "")
    with pytest.raises(ModuleNotFoundError):  # a defect of ours keeps its traceback
        run(ModuleNotFoundError("no stages.x", name="stages.x"))
    monkeypatch.setattr("pipeline.verify.verify", lambda out, repair: 1 if repair else 0)
    assert [main(["verify", "x"]), main(["verify", "x", "--repair"])] == [0, 1]


def test_values_reach_the_commands(monkeypatch):
    """Options that only one command knows, in the form it takes them."""
    given = {}
    monkeypatch.setattr("pipeline.features.extract", lambda **options: given.update(options) or 0)
    assert main(["features", "run", "a", "b", "--out", "x", "--batch", "0", "--layer", "3"]) == 0
    expected = dict(
        place="run", audio=("a", "b"), layer="3", out="x", batch=1, device=None, checkpoint="latest"
    )
    expected |= dict(pool="none", dtype="fp32", window_s=30.0, overlap_s=0.0, processes=1)
    assert given == expected
    merged = []
    monkeypatch.setattr("pipeline.merge.merge", lambda *options: merged.append(options))
    assert main(["merge", "out", "--to", "dir", "--columns", "audio,codes-1", "--split", "valid"]) == 0
    assert main(["merge", "out", "--to", "dir"]) == 0
    assert merged == [("out", "dir", ("audio", "codes-1"), "valid"), ("out", "dir", None, None)]
    trained = []
    monkeypatch.setattr("stages.pretrain.config.load", lambda path, overrides: (path, list(overrides)))
    monkeypatch.setattr("pipeline.pretrain.pretrain", lambda config: trained.append(config) or 0)
    assert main(["train", "c.yaml", "--set", "run.name=a", "--set", "run.ranks=2"]) == 0
    assert trained == [("c.yaml", ["run.name=a", "run.ranks=2"])]
