"""One package `datasets` for two: this project's, and Hugging Face's of the same name where that is installed.

Python keeps one package of a name: the one that is imported first. Where that is theirs (a notebook), our modules would
not be found in it; where it is ours (a script), `evaluate`, `trl` and others would miss theirs. So whichever is first
takes the other in: its folder is searched, too, and the names of its __init__.py are served when they are asked for.
To import this module is enough; the packages that import `datasets` do so before anything else.
"""

import importlib
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "datasets"
ROOT = Path(__file__).resolve().parent
OURS = str(ROOT / NAME)


def join():
    """Join the two packages, if one of them is imported; if none is, see to it that ours will be found first."""
    package = sys.modules.get(NAME)
    if package is None:
        if _folder(sys.path) != OURS:
            sys.path.insert(0, str(ROOT))
    elif getattr(package, "second", None) is None:
        first_is_ours = OURS in map(_real, getattr(package, "__path__", ()))
        second = _folder([entry for entry in sys.path if _real(entry) != str(ROOT)]) if first_is_ours else OURS
        if second:
            _Second(package, second)


def _folder(path):
    """The folder of the package `datasets` that is found along a path, or None. (A folder without code is none.)"""
    spec = PathFinder.find_spec(NAME, path)
    return _real(Path(spec.origin).parent) if spec and spec.origin else None


def _real(path):
    return str(Path(path).resolve())


class _Second:
    """The package that came second, taken in by the first when something of it is asked for."""

    def __init__(self, package, folder):
        self.package, self.folder, self.names = package, folder, None
        package.second = self
        package.__getattr__ = self.name  # Python asks it for a name that the package lacks,
        sys.meta_path.append(self)  # and this one for a module that no other finder has found

    def name(self, name):
        lacking = f"module {NAME!r} has no attribute {name!r}"
        if name.startswith("_") and name != "__version__":  # tools look for these in everything
            raise AttributeError(lacking)
        if PathFinder.find_spec(f"{NAME}.{name}", self.package.__path__):
            return importlib.import_module(f"{NAME}.{name}")
        self.load()
        if name not in vars(self.names):
            raise AttributeError(lacking)
        return vars(self.names)[name]

    def find_spec(self, name, path=None, target=None):
        if not name.startswith(f"{NAME}."):
            return None
        self.load()
        if name not in sys.modules:
            return PathFinder.find_spec(name, self.package.__path__)
        spec = sys.modules[name].__spec__  # its __init__.py has just imported it, and once is enough:
        spec.loader = self  # what would run it again is put aside for this once
        return spec

    def create_module(self, spec):
        return sys.modules[spec.name]

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__

    def load(self):
        """Run its __init__.py, as a module of the first package, which from now on is searched in both folders."""
        if self.names is not None:  # while it runs it is there already, with what it has got so far
            return
        spec = spec_from_file_location(f"{NAME}.__init__", Path(self.folder, "__init__.py"))
        self.names = sys.modules[spec.name] = module_from_spec(spec)
        alone = getattr(self.package, "__path__", [])
        self.package.__path__ = [*alone, self.folder]
        try:
            spec.loader.exec_module(self.names)
        except BaseException:  # the next to ask shall be told the same, not that a name is missing
            self.names, self.package.__path__ = None, alone
            del sys.modules[spec.name]
            raise


join()
