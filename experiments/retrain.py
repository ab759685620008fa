"""Retrains a model on all data that have come in, from the parameters that it has: `wsjax retrain` from the repository.

    python experiments/retrain.py --model_dir=MODEL --data 'incoming/*.npz'

`wsjax.commands.retrain` is what runs, and `--help` shows what it says.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from wsjax.commands.retrain import __doc__ as text
from wsjax.commands.retrain import defaults, main
from wsjax.scripts import cli

if __name__ == "__main__":
    cli.run_script(main, defaults, text)
