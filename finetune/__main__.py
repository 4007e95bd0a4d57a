"""`python -m finetune` is `finetune`."""

from __future__ import annotations

from finetune.cli.main import main

main()
