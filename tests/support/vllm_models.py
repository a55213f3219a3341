"""Attributes of vLLM's model classes, from their source: importing some needs packages that an engine for text has not."""

import ast
from functools import cache
from pathlib import Path
from typing import Any, Final

import vllm
from vllm.model_executor.models.utils import WeightsMapper

FOLDER: Final = Path(vllm.__file__).parent / "model_executor" / "models"


@cache
def _classes() -> dict[str, ast.ClassDef]:
    trees = (ast.parse(path.read_text()) for path in FOLDER.rglob("*.py"))
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def registry() -> dict[str, str]:
    """Name of the class that serves each architecture."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse((FOLDER / "registry.py").read_text())):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            last = value.elts[-1] if isinstance(value, ast.Tuple) else None
            if isinstance(key, ast.Constant) and isinstance(last, ast.Constant):
                found[str(key.value)] = str(last.value)
    return found


def attribute(class_name: str, name: str) -> str:
    """Source of a class attribute's value, inherited if the class does not say; empty if none of its bases does."""
    node = _classes().get(class_name)
    if node is None:
        return ""
    for one in node.body:
        if not isinstance(one, ast.Assign | ast.AnnAssign) or one.value is None:
            continue
        targets = one.targets if isinstance(one, ast.Assign) else [one.target]
        if [ast.unparse(target) for target in targets] == [name]:
            return ast.unparse(one.value)
    found = (attribute(ast.unparse(base).rpartition(".")[2], name) for base in node.bases)
    return next((value for value in found if value), "")


class _Class:
    """Stand-in for a class of vLLM in the source of another's mapper."""

    def __init__(self, name: str) -> None:
        self.hf_to_vllm_mapper = mapper(name)


class _Classes(dict[str, Any]):
    """Stand-ins by name."""

    def __missing__(self, name: str) -> Any:
        if name not in _classes():
            raise KeyError(name)
        return _Class(name)


def mapper(class_name: str) -> WeightsMapper | None:
    """The class's mapper of a checkpoint's names; None if it has none."""
    source = attribute(class_name, "hf_to_vllm_mapper")
    found: WeightsMapper | None = eval(source, {}, _Classes(WeightsMapper=WeightsMapper)) if source else None
    return found
