"""Real models and trainers, each measured by the callbacks and from its own features in float64."""
