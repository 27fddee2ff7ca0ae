"""YAML as the exporter-toolkit reads it: strict, and a scalar is the text that stands there."""

from typing import Any

from vllm_capacity.errors import Fault, SettingsError


def read_yaml(path: str, content: bytes) -> Any:
    """Mappings, lists and texts of a file; an empty one is an empty text.

    Texts stay texts, so that a user ``123`` or a header ``1`` needs no quotes. No line is
    repeated in an error: it may hold a password.

    Raises:
        SettingsError: it is not UTF-8, not YAML, or has a key twice.
    """
    import yaml  # noqa: PLC0415 (only with a file)

    class Loader(yaml.BaseLoader):
        """Refuses a key that stands twice, of which YAML would take the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 (yaml's)
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for i, key in enumerate(keys):
                if not isinstance(key, str) or key in keys[:i]:
                    problem = "a key twice" if isinstance(key, str) else "a key that is no text"
                    mark = node.value[i][0].start_mark
                    raise yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(content.decode("utf-8"), Loader) or ""  # noqa: S506 (builds texts alone)
    except yaml.YAMLError as error:
        problem = _problem(error)
    except (UnicodeDecodeError, RecursionError) as error:
        problem = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "is nested too deep"
    raise SettingsError(path, [Fault("web.config.file", path, problem)])


def _problem(error: Exception) -> str:
    """What is wrong and where, without the words that stand there."""
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
    problem = getattr(error, "problem", None) or "cannot be read"
    # Names of anchors and tags are quoted by the parser; what it says without them is enough.
    return f"is not YAML that can be used{place}: {problem.partition(chr(39))[0].strip()}"
