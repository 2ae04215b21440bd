"""Runs a command of danet with a clock that counts the processor time of its own process.

    python experiments/rivals/processor_time.py train --max_minutes 60 ...

The limit --max_minutes and the reported seconds then do not depend on what else runs on the machine. With one thread, a
minute of processor time is a minute on an idle machine.
"""

import time
from types import SimpleNamespace

from danet.__main__ import main
from danet.training import trainer

if __name__ == "__main__":
    trainer.time = SimpleNamespace(**{**vars(time), "monotonic": time.process_time})
    raise SystemExit(main())
