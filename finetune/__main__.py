"""`python -m finetune` is `finetune`."""

from __future__ import annotations

from finetune.cli.entry import main

main()
