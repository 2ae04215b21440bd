import subprocess
import sys

import torch

from danet.ops import describe, info


def test_info_and_its_line():
    facts = info()
    assert facts["torch"] == torch.__version__
    assert facts["operators"] == "reference"
    assert facts["threads"] == torch.get_num_threads()
    assert "\n" not in describe()
    assert torch.__version__ in describe()
    assert "reference operators" in describe()


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_command_prints_every_fact():
    result = run("-m", "danet.ops")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(info())
    assert "reference" in result.stdout


def test_operators_need_nothing_but_torch_and_say_nothing():
    """In an interpreter where only torch, what it needs itself, and the standard library can be imported."""
    program = """
import sys
import torch, torch._dynamo  # whatever torch brings along is torch's
loaded = set(sys.modules)
sys.modules.update(dict.fromkeys(["cv2", "jsonargparse", "rich", "safetensors", "matplotlib", "tensorboard"]))
from danet.ops import SDC
SDC(8)(torch.randn(1, 8, 5, 5)).sum().backward()
third = {name.partition(".")[0] for name in set(sys.modules) - loaded} - sys.stdlib_module_names
print(sorted(name for name in third if sys.modules[name] is not None))
"""
    result = run("-c", program)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "['danet']"
    assert result.stderr == ""
