"""The compiler stays out of start-up, and is there for whoever needs it."""

from __future__ import annotations

import subprocess
import sys

from tests.runs import REPOSITORY, environment

OPTIMIZE = """
import sys, torch
from trainer.startup import put_off_compiler
put_off_compiler()
net = torch.nn.Linear(3, 2)
for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Muon):
    optimizer = kind([net.weight], lr=0.1)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step(); optimizer.zero_grad(); optimizer.load_state_dict(optimizer.state_dict())
assert not [name for name in sys.modules if name.startswith("torch._dynamo.")]
"""
COMPILE = """
import torch._dynamo.eval_frame as below
import torch._inductor.config
assert torch._dynamo.eval_frame is below
assert torch._dynamo.config.cache_size_limit
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
"""


def run(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr


def test_optimizers_work_without_the_compiler() -> None:
    run(OPTIMIZE)


def test_whoever_needs_the_compiler_gets_the_real_one() -> None:
    run(OPTIMIZE + COMPILE)
