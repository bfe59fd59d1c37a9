"""What the measurements run on: scenes drawn in code, and the small embedded pipelines."""
