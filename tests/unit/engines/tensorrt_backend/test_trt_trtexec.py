from __future__ import annotations

import pytest

from workbench.engines.tensorrt import trtexec
from workbench.recipes import NAMED, Precision, Quantize
from workbench.records import BuildOptions, Protocol, ShapeProfile

PROFILE = {"x": ShapeProfile((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8)), "mask": ShapeProfile((1,), (8,), (32,))}


@pytest.mark.parametrize(
    ("recipe", "version", "present", "absent"),
    [
        ("fp32", "8.6.0", {"--noTF32"}, {"--fp16", "--stronglyTyped"}),
        ("tf32", "8.6.0", set(), {"--noTF32"}),
        ("fp16", "8.6.0", {"--fp16"}, set()),
        ("int8-kl-fp16", "8.6.0", {"--fp16", "--int8"}, set()),
        ("int8-kl-fp16", "10.3.0", {"--fp16", "--int8"}, {"--stronglyTyped"}),
        ("int8-kl-fp16", "10.16.1", {"--stronglyTyped"}, {"--fp16", "--int8"}),
        ("int8-kl-fp16", "11.4.0", {"--noTF32"}, {"--fp16", "--int8", "--stronglyTyped"}),
        ("sparse-2:4", "11.4.0", {"--sparsity=enable"}, set()),
    ],
)
def test_precisions_are_flags_before_10_12_and_in_the_file_later(recipe, version, present, absent) -> None:
    words = set(trtexec.build_command("m.onnx", NAMED[recipe], BuildOptions(), version).split())
    assert present <= words and not absent & words


def test_a_build_command_says_what_the_options_say() -> None:
    options = BuildOptions(
        profiles=(PROFILE,), workspace_bytes=2**30, optimization_level=4,
        extra={"version_compatible": True, "hardware_compatibility": "ampere+", "refit": True, "auxiliary_streams": 1,
               "timing_iterations": 8, "tactic_sources": ["CUDNN"], "verbosity": "names", "calibration_cache": "c.cache",
               "native_calibrator": "entropy"},
    )  # fmt: skip
    assert trtexec.build_command("my model.onnx", NAMED["fp32"], options, "8.6.0") == (
        "trtexec '--onnx=my model.onnx' --saveEngine=model.plan --skipInference --noTF32 --int8"
        " --minShapes=x:1x3x8x8,mask:1 --optShapes=x:8x3x8x8,mask:8 --maxShapes=x:32x3x8x8,mask:32"
        " --memPoolSize=workspace:1024 --builderOptimizationLevel=4 --profilingVerbosity=layer_names_only"
        " --versionCompatible --hardwareCompatibilityLevel=ampere+ --refit --calib=c.cache --maxAuxStreams=1"
        " --avgTiming=8 --tacticSources=+CUDNN"
    )


def test_libraries_of_plugins_are_named_both_ways() -> None:
    options = BuildOptions(extra={"plugins": ["a.so", "b.py", "c.so"]})
    line = trtexec.build_command("m.onnx", NAMED["fp32"], options, "8.6.0")
    assert line.endswith("--dynamicPlugins=a.so --dynamicPlugins=c.so")
    line = "trtexec --onnx=m.onnx --plugins=a.so --staticPlugins=b.so --dynamicPlugins=c.so"
    assert trtexec.from_trtexec(line).options.extra["plugins"] == ["a.so", "b.so", "c.so"]


@pytest.mark.parametrize(
    ("protocol", "version", "present", "absent"),
    [
        (Protocol("compute"), "10.16.1", {"--noDataTransfers"}, {"--useCudaGraph", "--noCudaGraph"}),
        (Protocol("compute", cuda_graph=True), "10.16.1", {"--useCudaGraph"}, set()),
        (Protocol("end_to_end"), "8.6.0", set(), {"--noDataTransfers", "--includeDataTransfers"}),
        (Protocol("compute"), "11.4.0", {"--noCudaGraph", "--noSpinWait"}, {"--includeDataTransfers"}),
        (Protocol("compute", cuda_graph=True), "11.4.0", set(), {"--noCudaGraph", "--useCudaGraph"}),
        (Protocol("end_to_end"), "11.4.0", {"--includeDataTransfers"}, {"--noDataTransfers"}),
        (Protocol("throughput", streams=3), "11.4.0", {"--infStreams=3", "--includeDataTransfers"}, set()),
    ],
)
def test_a_measurement_says_what_differs_from_the_releases_defaults(protocol, version, present, absent) -> None:
    words = set(trtexec.measure_command("m.plan", protocol, {"x": (8, 3)}, version).split())
    assert present <= words and not absent & words
    assert {"--shapes=x:8x3", "--warmUp=200", "--duration=1", "--iterations=20"} <= words


@pytest.mark.parametrize(
    ("recipe", "version"), [("fp32", "8.6.0"), ("tf32", "8.6.0"), ("fp16", "8.6.0"), ("bf16", "10.3.0")]
)
def test_a_command_that_was_written_is_read_again(recipe: str, version: str) -> None:
    options = BuildOptions(profiles=(PROFILE,), workspace_bytes=2**20, optimization_level=1, extra={"refit": True})
    read = trtexec.from_trtexec(trtexec.build_command("m.onnx", NAMED[recipe], options, version))
    assert (read.model, read.engine) == ("m.onnx", "model.plan")
    assert read.options.profiles == (PROFILE,)
    assert (read.options.workspace_bytes, read.options.optimization_level) == (2**20, 1)
    assert read.options.extra == {"refit": True, "verbosity": "detailed"}
    assert read.recipe.step("precision") == (None if recipe == "fp32" else Precision(recipe, exclude=()))


@pytest.mark.parametrize("version", ["8.6.0", "10.16.1", "11.4.0"])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("boundary", ["compute", "end_to_end"])
def test_a_measurement_that_was_written_is_read_again(version: str, graph: bool, boundary) -> None:
    given = Protocol(boundary, batch=8, rounds=1, min_seconds=2.0, cuda_graph=graph)
    line = trtexec.measure_command("m.plan", given, {"x": (8, 3)}, version)
    assert trtexec.from_trtexec(line, major=int(version.split(".")[0])).protocol == given


def test_a_pasted_line_says_what_was_assumed_and_left_out() -> None:
    read = trtexec.from_trtexec(
        "/usr/src/tensorrt/bin/trtexec --onnx='a b.onnx' --best --useSpinWait --loadInputs=x:in.bin \\\n"
        "  --shapes=in:0:4x3,flag:scalar --memPoolSize=workspace:1.5G,dlaSRAM:1 --warmUp=soon --streams=4 extra"
    )
    assert read.model == "a b.onnx"
    assert read.recipe.step("quantize") == Quantize(calibrator="kl")
    assert read.recipe.step("precision") == Precision("fp16")
    assert read.options.workspace_bytes == int(1.5 * 2**30)
    assert read.options.profiles[0]["in:0"].typical == (4, 3) and read.options.profiles[0]["flag"].largest == ()
    assert (read.protocol.boundary, read.protocol.streams, read.protocol.batch) == ("throughput", 4, 4)
    for said in ("--loadInputs", "--best", "spins", "warmUp=soon", "'extra'"):
        assert any(said in note for note in read.notes), said


def test_the_same_line_means_another_quantity_in_11() -> None:
    line = "trtexec --onnx=m.onnx"
    ten, eleven = trtexec.from_trtexec(line, 10).protocol, trtexec.from_trtexec(line, 11).protocol
    assert (ten.boundary, ten.cuda_graph) == ("end_to_end", False)
    assert (eleven.boundary, eleven.cuda_graph) == ("compute", True)


def test_fp32_of_trtexec_is_tf32_unless_it_says_otherwise() -> None:
    assert trtexec.from_trtexec("trtexec --onnx=m.onnx").recipe.step("precision") == Precision("tf32")
    assert trtexec.from_trtexec("trtexec --onnx=m.onnx --noTF32").recipe.step("precision") is None


def test_a_calibration_cache_means_the_native_calibrator() -> None:
    read = trtexec.from_trtexec("trtexec --onnx=m.onnx --int8 --calib=c.cache --noTF32")
    assert read.options.extra == {"native_calibrator": "entropy", "calibration_cache": "c.cache"}
    assert read.recipe.step("quantize") is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("trtexec --onnx='m.onnx", "quotes do not match"),
        ("trtexec --shapes=x:4xx3", "is no shape"),
        ("trtexec --memPoolSize=workspace:1.2.3", "memPoolSize"),
        ("trtexec --profilingVerbosity=shout", "is not known"),
        ("trtexec --duration=-1", "is no number"),
        ("trtexec --fp16 --bf16", "together"),
        ("trtexec --sparsity=enable", "prunes"),
        ("trtexec --stronglyTyped", "strongly typed"),
        ("trtexec --timingCacheFile=t", "timing cache of its own"),
    ],
)
def test_what_cannot_be_taken_over_is_a_note_and_no_crash(line: str, said: str) -> None:
    assert any(said in note for note in trtexec.from_trtexec(line).notes)
