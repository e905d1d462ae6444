"""The command line: `jaxprob demo | sample FILE.py:NAME | train FILE.py:TASK | ... | devices`.

Nothing here imports JAX (or NumPy, or rich) before a command needs it, so that `--help` answers at once.
"""

from jaxprob.cli._main import main as main
