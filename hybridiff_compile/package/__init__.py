"""A pipeline's compiled programs in a folder, for machines that shall neither trace nor compile."""

from hybridiff_compile.package.export import export
from hybridiff_compile.package.load import load
from hybridiff_compile.package.manifest import Manifest, check, check_machine
from hybridiff_compile.package.swap import tensors_of

__all__ = ["Manifest", "check", "check_machine", "export", "load", "tensors_of"]
