"""Settings of the whole suite. This file also puts the folder on the import path, for `helpers` and `reference`."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402

torch.set_num_threads(1)  # models are tiny: more threads only wait for each other
