"""Source notebooks carry no outputs: what JupyterLab saves is stripped on the way, by ``make lab``'s pre-save hook.

So that open, run, save leaves a notebook byte for byte as it was, and the pipeline unchanged.
"""

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def strip(notebook: dict) -> dict:
    """Remove outputs, execution counts and all metadata but tags and folded sources, in place; kernel `python3`.

    Args:
        notebook: content in nbformat 4.
    """
    notebook["metadata"] = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    notebook["nbformat_minor"] = max(5, notebook.get("nbformat_minor", 5))
    for cell in notebook["cells"]:
        metadata = cell.get("metadata", {})
        folded = {"source_hidden": True} if "solution" in metadata.get("tags", []) else {}  # opened or not when saved
        cell["metadata"] = {"jupyter": folded} if folded else {}
        cell["metadata"] |= {"tags": metadata["tags"]} if metadata.get("tags") else {}
        cell.pop("attachments", None) if not cell.get("attachments") else None
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return notebook


def pre_save(model, **_) -> None:
    """Jupyter's ``ContentsManager.pre_save_hook``: strips notebooks, leaves other files alone."""
    if model.get("type") == "notebook" and model["content"].get("nbformat") == 4:
        strip(model["content"])
