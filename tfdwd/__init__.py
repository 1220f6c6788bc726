"""Depth-wise decomposition of trained Keras networks.

``import tfdwd`` is quick and needs no TensorFlow: each name below loads its module when it is
first used.

Example:
  >>> import tfdwd
  >>> tfdwd.Error.__mro__[1]
  <class 'ValueError'>
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfdwd import costs, data, factorize, models, workers
    from tfdwd.benchmarking import BenchmarkReport, benchmark
    from tfdwd.conversion import ExportReport, export
    from tfdwd.decomposition import DecompositionReport, decompose
    from tfdwd.errors import Error
    from tfdwd.evaluation import Evaluation, evaluate
    from tfdwd.latency import LatencyTable, read_latency_table, write_micro_models
    from tfdwd.planning import plan
    from tfdwd.plans import LayerPlan, Plan
    from tfdwd.quantization import quantize_aware
    from tfdwd.rebuild import flatten
    from tfdwd.training import finetune

__version__ = "0.1.0"

__all__ = [
    "BenchmarkReport",
    "DecompositionReport",
    "Error",
    "Evaluation",
    "ExportReport",
    "LatencyTable",
    "LayerPlan",
    "Plan",
    "benchmark",
    "costs",
    "data",
    "decompose",
    "evaluate",
    "export",
    "factorize",
    "finetune",
    "flatten",
    "models",
    "plan",
    "quantize_aware",
    "read_latency_table",
    "workers",
    "write_micro_models",
]

_MODULE_OF = {
    "BenchmarkReport": "tfdwd.benchmarking",
    "DecompositionReport": "tfdwd.decomposition",
    "Error": "tfdwd.errors",
    "Evaluation": "tfdwd.evaluation",
    "ExportReport": "tfdwd.conversion",
    "LatencyTable": "tfdwd.latency",
    "LayerPlan": "tfdwd.plans",
    "Plan": "tfdwd.plans",
    "benchmark": "tfdwd.benchmarking",
    "decompose": "tfdwd.decomposition",
    "evaluate": "tfdwd.evaluation",
    "export": "tfdwd.conversion",
    "finetune": "tfdwd.training",
    "flatten": "tfdwd.rebuild",
    "plan": "tfdwd.planning",
    "quantize_aware": "tfdwd.quantization",
    "read_latency_table": "tfdwd.latency",
    "write_micro_models": "tfdwd.latency",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in __all__:
        return importlib.import_module(f"tfdwd.{name}")
    raise AttributeError(f"module 'tfdwd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
