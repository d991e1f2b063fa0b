"""Compiles Triton kernels for GPUs that are not there, and prints what ptxas made of them.

    python tests/support/compile_kernels.py < launches.json > usage.json

A process of its own: the test session runs Triton in its interpreter, which is chosen when triton is imported.
launches: [{"kernel", "target", "signature", "constants", "divisible", "options"}]; usage: of each launch, "registers"
and "stack" (bytes; spilled registers are there), read from the cubin that ptxas wrote, and "shared" (bytes).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from csaligner.ops import triton_kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(launch: dict[str, Any]) -> dict[str, int]:
    kernel = getattr(triton_kernels, launch["kernel"])
    attributes = {(position,): [["tt.divisibility", 16]] for position in launch["divisible"]}
    source = ASTSource(kernel, launch["signature"], launch["constants"], attributes)
    found = triton.compile(source, target=GPUTarget("cuda", launch["target"], 32), options=launch["options"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(rf"{launch['kernel']}.*?REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text, re.DOTALL)
    assert usage is not None, text
    registers, stack, local = map(int, usage.groups())
    return {"registers": registers, "stack": stack + local, "shared": found.metadata.shared}


if __name__ == "__main__":
    json.dump([compiled(launch) for launch in json.load(sys.stdin)], sys.stdout)
