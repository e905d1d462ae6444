"""Training is never lost: whatever ends it, the run that goes on has the bits of one that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprob
from jaxprob import learning
from jaxprob.runtime import _checkpoint, _directory
from tests.runtime import _tasks
from tests.runtime.test_distributed import free_port
from tests.runtime.test_resume import Stopper, assert_same, finish

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".jax_cache" / f"fit-killed-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
KEY = jax.random.key(3)


def worker(*arguments):
    """Starts `_fit_worker.py`; its lines come through stdout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runtime._fit_worker", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def saved(out):
    with np.load(f"{out}.npz") as file:
        return dict(file)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def options(**changes):
    return {
        "key": KEY,
        "steps": 60,
        "validation": _tasks.validation(),
        "evaluate_every": 7,
        "log_every": 1,
        "devices": 1,
        "progress": None,
        **changes,
    }


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr("jaxprob.runtime._loop.SECONDS_PER_CHUNK", 0.002)
    monkeypatch.setattr("jaxprob.runtime._loop.FIRST_CHUNK", 2)


def assert_same_result(a, b):
    assert_same((a.state, a.best), (b.state, b.best))
    assert (a.step, list(a.history)) == (b.step, list(b.history))
    for name in a.history:
        np.testing.assert_array_equal(a.history[name], b.history[name])


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kills", "data"), [(3, "arrays"), *(pytest.param(10, x, marks=pytest.mark.slow) for x in ("arrays", "stream"))]
)
def test_killed_at_random_moments_the_run_has_the_same_bits(tmp_path, kills, data):
    common = ["--data", data, "--steps", 400 if kills < 10 else 2000]
    finish(worker(tmp_path / "whole", *common))
    moments = random.Random(20)
    reached = [0]
    for _ in range(kills):
        process = worker(tmp_path / "killed", *common)
        updates, wait = moments.randint(1, 6), moments.uniform(0, 0.1)
        for line in process.stdout:
            if line.startswith("update"):
                updates -= 1
                if not updates:
                    reached.append(int(line.split()[1]))
                    break
            assert not line.startswith("ended"), "finished before the last kill: make the run longer"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert reached[-1] > reached[0]
    assert "ended finished" in finish(worker(tmp_path / "killed", *common))
    killed, whole = saved(tmp_path / "killed"), saved(tmp_path / "whole")
    assert set(killed) == set(whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(killed[name], value)
    # Not a step is missing, none appears twice, and the file has the same bytes.
    assert [line["step"] for line in lines(tmp_path / "killed")] == list(range(1, common[-1] + 1))
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("sharding", [None, pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_and_are_resumed(tmp_path, sharding):
    more = [] if sharding is None else ["--sharding", sharding]

    def both(*arguments):
        common = ["--coordinator", f"127.0.0.1:{free_port()}", "--every", 1000, "--chunk", 0.2, *more, *arguments]
        return [worker(tmp_path / "two", *common, "--process", process) for process in range(2)]

    for process in both("--steps", 60):
        assert "ended finished" in finish(process)
    finish(worker(tmp_path / "one", "--devices", 4, "--steps", 60, *more))
    for name, value in saved(tmp_path / "one").items():
        np.testing.assert_allclose(saved(tmp_path / "two")[name], value, rtol=1e-4, atol=1e-5)
    meta = json.loads((tmp_path / "two" / "meta.json").read_text())
    assert (meta["mesh"]["processes"], meta["mesh"]["data"]) == (2, 4)
    processes = both("--steps", 1_000_000)
    for line in processes[0].stdout:
        if line.startswith("update") and int(line.split()[1]) > 100:
            break
    processes[1].terminate()  # one of them is told; all of them stop
    for process in processes:
        assert "ended signal" in finish(process)
    step = _checkpoint.steps(tmp_path / "two" / "checkpoints")[-1]
    goes_on = ["--steps", step + 20]
    for process in both(*goes_on) if sharding else [worker(tmp_path / "two", *goes_on)]:
        assert "ended finished" in finish(process)
    assert [line["step"] for line in lines(tmp_path / "two")] == list(range(1, step + 21))


@pytest.mark.parametrize("kind", ["arrays", "stream", "stream of bytes"])
def test_a_signal_is_followed_by_a_checkpoint_and_the_run_goes_on(tmp_path, short_chunks, kind):
    def data():
        return _tasks.arrays() if kind == "arrays" else learning.data.stream(_tasks.Counter(as_bytes="bytes" in kind))

    whole = jaxprob.fit(_tasks.network(), data(), **options())
    stopped = jaxprob.fit(
        _tasks.network(), data(), out=tmp_path / "run", **options(progress=Stopper(20), checkpoint_every=1000)
    )
    assert stopped.ended == "signal: SIGTERM"
    assert 20 <= stopped.step < 60
    assert _checkpoint.steps(tmp_path / "run" / "checkpoints") == [stopped.step]
    assert _directory.read_meta(tmp_path / "run", "training")["status"] == "stopped"
    resumed = jaxprob.fit(_tasks.network(), data(), out=tmp_path / "run", resume=True, **options())
    assert resumed.ended == "finished"
    assert_same_result(resumed, whole)
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 61))


def test_a_finished_run_is_extended_and_opened_again(tmp_path):
    data = _tasks.arrays()
    first = jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", **options(steps=25))
    again = jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", resume=True, **options(steps=25))
    assert_same_result(again, first)
    more = jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", resume=True, **options())
    assert_same_result(more, jaxprob.fit(_tasks.network(), data, **options()))


def test_patience_that_is_over_stays_over(tmp_path):
    def fit(**changes):
        return jaxprob.fit(_tasks.network(rate=0.0), _tasks.arrays(), out=tmp_path / "run", **options(**changes))

    first = fit(patience=3)
    # A rate of zero: the first evaluation is the best, and three more are no better.
    assert (first.step, first.ended) == (28, "patience: no better validation loss since step 7")
    again = fit(patience=3, resume=True)
    assert (again.step, again.ended) == (first.step, first.ended)


def test_on_other_devices_the_run_goes_on(tmp_path, short_chunks):
    data = _tasks.arrays()
    whole = jaxprob.fit(_tasks.network(), data, **options(devices=2))
    stopped = jaxprob.fit(
        _tasks.network(), data, out=tmp_path / "run", **options(devices=2, progress=Stopper(20), sharding="fsdp")
    )
    assert stopped.step < 60
    resumed = jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", resume=True, **options(devices=8))
    np.testing.assert_allclose(resumed.history["loss"], whole.history["loss"], rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), resumed.params, whole.params)


def test_the_newest_checkpoint_damaged_the_one_before_is_used(tmp_path, short_chunks):
    data = _tasks.arrays()
    whole = jaxprob.fit(_tasks.network(), data, **options())
    jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", **options(progress=Stopper(30), checkpoint_every=0))
    folder = tmp_path / "run" / "checkpoints"
    steps = _checkpoint.steps(folder)
    assert len(steps) == 2
    assert sorted(file.name for file in folder.glob("*.json")) == sorted(f"{step}.json" for step in steps)
    for file in (folder / str(steps[-1])).rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.warns(UserWarning, match="which cannot be read"):
        resumed = jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", resume=True, **options())
    assert_same_result(resumed, whole)


def test_a_line_that_was_being_written_is_written_again(tmp_path, short_chunks):
    data = _tasks.arrays()
    jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", **options(progress=Stopper(20)))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 1000, "loss": 1.0}\n{"step": 10')
    whole = jaxprob.fit(_tasks.network(), data, out=tmp_path / "whole", **options())
    resumed = jaxprob.fit(_tasks.network(), data, out=tmp_path / "run", resume=True, **options())
    assert_same_result(resumed, whole)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": jax.random.key(1)}, r"^fit: seed is \[0, 1\]; expected \[0, 3\], as in the run in"),
        ({"data": _tasks.arrays(32)}, r"^fit: batch is .*; expected .*, as in the run in"),
        ({"data": _tasks.arrays(seed=1)}, r"^fit: data is .*seed=1.*; expected .*seed=0"),
        ({"validation": None, "evaluate_every": None}, r"^fit: validation is false; expected true"),
        (
            {"task": _tasks.network(ema=None)},
            r"^fit: task, leaf 'average.hidden.bias' of its state, is missing; expected float32 of shape \(64,\)",
        ),
        (
            {
                "task": learning.Task(
                    lambda key: {"w": np.zeros(3, np.float32)}, lambda w, b, k: w["w"].sum(), _tasks.mean().optimizer
                )
            },
            r"^fit: task, leaf 'params.w' of its state, is float32 of shape \(3,\); expected no such leaf, as in",
        ),
    ],
)
def test_a_run_is_not_resumed_with_another_model_or_other_data(finished, change, said):
    arguments = {"task": _tasks.network(), "data": _tasks.arrays(), **options(steps=8), **change}
    before = (finished / "meta.json").read_text()
    with pytest.raises(ValueError, match=said) as caught:
        jaxprob.fit(out=finished, resume=True, **arguments)
    assert "\n" not in str(caught.value)
    assert (finished / "meta.json").read_text() == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    jaxprob.fit(_tasks.network(), _tasks.arrays(), out=out, **options(steps=8))
    return out


def test_what_is_in_the_folder_stays(tmp_path, finished):
    with pytest.raises(ValueError, match=r"^fit: out is .* which holds a run; expected a new or empty folder"):
        jaxprob.fit(_tasks.network(), _tasks.arrays(), out=finished, **options())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"^fit: out is .* which exists and is not a run; expected"):
        jaxprob.fit(_tasks.network(), _tasks.arrays(), out=tmp_path, **options())
    with pytest.raises(ValueError, match=r"^load: path is .*, a training run; expected a sampling run"):
        jaxprob.runtime.load(finished)
    with pytest.raises(ValueError, match=r"^fit: out is None; expected the folder of the run to resume"):
        jaxprob.fit(_tasks.network(), _tasks.arrays(), resume=True, **options())


def test_a_stream_without_a_position_says_so(tmp_path):
    def data():
        return iter([next(_tasks.Counter())] * 30)

    with pytest.warns(UserWarning, match=r"^fit: data is a stream without a position .* cannot be resumed"):
        result = jaxprob.fit(_tasks.network(), data(), out=tmp_path / "run", **options(steps=10))
    assert result.step == 10
    with pytest.raises(TypeError, match=r"^Stream.set_state: the iterator is list_iterator, without get_state"):
        jaxprob.fit(_tasks.network(), data(), out=tmp_path / "run", resume=True, **options(steps=20))
