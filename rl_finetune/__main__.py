"""`python -m rl_finetune`."""

from __future__ import annotations

import sys

from rl_finetune.cli import main

sys.exit(main())
