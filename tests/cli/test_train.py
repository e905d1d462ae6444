"""`jaxprob train` and `jaxprob compile` on the real runtime, and how a task is found in a file."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxprob.cli import _target, main
from jaxprob.cli._errors import CommandError

ROOT = Path(__file__).resolve().parents[2]

FILE = """
import jax.numpy as jnp
import numpy as np
import optax

from jaxprob import learning


def init(key):
    return {"w": jnp.zeros((4, 2))}


def loss(params, batch, key):
    return jnp.mean((batch @ params["w"] - 1.0) ** 2)


task = learning.Task(init, loss, optax.sgd(0.1), ema=0.9)
data = learning.data.arrays(np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32), 8)
validation = learning.data.arrays(np.ones((8, 4), np.float32), 8)
sharding = {"w": (None, "model")}


def both():
    return task, data


def three():
    return task, data, validation


def of(width):
    return task


def nothing():
    return 3.0


bad = learning.Task(init, lambda params, batch, key: jnp.log(-jnp.ones(())) * jnp.sum(params["w"]), optax.sgd(0.1))
narrow = learning.Task(init, lambda params, batch, key: jnp.mean(batch @ jnp.ones((3, 2))), optax.sgd(0.1))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXPROB_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(FILE)
    return "model.py"


def test_train_writes_says_and_is_extended(file, tmp_path, capsys):
    command = ["train", file, "--devices", "2", "--out", "runs/line"]
    assert main([*command, "--steps", "20", "--log-every", "5", "--patience", "100"]) == 0
    out = capsys.readouterr().out
    said = out.splitlines()
    assert said[0] == "jaxprob: training of 8 parameters, 20 steps on 2 cpu devices, to runs/line"
    assert said[1] == "jaxprob: compiling ..."
    assert "jaxprob: finished: 20 steps in runs/line" in said
    assert said[-1] == "run     runs/line"
    values = dict(line.split() for line in said[-5:-1])
    assert values["step"] == "20"
    assert float(values["loss"]) < 1.0
    assert "validation/loss" in values  # once an epoch of six steps
    lines = [json.loads(line) for line in (tmp_path / "runs/line/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 6, 10, 12, 15, 18, 20]
    assert main([*command, "--epochs", "5", "--resume", "--quiet"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["step", "30"]
    assert main([*command, "--steps", "30"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("jaxprob: fit: out is ")
    assert "which holds a run; expected a new or empty folder" in message
    assert message.count("\n") == 1


def test_a_time_limit_and_nothing_kept(file, capsys):
    assert main(["train", f"{file}:both", "--until", "time=0.2s", "--devices", "1"]) == 0
    out = capsys.readouterr().out
    assert "until: wall clock 0.2 s" in out
    assert out.splitlines()[-1] == "Nothing was kept; give --out DIR to keep it."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.py:bad", "--steps", "9"], "jaxprob: fit: loss is nan at step 1; expected a finite number."),
        (["model.py"], "jaxprob: fit: steps is None; expected a number of steps"),
        (
            ["model.py", "--steps", "9", "--devices", "3"],
            "jaxprob: fit: batch, leaf 'value', is of 8 examples; expected",
        ),
        (["model.py:missing", "--steps", "9"], "jaxprob: model.py has no 'missing'; it has 'init', 'loss', 'task', "),
        (["model.py:of", "--steps", "9"], "jaxprob: model.py: of needs the arguments width; expected a learning.Task"),
        (["model.py:nothing", "--steps", "9"], "jaxprob: model.py: nothing is an object of type float; expected a"),
        (["nowhere.py", "--steps", "9"], "jaxprob: no file nowhere.py."),
        (["model.py:narrow", "--steps", "9"], "jaxprob: model.py:"),
    ],
)
def test_errors_are_one_line(file, arguments, said, capsys):
    assert main(["train", *arguments, "--quiet"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(said), message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "FILE.py:TASK"),
        (["train", "m.py", "--steps", "3", "--epochs", "2"], "not allowed with"),
        (["train", "m.py", "--mesh", "chains=2"], "'chains=2' is not one of data=..., model=..."),
        (["train", "m.py", "--until", "ess=100"], "'ess=100' is not one of time=..."),
        (["train", "m.py", "--sharding", "all"], "invalid choice"),
        (["train", "m.py", "--resume"], "--resume needs --out"),
        (["compile", "m.py"], "--mesh"),
    ],
)
def test_usage_errors_are_one_line_and_code_two(arguments, said, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_tasks_and_their_data(file, tmp_path):
    path = Path(file)
    alone = _target.load_training(path, "task")
    assert alone.data is not None
    assert alone.validation is not None
    assert alone.sharding == {"w": (None, "model")}
    assert _target.load_training(path, "both").validation is None
    assert _target.load_training(path, "three").validation is not None
    (tmp_path / "bare.py").write_text(FILE.replace("data = ", "rows = "))
    with pytest.raises(CommandError, match=r"bare.py: task is a task without data; define `data` in the file"):
        _target.load_training(Path("bare.py"), "task")


def test_compile_says_what_a_step_takes(file, capsys):
    assert main(["compile", f"{file}:task", "--mesh", "data=4,model=2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "model.py:task: a training step on 8 devices (data=4 x model=2), 8 parameters"
    assert said[1] == "on each device:"
    size, unit = said[2].split()[:2]
    # Half of the 4 x 2 parameters and of their average, two of the eight examples of four numbers, a step and a key.
    assert (unit, said[2].split("  ")[-1]) == ("B", "arguments: the training state and a part of the batch")
    assert 0 <= int(size) - (2 * 16 + 2 * 16) < 64
    # A product forward and one for the weights, of 8 x 4 x 2, and the squared norm of the gradient.
    assert said[-2] == "on all together: 272 FLOPs in matrix products and convolutions, loops counted"
    assert said[-1].startswith("Compiled for 8 virtual CPU devices in place of the mesh")


def test_nothing_heavy_is_imported_for_the_help():
    for command in ("train", "compile"):
        code = (
            "import sys\nfrom jaxprob.cli import main\n"
            f"main([{command!r}, '--help'])\n"
            "print([name for name in ('jax', 'numpy', 'optax', 'flax', 'rich') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
        assert "FILE.py:TASK" in done.stdout


@pytest.mark.slow
def test_the_example_learns_to_read_digits(tmp_path):
    command = [sys.executable, "-m", "jaxprob", "train", "examples/digits.py", "--epochs", "30", "--out"]
    done = subprocess.run([*command, str(tmp_path / "run"), "--quiet"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    values = dict(line.split() for line in done.stdout.splitlines() if not line.startswith("run"))
    assert float(values["validation/accuracy"]) > 0.96


@pytest.mark.slow
def test_a_signal_ends_with_code_75_and_the_run_goes_on(file, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "jaxprob", "train", file, "--progress", "lines", "--out", str(run)]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--steps", "100000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if "compiled" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "run the same command with --resume" in errors
    assert json.loads((run / "meta.json").read_text())["status"] == "stopped"
    done = subprocess.run(
        [*command, "--resume", "--steps", "100000000", "--until", "time=1s"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "meta.json").read_text())["status"] == "finished"
