"""For all tests: one thread, and no network. Set before torch or huggingface_hub is imported."""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
