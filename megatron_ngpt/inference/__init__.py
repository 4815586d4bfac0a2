"""Trained models at work, in one process or divided over ranks: evaluation, continuation of prompts, the tasks of lm-eval."""
