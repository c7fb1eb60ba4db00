"""Grounded Diffusion's printed numbers, by our rows and columns (dossier, section 1; crops of the paper's own tables).

Its own slips are kept: averages that do not follow from their rows, and one cell printed with two values.
"""

from fmseg.grounded_scores import COLUMNS

SOURCE = "Grounded Diffusion, project page"
DRAWS = ("voc", "coco")  # they play P-sim and C-sim

# Table 1, rows by split, then the printed average: P-sim, then C-sim, each with the columns of the scores
DAAM = (
    (61.66, 75.63, 46.74, 51.31, 69.94, 62.25, 55.56, 49.68, 52.06, 43.35),
    (65.75, 59.25, 49.08, 47.98, 41.50, 60.08, 65.55, 48.80, 54.66, 33.22),
    (67.11, 53.82, 48.80, 48.28, 41.41, 62.81, 52.48, 50.85, 49.84, 45.80),
    (64.84, 62.90, 48.21, 49.19, 50.95, 61.71, 57.76, 49.78, 52.19, 40.79),
)
HEAD = (
    (90.16, 83.19, 78.93, 66.07, 57.93, 83.35, 76.81, 64.64, 57.15, 47.77),
    (90.08, 86.19, 78.68, 67.10, 47.21, 82.83, 74.93, 63.39, 57.18, 42.82),
    (90.67, 79.86, 79.68, 70.42, 62.07, 84.85, 67.89, 65.70, 54.60, 42.62),
    (90.30, 83.08, 79.10, 67.86, 55.74, 83.68, 73.21, 64.16, 56.31, 44.40),
)
SLIPS = (
    "DAAM's average of C-sim, one unseen, is printed as 57.76; its three splits give 57.86",
    "the head's average of C-sim, two seen, is printed as 64.16; its three splits give 64.58",
    "Table 4 prints 83.85 for 65 seen classes, one seen, where Table 1 has 83.35",
)
# Table 2: VOC seen, unseen, harmonic, then COCO; None where the paper has no number
PROTOCOL_II = {
    "ZS3": (78.0, 21.2, 33.3, None, None, None),
    "SPNet": (77.8, 25.8, 38.8, 33.0, 21.9, 26.3),
    "CaGNet": (78.6, 30.3, 43.7, None, None, None),
    "Joint": (77.7, 32.5, 45.9, 57.9, 8.6, 14.9),
    "STRICT": (82.7, 35.6, 49.8, 22.2, 20.4, 21.3),
    "SIGN": (83.5, 41.3, 55.3, None, None, None),
    "ZegFormer": (86.4, 63.6, 73.3, 53.3, 34.5, 41.9),
    "Model-A one object": (62.8, 50.0, 55.7, 28.8, 32.6, 30.6),
    "Model-B two objects": (65.8, 60.1, 62.8, 37.3, 37.0, 37.1),
    "Model-C mixture": (69.5, 63.2, 66.2, 38.3, 38.1, 38.2),
    "Model-D mixture and real seen": (83.0, 71.3, 76.7, 50.0, 38.2, 43.2),
    "Model-E rich prompts and real seen": (83.4, 74.4, 78.7, 53.4, 37.8, 44.3),
}
# Table 3, P-sim, split 1
ZERO_MASKS = {
    "zero masks": (89.88, 71.18, 77.66, 57.24, 44.22),
    "without zero masks": (90.16, 83.19, 78.93, 66.07, 57.93),
}
# Table 4, C-sim: seen classes of 80
SEEN_CLASSES = {
    5: (94.81, 72.42, 87.19, 49.60, 39.00),
    20: (91.91, 73.33, 71.59, 56.27, 41.91),
    35: (87.23, 73.85, 66.91, 55.99, 43.28),
    50: (84.55, 73.20, 66.41, 54.39, 42.71),
    65: (83.85, 76.81, 64.64, 57.15, 47.77),
}
# the supplement's plot, P-sim, read by eye to half a point: DDIM step of 50 from the clean end
TIMESTEPS = {
    1: (90.5, 83.0, 79.8, 68.2, 57.4),
    5: (90.8, 82.0, 80.5, 68.9, 59.0),
    10: (90.6, 83.6, 80.1, 67.3, 55.3),
    15: (90.6, 82.0, 80.3, 67.4, 55.5),
    20: (90.3, 82.8, 79.5, 66.9, 56.8),
    25: (89.3, 79.6, 77.8, 63.1, 55.4),
    30: (87.6, 77.2, 73.3, 62.0, 53.5),
    35: (84.7, 71.2, 66.7, 52.3, 40.8),
    40: (77.8, 67.8, 55.4, 43.8, 37.3),
    45: (67.3, 57.4, 38.1, 29.2, 21.4),
    50: (60.4, 55.8, 29.8, 23.3, 13.0),
}


def table_1(row: tuple[float, ...]) -> dict[str, float]:
    """A row of Table 1 by our columns, 'voc one seen' and so on."""
    return dict(zip((f"{draw} {column}" for draw in DRAWS for column in COLUMNS), row, strict=True))


def table_2(name: str) -> dict[str, float]:
    """A row of Table 2 by our columns, 'voc seen' and so on; without those that the paper leaves out."""
    columns = [f"{draw} {column}" for draw in DRAWS for column in ("seen", "unseen", "harmonic")]
    return {c: v for c, v in zip(columns, PROTOCOL_II[name], strict=True) if v is not None}


def five(row: tuple[float, ...]) -> dict[str, float]:
    """A row of Tables 3 and 4 or a point of the plot, by column."""
    return dict(zip(COLUMNS, row, strict=True))
