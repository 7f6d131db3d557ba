"""Building blocks of the views: labelled controls, each bound to a trait and to one command.

A callback is one call to a command; the session catches and shows what goes wrong in it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets as widgets
from traitlets import HasTraits

from workbench.ui.state.session import Session
from workbench.ui.views.markup import error, escape, message

FIELD_WIDTH = "460px"
LABEL_WIDTH = "130px"


def html(text: str = "", *classes: str) -> widgets.HTML:
    """Return a piece of markup; whoever makes the text escapes what comes from outside."""
    made = widgets.HTML(text)
    for name in classes:
        made.add_class(name)
    return made


def row(*children: widgets.Widget) -> widgets.Box:
    """Put controls side by side; they wrap where the panel is narrow."""
    buttons = [child for child in children if hasattr(child, "session")]
    made = widgets.Box((*children, _error_beside(buttons)) if buttons else children)
    made.add_class("wb-row")
    return made


def _error_beside(buttons: Sequence[widgets.Button]) -> widgets.HTML:
    """Return the line that tells what went wrong with the command of one of these buttons."""
    session, line = buttons[0].session, html("", "wb-beside")

    def show() -> None:
        is_ours = session.place in buttons
        write(line, error(session.error) if is_ours else "")
        line.layout.display = None if is_ours and session.error else "none"

    follow(session, ("error", "place"), show)
    return line


def actions(*children: widgets.Widget) -> widgets.Box:
    """Put buttons under the fields that they act on."""
    made = row(*children)
    made.add_class("wb-actions")
    return made


def page(*children: widgets.Widget) -> widgets.VBox:
    """Put parts of a page under each other."""
    made = widgets.VBox(children)
    made.add_class("wb-page")
    return made


def tabs(session: Session, part: HasTraits, trait: str, words: str, pages: dict[str, widgets.Widget]) -> widgets.Tab:
    """Return tabs, one a page.

    The browser itself changes the page, so that this is instant however busy the kernel is; it tells screen readers what
    is a tab and which one is chosen, and arrow keys move between them.
    """
    names = tuple(pages)
    made = widgets.Tab(children=list(pages.values()), titles=names, selected_index=names.index(getattr(part, trait)))
    made.add_class("wb-tabs")

    def show(change: Any) -> None:
        write(made, names.index(getattr(part, trait)), "selected_index")

    def choose(change: Any) -> None:
        if change["new"] is not None and names[change["new"]] != getattr(part, trait):
            session.attempt(lambda name: setattr(part, trait, name), names[change["new"]])

    part.observe(show, trait)
    made.observe(choose, "selected_index")
    return made


def button(
    session: Session, words: str, command: Callable[[], None], tooltip: str = "", **options: Any
) -> widgets.Button:
    """Return a button that calls a command."""
    made = widgets.Button(
        description=words, tooltip=tooltip or words, layout=widgets.Layout(width="auto", min_width="110px"), **options
    )

    def press(clicked: Any) -> None:
        session.attempt(command)
        if session.error:
            session.place = made

    made.session = session  # a row of buttons tells beside them what went wrong
    made.on_click(press)
    return made


def field(made: widgets.Widget, width: str = FIELD_WIDTH) -> widgets.Widget:
    """Give a control its label's and its own width; both shrink with the panel."""
    made.layout.width = width
    made.layout.max_width = "100%"
    made.style.description_width = LABEL_WIDTH
    made.add_class("wb-field")
    return made


def bind(
    session: Session, part: HasTraits, trait: str, control: widgets.Widget, command: Callable[[Any], None] | None = None
) -> widgets.Widget:
    """Keep a control's value and a trait equal.

    Args:
        command: called with a value that the user chose; None sets the trait.
    """
    setter = command or (lambda value: setattr(part, trait, value))

    def show(change: Any = None) -> None:
        if control.value != getattr(part, trait):
            control.value = getattr(part, trait)

    def choose(change: Any) -> None:
        if change["new"] != getattr(part, trait):
            session.attempt(setter, change["new"])

    show()
    part.observe(show, trait)
    control.observe(choose, "value")
    return control


def menu(
    session: Session,
    part: HasTraits,
    words: str,
    options_trait: str,
    value_trait: str,
    *,
    command: Callable[[Any], None] | None = None,
) -> widgets.Dropdown:
    """Return a menu whose options and value follow traits; a change of options is no choice of the user's."""
    made = field(widgets.Dropdown(description=words))
    state = {"quiet": False}
    setter = command or (lambda value: setattr(part, value_trait, value))

    def show(change: Any = None) -> None:
        options, value = tuple(getattr(part, options_trait)), getattr(part, value_trait)
        state["quiet"] = True
        if tuple(made.options) != options:
            made.options = options
        made.value = value if value in options else None
        state["quiet"] = False

    def choose(change: Any) -> None:
        if not state["quiet"] and change["new"] is not None and change["new"] != getattr(part, value_trait):
            session.attempt(setter, change["new"])

    show()
    part.observe(show, [options_trait, value_trait])
    made.observe(choose, "value")
    return made


def follow(part: HasTraits, traits: str | Sequence[str], show: Callable[[], None]) -> None:
    """Call `show` now and whenever one of the traits changes."""
    show()
    part.observe(lambda change: show(), [traits] if isinstance(traits, str) else list(traits))


def write(control: widgets.Widget, text: Any, name: str = "value") -> None:
    """Set an attribute where it differs, so that nothing is sent for nothing."""
    if getattr(control, name) != text:
        setattr(control, name, text)


class Checks:
    """A group of checkboxes of which several may be chosen; each can be greyed with its reason.

    Args:
        values: value -> what the box says.
        command: called with the tuple of chosen values, in order.
    """

    def __init__(
        self, session: Session, words: str, values: dict[Any, str], command: Callable[[tuple[Any, ...]], None]
    ) -> None:
        self._desk, self._command, self._quiet = session, command, False
        # What shows the state again: a refused choice must not stay ticked.
        self.refresh: Callable[[], None] = lambda: None
        self.boxes = {
            value: widgets.Checkbox(description=text, indent=False, tooltip=f"{words}: {text}")
            for value, text in values.items()
        }
        self.note = html("", "wb-quiet")
        self.widget = widgets.VBox([row(html(words, "wb-group"), *self.boxes.values()), self.note])
        self.widget.add_class("wb-page")
        for box in self.boxes.values():
            box.observe(self._choose, "value")

    def show(self, chosen: Iterable[Any], greyed: dict[Any, str]) -> None:
        """Tick what is chosen and grey what has a reason against it."""
        ticked = tuple(chosen)
        self._quiet = True
        for value, box in self.boxes.items():
            write(box, value in ticked)
            write(box, value in greyed, "disabled")
        self._quiet = False
        write(self.note, greyed_words({self.boxes[value].description: why for value, why in greyed.items()}))

    def _choose(self, change: Any) -> None:
        if not self._quiet:
            self._desk.attempt(self._command, tuple(value for value, box in self.boxes.items() if box.value))
            self.refresh()


def greyed_words(reasons: dict[str, str], words: str = "Not here") -> str:
    """Say why choices are greyed, those with one reason together."""
    together: dict[str, list[str]] = {}
    for value, why in reasons.items():
        together.setdefault(why, []).append(value)
    return "".join(
        f"<div>{words}: {escape(', '.join(values))} ({message(why)}).</div>" for why, values in together.items()
    )


def picture_pair(part: HasTraits, light_trait: str, dark_trait: str, words: Callable[[], str]) -> widgets.HTML:
    """Return a picture that follows two PNG traits, one for each theme; nothing is shown while they are empty.

    Args:
        words: what the picture shows, for who cannot see it; asked whenever it is drawn.
    """
    box = html()

    def show() -> None:
        kinds = (("wb-light", light_trait), ("wb-dark", dark_trait))
        alt = escape(words(), quote=True)
        shown = "".join(
            f'<img class="{kind}" alt="{alt}" src="data:image/png;base64,{base64.b64encode(data).decode("ascii")}">'
            for kind, trait in kinds
            if (data := getattr(part, trait))
        )
        # In a narrow panel a picture keeps a size at which its text can be read, and scrolls by itself.
        write(
            box,
            f'<div class="wb-scroll wb-picture" tabindex="0" role="group" aria-label="{alt}">{shown}</div>'
            if shown
            else "",
        )
        box.layout.display = None if shown else "none"

    follow(part, (light_trait, dark_trait), show)
    return box
