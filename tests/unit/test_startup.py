"""What is kept out of start-up, and what is done there in good time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trainer.jobs
from tests.runs import REPOSITORY, environment
from trainer.exits import UserError
from trainer.job import load

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
LOAD = """
import sys
from pathlib import Path
from trainer import libraries
libraries.load()
assert "torch" not in sys.modules
assert "libtorch_cpu" in Path("/proc/self/maps").read_text()
import torch
assert torch.ones(2).sum() == 2
"""
IMPORT_STORE = """
import sys
import console.train, entrypoint, trainer.early, trainer.ending
from trainer import libraries

def native():
    return {name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).endswith(".so")}

libraries.import_natives("SCHEME://bucket")
before = native()
import console.progress, trainer.history, watchers.cloud
import storage
from importlib import import_module
import_module(storage._STORES["SCHEME"][0])
late = {name for name in native() - before if "chardet" not in name}  # no dependency of Baton's, but of a test's
assert not late, late
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


def test_torchs_libraries_are_loaded_before_its_import() -> None:
    run(LOAD)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_no_store_waits_for_them(scheme: str) -> None:
    run(IMPORT_STORE.replace("SCHEME", scheme))


@pytest.mark.parametrize(("image", "way"), [(True, "use the image of flavour cuda"), (False, f"for {sys.executable}")])
def test_a_library_that_a_job_lacks_is_named_with_what_helps_where_this_is(
    image: bool, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy.py").write_text("import nosuch\n")
    monkeypatch.setattr(trainer.jobs, "__path__", [str(tmp_path)])
    monkeypatch.setenv("BATON_REVISION", "1")
    if not image:
        monkeypatch.delenv("BATON_REVISION")
    with pytest.raises(UserError, match=f"needy needs nosuch, which is not installed here: .*{way}"):
        load("needy")
