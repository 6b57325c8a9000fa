"""Register our models when timm is imported, and not before: timm takes seconds that a pooling does not need."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder


def register_with_timm() -> None:
    """Make ``timm.create_model("resnet50_simpool")`` work, whichever of timm and this package is imported first."""
    if "timm" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    from .models.registry import register_models

    register_models()


class _AfterTimm(MetaPathFinder, Loader):
    """Finds timm as Python does, and calls :func:`_register` after it has run."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> object:
        return self.loader.create_module(spec)

    def exec_module(self, module: object) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register()
