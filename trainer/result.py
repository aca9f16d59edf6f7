"""A finished run's result: <run>/result/ for whoever uses the network, and <run>/result.json, written last.

    <run>/result/model.safetensors    the network's state, under its own names
    <run>/result/config.json          what it takes to build the network again
    <run>/result/...                  what else the job gives, such as a tokenizer
    <run>/result.json                 metrics, hashes of all of these, and of which checkpoint they are

All of it follows from the last checkpoint and may be written again: whoever finds a run at its end without a
result.json that fits writes it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence

from trainer import answers
from trainer.commit import RunFacts
from trainer.history import History
from trainer.job import Task
from trainer.parts import encode
from trainer.saver import Durable
from trainer.settings import Json

FOLDER = "result"


def write_result(
    history: History, facts: RunFacts, task: Task, last: Durable, metrics: Mapping[str, Json], classes: Sequence[str]
) -> None:
    """Raises `StoreError`, `UserError` for what the job gives, and `Superseded` before result.json is written."""
    own, more = answers.result_of(task, task.result_config(), task.result_files())
    history.check_fence(facts.attempt)
    state = {name: tensor.detach().cpu() for name, tensor in task.model.state_dict().items()}
    weights = encode(state, {"format": "pt"})  # without which transformers takes no safetensors file
    config = {"job": facts.job, "classes": list(classes), **own}
    files = {"config.json": json.dumps(config, indent=2).encode(), **more}
    history.store.put(history.key(FOLDER, "model.safetensors"), weights.chunks)
    for name, content in files.items():
        history.store.put(history.key(FOLDER, name), content)
    told: dict[str, Json] = {"model.safetensors": {"sha256": weights.sha256, "size": weights.size}}
    for name, content in files.items():
        told[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    history.check_fence(facts.attempt)  # all that may have taken long
    history.write_record(
        {
            "run": facts.run,
            "job": facts.job,
            "step": last.step,
            "checkpoint": last.name,
            "metrics": dict(metrics),
            "files": told,
            "weights": [history.key("parts", sha256) for sha256 in last.weights],
            "weights_sha256": last.weights_sha256,
            "state_sha256": last.state_sha256,
            "order_sha256": last.order_sha256,
            "attempts": facts.attempt,
            "synthetic": facts.synthetic,
            "time": time.time(),
        },
        "result.json",
    )
