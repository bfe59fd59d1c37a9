"""Every error that a user can meet; each message names the value, the reason and what to do."""


class HybridiffError(Exception):
    """Base of all errors raised by hybridiff_compile."""


class ConfigError(HybridiffError, ValueError):
    """A setting is out of its range, or contradicts another one or the run."""


class UnsupportedPipelineError(HybridiffError, TypeError):
    """The pipeline has no denoiser that can be driven, or is set up in a way that prevents it."""


class BackendError(HybridiffError):
    """A backend cannot be used here: a package or a device is missing."""


class CaptureError(HybridiffError):
    """The denoiser could not be traced, or its branches do not add up to the batched call."""


class ExportError(CaptureError):
    """torch.export cannot follow the denoiser; what it computes may be sound all the same."""


class PackageError(HybridiffError):
    """A package is broken, made for something else, or does not hold what a call needs."""


class PassError(HybridiffError):
    """A pass failed or was given a program of the wrong level: a defect of the pass list."""


class VerifyError(PassError):
    """A program breaks a rule of its level; the message names the rule, the rank and the node."""


class PhaseMismatchError(HybridiffError):
    """A rank met a peer that is in another phase or step; nothing was computed with its values."""


class WorkerError(HybridiffError):
    """A worker process died, failed, or gave no sign of life within the deadline.

    The message names the rank, its phase and step, the cause, and shows the worker's last lines.
    """


class SpaceError(HybridiffError, OSError):
    """There is no room for the file that the ranks share their weights in."""


class ClosedError(HybridiffError):
    """The model was used after `restore()` or in a forked child, or restored out of order."""
