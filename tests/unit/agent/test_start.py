"""What the agent imports before it answers: each of these costs a starting guest more than the agent itself."""

import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src"
SLOW = {"asyncio", "enum", "hashlib", "json", "logging", "re", "selectors", "socket", "subprocess", "tarfile", "threading"}  # fmt: skip


def test_starting_imports_nothing_slow():
    program = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
import banger_agent.__main__, banger_agent.server
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    assert SLOW & set(done.stdout.split()) == set()
