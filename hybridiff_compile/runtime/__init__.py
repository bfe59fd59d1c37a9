"""Running the variants: switching, ranks, workers, and the way into and out of a pipeline."""
