"""The HTML report: complete, self-contained, and deaf to whatever markup its record holds."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest
import synthetic_study

from workbench import codec, reports
from workbench.judging.roofline import Ceilings
from workbench.recipes import Recipe
from workbench.records import Failure, Protocol, Skipped, StepReport, StudyRecord, VariantResult
from workbench.reports.examples import image_uri

QUICK = Protocol(rounds=4, min_seconds=0.01)
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;</style>"
replace = dataclasses.replace


class Reader(HTMLParser):
    """Collects the tags with their attributes, and the text outside style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return synthetic_study.study(protocol=QUICK)


@pytest.fixture(scope="module")
def page(record: StudyRecord) -> str:
    return reports.html(record)


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


@pytest.fixture(scope="module")
def hostile() -> str:
    """A report in which every string that a stranger could choose holds markup."""
    record = synthetic_study.study(("fp32", "int8-max"), protocol=QUICK)
    first, second = record.results
    assert first.accuracy is not None and second.variant is not None and second.engine is not None
    assert second.accuracy is not None and first.measurement is not None and second.measurement is not None
    step = StepReport(HOSTILE, 0.1, (HOSTILE,), (Skipped(HOSTILE, HOSTILE),), (HOSTILE,), {HOSTILE: [HOSTILE]})
    recipe = Recipe(HOSTILE)
    second = replace(
        second,
        recipe=recipe,
        variant=replace(second.variant, recipe=recipe, reports=(step,)),
        engine=replace(second.engine, log=HOSTILE, notes=(HOSTILE,), backend=HOSTILE),
        accuracy=replace(second.accuracy, metric=HOSTILE, data_name=HOSTILE, notes=(HOSTILE,)),
        measurement=replace(second.measurement, variant=HOSTILE),
    )
    first = replace(first, accuracy=replace(first.accuracy, metric=HOSTILE, data_name=HOSTILE))
    third = VariantResult(Recipe("x" + HOSTILE), failure=Failure(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE))
    model = replace(
        record.model,
        name=HOSTILE,
        path=f"a/{HOSTILE}.onnx",
        origin=replace(record.model.origin, reference=HOSTILE, notes=(HOSTILE,)),
    )
    return reports.html(
        replace(
            record,
            name=HOSTILE,
            model=model,
            backend_reason=HOSTILE,
            results=(first, second, third),
            data={"name": HOSTILE, "kind": HOSTILE, "sha256": HOSTILE},
            environment={HOSTILE: {HOSTILE: HOSTILE}},
            samples={"12": {"kind": "text", "value": HOSTILE, "label": HOSTILE}},
            notes=(HOSTILE,),
        )
    )


def test_the_verdict_comes_first_with_intervals_and_p_value(read: Reader) -> None:
    start = read.text[:900]
    assert re.search(
        r"Take int8-\w+: it is 2\.\d+x faster \[2\.\d+, 2\.\d+\] than fp32 at 0\.\d+ points less top-1", start
    )
    assert "not distinguishable, McNemar p =" in start
    assert "Failed: int8-smooth during build (OutOfMemory)." in start


def test_every_variant_has_a_row_and_the_failed_one_says_where(read: Reader) -> None:
    for words in ("fp32 baseline", "▼ 1.3", "int8-kl", "int8-max", "int8-smooth failed: build"):
        assert words in read.text


def test_every_heading_of_the_table_stands_over_a_cell(page: str) -> None:
    table = re.search(r"<table class=\"grid\".*?</table>", page, re.DOTALL)
    assert table is not None
    head, body = table.group().split("<tbody>")
    columns = head.rsplit("<tr>", 1)[1].count("<th ")
    for row in body.split("<tr")[1:]:
        assert row.count("<td") + row.count("<th ") == columns
    spans = sum(int(span) for span in re.findall(r'colspan="(\d+)"', head))
    assert spans == columns


def test_headings_of_the_table_have_a_scope(read: Reader) -> None:
    assert all("scope" in heading for heading in read.all("th"))


def test_notes_are_named_with_the_variant_they_concern(read: Reader) -> None:
    assert "fp16: FP16 on this CPU is storage only" in read.text
    assert "int8-kl: workspace_bytes has no meaning" in read.text
    assert "Another process used 12 % of the CPU" in read.text


def test_the_failure_is_shown_with_its_message_and_log(read: Reader) -> None:
    assert "The builder ran out of memory after 3.1 GiB." in read.text
    assert "could not allocate 3221225472 bytes" in read.text


def test_steps_show_what_they_changed_and_what_they_left_alone_and_why(read: Reader) -> None:
    assert "/layer3/conv2" in read.text
    assert "Softmax stays in floating point: /head/Softmax" in read.text


def test_samples_show_who_answered_what_with_the_metrics_verdict(read: Reader) -> None:
    assert "Where variants disagree" in read.text
    assert re.search(r"Sample \d+ , label \d", read.text)
    assert "✗ wrong" in read.text
    assert any((image["src"] or "").startswith("data:image/png") for image in read.all("img"))


def test_the_page_says_where_how_and_how_again(read: Reader) -> None:
    assert "each in a fresh process" in read.text
    assert "Example CPU" in read.text
    assert 'wb.load("digits_resnet")' in read.text
    assert "wb.datasets.digits()" in read.text
    assert 'recipes=["fp32", "fp16", "int8-kl", "int8-max", "int8-smooth"]' in read.text
    assert "protocol=wb.Protocol(rounds=4, min_seconds=0.01)" in read.text


def test_the_snippet_that_reproduces_the_study_is_python(page: str, record: StudyRecord) -> None:
    from workbench.reports.code import reproduce

    compile(reproduce(record), "snippet", "exec")
    compile(reproduce(replace(record, backend=HOSTILE, name=HOSTILE)), "snippet", "exec")


def test_figures_have_words_for_who_cannot_see_them_and_both_themes(read: Reader) -> None:
    drawn = [image for image in read.all("img") if (image["src"] or "").startswith("data:image/svg+xml")]
    assert len(drawn) == 4
    assert all(len(image["alt"] or "") > 40 for image in drawn)
    assert len(read.all("source")) == 4


def test_nothing_is_loaded_from_anywhere(page: str, read: Reader) -> None:
    for _tag, attributes in read.tags:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:", "#")) or not value, (name, value)
    outside_drawings = re.sub(r"data:[a-z/+]+;base64,[A-Za-z0-9+/=]+", "", page)
    assert "http://" not in outside_drawings
    assert "https://" not in outside_drawings
    assert "@import" not in page
    assert "url(" not in page
    assert not read.all("link")


def test_drawings_load_nothing_and_hold_no_script(page: str) -> None:
    for encoded in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", page):
        svg = base64.b64decode(encoded).decode()
        assert "<script" not in svg
        assert not [link for link in re.findall(r'href="([^"]+)"', svg) if not link.startswith("#")]


def test_links_within_the_page_lead_somewhere(read: Reader) -> None:
    anchors = {attributes["id"] for _, attributes in read.tags if "id" in attributes}
    assert {(link["href"] or "")[1:] for link in read.all("a")} <= anchors
    assert len(anchors) == len([1 for _, attributes in read.tags if "id" in attributes])


def test_markup_from_outside_stays_text(hostile: str) -> None:
    assert "<script>alert" not in hostile
    assert "onerror=alert(2)>" not in hostile.replace("onerror=alert(2)&gt;", "")
    read = Reader(hostile)
    assert len(read.all("script")) == 1
    assert not [attributes for tag, attributes in read.tags if "onerror" in attributes]
    assert "<script>alert(1)</script>" in read.text


def test_the_browser_may_run_our_script_alone(hostile: str) -> None:
    policy = next(item["content"] for item in Reader(hostile).all("meta") if "http-equiv" in item) or ""
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", hostile, re.DOTALL)
        assert inner is not None
        digest = base64.b64encode(hashlib.sha256(inner.group(1).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_study_in_which_nothing_was_measured_says_why(record: StudyRecord) -> None:
    results = tuple(replace(result, measurement=None) for result in record.results)
    text = Reader(reports.html(replace(record, results=results))).text
    assert "The baseline 'fp32' has no measurement" in text
    assert "What was measured" in text  # the sizes are still there


def test_the_ceilings_of_the_machine_stand_below_its_environment(record: StudyRecord) -> None:
    roofs = Ceilings("onnxruntime-cpu", "1.2", "CPU", 1, {"fp32": 1e11}, (1000, 10**6), (2e10, 1e10), 5e-6, 1e-6, 0.0,
                     {"fp8": "no such arithmetic here"})  # fmt: skip
    known = replace(record, environment={**record.environment, "ceilings": codec.to_plain(roofs)})
    text = Reader(reports.html(known)).text
    assert "What this machine can do at most" in text and "FP32 arithmetic 100 GFLOP/s" in text
    assert "FP8 arithmetic no such arithmetic here" in text and "copying 1.00 MB 10.0 GB/s" in text
    assert "ceilings" not in text and "at most" not in Reader(reports.html(record)).text
    edited = replace(record, environment={"ceilings": {"rates": HOSTILE}})
    assert "at most" not in Reader(reports.html(edited)).text


def test_what_is_unlike_the_reference_stands_in_page_and_markdown(record: StudyRecord) -> None:
    before = replace(record, name="before", environment={**record.environment, "cooling": "water"})
    for text in (Reader(reports.html(record, reference=before)).text, reports.markdown(record, reference=before)):
        assert "Beside the reference" in text and "The reference is before of" in text
        assert "has not regressed against before" in text
        assert "cooling" in text and "water" in text
    assert "Beside the reference" not in Reader(reports.html(record)).text
    same = Reader(reports.html(record, reference=replace(record, name="twin"))).text
    assert "Model, data, recipes, protocol and environment are the same." in same
    other = replace(before, results=before.results[:1], baseline="fp32")
    other = replace(other, results=(replace(other.results[0], recipe=Recipe("else")),))
    assert "share no variant" in Reader(reports.html(record, reference=other)).text


@pytest.mark.parametrize(
    "value",
    [None, "text", [[1, 2], [3]], [[300]], [[-1]], [[float("nan")]], [], [[[1, 2], [3, 4]]], [[0] * 1025], {"a": 1}],
)
def test_what_is_no_small_picture_is_not_shown_as_one(value: object) -> None:
    assert image_uri(value) is None


@pytest.mark.parametrize("value", [[[0, 255], [128, 3]], [[[255, 0, 0], [0, 0, 255]]]])
def test_pictures_survive_their_encoding(value: list[object]) -> None:
    import io

    import numpy as np
    from PIL import Image

    uri = image_uri(value)
    assert uri is not None
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert np.asarray(picture).tolist() == value
