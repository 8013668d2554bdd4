"""What was computed once is computed still, to the last bit: `digests.json` is of the release before the definitions.

A digest says that something changed, and in which field. Whoever changes a rule on purpose makes the file anew and says
so in the changelog.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def digests() -> dict[str, dict[str, str]]:
    # The instructions decide whether products are contracted with sums; and AVX's estimate of 1 / sqrt(x) is another
    # one on each maker's CPUs. One set for all machines, which has neither.
    flags = "--xla_cpu_max_isa=SSE4_2 --xla_cpu_multi_thread_eigen=false"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags}
    code = [sys.executable, str(HERE / "bits.py")]
    result = subprocess.run(code, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@pytest.mark.thorough
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the digests are those of x86-64's instructions")
def test_bits_are_those_of_the_release_before() -> None:
    expected = json.loads((HERE / "digests.json").read_text(encoding="utf-8"))
    actual = digests()
    assert actual.keys() == expected.keys()
    changed = {
        case: sorted(field for field in fields if actual[case].get(field) != fields[field])
        for case, fields in expected.items()
        if actual[case] != fields
    }
    assert changed == {}
