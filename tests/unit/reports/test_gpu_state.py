"""What a GPU did over the rounds, in the report: clocks, throttling, heat, power and its own memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import synthetic_study

from workbench import plots, reports
from workbench.errors import DataError
from workbench.judging.standing import compared
from workbench.records import Protocol, StudyRecord
from workbench.reports import details, gpu_state
from workbench.reports.rows import main_table


def study(*states: Any) -> StudyRecord:
    """A study whose rounds have these states of the device, in turn."""
    record = synthetic_study.study(("fp32", "int8-max"), protocol=Protocol(rounds=4, min_seconds=0.01))
    results = []
    for result in record.results:
        measured = result.measurement
        assert measured is not None
        rounds = tuple(
            dataclasses.replace(part, conditions={"device": states[place % len(states)]} if states else {})
            for place, part in enumerate(measured.rounds)
        )
        results.append(dataclasses.replace(result, measurement=dataclasses.replace(measured, rounds=rounds)))
    return dataclasses.replace(record, results=tuple(results))


COOL = {
    "sm_clock_megahertz": 1980, "memory_clock_megahertz": 2619, "temperature_celsius": 41, "power_watts": 310.4,
    "throttle_bits": 0x1, "device_memory_peak_seen_bytes": 512_000_000,
}  # fmt: skip
HOT = {**COOL, "sm_clock_megahertz": 1500, "temperature_celsius": 86, "throttle_bits": 0x24}


def test_ranges_over_the_rounds_stand_in_the_environment() -> None:
    rows = dict(details.environment_rows(study(COOL, HOT)))
    assert rows["GPU clock"] == "1500 to 1980 MHz, after each round"
    assert rows["GPU memory clock"] == "2619 MHz, after each round"
    assert rows["GPU temperature"] == "41 to 86 °C, after each round" and rows["GPU power"].startswith("310 W")
    assert rows["GPU throttled"] == "4 of 8 rounds (power cap and thermal limit (software))"
    assert rows["GPU memory of an engine (largest seen)"] == "512 MB"


def test_a_slowed_gpu_is_the_first_thing_to_read_with_the_results() -> None:
    assert details.notes(study(COOL, HOT), None)[0].startswith("The GPU was slowed down in 4 of 8 rounds (power cap")
    calm = study(COOL)
    assert gpu_state.notes(calm) == [] and dict(gpu_state.rows(calm))["GPU throttled"] == "in none of 8 rounds"


def test_peak_memory_is_called_the_hosts_where_there_is_a_gpu() -> None:
    def footnotes(record: StudyRecord) -> str:
        return " ".join(main_table(record, compared(record)[0]).footnotes)

    assert "process that measures on the host, Python" in footnotes(study(COOL)) and "the GPU's stands" in footnotes(
        study(COOL)
    )
    assert "on the host" not in footnotes(study())


def test_where_nothing_is_known_of_a_gpu_nothing_is_said() -> None:
    for record in (study(), study({}), study("odd"), study({"sm_clock_megahertz": "fast", "throttle_bits": True})):
        assert gpu_state.rows(record) == [] and gpu_state.notes(record) == [] and not gpu_state.has_gpu(record)


def test_caveats_come_after_verdict_figure_and_table_and_the_later_ones_are_folded() -> None:
    record = dataclasses.replace(study(), notes=tuple(f"Caveat number {place}." for place in range(9)))
    page = reports.html(record)
    places = [page.index(part) for part in ('class="verdict"', 'id="results"', 'class="grid"', 'id="notes"', "4 more<")]
    assert places == sorted(places)
    assert all(f"Caveat number {place}." in page for place in range(9))
    text = reports.markdown(record)
    assert text.index("## Results") < text.index("Caveat number 0")


def test_the_gpu_is_drawn_over_the_run_with_the_rounds_in_which_it_was_slowed_down() -> None:
    found = gpu_state.tracks(study(COOL, HOT))
    assert [track.name for track in found] == ["GPU clock", "GPU memory clock", "GPU temperature", "GPU power"]
    assert all(list(track.seconds) == sorted(track.seconds) and len(track.values) == 8 for track in found)
    clock = found[0]
    assert [value == 1500 for value in clock.values] == list(clock.slowed) and sum(clock.slowed) == 4
    page = reports.html(study(COOL, HOT))
    assert "what the GPU&#39;s driver told after each round" in page
    for theme in ("light", "dark"):
        assert len(plots.tracks(found, theme=theme).axes) == 4  # type: ignore[arg-type]
    assert gpu_state.tracks(study()) == [] and "driver told" not in reports.html(study())
    with pytest.raises(DataError, match="nothing to draw"):
        plots.tracks([])
