"""What the commands ask of the runtime (played by a double), what they say, and their exit codes."""

import json
import os
import types

import numpy as np
import pytest

import jaxprob
from jaxprob.cli import _commands, _errors, main

MODEL = """
class Posterior:
    def log_density(self, x):
        return -x * x / 2

posterior = Posterior()

def log_density(x):
    raise FloatingPointError("division by zero")

initial = 0.5
"""


class Result:
    def __init__(self, ok=True, status="finished", path=None, draws=10):
        self.ok, self.status, self.path = ok, status, path
        self.draws = {"x": np.zeros((4, draws))}
        self.meta = {"status": status}

    def summary(self):
        from jaxprob.analysis import Summary

        names = [f"theta[{i}]" for i in range(40)] + ["tau"]
        return Summary(names, *np.arange(9 * 41.0).reshape(9, 41), probability=0.9, chains=4, draws=10)

    def diagnose(self):
        return types.SimpleNamespace(ok=self.ok, __str__=lambda self: "fine")


class Runtime(types.SimpleNamespace):
    def __init__(self, result):
        super().__init__(asked=None, result=result, shown=[])
        self.progress = types.SimpleNamespace(terminal=lambda live=None: ("progress", live))

    def sample(self, model, key, **options):
        self.asked = {"model": model, "key": key, **options}
        if "raise" in self.__dict__:
            raise self.__dict__["raise"]
        return self.result

    def load(self, path):
        return self.result

    def report(self, path, figures=None):
        if isinstance(self.result, Exception):
            raise self.result
        return "report.html"

    def mesh(self, **axes):
        return ("mesh", axes)

    def effective_sample_size(self, target):
        return Rule(f"ess {target:g}")

    def r_hat(self, target):
        if target <= 1:
            raise ValueError("r_hat: target is 0.9; expected a number above 1.")
        return Rule(f"r_hat {target:g}")

    def wall_clock(self, limit):
        return Rule(f"time {limit}")


class Rule(str):
    def __and__(self, other):
        return Rule(f"({self} & {other})")

    def __or__(self, other):
        return Rule(f"({self} | {other})")


@pytest.fixture
def runtime(monkeypatch):
    double = Runtime(Result())
    monkeypatch.setattr(jaxprob, "runtime", double, raising=False)
    monkeypatch.delenv("JAXPROB_DEBUG", raising=False)
    return double


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return str(path)


def test_sample_asks_for_what_it_was_told(runtime, model, tmp_path):
    out = tmp_path / "run"
    runtime.result = Result(path=out)
    options = "--chains 8 --warmup 200 --draws 300 --thin 2 --keep a,b --seed 7 --resume --devices 4 --quiet"
    assert main(["sample", f"{model}:posterior", *options.split(), "--out", str(out)]) == 0
    asked = runtime.asked
    names = ("chains", "warmup", "draws", "thin", "keep", "resume", "devices", "progress", "until", "initial")
    assert [asked[name] for name in names] == [8, 200, 300, 2, ["a", "b"], True, 4, None, None, None]
    assert str(asked["out"]) == str(out)
    assert (asked["algorithm"].func.__name__, asked["algorithm"].args) == ("warmup", ())
    import jax

    assert (jax.random.key_data(asked["key"]) == jax.random.key_data(jax.random.key(7))).all()


def test_sample_defaults(runtime, model):
    assert main(["sample", model]) == 0
    asked = runtime.asked
    names = ("chains", "warmup", "draws", "thin", "keep", "resume", "devices", "out", "progress")
    assert [asked[n] for n in names] == [4, None, None, 1, None, False, None, None, ("progress", None)]


def test_populations_and_what_does_not_go_with_them(runtime, model, capsys):
    assert main(["sample", model, "--algorithm", "tempered", "--particles", "64"]) == 0
    assert runtime.asked["algorithm"].keywords == {"particles": 64}
    assert main(["sample", model, "--algorithm", "tempered", "--metric", "dense"]) == 2
    assert "--metric does not go with --algorithm tempered" in capsys.readouterr().err
    assert main(["sample", model, "--particles", "64"]) == 2
    assert "--particles does not go with --algorithm nuts" in capsys.readouterr().err


def test_log_density_mesh_until_and_progress(runtime, model):
    arguments = ["sample", f"{model}:log_density", "--mesh", "chains=4,data=2", "--algorithm", "hmc"]
    assert main([*arguments, "--until", "ess=1000, r_hat=1.02, time=2h", "--progress", "lines"]) == 0
    asked = runtime.asked
    assert asked["initial"] == 0.5
    assert asked["devices"] == ("mesh", {"chains": 4, "data": 2})
    assert asked["until"] == "((ess 1000 & r_hat 1.02) | time 2h)"
    assert asked["progress"] == ("progress", False)
    assert [kernel.__name__ for kernel in asked["algorithm"].args] == ["hmc"]


def test_draws_without_a_folder_say_that_they_are_lost(runtime, model, capsys):
    assert main(["sample", model]) == 0
    text = capsys.readouterr().out
    assert "give --out DIR" in text
    # A long summary is cut: scalars first, then some elements.
    names = [line.split()[0] for line in text.splitlines() if line.startswith(("t", "..."))]
    assert names == ["tau", "theta[0]", "theta[1]", "theta[2]", "..."]
    assert "... 37 more rows" in text


def test_exit_codes(runtime, model, tmp_path, capsys):
    runtime.result = Result(ok=False)
    assert main(["sample", model]) == 3
    assert main(["diagnose", "runs/x"]) == 3
    runtime.result = Result(status="stopped", path=tmp_path / "run")
    capsys.readouterr()
    assert main(["sample", model]) == 75
    captured = capsys.readouterr()
    assert captured.err == (
        f"jaxprob: stopped by a signal; what was done is safe in {tmp_path / 'run'}; "
        "run the same command with --resume to go on.\n"
    )
    runtime.result = Result(status="stopped")
    assert main(["sample", model]) == 75
    assert capsys.readouterr().err == "jaxprob: stopped by a signal; nothing is kept without --out.\n"
    runtime.result = Result()
    assert main(["diagnose", "runs/x"]) == 0
    assert main(["report", "runs/x"]) == 0
    runtime.__dict__["raise"] = ValueError("sample: chains is 3; expected 2.")
    assert main(["sample", model]) == 1
    runtime.__dict__["raise"] = KeyboardInterrupt()
    assert main(["sample", model]) == 130


def test_an_error_from_inside_the_model_names_its_line(runtime, model, capsys):
    def sample(density, key, **options):
        density(1.0)

    runtime.sample = sample
    assert main(["sample", f"{model}:log_density"]) == 1
    line = MODEL.splitlines().index('    raise FloatingPointError("division by zero")') + 1
    assert capsys.readouterr().err == f"jaxprob: {model}:{line}: FloatingPointError: division by zero\n"


def test_a_bad_rule_is_a_usage_error(runtime, model, capsys):
    assert main(["sample", model, "--until", "r_hat=0.9"]) == 2
    assert main(["sample", model, "--until", "ess=many"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--resume"],
        ["--coordinator", "localhost:1234"],
        ["--distributed", "--num-processes", "2"],
    ],
)
def test_options_that_go_together(options, runtime, model, capsys):
    assert main(["sample", model, *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert runtime.asked is None


def test_several_processes(runtime, model, monkeypatch):
    joined = []
    runtime.connect = lambda *told: joined.append(told)
    assert main(["sample", model]) == 0
    assert joined == []
    assert main(["sample", model, "--distributed"]) == 0
    by_hand = "--distributed --coordinator localhost:99 --num-processes 2 --process-id 0"
    assert main(["sample", model, *by_hand.split()]) == 0
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert main(["sample", model]) == 0
    assert joined == [(None, None, None), ("localhost:99", 2, 0), (None, None, None)]


def test_a_run_without_draws_and_a_run_that_goes_on(runtime, capsys):
    runtime.result = Result(status="running", draws=0)
    assert main(["diagnose", "runs/x"]) == 1
    assert capsys.readouterr().err == "jaxprob: runs/x has no draws yet (status: running).\n"
    runtime.result = Result(status="running")
    assert main(["diagnose", "runs/x"]) == 0
    assert "not finished" in capsys.readouterr().out


def test_a_missing_extra_loses_the_report_and_not_the_run(runtime, model, tmp_path, capsys):
    runtime.result = Result(path=tmp_path / "run")

    def report(path, figures=None):
        raise ImportError("report: figures need matplotlib. Install it with: pip install 'jaxprob[plots]'.")

    runtime.report = report
    assert main(["sample", model, "--out", str(tmp_path / "run")]) == 0
    assert "pip install 'jaxprob[plots]'" in capsys.readouterr().out
    assert main(["report", "runs/x"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_devices(runtime, capsys):
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "8 devices" in lines[0]
    assert len(lines) == 1 + 8 + 1
    assert lines[-1] == "a default run: 4 chains on 4 devices, 1 on each, in float32"


def test_virtual_devices_only_where_nothing_is_said(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    _commands.show_devices(3)
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=3"
    _commands.show_devices(5)
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_force_host_platform_device_count=3"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    _commands.show_devices(5)
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize(("chains", "cores", "devices"), [(4, 2, 2), (4, 3, 2), (3, 2, 1), (6, 4, 3), (2, 64, 2)])
def test_chains_share_devices_evenly(chains, cores, devices):
    assert _commands._share(chains, cores) == devices


def test_where_the_demo_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(name, status):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "meta.json").write_text(json.dumps({"status": status}))

    out, resume, note = _commands._demo_directory(None)
    assert (out.as_posix(), resume, note) == ("runs/demo", False, "")
    folder("demo", "stopped")
    out, resume, note = _commands._demo_directory(None)
    assert (out.as_posix(), resume) == ("runs/demo", True)
    assert "did not finish" in note
    (tmp_path / "runs" / "demo" / "meta.json").write_text(json.dumps({"status": "finished"}))
    out, resume, note = _commands._demo_directory(None)
    assert (out.as_posix(), resume) == ("runs/demo-2", False)
    assert "runs/demo holds a finished run" in note
    assert _commands._demo_directory("elsewhere")[0].as_posix() == "elsewhere"


def test_one_line_for_foreign_errors():
    def line(error):
        try:
            raise error
        except Exception as caught:
            return _errors.one_line(caught)

    assert line(KeyError("x")) == "KeyError: 'x'"
    assert line(ValueError("a\n\n   b")) == "ValueError: a b"
    assert line(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert line(AssertionError()) == "AssertionError"
