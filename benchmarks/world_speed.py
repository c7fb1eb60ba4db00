"""How long the world takes to draw, by draw and size, on one core; ratios to 64 pixels, measured in turn in one run."""

import statistics
import time

from fmseg.datasets import DRAWS, draw_set

SIZES, ROUNDS = (32, 64, 128), 5


def main() -> None:
    print(f"{'draw':>6} {'size':>5} {'ms an image':>12} {'samples/s':>10} {'ratio to 64':>12}")
    for name in DRAWS:
        times = {size: [] for size in SIZES}
        for turn in range(ROUNDS):
            for size in SIZES:
                start = time.perf_counter()
                draw_set(name, "train", 40, size=size, start=40 * turn)
                times[size].append((time.perf_counter() - start) / 40)
        base = statistics.median(times[64])
        for size in SIZES:
            middle = statistics.median(times[size])
            print(f"{name:>6} {size:>5} {1e3 * middle:>12.2f} {1 / middle:>10.0f} {middle / base:>12.2f}")


if __name__ == "__main__":
    main()
