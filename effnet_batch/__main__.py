"""``python -m effnet_batch``: the command ``effnet-batch``, wherever the package lies."""

from effnet_batch.cli import main

main(prog_name="effnet-batch")
