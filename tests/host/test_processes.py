"""What processes tell each other."""

import json
import os
import socket
import subprocess
import sys

PROGRAM = """
import json, sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tenas_jax.host.processes import exchange, gather, join, place
address, index = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 2 - index)
join(address, 2, index, None)
mesh = NamedSharding(Mesh(np.array(jax.devices()), ("row",)), PartitionSpec("row"))
table = np.arange(6.0).reshape(3, 2)
print(json.dumps([exchange("ab" * index), gather(place(table, mesh)).tolist()]))
"""


def test_processes_with_different_numbers_of_devices():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        printed, _ = process.communicate(timeout=200)
        assert json.loads(printed) == [["", "ab"], [[0, 1], [2, 3], [4, 5]]]
