"""The colours that all images share."""

from __future__ import annotations

INK, QUIET, GRID, PAPER = "#1d2433", "#667085", "#e6e8ee", "#ffffff"

#: Of a step, by what was done in it.
COMPUTED, PIPELINED, EXTRAPOLATED, WAITING = "#3b6fb6", "#f08a24", "#a8d5ba", "#b4bac8"
