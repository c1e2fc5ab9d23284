"""Lets the published torchvision wheel be imported beside a CPU build of torch.

That wheel's C++ library links against CUDA. Where it does not load, `import torchvision` fails with
"operator torchvision::nms does not exist", and with it vLLM's and transformers' Qwen2-VL code, which
needs only the pure-Python transforms. This module, imported by `alphadrive_torchvision.pth` at the
start of every interpreter (engine and worker processes included), puts a finder first in
`sys.meta_path`; just before torchvision's own code runs, the missing schemas are declared. With a
GPU build of torch, or a torchvision that loads, nothing is changed. It costs one string comparison an
import, and belongs to no package: it must work whatever is half installed.
"""

import sys

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_kept_alive = []  # a torch.library.Library takes its schemas with it when it is collected


class TorchvisionFinder:
    """Finds torchvision as the other finders do, and prepares torch before it runs."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """The ordinary spec of `torchvision` with a prepared loader; None for every other name."""
        if name != "torchvision":
            return None
        finders = (finder for finder in sys.meta_path if finder is not cls and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        run_torchvision = spec.loader.exec_module

        def prepare_then_run(module):
            _declare_missing_operators(spec.submodule_search_locations)
            run_torchvision(module)

        spec.loader.exec_module = prepare_then_run
        return spec


def _declare_missing_operators(folders):
    from importlib.machinery import PathFinder

    import torch

    if torch.version.cuda or torch.version.hip:
        return
    library = PathFinder.find_spec("_C", list(folders or []))
    try:
        if library is not None:
            torch.ops.load_library(library.origin)
    except OSError:
        fragment = torch.library.Library("torchvision", "FRAGMENT")
        for name, schema in _SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                fragment.define(schema)
        _kept_alive.append(fragment)


if TorchvisionFinder not in sys.meta_path:
    sys.meta_path.insert(0, TorchvisionFinder)
