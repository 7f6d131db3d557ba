"""The command line: `python -m workbench app | doctor | run | confirm | preview | report | explain | studies | compare |
demo`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import workbench as wb
from workbench import zoo
from workbench.errors import BuildError, Cancelled, DataError, EngineError, LoadError, StoreError, WorkbenchError
from workbench.records import Model, VariantResult

_SHIPPED_DATA = {"digits": lambda: wb.datasets.digits(), "stdlib_text": lambda: wb.datasets.stdlib_text()}
_WIDE_COLUMNS = ("p9", "SQNR", "Agreement", "Memory", "Build", "Calibration", "Status")
REGRESSED = 3
_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 good, 1 it found or met a problem, 2 unknown options, 3 a study has regressed
    (`compare --fail-on regression`), 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        with _ended_gently():
            return int(options.command(options))
    except WorkbenchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 130 if isinstance(error, Cancelled) else 1
    except KeyboardInterrupt:
        print("\nInterrupted. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _ended_gently() -> Iterator[None]:
    """Let SIGTERM, which ends a job on a cluster, do what Ctrl-C does: what is finished is kept, and children end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine has and lacks."""
    from workbench.doctor import examine

    if options.measure:
        wb.ceilings(options.backend)
    findings = examine()
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        print(f"{_MARKS[finding.state]} {finding.topic:<{width}}  {finding.text}")
        if finding.remedy:
            print(f"{'':<{width + 6}}  -> {finding.remedy}")
    return int(any(finding.state == "wrong" for finding in findings))


def run(options: argparse.Namespace) -> int:
    """Run a study and print its table."""
    model = wb.load(options.model)
    protocol = wb.Protocol(boundary=options.boundary, batch=options.batch, rounds=options.rounds)
    study = wb.run(
        model,
        _data(options, model),
        _names(options.recipes),
        backend=options.backend,
        protocol=protocol,
        options=wb.BuildOptions(threads=options.threads),
        name=options.name,
        progress="auto",
    )
    print(_brief(study))
    print(f"\nstudy: {study.name}")
    if options.report:
        print(f"report: {study.report(options.report)}")
    for name, message in study.failures.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return int(bool(study.failures))


def preview(options: argparse.Namespace) -> int:
    """Say what TensorRT makes of a model under each recipe, without a GPU."""
    from workbench.study.previews import CANNOT_KNOW

    model = wb.load(options.model)
    first, refused = None, False
    for name in _names(options.recipes):
        try:
            found = wb.preview(model, name, target=options.target, data=_data(options, model))
        except BuildError as error:  # the target may lack one recipe's types and have the next one's
            print(f"{name}: {error}", file=sys.stderr)
            refused = True
            continue
        print(found.summary)
        if first is not None:
            print(f"  {found.against(first)}")
        for note in found.notes:
            print(f"  {note}")
        if options.kernels:
            print(found.table().to_string(index=False))
        first = first or found
    print(CANNOT_KNOW)
    return int(refused)


def confirm(options: argparse.Namespace) -> int:
    """Run the study of a capsule here, and print both side by side."""
    found = wb.confirm(
        options.capsule,
        backend=options.backend,
        data=_data(options, None),
        name=options.name,
        store=None if options.store is None else wb.Store(options.store),
    )
    print(_brief(found.study))
    print(f"\nstudy: {found.study.name}\n")
    for sentence in (*found.notes, *found.changed):
        print(sentence)
    if options.report:
        print(f"report: {found.report(options.report)}")
    for name, message in found.study.failures.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return int(bool(found.study.failures))


def report(options: argparse.Namespace) -> int:
    """Write the report of a study that was run before."""
    from workbench.study.why import explain_best

    study = wb.Study.open(options.study)
    reference = None if options.reference is None else wb.Study.open(options.reference)
    found = explain_best(study, progress="auto") if options.layers else None
    print(study.report(options.path, [] if found is None else [found], reference))
    return 0


def explain(options: argparse.Namespace) -> int:
    """Say why a variant takes the time it takes and loses what it loses."""
    study = wb.Study.open(options.study)
    _result(study, options.variant)
    found = wb.explain(study, options.variant, try_advice=options.try_advice, progress="auto")
    for number, sentence in enumerate(found.sentences, 1):
        print(f"{number}. {sentence}")
    print(f"\n{found.against_baseline().head(10).to_string(index=False, float_format='{:.3g}'.format)}")
    if options.report:
        print(f"\nreport: {study.report(options.report, [found])}")
    return 0


def _result(study: wb.Study, variant: str) -> VariantResult:
    try:
        return study[variant]
    except KeyError as error:
        raise StoreError(str(error.args[0])) from error


def studies(options: argparse.Namespace) -> int:
    """List the studies in the store, latest first."""
    found = wb.studies()
    if found.empty:
        print(
            f"There is no study in {wb.Store().root} yet. Run one: python -m workbench run digits_resnet --data digits"
        )
        return 0
    found["date"] = [f"{date:%Y-%m-%d %H:%M}" if date == date else "" for date in found["date"]]
    print(found.fillna("").to_string(index=False))
    return 0


def app(options: argparse.Namespace) -> int:
    """Open the app in a browser, as a page of its own."""
    from workbench.ui import alone

    return alone.serve(wb.Store(), port=options.port, browser=not options.no_browser, dark=options.dark)


def compare(options: argparse.Namespace) -> int:
    """Judge a study against an earlier one, or against the pinned one."""
    from workbench.judging.regression import regression
    from workbench.reports.difference import differences
    from workbench.study.catalog import pinned

    before = options.before if options.after else pinned(wb.Store())
    if before is None:
        raise StoreError(
            "No study is pinned as the reference. Name two studies, or pin one on the app's page `Studies`."
        )
    earlier, later = wb.Study.open(before).record, wb.Study.open(options.after or options.before).record
    found = regression(earlier, later, tolerance=options.tolerance, allow_unlike=options.allow_unlike)
    for row in found.comparison.rows:
        told = [] if row.ratio is None else [row.ratio.words]
        told += [] if row.change is None else [f"score {row.change.words}"]
        print(f"{row.variant}: {'; '.join(told) or 'nothing to compare'}", *row.notes, sep="\n  ")
    for note in found.comparison.notes:
        print(note)
    for what, ours, theirs in differences(earlier, later):
        print(f"not the same: {what}: {ours} -> {theirs}")
    print(f"\n{found.words}")
    return REGRESSED if found.findings and options.fail_on == "regression" else 0


def serve(options: argparse.Namespace) -> int:
    """Serve variants of a language model's study on this machine, in OpenAI's format, until interrupted."""
    study = wb.Study.open(options.study)
    built = {name: _result(study, name).engine for name in options.variants}
    if absent := [name for name, engine in built.items() if engine is None]:
        raise EngineError(
            f"{absent[0]!r} was not built: {study.failures.get(absent[0], 'the study was stopped before')}."
        )
    language = wb.llm.load(options.model or study.record.model.origin.reference)
    if language.model.sha256 != study.record.model.sha256:
        raise LoadError(
            f"{language.model.name} is not the model of the study {study.name!r}. Name the folder or id that the study's "
            f"model was loaded from: --model FOLDER."
        )
    engines = {name: engine for name, engine in built.items() if engine is not None}
    with wb.llm.Endpoint(language, engines, port=options.port, token=options.token) as endpoint:
        print(f"base URL {endpoint.url}\nAPI key  {endpoint.token}\nmodels   {', '.join(engines)}", flush=True)
        endpoint.wait()
    return 0


def demo(options: argparse.Namespace) -> int:
    """Execute the quickstart notebook, print its table and say where the report is."""
    from workbench.notebook import execute

    path = zoo.data_folder().parent / "notebooks" / "00_quickstart.ipynb"
    if not path.is_file():
        raise LoadError(
            f"The notebooks are not part of an installed package (there is no {path}). Run the demo from a checkout of the "
            f"repository, or the same study here: python -m workbench run digits_resnet --data digits --report report.html"
        )
    # The kernel works in the notebook's folder; its studies go where this command's would.
    os.environ["WORKBENCH_HOME"] = str(wb.Store().root)
    print(f"executing {path.name}", flush=True)
    execute(path, lambda text: print(text, end="", flush=True))
    study = wb.Study.open(wb.Store().keys("study")[0])
    print(f"\n{_brief(study)}")
    print(f"\nreport: {path.parent / 'out' / 'quickstart.html'}")
    return 0


def _brief(study: wb.Study) -> str:
    """The table without what only fits a wide page; the report has it all."""
    table = study.table()
    wide = [name for name in table.columns if name.startswith(_WIDE_COLUMNS)]
    return str(table.drop(columns=wide).to_string(index=False))


def _names(parts: Sequence[str]) -> list[str]:
    return [name.strip() for part in parts for name in part.split(",") if name.strip()]


def _data(options: argparse.Namespace, model: Model | None) -> wb.datasets.Dataset | None:
    if options.data is None:
        return None
    if options.data in _SHIPPED_DATA:
        data = _SHIPPED_DATA[options.data]()
    else:
        path = Path(options.data)
        if path.is_dir():
            data = wb.datasets.image_folder(path, None if model is None else _preprocessing(model))
        elif path.suffix.lower() in (".txt", ".jsonl"):
            data = wb.datasets.text(path, _tokenizer(options))
        else:
            data = wb.datasets.npz(path)
    return data if options.calibration is None else data.split_off(options.calibration)


def _preprocessing(model: Model) -> wb.datasets.ImagePreprocessing | None:
    """The default one at the model's own size; a grey channel is only scaled. The report states it."""
    shape = model.inputs[0].shape
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] is None or shape[3] is None:
        return None
    if shape[1] == 3:
        return wb.datasets.ImagePreprocessing(shape[2], shape[3])
    return wb.datasets.ImagePreprocessing(shape[2], shape[3], "L", mean=(0.0,), std=(1.0,))


def _tokenizer(options: argparse.Namespace) -> str:
    if options.tokenizer is not None:
        return str(options.tokenizer)
    if "model" in options and Path(options.model).is_dir():
        return str(options.model)
    raise DataError(f"The text {options.data} needs a tokenizer. Pass --tokenizer FOLDER, one with a tokenizer.json.")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workbench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("app", help="open the app in a browser, as a page of its own (extra lab)")
    command.add_argument("--port", type=int, help="default: any that is free")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.add_argument("--dark", action="store_true", help="on a dark ground")
    command.set_defaults(command=app)

    command = commands.add_parser("doctor", help="say what this machine has and lacks, and what mends it")
    command.add_argument(
        "--measure", action="store_true", help="measure what the machine can do at most, where that is not known yet"
    )
    command.add_argument("--backend", default="auto", help="that is measured; default: the fastest that is here")
    command.set_defaults(command=doctor)

    command = commands.add_parser("run", help="run a study: load, transform, build, check, measure")
    command.add_argument("model", help="a shipped model, an .onnx file, a transformers folder or id, torchvision:NAME")
    command.add_argument(
        "--data",
        help="digits, stdlib_text, an .npz (input, labels, calibration_input), a folder of images (one folder a class), "
        "or a .txt or .jsonl with a tokenizer; random inputs if absent",
    )
    command.add_argument(
        "--calibration", type=_positive, metavar="N", help="take N samples out of the data for calibration"
    )
    command.add_argument("--tokenizer", metavar="FOLDER", help="for text; the model's own folder if absent")
    command.add_argument(
        "--recipes",
        nargs="+",
        default=["fp32", "fp16", "int8-kl"],
        help="names, separated by blanks or commas (default: fp32 fp16 int8-kl)",
    )
    command.add_argument("--backend", default="auto", help="see `doctor`; default: the fastest that is here")
    command.add_argument("--boundary", default="compute", choices=["compute", "end_to_end", "throughput"])
    command.add_argument("--batch", type=_positive, default=8, help="samples a call (default: %(default)s)")
    command.add_argument("--rounds", type=_positive, default=9, help="fresh processes a variant (default: %(default)s)")
    command.add_argument("--threads", type=_positive, default=1, help="of the CPU (default: %(default)s)")
    command.add_argument("--name", help="of the study; run again under the same name to go on")
    command.add_argument("--report", help="where to write the report: .html, .md, .csv, .json or a folder")
    command.set_defaults(command=run)

    _add_preview(commands)
    _add_confirm(commands)
    _add_compare(commands)

    command = commands.add_parser("report", help="write the report of a study")
    command.add_argument("study", help="its name (see `studies`) or a saved .json")
    command.add_argument("path", help=".html, .md, .csv, .json, or a folder for all four")
    command.add_argument(
        "--layers", action="store_true", help="profile the best variant beside the baseline, for a section of layers"
    )
    command.add_argument("--reference", help="another study (name or .json): a section says what is unlike it")
    command.set_defaults(command=report)

    command = commands.add_parser("explain", help="say why a variant of a study is not faster, or not as accurate")
    command.add_argument("study", help="its name (see `studies`)")
    command.add_argument("variant", help="the name of one of its recipes")
    command.add_argument("--try-advice", action="store_true", help="build and measure what the evidence suggests")
    command.add_argument("--report", help="where to write the study's report with the explanation in it")
    command.set_defaults(command=explain)

    command = commands.add_parser("studies", help="list the studies in the store, latest first")
    command.set_defaults(command=studies)

    command = commands.add_parser("serve", help="serve variants of a language model in OpenAI's format (extra serve)")
    command.add_argument("study", help="its name (see `studies`) or a saved .json")
    command.add_argument("variants", nargs="+", metavar="variant")
    command.add_argument("--model", help="the folder or id that the study's model was loaded from; default: as it says")
    command.add_argument("--port", type=int, default=0, help="default: any that is free")
    command.add_argument("--token", help="what clients must send as API key; default: a new one")
    command.set_defaults(command=serve)

    command = commands.add_parser("demo", help="execute the quickstart notebook")
    command.set_defaults(command=demo)
    return parser


def _add_confirm(commands: Any) -> None:
    command = commands.add_parser("confirm", help="run the study of a capsule here, and compare")
    command.add_argument("capsule", help="the .zip that study.capsule wrote")
    command.add_argument("--backend", default="auto", help="see `doctor`; default: the fastest that is here")
    command.add_argument("--data", help="as for `run`, where the capsule holds the hash of the data alone")
    command.add_argument("--calibration", type=_positive, metavar="N", help="as it was for the rehearsal")
    command.add_argument("--tokenizer", metavar="FOLDER", help="for text")
    command.add_argument("--name", help="of the study; default: the rehearsal's, and the backend")
    command.add_argument("--store", metavar="FOLDER", help="default: $WORKBENCH_HOME, or .workbench here")
    command.add_argument("--report", help="where to write both side by side: .html or .md")
    command.set_defaults(command=confirm)


def _add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="judge a study against an earlier one; for CI",
        epilog="Exit status: 0 not regressed, or nothing to fail on; 1 they cannot be compared; 3 regressed, with --fail-on.",
    )
    command.add_argument(
        "before", help="the earlier study: its name (see `studies`) or a saved .json; alone: the later one"
    )
    command.add_argument(
        "after", nargs="?", help="the later study; absent: the one named is judged against the pinned one"
    )
    command.add_argument("--fail-on", choices=["regression", "nothing"], default="nothing", help="default: %(default)s")
    command.add_argument(
        "--tolerance", type=float, default=0.0, metavar="SHARE", help="that a variant may be slower, such as 0.02"
    )
    command.add_argument("--allow-unlike", action="store_true", help="other devices, backends, shapes, threads too")
    command.set_defaults(command=compare)


def _add_preview(commands: Any) -> None:
    command = commands.add_parser("preview", help="show what TensorRT makes of a model; needs no GPU (extra rtx)")
    command.add_argument("model", help="as for `run`")
    command.add_argument(
        "--recipes",
        nargs="+",
        default=["fp16", "int8-max"],
        help="names, separated by blanks or commas; the first is what the others are compared with (default: fp16 int8-max)",
    )
    command.add_argument("--target", default="sm89", help="sm75 to sm121, several with commas (default: %(default)s)")
    command.add_argument("--data", help="as for `run`, to calibrate with; random inputs if absent")
    command.add_argument(
        "--calibration", type=_positive, metavar="N", help="take N samples out of the data for calibration"
    )
    command.add_argument("--tokenizer", metavar="FOLDER", help="for text; the model's own folder if absent")
    command.add_argument("--kernels", action="store_true", help="list every kernel")
    command.set_defaults(command=preview)


if __name__ == "__main__":
    sys.exit(main())
