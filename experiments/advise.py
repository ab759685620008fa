"""How should I retrain? Tries the ways on your data, within a time, and says which is best and how to go on with it.

    python experiments/advise.py                                               the embedded digits, a minute
    python experiments/advise.py --data mydata.npz --new=0.2 --budget=10min    a fifth of the images are new

From scratch, from the parameters that there are, by shrink-perturb, FIRE or DASH, at the learning rate or a higher one:
what each gains, loses and saves against training from scratch, paired over seeds, and the command line of
experiments/retrain.py that does it from now on. The same command continues a study that was stopped; with a larger
--budget it takes more seeds.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports that take a second
    from wsjax.scripts import ending

    ending.begin()

from wsjax.scripts import cli
from wsjax.scripts.advice import Config as Config
from wsjax.scripts.advice import defaults, main

if __name__ == "__main__":
    cli.run_script(main, defaults, __doc__)
