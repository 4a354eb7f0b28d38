"""A configuration written as YAML, and the help on its keys."""

from __future__ import annotations

import re
import typing
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lm.commands import load_config
from lm.config import keys
from lm.config.describe import describe, to_yaml
from lm.config.keys import help_text
from lm.config.scalars import flow, plain
from lm.config.schema.config import Config
from lm.config.yaml_reader import read_text
from tests.support.configs import BASE, BOTH, MIXTURE


def test_origins(write) -> None:
    loaded = load_config(write(BASE), ["--optimizer.lr", "3e-5"])
    assert loaded.origins["trainer.max_steps"] == "c.yaml:6"
    assert loaded.origins["data.source.files"] == "c.yaml:4"
    assert loaded.origins["optimizer.lr"] == "command line"
    assert (
        loaded.origins["model.n_layers"]
        == loaded.origins["data.source.unit"]
        == loaded.origins["data.validation"]
        == "default"
    )
    assert "data.source" not in loaded.origins


def test_origins_inside_a_mixture(write) -> None:
    origins = {
        name.removeprefix("data.source."): origin
        for name, origin in load_config(write(MIXTURE)).origins.items()
        if "source" in name
    }
    assert {name: origin for name, origin in origins.items() if origin != "default"} == {
        "format": "c.yaml:3",
        "parts[0].weight": "c.yaml:5",
        **dict.fromkeys(
            [f"parts[0].source.{name}" for name in ("format", "files", "delimiter")], "c.yaml:6"
        ),
        "parts[1].weight": "c.yaml:7",
        "parts[1].source.format": "c.yaml:9",
        "parts[1].source.dataset": "c.yaml:10",
        "parts[1].source.filter.min_length": "c.yaml:12",
        "when_one_ends": "c.yaml:13",
    }
    assert (
        origins["parts[0].source.filter.min_length"]
        == origins["parts[1].source.text_key"]
        == "default"
    )


def test_a_mixture_is_written_as_people_write_it(write) -> None:
    loaded = load_config(write(MIXTURE))
    lines = [
        line.partition("  #")[0].rstrip()
        for line in describe(loaded.config, loaded.origins).splitlines()
    ]
    first = lines.index("  source:")
    assert lines[first : first + 9] == [
        "  source:",
        "    format: mixture",
        "    parts:",
        "      - weight: 3",
        "        source:",
        "          format: csv",
        "          files: [a.csv]",
        "          text_key: text",
        '          delimiter: "\\t"',
    ]
    after = lines.index("          filter:", first)
    assert lines[after + 1] == "            max_documents: null"
    assert lines.count("      - weight: 1") == 1


@pytest.mark.parametrize("text", [BASE, BOTH, MIXTURE])
def test_what_is_written_loads_again_as_the_same(write, text: str) -> None:
    loaded = load_config(write(text), ["--trainer.max_steps=200", "--optimizer.eps=1e-12"])
    for written in (to_yaml(loaded.config), describe(loaded.config, loaded.origins)):
        again = load_config(write(written))
        assert again.config == loaded.config
        assert all(origin.startswith("c.yaml:") for origin in again.origins.values())
        # A reader of YAML 1.1 gets the same values.
        assert Config.model_validate(yaml.safe_load(written)) == loaded.config


def test_describe_names_each_origin_in_line(write) -> None:
    loaded = load_config(write(BASE), ["--optimizer.lr", "3e-5"])
    lines = describe(loaded.config, loaded.origins).splitlines()
    by_key = {line.split(":")[0].strip(): line for line in lines}
    assert re.fullmatch(r"  max_steps: 1000 +# c\.yaml:6", by_key["max_steps"])
    assert re.fullmatch(r"  lr: 3\.0e-5 +# command line", by_key["lr"])
    assert re.fullmatch(r"  n_layers: 4 +# default", by_key["n_layers"])
    assert by_key["model"] == "model:"
    assert len({line.index("  # ") for line in lines if "  # " in line}) <= 2
    assert all(not line.endswith(" ") for line in lines)


UNPRINTABLE = "".join(
    chr(code)
    for code in [
        *range(9),
        11,
        12,
        *range(14, 32),
        *range(127, 133),
        *range(134, 160),
        0xFFFE,
        0xFFFF,
    ]
)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters=UNPRINTABLE))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS.filter(lambda text: text != "<<"), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.usefixtures("takes_seconds")
@settings(max_examples=200, deadline=None)
@given(VALUES)
@example("on")
@example("3e-5")
@example("1:30")
@example("\x85\u2028\ufeff\U000e0001")
@example(["a, b", "]", "# x", "- a", ""])
def test_flow_is_read_back_by_both_yamls(value: Any) -> None:
    text = f"a: {flow(value)}"
    assert "\n" not in text and "\r" not in text
    document = read_text(text)
    assert (document.problems, document.value) == ([], {"a": value})
    assert yaml.safe_load(text) == {"a": value}


def test_help_tells_every_key_within_120_columns() -> None:
    text = help_text()
    assert max(map(len, text.splitlines())) <= 120
    listed = re.findall(r"^  --(\S+) ", text, re.MULTILINE)
    elsewhere = ("data.validation.", "data.source.parts[]")  # repeat the keys of data.source
    assert listed == [key.name for key in keys.leaves() if not key.name.startswith(elsewhere)]
    assert {"data.source.parts", "data.source.filter.min_length", "data.validation"} < {*listed}
    headings = re.findall(r"^(?:(\w+): |  --(\w+)\.)", text, re.MULTILINE)
    section = ""
    for heading, flag in headings:
        section = heading or section
        assert flag in ("", section)
    unwrapped = " ".join(text.split())
    assert all(key.default in unwrapped for key in keys.leaves())
    assert "AdamW's highest learning rate. [a number > 0 and <= 10; default 0.001]" in unwrapped
    assert "[auto, on or off; default auto]" in unwrapped
    assert "[null, or the same keys as data.source, but no mixture; default null]" in unwrapped
    assert (
        "[a list of 1 to 100 sections with weight and source, each after `- `; required; only"
        " mixture]" in unwrapped
    )
    for name in keys.keys()[""].children:
        assert f"\n{name}: " in text


def test_the_table_of_keys_is_the_schema() -> None:
    """A slow, obvious walk over the pydantic models finds the same keys and defaults."""

    def models_in(annotation: Any) -> list[Any]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [model for argument in typing.get_args(annotation) for model in models_in(argument)]

    def walk(model: Any, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, info in model.model_fields.items():
            inner, several = models_in(info.annotation), typing.get_origin(info.annotation) is list
            if not inner or several or type(None) in typing.get_args(info.annotation):
                found[prefix + name] = info.default
            for section in inner:
                found |= walk(section, f"{prefix}{name}{'[]' * several}.")
        return found

    expected = walk(Config, "")
    assert {key.name for key in keys.leaves()} == set(expected)
    for key in keys.leaves():
        default = expected[key.name]
        if key.default != "required" and default is not PydanticUndefined:
            assert plain(key.default) == default or yaml.safe_load(key.default) == (
                list(default) if isinstance(default, tuple) else default
            )
        assert key.description, key.name
