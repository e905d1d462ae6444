"""The command line on the real runtime: a run, its diagnosis and report, a signal and what comes after it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxprob.cli import main

MODEL = """
import jax.numpy as jnp

from jaxprob import models
from jaxprob.distributions import Normal


@models.joint
def line(x):  # a Gaussian posterior: nothing diverges
    mu = yield "mu", Normal(0.0, 1.0)
    slope = yield "slope", Normal(0.0, 1.0)
    yield "y", Normal(mu + slope * x, 1.0)


def posterior():
    return line(jnp.linspace(-1.0, 1.0, 5)).condition(y=jnp.array([0.5, -0.2, 1.0, 0.3, 0.1]))


def log_density(x):
    return -jnp.sum(x**2) / 2


initial = jnp.zeros(2)


def narrow(x):
    return jnp.sum(jnp.where(x < 1e-3, -jnp.inf, x))  # -inf where it starts


bad_start = narrow
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXPROB_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return "model.py"


def test_sample_diagnose_report_and_a_folder_in_use(model, tmp_path, capsys):
    run = tmp_path / "runs" / "line"
    arguments = ["sample", model, "--warmup", "300", "--draws", "1000", "--devices", "2", "--out", str(run)]
    assert main([*arguments, "--keep", "mu,slope"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("jaxprob: nuts(metric='dense'), 4 chains on 2 cpu devices, 300 warm-up steps and 1,000")
    assert lines[1] == "jaxprob: compiling ..."
    assert "No problems found in 4 chains of 1,000 draws" in text
    assert lines[-2:] == ["run     runs/line", "report  runs/line/report.html"]
    assert json.loads((run / "meta.json").read_text())["status"] == "finished"
    page = (run / "report.html").read_text()
    assert "No problem found" in page
    assert "posterior predictive check" in page

    (run / "report.html").unlink()
    assert main(["diagnose", str(run)]) == 0
    assert "No problems found" in capsys.readouterr().out
    assert main(["report", "runs/line"]) == 0
    assert (run / "report.html").exists()
    capsys.readouterr()

    assert main([*arguments, "--keep", "mu,slope"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "which holds a run; expected a new or empty folder" in message


def test_errors_of_a_run_are_one_line(model, tmp_path, capsys):
    for arguments, said in [
        ([f"{model}:bad_start"], "sample: initial is a position with log density -inf"),
        ([model, "--keep", "nu"], "'nu'"),
        ([model, "--chains", "3", "--devices", "2"], "devices"),
        ([model, "--mesh", "chains=4,data=3"], "devices"),
    ]:
        assert main(["sample", *arguments, "--out", str(tmp_path / "run")]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("jaxprob: "), captured.err
        assert captured.err.count("\n") == 1
        assert said in captured.err
        assert not (tmp_path / "run").exists()  # nothing is written by a run that cannot start
    for command in ("diagnose", "report"):
        assert main([command, str(tmp_path)]) == 1
        assert "which has no meta.json; expected the directory of a run" in capsys.readouterr().err


def test_too_few_draws_finish_with_code_three(model, capsys):
    assert main(["sample", f"{model}:log_density", "--warmup", "20", "--draws", "10", "--quiet"]) == 3
    text = capsys.readouterr().out
    assert "Too few draws to tell" in text
    assert "jaxprob:" not in text  # no progress
    assert "value[0]" in text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_with_code_75_and_the_run_goes_on(model, tmp_path, number):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "jaxprob", "sample", f"{model}:log_density", "--progress", "lines"]
    command += ["--warmup", "100", "--draws", "400000", "--until", "time=100s", "--out", str(run)]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if "sampling" in line:
                break
        process.send_signal(number)
        began = time.monotonic()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert time.monotonic() - began < 60
    assert "run the same command with --resume" in errors
    assert errors.strip().count("\n") == 0
    assert json.loads((run / "meta.json").read_text())["status"] == "stopped"
    assert main(["diagnose", str(run)]) in (0, 3)
    done = subprocess.run([*command, "--resume", "--until", "time=1s"], capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 3), done.stderr
    assert json.loads((run / "meta.json").read_text())["status"] == "finished"
    assert (run / "report.html").exists()
