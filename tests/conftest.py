"""What all tests share."""

import os

# Several CPU devices in every run, and no compilation cache of the user's in reach.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import matplotlib as mpl

mpl.use("Agg")
