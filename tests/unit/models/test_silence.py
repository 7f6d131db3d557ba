"""Silence is for the exporting thread alone, and ends."""

import sys
import threading
import warnings

from workbench.models.silence import silenced


def test_one_thread_is_silent_while_another_still_prints(capsys):
    with silenced():
        sys.stdout.write("hidden")
        sys.stderr.write("hidden too")
        other = threading.Thread(target=lambda: sys.stdout.write("heard "))
        other.start()
        other.join()
    sys.stdout.write("after")
    assert capsys.readouterr() == ("heard after", "")


def test_warnings_are_gathered_and_streams_come_back_after_an_error():
    before = sys.stdout, sys.stderr
    try:
        with silenced() as caught:
            warnings.warn("careful", stacklevel=1)
            raise KeyError
    except KeyError:
        pass
    assert [str(item.message) for item in caught] == ["careful"]
    assert (sys.stdout, sys.stderr) == before


def test_other_attributes_of_the_stream_are_handed_on():
    with silenced():
        assert sys.stdout.encoding
