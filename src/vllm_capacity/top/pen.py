"""How things are written: the terminal's characters, and what others wrote made harmless."""

from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

SEVERITY_STYLES = {
    "ok": "green",
    "unknown": "magenta",
    "warning": "bold yellow",
    "critical": "bold red",
}
DIM = "dim"


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyphs:
    """The characters that pictures are made of, each one cell wide.

    Attributes:
        parts: a cell filled from the left by one eighth, two eighths, … whole.
        levels: a cell filled from below, likewise; the first stands for nothing.
        committed, free, gap: of a bar, and of a picture where nothing is known.
        low, between, high, marker: an interval and the value in it.
        selected, separator, ellipsis: in tables and lists.
    """

    parts: str
    levels: str
    committed: str
    free: str
    low: str
    between: str
    high: str
    marker: str
    selected: str
    separator: str
    ellipsis: str
    gap: str = " "


UNICODE = Glyphs(
    parts="▏▎▍▌▋▊▉█",
    levels="▁▂▃▄▅▆▇█",
    committed="▒",
    free="░",
    low="├",
    between="─",
    high="┤",
    marker="▲",
    selected="▶",
    separator=" · ",
    ellipsis="…",
)
ASCII = Glyphs(
    parts="#",
    levels="_.:-=+*#",
    committed="+",
    free=".",
    low="<",
    between="-",
    high=">",
    marker="^",
    selected=">",
    separator=" | ",
    ellipsis="~",
)
_PLAIN = str.maketrans({"…": "...", "·": "|", "–": "-", "−": "-", "×": "x", "’": "'"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Pen:
    """Writes for one terminal.

    Attributes:
        glyphs: the characters that it can show.
    """

    glyphs: Glyphs = UNICODE

    def plain(self, written: str) -> str:
        """Text on one line that holds no control character and nothing that turns its direction.

        Whatever a model or a server is called, it cannot move the cursor: what cannot be printed
        is shown as a question mark or its like.
        """
        replacement = "?" if self.glyphs is ASCII else "\N{REPLACEMENT CHARACTER}"
        line = " ".join(written.split())
        if self.glyphs is ASCII:
            line = line.translate(_PLAIN).encode("ascii", "replace").decode("ascii")
        return "".join(c if c.isprintable() else replacement for c in line)

    def text(self, written: str, style: str = "") -> Text:
        """The same as styled text; nothing in it is markup."""
        return Text(self.plain(written), style=style, no_wrap=True, end="")

    def joined(self, *pieces: Text) -> Text:
        """Pieces beside each other."""
        return Text("", no_wrap=True, end="").join(pieces)

    def listed(self, pieces: "tuple[str, ...] | list[str]", style: str = "") -> Text:
        """Short facts on one line."""
        return self.text(self.glyphs.separator.join(pieces), style)

    def fitted(self, line: Text, width: int) -> Text:
        """A line at most that wide, its end cut off visibly."""
        if line.cell_len <= width:
            return line
        cut = line.copy()
        cut.truncate(max(0, width - 1), overflow="crop")
        cut.append(self.glyphs.ellipsis[: max(0, width)])
        return cut

    def padded(self, line: Text, width: int, *, right: bool = False) -> Text:
        """A line exactly that wide."""
        fitted = self.fitted(line, width)
        gap = Text(" " * (width - fitted.cell_len), end="")
        return self.joined(gap, fitted) if right else self.joined(fitted, gap)

    def wrapped(self, written: str, width: int, style: str = "") -> list[Text]:
        """A sentence on as many lines as it takes; a word too long for a line is cut."""
        lines: list[str] = []
        for word in self.plain(written).split(" "):
            if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
                lines[-1] += " " + word
            else:
                lines.append(word)
        return [self.fitted(self.text(line, style), width) for line in lines]
