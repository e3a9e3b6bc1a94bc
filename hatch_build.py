"""Compile the C sources into libraries for several processors, which wheels take along.

An installation without a C compiler goes on without them. The package then compiles at run time, or uses torch.
"""

import runpy
import sysconfig
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCES = Path("src", "arcsm", "_native")


class NativeLibraries(BuildHookInterface):
    """Add the libraries to a wheel, whose tag then names the platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        folder = Path(self.root, _SOURCES)
        recipe = SimpleNamespace(**runpy.run_path(str(folder / "recipe.py")))  # the package has no requirements here
        self._temporary = tempfile.TemporaryDirectory(prefix="arcsm-")
        built = {}
        try:
            compiler = recipe.find_compiler()
            for name, flags in recipe.variants().items():
                output = Path(self._temporary.name, f"{name}.so")
                built[name] = recipe.compile_library(compiler, folder, [flags], output)
        except (recipe.CompilationError, OSError, ValueError) as error:
            self.app.display_warning(f"arcsm: {error}; the package will compile at run time, or use torch")
        for name, path in built.items():
            build_data["force_include"][str(path)] = f"arcsm/_native/prebuilt/{name}.so"
        if built:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_temporary"):
            self._temporary.cleanup()
