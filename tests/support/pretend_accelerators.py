"""Runs the command line with processes that accelerate takes for accelerators: only there does it offer FSDP."""

from __future__ import annotations

import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

from grun.cli.main import main
from support.few_prompts import ship_few

_init = PartialState.__init__


def _pretend(self: PartialState, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = _pretend
    ship_few()
    sys.exit(main(sys.argv[1:]))
