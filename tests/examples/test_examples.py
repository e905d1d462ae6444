"""The examples run, and the job files do what they say, as far as one machine can show it."""

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

import jaxprob
from jaxprob import runtime
from jaxprob.cli._main import build_parser

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KEY = jax.random.key(0)


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_eight_schools_against_scipy():
    module = example("eight_schools")
    position = module.posterior.initial(KEY)
    q = {name: np.asarray(value, float) for name, value in position.items()}
    effect = q["mean"] + np.exp(q["spread"]) * q["offset"]
    by_hand = (
        scipy.stats.norm.logpdf(q["mean"], 0, 5)
        + scipy.stats.halfcauchy.logpdf(np.exp(q["spread"]), scale=5)
        + q["spread"]
        + scipy.stats.norm.logpdf(q["offset"]).sum()
        + scipy.stats.norm.logpdf(module.EFFECTS, effect, module.STANDARD_ERRORS).sum()
    )
    np.testing.assert_allclose(module.posterior.log_density(position), by_hand, rtol=1e-5)


@pytest.fixture(scope="module")
def visits():
    pytest.importorskip("statsmodels")
    return example("doctor_visits")


def test_doctor_visits_against_scipy(visits):
    posterior = visits.posterior()
    x, y, names = visits.load()
    assert (x.shape, y.shape, len(names)) == ((20190, 9), (20190,), 9)
    position = posterior.initial(KEY)
    q = {name: np.asarray(value, float) for name, value in position.items()}
    scale, concentration = np.exp(q["scale"]), np.exp(q["concentration"])
    mean = np.exp(q["intercept"] + x.astype(float) @ q["effects"])
    by_hand = (
        scipy.stats.norm.logpdf(q["intercept"], 0, 2)
        + scipy.stats.halfnorm.logpdf(scale, scale=0.5)
        + q["scale"]
        + scipy.stats.norm.logpdf(q["effects"], 0, scale).sum()
        + scipy.stats.halfnorm.logpdf(concentration, scale=2)
        + q["concentration"]
        + scipy.stats.nbinom.logpmf(y, concentration, concentration / (concentration + mean)).sum()
    )
    np.testing.assert_allclose(posterior.log_density(position), by_hand, rtol=1e-5)


def test_doctor_visits_on_a_mesh_of_chains_and_data(visits):
    """Ten transitions on two by two devices are those on one, up to the order in which 20,190 terms are added."""
    posterior = visits.posterior()
    kernel = jaxprob.inference.mcmc.hmc(posterior.log_density, step_size=1e-3, num_integration_steps=2)
    options = {"algorithm": kernel, "chains": 2, "draws": 10}
    start = {"intercept": 1.0, "scale": 0.3, "effects": np.zeros(9, np.float32), "concentration": 0.7}
    mesh = runtime.mesh(chains=2, data=2)
    many = jaxprob.sample(posterior, KEY, initial=start, devices=mesh, **options)
    one = jaxprob.sample(posterior, KEY, initial=start, devices=1, **options)
    assert many.meta["mesh"]["data"] == 2
    assert np.ptp(one.draws["intercept"]) > 0
    for name in one.draws:
        np.testing.assert_allclose(many.draws[name], one.draws[name], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(many.stats["log_density"], one.stats["log_density"], rtol=1e-5)


def stub(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def options_of(command):
    """The arguments of `jaxprob sample` in a command, taken by the real parser."""
    words = shlex.split(command)
    sample = words.index("sample")
    assert words[sample - 1] == "jaxprob"
    return build_parser().parse_args(words[sample:])


@pytest.mark.parametrize(("ends", "code"), [(0, 0), (3, 3), (75, 0)])
def test_a_slurm_job_that_is_preempted_is_queued_again(tmp_path, ends, code):
    stub(tmp_path, "srun", f'printf "%q " "$@" > {tmp_path}/srun.txt; exit {ends}')
    stub(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/scontrol.txt')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "visits"}
    job = EXAMPLES / "slurm.sh"
    assert subprocess.run(["bash", job], env=environment).returncode == code
    command = (tmp_path / "srun.txt").read_text()
    assert command.startswith("--kill-on-bad-exit=0 ")
    arguments = options_of(command)
    assert (arguments.out, arguments.resume, arguments.distributed) == ("runs/visits-17", True, True)
    assert arguments.target == "examples/doctor_visits.py:posterior"
    again = tmp_path / "scontrol.txt"
    assert (again.read_text() if again.exists() else "") == ("requeue 17\n" if ends == 75 else "")
    directives = [line for line in job.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --requeue" in directives
    assert "#SBATCH --signal=TERM@120" in directives


def test_a_tpu_pod_gets_one_command_for_all_workers(tmp_path):
    stub(tmp_path, "gcloud", f'printf "%s\\n" "$@" > {tmp_path}/gcloud.txt')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = EXAMPLES / "tpu_pod.sh"
    subprocess.run(["bash", job, "pod", "us-central2-b"], env=environment, check=True)
    words = (tmp_path / "gcloud.txt").read_text()
    assert "--worker=all" in words.splitlines()
    arguments = options_of(words.split("--command=")[1])
    assert (arguments.out, arguments.resume, arguments.distributed) == ("/mnt/runs/doctor_visits", True, True)
    missing = subprocess.run(["bash", job], env=environment, capture_output=True, text=True)
    assert missing.returncode != 0
    assert "usage: tpu_pod.sh NAME ZONE" in missing.stderr


@pytest.mark.slow
def test_a_random_field_of_tags():
    (f1, illegal), (plain, plain_illegal) = example("tagging").compare(context=False, steps=150)
    assert f1 > plain + 0.05
    assert illegal == 0 < plain_illegal
