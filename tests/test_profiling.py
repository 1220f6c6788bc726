"""Times of operators: LiteRT's logs are real, TensorFlow's are made by hand in its format."""

import dataclasses
import json
from pathlib import Path

import keras
import pytest

import tfdwd
from tfdwd import lite
from tfdwd.errors import Error
from tfdwd.plans import LayerPlan

# What LiteRT 2.3.0's own profiler (LiteRtGetProfileSummary, which its benchmark_model prints for
# --use_profiler=true) said of the file of the fixture `student`, whole.
LITERT = """\
===================================================================== Run Order ======================================================================
                                                 [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
                      Delegate/Convolution (NHWC, F32) IGEMM      0.000      0.025      0.025    60.976%    60.976%      0.000              1   [Delegate]:0
                     Delegate/Convolution (NHWC, F32) DWConv      0.000      0.009      0.009    21.951%    82.927%      0.000              1   [Delegate]:1
                     Delegate/Fully Connected (NC, F32) GEMM      0.000      0.006      0.006    14.634%    97.561%      0.000              1   [Delegate]:2
                                  Delegate/Mean (ND) Reduce2      0.000      0.001      0.001     2.439%   100.000%      0.000              1   [Delegate]:3
                                Delegate/Static Reshape (NC)      0.000      0.000      0.000     0.000%   100.000%      0.000              1   [Delegate]:4
                     Delegate/Fully Connected (NC, F32) GEMM      0.000      0.000      0.000     0.000%   100.000%      0.000              1   [Delegate]:5

============================================================== Top by Computation Time ===============================================================
                                                 [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
                      Delegate/Convolution (NHWC, F32) IGEMM      0.000      0.025      0.025    60.976%    60.976%      0.000              1   [Delegate]:0
                     Delegate/Convolution (NHWC, F32) DWConv      0.000      0.009      0.009    21.951%    82.927%      0.000              1   [Delegate]:1
                     Delegate/Fully Connected (NC, F32) GEMM      0.000      0.006      0.006    14.634%    97.561%      0.000              1   [Delegate]:2
                                  Delegate/Mean (ND) Reduce2      0.000      0.001      0.001     2.439%   100.000%      0.000              1   [Delegate]:3
                                Delegate/Static Reshape (NC)      0.000      0.000      0.000     0.000%   100.000%      0.000              1   [Delegate]:4
                     Delegate/Fully Connected (NC, F32) GEMM      0.000      0.000      0.000     0.000%   100.000%      0.000              1   [Delegate]:5

Number of nodes executed: 6

====================================================== Summary by node type ======================================================
                                                 [Node type]    [count]   [avg ms]    [avg %]    [cdf %]   [mem KB] [times called]
                      Delegate/Convolution (NHWC, F32) IGEMM          1      0.025    60.976%    60.976%      0.000              1
                     Delegate/Convolution (NHWC, F32) DWConv          1      0.009    21.951%    82.927%      0.000              1
                     Delegate/Fully Connected (NC, F32) GEMM          2      0.003    14.634%    97.561%      0.000              2
                                  Delegate/Mean (ND) Reduce2          1      0.001     2.439%   100.000%      0.000              1
                                Delegate/Static Reshape (NC)          1      0.000     0.000%   100.000%      0.000              1

========================================================= Delegate Statistics =========================================================
Op Name                                                                               Count    Avg(us)    Min(us)    Max(us)  Total(us)
Delegate/Convolution (NHWC, F32) DWConv                                                   1       9.00          9          9          9
Delegate/Convolution (NHWC, F32) IGEMM                                                    1      25.00         25         25         25
Delegate/Fully Connected (NC, F32) GEMM                                                   2       3.00          0          6          6
Delegate/Mean (ND) Reduce2                                                                1       1.00          1          1          1
Delegate/Static Reshape (NC)                                                              1       0.00          0          0          0

Timings (microseconds): count=6 curr=41
Memory (bytes): count=0
6 nodes observed
"""  # noqa: E501

# The same of a file with an operator that XNNPACK does not have; the tables between are left out.
LITERT_PARTLY = """\
===================================================================== Run Order ======================================================================
                                                 [node type]    [start]    [first]   [avg ms]        [%]     [cdf%]   [mem KB] [times called]   [Name]
                      Delegate/Convolution (NHWC, F32) IGEMM      0.000      0.024      0.024    34.286%    34.286%      0.000              1   [Delegate]:0
                      Delegate/Convolution (NHWC, F32) IGEMM      0.000      0.043      0.043    61.429%    95.714%      0.000              1   [Delegate]:1
                                  Delegate/Mean (ND) Reduce2      0.000      0.001      0.001     1.429%    97.143%      0.000              1   [Delegate]:2
                                        Delegate/Negate (NC)      0.000      0.000      0.000     0.000%    97.143%      0.000              1   [Delegate]:3
                                                     TOPK_V2      0.000      0.002      0.002     2.857%   100.000%      0.000              1   [Builtin]:4
                                        Delegate/Negate (NC)      0.000      0.000      0.000     0.000%   100.000%      0.000              1   [Delegate]:0
                                Delegate/Static Reshape (NC)      0.000      0.000      0.000     0.000%   100.000%      0.000              1   [Delegate]:1
                     Delegate/Fully Connected (NC, F32) GEMM      0.000      0.000      0.000     0.000%   100.000%      0.000              1   [Delegate]:2

Number of nodes executed: 8

Timings (microseconds): count=8 curr=70
Memory (bytes): count=0
8 nodes observed
"""  # noqa: E501

# Made by hand, in the format of TensorFlow 2.8's benchmark_model --enable_op_profiling=true
# --use_xnnpack=false: columns apart by tabs, tensors by name.
TENSORFLOW = """STARTING!
Graph: [/data/local/tmp/student.tflite]
Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t         AllocateTensors\t            0.000\t    1.356\t    1.356\t100.000%\t100.000%\t     0.000\t        1\tAllocateTensors/0

Number of nodes executed: 1
Timings (microseconds): count=1 curr=1356

Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t            0.010\t    0.500\t    0.400\t 40.000%\t 40.000%\t     0.000\t        1\t[relu_1/Relu;first_1/convolution]:0
\t       DEPTHWISE_CONV_2D\t            0.410\t    0.200\t    0.250\t 25.000%\t 65.000%\t     0.000\t        1\t[second_depthwise_1/depthwise1]:1
\t                 CONV_2D\t            0.660\t    0.200\t    0.200\t 20.000%\t 85.000%\t     0.000\t        1\t[second_1/Relu;second_1/convolution]:2
\t                    MEAN\t            0.860\t    0.100\t    0.050\t  5.000%\t 90.000%\t     0.000\t        1\t[pool_1/Mean]:3
\t         FULLY_CONNECTED\t            0.910\t    0.100\t    0.100\t 10.000%\t100.000%\t     0.000\t        1\t[StatefulPartitionedCall:0]:4

============================== Top by Computation Time ==============================
\t             [node type]\t          [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t            0.010\t    0.500\t    0.400\t 40.000%\t 40.000%\t     0.000\t        1\t[relu_1/Relu;first_1/convolution]:0

Number of nodes executed: 5
Timings (microseconds): count=50 first=1100 curr=1000 min=990 max=1100 avg=1000.5 std=9
Memory (bytes): count=0
"""  # noqa: E501

FIRST = "relu_1/Relu;first_1/convolution"
SECOND = "second_1/Relu;second_1/convolution"


@pytest.fixture(scope="module")
def original() -> keras.Model:
    layers = keras.layers
    x = inputs = keras.Input((24, 24, 8), name="picture")
    x = layers.ReLU(name="relu")(layers.Conv2D(16, 3, padding="same", name="first")(x))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, name="scores")(x), name="small")


@pytest.fixture(scope="module")
def student(original: keras.Model) -> keras.Model:
    return tfdwd.decompose(original, rank=1, method="svd", include="second")


@pytest.fixture(scope="module")
def file(student: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profiling") / "student.tflite"
    tfdwd.export(student, path)
    return path


def plan_of(*layers: LayerPlan) -> tfdwd.Plan:
    return tfdwd.Plan(layers, "latency=0.5", 1.0, 0.5, 0.1, "none", 1, "a CPU", "LiteRT 2.3.0")


KEPT = LayerPlan("first", False, "named", "", 0, 0, 9, 9, 9, 9, 0.0, 0.025, 0.025)
REPLACED = LayerPlan("net/second", True, "", "separable", 1, 0, 9, 9, 9, 9, 0.1, 0.05, 0.016)


def test_xnnpack_is_traced_to_the_file_by_order(file: Path, student: keras.Model) -> None:
    profile = tfdwd.read_profile(LITERT, file, student)
    assert (profile.model, profile.run_ms, len(profile.operators)) == ("", 0.041, 6)
    first, depthwise, pointwise, mean, reshape, dense = profile.operators
    assert first.type == "Delegate/Convolution (NHWC, F32) IGEMM" and first.name == "[Delegate]:0"
    assert (first.first_ms, first.average_ms, first.calls, first.ms) == (0.025, 0.025, 1, 0.025)
    assert (first.tensors, first.layer) == ((FIRST,), "first")
    assert depthwise.layer == "second_depthwise" and pointwise.tensors == (SECOND,)
    assert mean.tensors == reshape.tensors == () and dense.layer == "scores"
    assert profile.layers == {
        "first": 0.025, "second_depthwise": 0.009, "second": 0.006, "scores": 0.0,
    }  # fmt: skip
    assert tfdwd.Profile.from_json(profile.to_json()) == profile


def test_tensorflow_names_the_tensors(student: keras.Model, file: Path, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(TENSORFLOW)
    profile = tfdwd.read_profile(tmp_path / "log.txt", file, student)
    assert (profile.model, profile.run_ms) == ("/data/local/tmp/student.tflite", 1.0005)
    assert [x.layer for x in profile.operators] == [
        "first", "second_depthwise", "second", "pool", "scores",
    ]  # fmt: skip
    # Without the file the output's name says nothing.
    alone = tfdwd.read_profile(TENSORFLOW, model=student)
    assert [x.layer for x in alone.operators][-2:] == ["pool", ""]
    assert [x.layer for x in tfdwd.read_profile(TENSORFLOW).operators] == [""] * 5


def test_it_prints(file: Path, student: keras.Model) -> None:
    lines = str(tfdwd.read_profile(LITERT, file, student)).splitlines()
    assert lines[0].split() == ["operator", "layer", "or", "tensor", "calls", "ms", "%"]
    assert lines[2].split()[-4:] == ["first", "1", "0.0250", "61.0"]
    assert lines[-2:] == [
        "one run: 0.0410 ms",
        "2 operators of a delegate that could not be traced to the file",
    ]
    bare = str(tfdwd.read_profile(TENSORFLOW)).splitlines()
    assert bare[2].split() == ["CONV_2D", "relu_1/Relu", "1", "0.4000", "40.0"]
    assert bare[-1] == "/data/local/tmp/student.tflite: 1.0005 ms"


def test_beside_a_plan(file: Path, student: keras.Model) -> None:
    kept = dataclasses.replace(KEPT, name="other", ms_before=None, ms_after=None)
    profile = tfdwd.read_profile(LITERT, file, student)
    lines = profile.beside(plan_of(KEPT, REPLACED, kept)).splitlines()
    assert lines[2].split() == ["first", "kept", "0.0250", "0.0250", "0.0250"]
    # The depthwise and the pointwise convolution of the stack.
    assert lines[3].split() == ["net/second", "separable", "1", "0.0500", "0.0160", "0.0150"]
    assert lines[4].split() == ["other", "kept"]
    assert lines[5] == "measured: 0.0400 ms in these layers of 0.0410 ms"
    with pytest.raises(Error, match="no operator of the profile belongs to a layer of the plan"):
        profile.beside(plan_of(kept))


def test_node_data_of_model_explorer(file: Path) -> None:
    found = json.loads(tfdwd.read_profile(LITERT, file).to_model_explorer())
    tensors = {name for operator in lite.operators(file) for name in operator.writes}
    assert list(found) == ["results"] and set(found["results"]) < tensors
    assert found["results"][FIRST] == {"value": 0.025}
    with pytest.raises(Error, match="the profile names no tensors"):
        tfdwd.read_profile(LITERT).to_model_explorer()


def test_what_litert_numbers_is_found_in_the_file(tmp_path: Path) -> None:
    layers = keras.layers
    x = inputs = keras.Input((24, 24, 8))
    for name in ("first", "second"):
        x = layers.Conv2D(16, 3, padding="same", activation="relu", name=name)(x)
    x = keras.ops.sort(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(4, name="scores")(x))
    tfdwd.export(model, tmp_path / "sorted.tflite")
    profile = tfdwd.read_profile(LITERT_PARTLY, tmp_path / "sorted.tflite", model)
    [topk] = [x for x in profile.operators if x.type == "TOPK_V2"]
    assert topk.name == "[Builtin]:4" and topk.tensors == ("sort/TopKV2", "sort/TopKV21")
    # Around it XNNPACK has two parts, which here did not get into each other's way.
    assert profile.layers == {"first": 0.024, "second": 0.043, "scores": 0.0}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("IGEMM ", "DWConv "),  # not what the file has there
        ("              1   [Delegate]:2", "              2   [Delegate]:2"),  # two in one row
        ("Delegate/Fully Connected (NC, F32) GEMM ", "Delegate/Copy (NC) "),  # too few
    ],
)
def test_nothing_is_guessed_where_the_order_does_not_fit(file: Path, old: str, new: str) -> None:
    assert old in LITERT
    profile = tfdwd.read_profile(LITERT.replace(old, new), file)
    assert [operator.tensors for operator in profile.operators] == [()] * 6


def test_a_log_of_another_file(file: Path) -> None:
    log = TENSORFLOW.replace("pool_1/Mean", "pool_2/Mean")
    with pytest.raises(
        Error, match=r"MEAN writes 'pool_2/Mean', which is no tensor of the .tflite"
    ):
        tfdwd.read_profile(log, file)


def test_no_such_log() -> None:
    with pytest.raises(Error, match=r"no such file: none\.txt"):
        tfdwd.read_profile("none.txt")


def test_layers_whose_names_are_numbered(tmp_path: Path) -> None:
    """As Keras names them; TensorFlow calls the scope of the first what the second is called."""
    layers = keras.layers
    x = inputs = keras.Input((9, 9, 3))
    for name in ("conv2d", "conv2d_1", "conv2d_2"):
        x = layers.Conv2D(3, 3, name=name)(x)
    model = keras.Model(inputs, layers.Flatten(name="flat")(x))
    tfdwd.export(model, tmp_path / "numbered.tflite")
    written = lite.operators(tmp_path / "numbered.tflite")
    rows = "".join(
        f"{operator.name} 0.3 0.2 1 [{', '.join(operator.writes)}]:{number}\n"
        for number, operator in enumerate(written)
    )
    log = (
        f"= Run Order =\n[node type] [first] [avg ms] [times called] [Name]\n{rows}"
        f"Number of nodes executed: {len(written)}\nTimings (microseconds): count=1 curr=1\n"
    )
    for file in (tmp_path / "numbered.tflite", None):
        found = [x.layer for x in tfdwd.read_profile(log, file, model).operators]
        assert found[:3] == ["conv2d", "conv2d_1", "conv2d_2"]
