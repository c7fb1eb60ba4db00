"""What FMWISS prints, as far as it could be recovered, with its certainty: tables 1 to 3 (dossier sections 1.2 to 1.4).

Comparators are WILSON's tables 1 to 3, which FMWISS reprints as far as is known; its own rows are remembered, but for
what the abstract states. Numbers are mIoU in percent; "old" and "new" leave background out, "all" counts it.
"""

from dataclasses import dataclass

from fmseg.tables import paper_value

WILSON_TABLES = "WILSON, tables 1 to 3"
ABSTRACT = "FMWISS, abstract"
SECONDARY = "notes on Web-WILSS"
MEMORY = "FMWISS, remembered"


@dataclass(frozen=True)
class Printed:
    """A row of the paper: ``supervision`` "P" (pixel labels) or "I" (image labels); ``numbers`` in columns' order."""

    label: str
    supervision: str
    numbers: tuple[float, ...]


def _rows(text: str) -> tuple[Printed, ...]:
    rows = []
    for line in text.strip().splitlines():
        label, supervision, *numbers = line.split()
        rows.append(Printed(label, supervision, tuple(map(float, numbers))))
    return tuple(rows)


T1 = _rows("""
Joint P 75.5 73.5 75.4 75.5 73.5 75.4
FT P 8.4 33.5 14.4 12.5 36.9 18.3
LwF P 39.7 33.3 38.2 67.0 41.8 61.0
LwF-MC P 41.5 25.4 37.6 59.8 22.6 51.0
ILT P 31.5 25.1 30.0 69.0 46.4 63.6
CIL P 42.6 35.0 40.8 14.9 37.3 20.2
MiB P 71.8 43.3 64.7 75.5 49.4 69.0
PLOP P 71.0 42.8 64.3 75.7 51.7 70.1
SDR P 73.5 47.3 67.2 75.4 52.6 69.9
RECALL P 69.2 52.9 66.3 67.7 54.3 65.6
CAM I 69.3 26.1 59.4 69.9 25.6 59.7
SEAM I 71.0 33.1 62.7 68.3 31.8 60.4
SS I 71.6 26.0 61.5 72.2 27.5 62.1
EPS I 72.4 38.5 65.2 69.4 34.5 62.1
WILSON I 73.6 43.8 67.3 74.2 41.7 67.2
FMWISS I 75.9 50.8 70.7 78.4 54.5 73.3
""")
T2 = _rows("""
Joint P 76.6 74.0 75.4 76.6 74.0 75.4
FT P 7.7 60.8 33.0 7.8 58.9 32.1
LwF P 63.1 61.1 62.2 70.7 63.4 67.2
LwF-MC P 52.4 42.5 47.7 53.9 43.0 48.7
ILT P 67.7 61.3 64.7 70.3 61.9 66.3
CIL P 37.4 60.6 48.8 38.4 60.0 48.7
MiB P 66.9 57.5 62.4 70.4 63.7 67.2
PLOP P 63.7 60.2 63.4 69.6 62.2 67.1
SDR P 67.5 57.9 62.9 70.5 63.9 67.4
RECALL P 64.1 56.9 61.9 66.0 58.8 63.7
CAM I 65.4 41.3 54.5 70.8 44.2 58.5
SEAM I 65.1 53.5 60.6 67.5 55.4 62.7
SS I 60.7 25.7 45.0 69.6 32.8 52.5
EPS I 64.2 54.1 60.6 69.0 57.0 64.3
WILSON I 64.5 54.3 60.8 70.4 57.1 65.0
FMWISS I 68.5 58.2 64.6 73.8 62.3 69.1
""")
T3 = _rows("""
FT P 1.9 41.7 12.7 75.0
LwF P 36.7 49.0 40.3 73.6
ILT P 37.0 43.9 39.3 68.7
MiB P 34.9 47.8 38.7 73.2
PLOP P 35.1 39.4 36.8 64.7
CAM I 30.7 20.3 28.1 39.1
SEAM I 31.2 28.2 30.5 48.0
SS I 35.1 36.9 35.5 52.4
EPS I 34.9 38.4 35.8 55.3
WILSON I 39.8 41.0 40.6 55.7
FMWISS I 39.9 44.7 41.6 63.6
""")
PRINTED = {"fmwiss-t1": T1, "fmwiss-t2": T2, "fmwiss-t3": T3}
_OWN = {  # FMWISS's own row: place in the row -> (certainty, source); all else is remembered
    "fmwiss-t1": {2: ("STATED", ABSTRACT), 5: ("STATED", ABSTRACT)},
    "fmwiss-t2": {2: ("RECALLED", SECONDARY), 5: ("RECALLED", SECONDARY)},
    "fmwiss-t3": {},
}
_SWAPPED = "WILSON, table 3; its supplement has SS and EPS exchanged"

NOT_RUN = {  # rows that keep the paper's figure, and why
    "CIL": "its definition could not be established from what is public",
    "RECALL": "it replays pictures from the web or a GAN trained on such, which this world does not have",
    "SEAM": "a network and training schedule of its own, not rebuilt here",
    "EPS": "it needs a saliency model trained elsewhere",
}


def printed(table: str, label: str) -> list[dict]:
    """A row's numbers with certainty and source, in the order of the table's columns, as cells keep them.

    Raises:
        KeyError: no such table or row.
    """
    row = next((r for r in PRINTED[table] if r.label == label), None)
    if row is None:
        raise KeyError(f"{table} prints no row {label!r}; it has {', '.join(r.label for r in PRINTED[table])}")
    found = []
    for place, number in enumerate(row.numbers):
        tag = ("STATED", WILSON_TABLES)
        if label == "FMWISS":
            tag = _OWN[table].get(place, ("RECALLED", MEMORY))
        elif table == "fmwiss-t3" and label in ("SS", "EPS") and place == 3:
            tag = ("STATED", _SWAPPED)
        found.append(paper_value(number, *tag))
    return found
