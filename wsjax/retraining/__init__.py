"""The retraining job: a folder of models, and the data files that come in."""
