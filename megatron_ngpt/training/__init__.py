"""Engine, optimiser, schedule, loop and evaluation: what turns a recipe into a trained model."""
