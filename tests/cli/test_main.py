import subprocess
import sys

import pytest

import jaxprob
from jaxprob.cli import main

HEAVY = ("jax", "jaxlib", "numpy", "rich", "matplotlib", "scipy", "flax", "orbax", "tensorstore", "distrax")


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["--version"], [], ["sample", "nofile.py"]])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    # Seconds on a shared machine say little; what is imported says why --help is quick.
    code = (
        "import sys\n"
        "from jaxprob.cli import main\n"
        f"main({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, number = done.stdout.splitlines()[-1].rsplit(maxsplit=1)
    assert found == "[]"
    assert int(number) < 250


def test_help_names_every_command_and_the_exit_codes(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("demo", "sample", "diagnose", "report", "devices", "exit codes", "75"):
        assert word in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxprob {jaxprob.__version__}\n"


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "jaxprob", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"jaxprob {jaxprob.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "bogus"),
        (["sample"], "FILE.py:NAME"),
        (["sample", "model.txt"], "'model.txt' is not FILE.py:NAME"),
        (["sample", "model.py:a.b"], "'model.py:a.b' is not FILE.py:NAME"),
        (["sample", "m.py", "--chains", "0"], "--chains: '0' is not at least 1"),
        (["sample", "m.py", "--draws", "many"], "--draws: 'many' is not a whole number"),
        (["sample", "m.py", "--mesh", "rows=2"], "'rows=2' is not one of chains=..., data=..."),
        (["sample", "m.py", "--mesh", "chains=0"], "'0' is not at least 1"),
        (["sample", "m.py", "--until", "ess"], "'ess' is not one of ess=..., r_hat=..., time=..."),
        (["sample", "m.py", "--until", ""], "--until: it is empty"),
        (["sample", "m.py", "--algorithm", "gibbs"], "gibbs"),
        (["sample", "m.py", "--devices", "2", "--mesh", "chains=2"], "not allowed with"),
        (["sample", "m.py", "--quiet", "--progress", "lines"], "not allowed with"),
        (["diagnose"], "DIR"),
    ],
)
def test_usage_errors_are_one_line_and_code_two(arguments, said, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxprob: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_no_command_shows_the_help_and_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().err
