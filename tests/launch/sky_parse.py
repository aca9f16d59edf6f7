"""Run by SkyPilot's own Python: what `sky.Task.from_yaml` makes of each file named, as JSON."""

import json
import sys

import sky

for name in sys.argv[1:]:
    try:
        task = sky.Task.from_yaml(name)
    except Exception as e:
        print("TASK " + json.dumps({"error": str(e)}))
        continue
    print(
        "TASK "
        + json.dumps(
            {
                "error": None,
                "nodes": task.num_nodes,
                "run": task.run,
                "setup": task.setup,
                "clouds": sorted(str(r.cloud) for r in task.resources),
                "regions": sorted(str(r.region) for r in task.resources),
                "spot": [r.use_spot for r in task.resources],
                "recovery": [r.job_recovery for r in task.resources],
            }
        )
    )
