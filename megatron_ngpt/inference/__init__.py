"""Trained models at work in one process: evaluation on a dataset, continuation of a prompt."""
