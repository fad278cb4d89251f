"""Training and evaluation: annotated sets, augmentation, tasks, the loop and the scores."""
