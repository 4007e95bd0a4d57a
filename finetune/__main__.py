"""`python -m finetune` is `finetune`."""

from finetune.cli import main

main()
