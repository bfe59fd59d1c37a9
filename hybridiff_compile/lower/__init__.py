"""From a rank's program to something that runs."""
