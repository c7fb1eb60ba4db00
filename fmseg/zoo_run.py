"""Where a training of the zoo reads and writes: its recipe, its data, its checkpoint, and what it leaves behind."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import yaml
from torch import Tensor

from fmseg.fitting import Recipe, save_weights
from fmseg.provenance import canonical_hash, closure
from fmseg.zoo_data import WebImages, web_images


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: of the model.
        scale: "full" or "smoke", a section of zoo/params.yaml.
        root: the project's folder.
        build: where everything goes, zoo/build/<scale>.
        module: the fmseg module that trains it.
        code: one hash over all fmseg modules that the training can reach, taken when it starts.
        progress: show a bar.
    """

    name: str
    scale: str
    root: Path
    build: Path
    module: str
    code: str
    progress: bool = True

    @classmethod
    def start(cls, name: str, scale: str, root: Path, module: str, progress: bool = True) -> "Run":
        """The run of a model in the project's build folder."""
        code = canonical_hash(closure(module, root))
        return cls(name, scale, root, root / "zoo" / "build" / scale, module, code, progress)

    @property
    def params(self) -> dict:
        """The section of zoo/params.yaml."""
        return yaml.safe_load((self.root / "zoo" / "params.yaml").read_text())[self.scale]

    def recipe(self, key: str | None = None) -> Recipe:
        """The recipe of this model, or of a part of it; other keys of its section are the training's own."""
        known = {field.name for field in fields(Recipe)}
        return Recipe(**{k: v for k, v in self.params[key or self.name].items() if k in known})

    @property
    def data(self) -> Path:
        """Cache of drawn pictures."""
        return self.root / "zoo" / "build" / "data"

    def web(self) -> WebImages:
        """The training pictures of `web`: scenes."""
        return web_images(self.data, self.params["web"])

    def icons(self) -> WebImages:
        """The training pictures of `icon`: one large thing each."""
        return web_images(self.data, self.params["icon"], "icon")

    def duos(self) -> WebImages:
        """The training pictures of `duo`: two large things each."""
        return web_images(self.data, self.params["duo"], "duo")

    def folder(self, name: str | None = None) -> Path:
        """What a training leaves behind, this one or an earlier one it builds on."""
        return self.build / (name or self.name)

    def loop(self, part: str = "checkpoint", section: str | None = None) -> dict:
        """Arguments of :func:`fmseg.fitting.fit` that say where and what; ``section`` of zoo/params.yaml: the model's
        own, or that of a part which stays what it is when a later one changes."""
        return {
            "checkpoint": self.build / "state" / f"{self.name}-{part}.pt",
            "identity": {"name": self.name, "params": self.params[section or self.name], "web": self.params["web"]},
            "progress": self.progress,
        }

    def finish(self, facts: dict, files: dict[str, dict]) -> None:
        """Write weights (tensors) and configurations (JSON), then the facts, whose presence says that all is there."""
        for name, content in files.items():
            path = self.folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if any(isinstance(value, Tensor) for value in content.values()):
                save_weights(path, content)
            else:
                path.write_text(json.dumps(content, indent=1, default=str) + "\n")
        facts = {"name": self.name, "scale": self.scale, "recipe": self.params[self.name], "code": self.code} | facts
        (self.folder() / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
