"""A long run is never lost: whatever ends it, the run that goes on has the bits of one that was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprob
from jaxprob import runtime
from jaxprob.runtime import _checkpoint, _directory
from tests.runtime import _targets

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".jax_cache" / f"killed-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"


def worker(*arguments):
    """Starts `_worker.py`; its lines come through stdout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runtime._worker", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 0, text
    return text


def arrays(out):
    result = runtime.load(out)
    return {"draws": result.draws, "stats": result.stats}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


class Stopper:
    """A progress object that sends a signal to this process when the run has come to a step."""

    def __init__(self, at):
        self.at = at

    def update(self, status):
        if status["step"] >= self.at:
            self.at = np.inf
            signal.raise_signal(signal.SIGTERM)

    start = phase = finish = lambda self, *_: None

    def close(self):
        pass


@pytest.fixture
def short_chunks(monkeypatch):
    # So short that a machine ten times as fast (10,000 draws a second) does not take all draws in one.
    monkeypatch.setattr("jaxprob.runtime._loop.SECONDS_PER_CHUNK", 0.002)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_run_has_the_same_bits(tmp_path, kills):
    finish(worker(tmp_path / "whole"))
    whole = arrays(tmp_path / "whole")
    moments = random.Random(20)
    phases = []
    for _ in range(kills):
        process = worker(tmp_path / "killed")
        updates, wait = moments.randint(1, 4), moments.uniform(0, 0.05)
        for line in process.stdout:
            if line.startswith("update"):
                updates -= 1
                step = int(line.split()[1])
                if not updates:
                    break
            assert not line.startswith("status"), "finished before the last kill: make the run longer"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        phases.append("warm-up" if step < 200 else "sampling")
    assert "warm-up" in phases
    assert kills < 10 or "sampling" in phases
    assert "finish" in finish(worker(tmp_path / "killed"))
    assert_same(arrays(tmp_path / "killed"), whole)


@pytest.mark.parametrize("at", [40, 250], ids=["in warm-up", "in sampling"])
@pytest.mark.parametrize("devices", [1, 8])
def test_stopped_on_two_devices_and_resumed_on_others(tmp_path, short_chunks, at, devices):
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 8, "warmup": 200, "draws": 200}
    key = jax.random.key(3)
    whole = jaxprob.sample(target, key, devices=2, **options)
    stopped = jaxprob.sample(target, key, devices=2, out=tmp_path / "run", progress=Stopper(at), **options)
    assert stopped.status == "stopped"
    assert stopped.draws.shape[1] < 200
    resumed = jaxprob.sample(target, key, devices=devices, out=tmp_path / "run", resume=True, **options)
    assert resumed.status == "finished"
    np.testing.assert_array_equal(resumed.draws, whole.draws)
    np.testing.assert_array_equal(resumed.stats["num_steps"], whole.stats["num_steps"])


def test_every_density_goes_on_with_the_same_keys_on_other_devices(tmp_path, short_chunks):
    target, initial = _targets.matrix()
    options = {"initial": initial, "chains": 8, "draws": 300, "algorithm": _targets.random_walk(target)}
    key = jax.random.key(4)
    whole = jaxprob.sample(target, key, devices=2, **options)
    jaxprob.sample(target, key, devices=2, out=tmp_path / "run", progress=Stopper(50), **options)
    checkpoint = _checkpoint.steps(tmp_path / "run" / _directory.CHECKPOINTS)[-1]
    assert 0 < checkpoint < 300
    resumed = jaxprob.sample(target, key, devices=8, out=tmp_path / "run", resume=True, **options)
    np.testing.assert_array_equal(resumed.stats["key_data"], whole.stats["key_data"])
    # All keys of all chains and steps differ: 2,400 words of 32 bits collide with probability 7e-4.
    assert len(np.unique(whole.stats["key_data"])) == whole.stats["key_data"].size
    # Until the stop the arithmetic was that of two devices: equal to the bit; then equal up to rounding for a while.
    np.testing.assert_array_equal(resumed.draws[:, :checkpoint], whole.draws[:, :checkpoint])
    np.testing.assert_allclose(
        resumed.draws[:, checkpoint : checkpoint + 5], whole.draws[:, checkpoint : checkpoint + 5], rtol=1e-4, atol=1e-5
    )


def test_a_finished_run_is_extended(tmp_path):
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 2, "algorithm": _targets.random_walk(target), "devices": 2}
    key = jax.random.key(5)
    first = jaxprob.sample(target, key, draws=30, out=tmp_path / "run", **options)
    again = jaxprob.sample(target, key, draws=30, out=tmp_path / "run", resume=True, **options)
    more = jaxprob.sample(target, key, draws=100, out=tmp_path / "run", resume=True, **options)
    whole = jaxprob.sample(target, key, draws=100, **options)
    np.testing.assert_array_equal(again.draws["value"], first.draws)
    np.testing.assert_array_equal(more.draws, whole.draws)


def test_the_newest_checkpoint_damaged_the_one_before_is_used(tmp_path, short_chunks):
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 2, "algorithm": _targets.random_walk(target), "devices": 2, "draws": 400}
    key = jax.random.key(6)
    whole = jaxprob.sample(target, key, **options)
    jaxprob.sample(target, key, out=tmp_path / "run", progress=Stopper(300), checkpoint_every=0, **options)
    folder = tmp_path / "run" / _directory.CHECKPOINTS
    steps = _checkpoint.steps(folder)
    assert len(steps) == 2
    for file in (folder / str(steps[-1])).rglob("*"):
        if file.is_file():
            with open(file, "r+b") as handle:
                handle.truncate(file.stat().st_size // 2)
    with pytest.warns(UserWarning, match="which cannot be read"):
        resumed = jaxprob.sample(target, key, out=tmp_path / "run", resume=True, **options)
    np.testing.assert_array_equal(resumed.draws, whole.draws)


def test_all_checkpoints_damaged_is_one_line_and_the_draws_stay(tmp_path, short_chunks):
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 2, "algorithm": _targets.random_walk(target), "draws": 400, "devices": 1}
    stopped = jaxprob.sample(target, jax.random.key(6), out=tmp_path / "run", progress=Stopper(100), **options)
    for file in (tmp_path / "run" / _directory.CHECKPOINTS).rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"^load: checkpoint is .* cannot be read .*; expected .*") as caught:
        jaxprob.sample(target, jax.random.key(6), out=tmp_path / "run", resume=True, **options)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(runtime.load(tmp_path / "run").draws["value"], stopped.draws)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chains": 4}, "sample: chains is 4; expected 2, as in the run in"),
        ({"thin": 2}, "sample: thin is 2; expected 1"),
        ({"warmup": 7}, "sample: warmup is 7; expected 0"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(tmp_path, change, said):
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 2, "algorithm": _targets.random_walk(target), "draws": 10, "devices": 1}
    before = jaxprob.sample(target, jax.random.key(0), out=tmp_path / "run", **options)
    with pytest.raises(ValueError, match=said):
        jaxprob.sample(target, jax.random.key(0), out=tmp_path / "run", resume=True, **{**options, **change})
    with pytest.raises(ValueError, match="sample: seed is"):
        jaxprob.sample(target, jax.random.key(1), out=tmp_path / "run", resume=True, **options)
    np.testing.assert_array_equal(runtime.load(tmp_path / "run").draws["value"], before.draws)


def test_thinned_runs_resume_too(tmp_path, short_chunks):
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 2, "algorithm": _targets.random_walk(target), "draws": 100, "thin": 3}
    key = jax.random.key(8)
    whole = jaxprob.sample(target, key, warmup=10, devices=1, **options)
    every = jaxprob.sample(target, key, warmup=10, devices=1, **{**options, "draws": 300, "thin": 1})
    np.testing.assert_array_equal(whole.draws, every.draws[:, 2::3])
    jaxprob.sample(target, key, warmup=10, out=tmp_path / "run", progress=Stopper(100), devices=1, **options)
    resumed = jaxprob.sample(target, key, warmup=10, out=tmp_path / "run", resume=True, devices=1, **options)
    np.testing.assert_array_equal(resumed.draws, whole.draws)


def test_run_is_cut_anywhere():
    target, _ = _targets.elementwise()
    algorithm = _targets.random_walk(target)
    state = algorithm.init(jnp.zeros(4), jax.random.key(0))
    key = jax.random.key(9)
    whole = runtime.run(algorithm, key, state, 60)
    first = runtime.run(algorithm, key, state, 25)
    rest = runtime.run(algorithm, key, first.state, 35, first_step=first.step)
    np.testing.assert_array_equal(np.concatenate([first.draws, rest.draws], 1), whole.draws)
    assert rest.step == whole.step == 60
    assert_same(rest.state, whole.state)
