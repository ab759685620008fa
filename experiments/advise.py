"""How should I retrain? Tries the ways on your data, and says which is best: `wsjax advise` from the repository.

    python experiments/advise.py                                               the embedded digits, a minute
    python experiments/advise.py --data mydata.npz --new=0.2 --budget=10min    a fifth of the images are new

`wsjax.commands.advise` is what runs, and `--help` shows what it says.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from wsjax.commands.advise import __doc__ as text
from wsjax.commands.advise import defaults, main
from wsjax.scripts import cli

if __name__ == "__main__":
    cli.run_script(main, defaults, text)
