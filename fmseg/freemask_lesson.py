"""What the notebooks on FreeMask's filter and re-sampling share: a filter model for a lesson, and a slider."""

from collections.abc import Callable
from typing import Any

from fmseg import configs, filter_model, zoo
from fmseg.filter_model import FilterModel
from fmseg.settings import Settings

METHOD, DRAW = "segformer", "ade"


def judge_config(settings: Settings) -> dict[str, Any]:
    """A short training of the filter model: on the zoo's backbone, or from scratch where the zoo has none."""
    backbone = configs.SCRATCH if zoo.lacking(f"backbone-{METHOD}") else configs.ZOO
    seed, images = settings.get("freemask.filter.seed"), settings.get(f"world.train.{DRAW}")
    exposures = settings.get("freemask.lesson.exposures")
    run = configs.supervised(settings, METHOD, seed, DRAW, images, exposures, backbone=backbone)
    train = {key: value for key, value in run["train"].items() if key != "eval_every"}
    keys = ("method", "backbone", "seed", "draw", "images", "validation", "size")
    return {key: run[key] for key in keys} | {"train": train}


def judge(settings: Settings) -> FilterModel:
    """The filter model of the notebooks; trained when first asked for, about a minute, then kept in build/."""
    return filter_model.trained(judge_config(settings))


def slider(show: Callable[[float], Any], values: list[float], value: float, live: bool) -> Any:
    """A slider that calls ``show`` with the chosen value; the pictures one after another where there can be none.

    Args:
        show: makes something to display of a value.
        values: the choices, ascending. value: the first choice.
        live: whether somebody is there to move it; an executed copy of a notebook has pictures instead.

    Returns:
        The widget, or None after displaying ``show`` of every value.
    """
    from IPython.display import display

    try:
        import ipywidgets
    except ImportError:
        live = False
    if not live:
        for one in values:
            display(show(one))
        return None
    choice = ipywidgets.SelectionSlider(options=values, value=value, description="alpha", continuous_update=False)
    return ipywidgets.interactive(lambda alpha: display(show(alpha)), alpha=choice)
