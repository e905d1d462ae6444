"""Several processes as one run: `jax.distributed` from what the launcher tells, or from what you say."""

from __future__ import annotations

import os
from typing import Any

from jaxprob import core

_LAUNCHERS = (
    "SLURM_JOB_ID",
    "TPU_WORKER_HOSTNAMES",
    "CLOUD_TPU_TASK_ID",
    "OMPI_MCA_orte_hnp_uri",
    "JAX_COORDINATOR_ADDRESS",
)


def connect(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process to the others of a run; to be called before anything else uses JAX.

    Under Slurm, Open MPI and on TPU pods everything is found from the environment.

    Args:
      coordinator: `host:port` of process 0.
      num_processes: how many there are.
      process_id: which of them this is.

    Raises:
      ValueError: if nothing is said and no launcher is found, or only a part is said.
    """
    import jax

    given: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    said = [name for name, value in given.items() if value is not None]
    if said and len(said) < 3:
        missing = next(name for name in given if name not in said)
        raise core.bad_value("connect", missing, None, "all of coordinator, num_processes and process_id, or none")
    if not said and not any(name in os.environ for name in _LAUNCHERS):
        raise core.bad_value(
            "connect",
            "coordinator",
            None,
            "an address, since neither Slurm, Open MPI nor a TPU pod was found",
            "Pass coordinator='host:port', num_processes and process_id",
        )
    if getattr(jax.config, "jax_platforms", None) == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**given)
