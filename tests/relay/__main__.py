"""`make relay`: python -m tests.relay [--seed N] [--store gs|s3|az] [--job JOB] [--image IMAGE] [-- image's options]"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from tests.container.engine import Engine, Missing, daemon
from tests.relay.relay import Options, Relay
from tests.relay.store import SCHEMES
from tests.relay.telling import Story, comparison, table
from trainer.data.packed import FILE_NAME, remedy
from trainer.exits import UserError

NO_STAND_IN = ("imagenet",)  # jobs for whose data nothing is generated


def main() -> int:
    parser = argparse.ArgumentParser(prog="make relay", description="One run handed across three simulated clouds.")
    parser.add_argument("--image", default="baton:cuda")
    parser.add_argument("--job", default=Options.job)
    parser.add_argument("--store", choices=SCHEMES, default=Options.store, help="whose store the run lives in")
    parser.add_argument("--seed", type=int, help="of the points where machines are taken away; at random if not given")
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--data", type=Path, help="folder with the job's packed data; data/JOB for photographs")
    parser.add_argument("--logs", action="store_true", help="print each container's own log too")
    parser.add_argument("--docker", default="docker")
    parser.add_argument("more", nargs="*", help="further options for the image, after --")
    given = parser.parse_args()
    seed = random.randrange(1000) if given.seed is None else given.seed
    data = given.data or (Path("data", given.job) if given.job in NO_STAND_IN else None)
    options = Options(given.image, given.job, given.store, seed, given.steps, tuple(given.more), data)
    print(f"relay of {options.job}, {options.steps} steps, store {options.store}://, seed {seed} (again: SEED={seed})")
    print("the clouds are simulated (networks, metadata services, the store): nothing leaves this machine")
    try:
        if data is not None and not (data / FILE_NAME).is_file():
            raise UserError(f"{data}: no packed data here; {remedy(given.job)}")
        with daemon(given.docker):
            outcome = Relay(options, Engine(given.docker), Story()).run()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; all that was made is removed")
        return 130
    except (Missing, FileNotFoundError) as e:
        print(f"can't run here: {e}")
        return 78
    except UserError as e:
        print(f"can't run {given.job} here: {e}")
        return e.code
    if given.logs:
        for leg in [*([outcome.quiet] if outcome.quiet else []), *outcome.legs]:
            print(f"\n-- docker logs, {leg.machine.cloud.name}, attempt {leg.attempt}")
            print("\n".join(line.partition(" ")[2] for line in leg.machine.log.lines))
    if outcome.legs:
        print(f"\n{table(outcome)}")
    if len(outcome.finals) == 2:
        print(f"\n{comparison(outcome)}")
    for wrong in outcome.wrong:
        print(f"\nWRONG: {wrong}")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
