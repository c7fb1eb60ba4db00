"""`python -m fmseg COMMAND`: plan, train, paint. The rest is behind make, see `make help`."""

import sys


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "plan":
        from fmseg.plan import main as run
    elif command == "train":
        from fmseg.train_table import main as run
    elif command == "paint":
        from fmseg.paint_table import main as run
    else:
        print(f"{__doc__}\n\n" + "\n".join(f"python -m fmseg {name} --help" for name in ("plan", "train", "paint")))
        return 0 if command in ("", "-h", "--help") else 2
    return run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
