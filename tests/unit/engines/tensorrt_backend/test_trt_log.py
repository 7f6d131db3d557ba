"""The digest of a build log. The lines are of the kinds that public logs of 8.5, 8.6 and 10 show."""

from __future__ import annotations

import gc
import weakref

from workbench.engines.tensorrt import log

LINES = """\
Original: 57 layers
After dead-layer removal: 57 layers
ConvReluFusion: Fusing /conv1/Conv with /relu/Relu
QuantizeDoubleInputNodes: fusing onnx::QuantizeLinear_7_quantize_scale_node into /conv2/Conv
BinaryFusion: Fusing vgg0_conv10_fwd with vgg0_relu10_fwd
After final dead-layer removal: 29 layers
--------------- Timing Runner: /conv2/Conv + /relu_1/Relu (CaskConvolution[0x80000009])
Skipping tactic 3 due to insuficient memory on requested size of 449 detected for tactic 4.
UNSUPPORTED_STATE: Skipping tactic 9 due to insufficient memory on requested size of 1048576000 detected for tactic 0x8a.
--------------- Timing Runner: /fc/Gemm (MatrixMultiply)
Skipping tactic 0x0000000000000001 due to exception Assertion failed
Total Host Persistent Memory: 30784
Total Device Persistent Memory: 61892096
Total Scratch Memory: 0
Total Activation Memory: 22118400
Total Weights Memory: 16060522496
[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 113 MiB, GPU 1112 MiB""".splitlines()


def test_fusions_layers_and_memory_are_read() -> None:
    found = log.digest(LINES)
    assert found.fusions == (
        "ConvReluFusion: /conv1/Conv + /relu/Relu",
        "QuantizeDoubleInputNodes: onnx::QuantizeLinear_7_quantize_scale_node + /conv2/Conv",
        "BinaryFusion: vgg0_conv10_fwd + vgg0_relu10_fwd",
    )
    assert (found.layers_before, found.layers_after) == (57, 29)
    assert found.memory_bytes == {
        "host_persistent": 30784,
        "device_persistent": 61892096,
        "scratch": 0,
        "activation": 22118400,
        "weights": 16060522496,
        "peak_host": 113 * 2**20,
        "peak_device": 1112 * 2**20,
    }


def test_skipped_tactics_are_read_with_node_and_reason() -> None:
    found = log.digest(LINES)
    assert [(tactic.node, tactic.tactic) for tactic in found.skipped] == [
        ("/conv2/Conv + /relu_1/Relu", "3"),
        ("/conv2/Conv + /relu_1/Relu", "9"),
        ("/fc/Gemm", "0x0000000000000001"),
    ]
    assert found.skipped[2].reason == "exception Assertion failed"
    assert found.out_of_memory
    assert "57 before fusion, 29 after" in found.summary and "skipped tactics: 3" in found.summary


def test_a_node_without_implementation_is_read_from_each_spelling() -> None:
    for line in (
        "10: [optimizer.cpp::3869] Error Code 10: Internal Error (Could not find any implementation for node /a/Conv.)",
        "10: Could not find any implementation for node /a/Conv.",
        "Could not find any implementation for node /a/Conv",
    ):
        assert log.digest([line]).without_implementation == "/a/Conv"


def test_a_quiet_log_says_nothing() -> None:
    found = log.digest(["hello"])
    assert found == log.Digest()
    assert found.summary == "fusions: 0"


def test_a_long_log_is_shortened_from_the_front() -> None:
    journal = log.Journal()
    for number in range(10_000):
        journal.add("INFO", f"line {number}")
    text = journal.text()
    assert text.startswith("...") and text.endswith("line 9999") and len(text) < 21_000


def test_a_journal_without_a_file_is_digested_from_memory() -> None:
    journal = log.Journal()
    journal.add("WARNING", "Skipping tactic 1 due to insufficient memory")
    journal.add("VERBOSE", "not kept")
    assert len(journal.digest().skipped) == 1
    assert "not kept" not in journal.text()


def test_the_logger_takes_severities_by_name(machine) -> None:
    journal = log.Journal()
    logger = log.logger(machine.trt, journal)
    logger.log(machine.trt.ILogger.Severity.INTERNAL_ERROR, "broken")
    logger.log(machine.trt.ILogger.Severity.VERBOSE, "detail")
    assert journal.errors == ["broken"]
    assert journal.text() == "[I] broken"


def test_the_first_logger_of_a_process_stays_and_passes_on_to_the_journal_begun_last(machine, monkeypatch) -> None:
    monkeypatch.setattr(log, "_first", [])
    severity = machine.trt.ILogger.Severity.ERROR
    journal = log.Journal()
    first = weakref.ref(log.logger(machine.trt, journal))
    del journal
    later = log.Journal()
    second = weakref.ref(log.logger(machine.trt, later))
    gc.collect()
    assert second() is None, "a later logger goes with whatever was made with it"
    kept = first()
    assert kept is not None, "TensorRT holds a bare pointer to it"
    kept.log(severity, "from nobody in particular")
    assert later.errors == ["from nobody in particular"]
    del later
    gc.collect()
    kept.log(severity, "heard by nobody")


def test_while_its_journal_is_there_the_first_logger_writes_into_that(machine, monkeypatch) -> None:
    monkeypatch.setattr(log, "_first", [])
    journal, later = log.Journal(), log.Journal()
    first = log.logger(machine.trt, journal)
    log.logger(machine.trt, later)
    first.log(machine.trt.ILogger.Severity.ERROR, "mine")
    assert (journal.errors, later.errors) == (["mine"], [])
