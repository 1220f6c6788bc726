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

if TYPE_CHECKING:  # for type checkers and editors, which cannot follow `_NAMES`; a test compares
    from tfdwd import costs as costs
    from tfdwd import data as data
    from tfdwd import factorize as factorize
    from tfdwd import models as models
    from tfdwd import report as report
    from tfdwd import workers as workers
    from tfdwd.benchmarking import BenchmarkReport as BenchmarkReport
    from tfdwd.benchmarking import benchmark as benchmark
    from tfdwd.compression import compress as compress
    from tfdwd.conversion import ExportReport as ExportReport
    from tfdwd.conversion import export as export
    from tfdwd.decomposition import DecompositionReport as DecompositionReport
    from tfdwd.decomposition import decompose as decompose
    from tfdwd.errors import Error as Error
    from tfdwd.evaluation import Evaluation as Evaluation
    from tfdwd.evaluation import evaluate as evaluate
    from tfdwd.latency import LatencyTable as LatencyTable
    from tfdwd.latency import read_latency_table as read_latency_table
    from tfdwd.latency import write_micro_models as write_micro_models
    from tfdwd.outcome import Compression as Compression
    from tfdwd.planning import plan as plan
    from tfdwd.planning import tradeoff as tradeoff
    from tfdwd.plans import LayerPlan as LayerPlan
    from tfdwd.plans import Plan as Plan
    from tfdwd.plans import Tradeoff as Tradeoff
    from tfdwd.profiling import Profile as Profile
    from tfdwd.profiling import read_profile as read_profile
    from tfdwd.quantization import quantize_aware as quantize_aware
    from tfdwd.rebuild import flatten as flatten
    from tfdwd.training import finetune as finetune

__version__ = "0.2.0"

# What is public: modules, and the names that others of their modules give.
_MODULES = ("costs", "data", "factorize", "models", "report", "workers")
_NAMES = {
    "benchmarking": ("BenchmarkReport", "benchmark"),
    "compression": ("compress",),
    "conversion": ("ExportReport", "export"),
    "decomposition": ("DecompositionReport", "decompose"),
    "errors": ("Error",),
    "evaluation": ("Evaluation", "evaluate"),
    "latency": ("LatencyTable", "read_latency_table", "write_micro_models"),
    "outcome": ("Compression",),
    "planning": ("plan", "tradeoff"),
    "plans": ("LayerPlan", "Plan", "Tradeoff"),
    "profiling": ("Profile", "read_profile"),
    "quantization": ("quantize_aware",),
    "rebuild": ("flatten",),
    "training": ("finetune",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULES, *_MODULE_OF])


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"tfdwd.{_MODULE_OF[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tfdwd.{name}")
    raise AttributeError(f"module 'tfdwd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
