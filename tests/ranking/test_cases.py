"""Test files of cases: valid ones, messages about invalid ones, and the fairness of the shipped
ones.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from lm.config.schema.cases import Case
from lm.ranking.cases import CaseSet, read_cases
from lm.system.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"wiki_basics": 100, "smoke": 100, "grammar": 184, "copying": 72, "instructions": 91}

HEAD = "about: a test\ncases:\n"
GOOD = """\
about: a test
cases:
  - prompt: "The capital of France is"
    target: " Paris"
    choices: [" Rome", " Paris"]
    weight: 2
    tags: [capitals, easy]
  - prompt: Say yes
    target: [" yes", " Yes"]
    contains: "yes"
    regex: '\\byes\\b'
  - {target: The dogs bark., choices: [The dogs bark., The dogs barks.]}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write x.yaml in an empty current directory, so that messages name it as x.yaml."""
    monkeypatch.chdir(tmp_path)

    def writer(text: str | bytes) -> str:
        Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "x.yaml"

    return writer


def complaints(path: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_cases(path)
    assert caught.value.exit_code == 2
    return str(caught.value).split("\n")


def shipped(name: str) -> CaseSet:
    return read_cases(ROOT / "cases" / f"{name}.yaml")


# ---------------------------------------------------------------- valid files


def test_a_file_that_is_right(write) -> None:
    cases = read_cases(write(GOOD))
    assert (cases.name, cases.path, cases.about, cases.chat, cases.max_new_tokens) == (
        "x",
        Path("x.yaml"),
        "a test",
        False,
        32,
    )
    first, second, third = cases.cases
    assert first.prompt == "The capital of France is"
    assert first.targets == (" Paris",)
    assert first.choices == [" Rome", " Paris"]
    assert (first.contains, first.regex, first.weight, first.tags) == (
        None,
        None,
        2.0,
        ["capitals", "easy"],
    )
    assert right_choice(first) == " Paris"
    assert second.targets == (" yes", " Yes")
    assert (second.contains, second.regex, second.weight, second.tags) == (
        ["yes"],
        r"\byes\b",
        1.0,
        [],
    )
    assert right_choice(second) is None
    assert (third.prompt, right_choice(third)) == ("", "The dogs bark.")


def test_a_chat(write) -> None:
    cases = read_cases(
        write(
            "about: a\nchat: true\nmax_new_tokens: 5\ncases: [{prompt: Hello!, target: Hi!},"
            " {prompt: Say a, regex: a}]"
        )
    )
    assert (cases.chat, cases.max_new_tokens, [case.targets for case in cases.cases]) == (
        True,
        5,
        [("Hi!",), ()],
    )


def test_the_digest_is_of_what_is_asked(write) -> None:
    digest = read_cases(write(GOOD)).sha256
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert (
        read_cases(
            write("# a comment\n" + GOOD.replace("    weight: 2\n", "    weight:   2 # twice\n"))
        ).sha256
        == digest
    )
    assert read_cases(write(GOOD.replace("weight: 2", "weight: 3"))).sha256 != digest
    assert read_cases(write(GOOD.replace("France", "Italy"))).sha256 != digest


RIGHT = [
    'prompt: "x"\n    target: "\\n\\ny"',  # A line break separates them.
    'prompt: "日本の首都は"\n    target: "東京"',  # scripts without spaces
    'prompt: "(a"\n    target: ")"',
    'prompt: "("\n    target: "a"',
    'prompt: "2 +"\n    target: " 2"',
    'target: "no"\n    choices: ["no", "yes"]',
    'prompt: "a"\n    target: [" b", " c"]\n    choices: [" b", " d"]',
    "prompt: yes\n    target: ' on'",  # text in YAML 1.2
    "prompt: a\n    contains: [b, c]",
    "prompt: a\n    weight: 1e-3\n    regex: b",
]


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_let_through(write, case: str) -> None:
    assert len(read_cases(write(f"{HEAD}  - {case}\n")).cases) == 1


def test_a_pattern_that_python_will_read_otherwise_is_no_warning(
    write, recwarn: pytest.WarningsRecorder
) -> None:
    read_cases(write(HEAD + "  - {prompt: a, regex: '[[a]'}"))
    assert not recwarn.list


# ---------------------------------------------------------------- problems

ALL_KEYS = (
    "a list of 1 to 10000 sections with prompt and target and choices and contains and regex and"
    " weight and tags, each after `- `"
)
TEXTS = "text, a list of text or null"

# The lines of a file's only case, which begins at line 3, and the expected messages.
WRONG_CASES = [
    (
        "prompt: a\n    answer: ' b'\n    target: ' b'",
        ['4: cases[0].answer: unknown key, got " b", write prompt, target, choices, {rest}'],
    ),
    (
        "prompt: a\n    targt: ' b'",
        ['4: cases[0].targt: unknown key, got " b", did you mean cases[0].target?'],
    ),
    (
        "prompt: a\n    target: ' b'\n    chat: true",
        ["5: cases[0].chat: unknown key, got true, did you mean chat?"],
    ),
    ("prompt: 3\n    target: ' b'", ["3: cases[0].prompt: not text, got 3, write text in quotes"]),
    ("prompt:\n    target: b", ["3: cases[0].prompt: not text, got null, write text"]),
    (
        "prompt: a\n    target: true",
        [
            "4: cases[0].target: not text, got true, write"
            f" {TEXTS.replace('text', 'text in quotes', 1)}"
        ],
    ),
    (
        "prompt: a\n    target: 1969",
        [
            "4: cases[0].target: not text, got 1969, write"
            f" {TEXTS.replace('text', 'text in quotes', 1)}"
        ],
    ),
    (
        "prompt: a\n    target: {b: c}",
        [f"4: cases[0].target: not text, got {{b: c}}, write {TEXTS}"],
    ),
    (
        "prompt: a\n    target: [' b', 3]",
        ["4: cases[0].target[1]: not text, got 3, write text in quotes"],
    ),
    ("prompt: a\n    target: []", [f"4: cases[0].target: too few values, got [], write {TEXTS}"]),
    ('prompt: a\n    target: ""', ['4: cases[0].target: empty, got "", write text']),
    (
        'prompt: a\n    target:\n      - " b"\n      - ""',
        ['6: cases[0].target[1]: empty, got "", write text'],
    ),
    (
        'prompt: a\n    target: " "',
        ['4: cases[0].target: only white space, got " ", write what should be said'],
    ),
    ("prompt: a", ["3: cases[0]: nothing says what is right, write target, contains or regex"]),
    ("{}", ["3: cases[0]: nothing says what is right, write target, contains or regex"]),
    (
        'prompt: "a "\n    target: b',
        [
            '3: cases[0].prompt: ends in white space, which belongs to the next token, got "a ",'
            " begin target and choices with it"
        ],
    ),
    (
        'prompt: "a\\n"\n    contains: b',
        [
            '3: cases[0].prompt: ends in white space, which belongs to the next token, got "a\\n",'
            " begin target and choices with it"
        ],
    ),
    (
        "prompt: The capital of France is\n    target: Paris",
        [
            (
                '4: cases[0].target: goes on inside the prompt\'s last word, got "Paris", write "'
                ' Paris" or move that word out of the prompt'
            ),
        ],
    ),
    (
        "prompt: Вода\n    target: [' a', тече, ' b', 4b]",
        [
            (
                '4: cases[0].target[1]: goes on inside the prompt\'s last word, got "тече", write "'
                ' тече" or move that word out of the prompt'
            ),
            (
                '4: cases[0].target[3]: goes on inside the prompt\'s last word, got "4b", write "'
                ' 4b" or move that word out of the prompt'
            ),
        ],
    ),
    (
        "prompt: a\n    target: [' b', ' c', ' b']",
        ['4: cases[0].target[2]: " b" stands there twice, remove one of the two'],
    ),
    (
        "prompt: a\n    contains: [b, b]",
        ['4: cases[0].contains[1]: "b" stands there twice, remove one of the two'],
    ),
    (
        "prompt: a\n    contains: []",
        [f"4: cases[0].contains: too few values, got [], write {TEXTS}"],
    ),
    ("prompt: a\n    contains: ''", ['4: cases[0].contains: empty, got "", write text']),
    (
        "prompt: a\n    target: ' b'\n    choices: [' c', ' d']",
        [
            '5: cases[0].choices: the target is not among them, got [" c", " d"], write " b" there,'
            " with its spaces"
        ],
    ),
    (
        "prompt: a\n    target: [' b', ' c']\n    choices: [' c', ' d', ' b']",
        ['5: cases[0].choices: several of them are right, got [" b", " c"], leave one of these'],
    ),
    (
        "prompt: a\n    target: ' b'\n    choices:\n      - ' b'\n      - ' d'\n      - ' d'",
        ['8: cases[0].choices[2]: " d" stands there twice, remove one of the two'],
    ),
    (
        "prompt: a\n    target: ' b'\n    choices: [' b']",
        [
            '5: cases[0].choices: too few values, got [" b"], write a list of text, at least 2 of'
            " them"
        ],
    ),
    (
        "prompt: a\n    target: ' b'\n    choices: ' b'",
        ['5: cases[0].choices: not a list, got " b", write a list of text, at least 2 of them'],
    ),
    (
        "prompt: a\n    target: ' b'\n    choices: [' b', no, '']",
        ['5: cases[0].choices[2]: empty, got "", write text'],
    ),
    (
        "prompt: a\n    target: ' b'\n    choices: [' b', false]",
        ["5: cases[0].choices[1]: not text, got false, write text in quotes"],
    ),
    (
        "prompt: a\n    regex: b\n    choices: [' b', ' c']",
        ["5: cases[0].choices: no target says which is right, write the right one as target too"],
    ),
    (
        "prompt: a\n    regex: (b",
        [
            "4: cases[0].regex: not a regular expression: missing ), unterminated subpattern at"
            ' position 0, got "(b", write one for Python\'s re, a special character with \\'
            " before it"
        ],
    ),
    (
        "prompt: a\n    regex: a{99999999999999999999}",
        [
            "4: cases[0].regex: not a regular expression: the repetition number is too large, got"
            ' "a{99999999999999999999}", write one for Python\'s re, a special character with \\'
            " before it"
        ],
    ),
    (
        'prompt: a\n    regex: "(?\\n)"',
        [
            "4: cases[0].regex: not a regular expression: unknown extension ?\ufffd at position 1"
            ' (line 1, column 2), got "(?\\n)", write one for Python\'s re, a special character'
            " with \\ before it"
        ],
    ),
    (
        "prompt: a\n    regex: b*",
        [
            '4: cases[0].regex: found in every text, even an empty one, got "b*", write what has to'
            " be there"
        ],
    ),
    ("prompt: a\n    regex: ''", ['4: cases[0].regex: empty, got "", write text or null']),
    ("prompt: a\n    regex: [b]", ["4: cases[0].regex: not text, got [b], write text or null"]),
    (
        "prompt: a\n    regex: b\n    weight: 0",
        ["5: cases[0].weight: too small, got 0, write a number > 0"],
    ),
    (
        "prompt: a\n    regex: b\n    weight: -1.5",
        ["5: cases[0].weight: too small, got -1.5, write a number > 0"],
    ),
    (
        "prompt: a\n    regex: b\n    weight: .inf",
        ["5: cases[0].weight: not a finite number, got .inf, write a number > 0"],
    ),
    (
        "prompt: a\n    regex: b\n    weight: .nan",
        ["5: cases[0].weight: not a finite number, got .nan, write a number > 0"],
    ),
    (
        "prompt: a\n    regex: b\n    weight: '2'",
        ['5: cases[0].weight: not a number, got "2", write a number > 0 without quotes'],
    ),
    (
        "prompt: a\n    regex: b\n    weight: true",
        ["5: cases[0].weight: not a number, got true, write a number > 0"],
    ),
    (
        "prompt: a\n    regex: b\n    tags: easy",
        ['5: cases[0].tags: not a list, got "easy", write a list of text'],
    ),
    (
        "prompt: a\n    regex: b\n    tags: [easy, 3]",
        ["5: cases[0].tags[1]: not text, got 3, write text in quotes"],
    ),
    (
        "prompt: a\n    regex: b\n    tags: []",
        ["5: cases[0].tags: too few values, got [], write a list of text"],
    ),
    (
        "prompt: a\n    regex: b\n    regex: c",
        ["5: cases[0].regex: given twice, first on line 4, remove one of the two"],
    ),
    (
        "a lone text",
        [
            '3: cases[0]: not a section, got "a lone text", write a section: its keys, indented, on'
            " the lines below"
        ],
    ),
    ('prompt: "a\\0"\n    regex: b', None),
    ('prompt: "\\ud83d"\n    regex: b', None),
    ('prompt: a\n    "x\\e[2J": b\n    regex: b', None),
]


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(("case", "expected"), WRONG_CASES)
def test_a_wrong_case_is_one_line(write, case: str, expected: list[str] | None) -> None:
    problems = complaints(write(f"{HEAD}  - {case}\n"))
    if expected is None:  # The YAML reader refuses it, with its line.
        assert len(problems) == 1
        assert re.fullmatch(r"x\.yaml:[34]: [ -~]+", problems[0])
    else:
        assert problems == [
            f"x.yaml:{line}".replace("{rest}", "contains, regex, weight or tags")
            for line in expected
        ]


WRONG_FILES = [
    ("", ["1: empty, write about: and cases:"]),
    ("# nothing\n", ["1: empty, write about: and cases:"]),
    ("- prompt: a\n", ["1: not a mapping, got [{prompt: a}], write about: and cases:"]),
    ("hello", ['1: not a mapping, got "hello", write about: and cases:']),
    ("about: a\n", [f"1: cases: missing, write {ALL_KEYS}"]),
    ("about: a\ncases: []\n", [f"2: cases: too few values, got [], write {ALL_KEYS}"]),
    ("about: a\ncases:\n", [f"2: cases: not a list, got null, write {ALL_KEYS}"]),
    (
        "about: a\ncases: {prompt: a}\n",
        [f"2: cases: not a list, got {{prompt: a}}, write {ALL_KEYS}"],
    ),
    ("cases: [{regex: a}]\n", ["1: about: missing, write text"]),
    ("about: 3\ncases: [{regex: a}]\n", ["1: about: not text, got 3, write text in quotes"]),
    ("about: ''\ncases: [{regex: a}]\n", ['1: about: empty, got "", write text']),
    (
        "about: a\nchat: 'yes'\ncases: [{prompt: a, regex: a}]\n",
        ['2: chat: not true or false, got "yes", write true or false'],
    ),
    (
        "about: a\nmax_new_tokens: 0\ncases: [{regex: a}]\n",
        ["2: max_new_tokens: too small, got 0, write a whole number >= 1 and <= 4096"],
    ),
    (
        "about: a\nmax_new_tokens: many\ncases: [{regex: a}]\n",
        [
            '2: max_new_tokens: not a whole number, got "many", write a whole number >= 1 and <='
            " 4096"
        ],
    ),
    (
        "about: a\ncase: [{regex: a}]\n",
        [
            f"1: cases: missing, write {ALL_KEYS}",
            "2: case: unknown key, got [{regex: a}], did you mean cases?",
        ],
    ),
    (
        "about: a\nabout: b\ncases: [{regex: a}]\n",
        ["2: about: given twice, first on line 1, remove one of the two"],
    ),
    (
        "about: a\nchat: true\ncases: [{regex: a}, {prompt: ' ', regex: a}]\n",
        [
            "3: cases[0].prompt: empty, write the user's message",
            "3: cases[1].prompt: empty, write the user's message",
        ],
    ),
    (
        "about: a\nchat: true\ncases: [{prompt: 'a ', regex: a}]\n",
        [
            '3: cases[0].prompt: ends in white space, which belongs to the next token, got "a ",'
            " end it with a letter or mark"
        ],
    ),
    (
        "about: a\nchat: true\ncases: [{prompt: a, target: ' b'}]\n",
        [
            "3: cases[0].target: begins or ends in white space, which a template sets by itself,"
            ' got " b", write "b"'
        ],
    ),
    (
        HEAD
        + "  - {prompt: a, target: ' b'}\n  - {prompt: b, target: ' b'}\n  - {prompt: a, target: '"
        " b', tags: [c]}\n",
        ["5: cases[2]: asks the same as cases[0] on line 3, remove one of the two"],
    ),
    (
        HEAD + "  - {prompt: a, target: [' b', ' c']}\n  - {prompt: a, target: [' c', ' b']}\n",
        ["4: cases[1]: asks the same as cases[0] on line 3, remove one of the two"],
    ),
    (b"about: caf\xe9\n", ["1: not UTF-8, got the byte 0xe9, save the file as UTF-8"]),
    (b"about: a\n\xff\xfe\x00", ["2: not UTF-8, got the byte 0xff, save the file as UTF-8"]),
    (
        b"\xef\xbb\xbfabout: a\n",
        ["1: begins with a byte order mark, save the file as UTF-8 without one"],
    ),
    ("about: a\x1b[2J\n", ['1: a character that text does not have, got "\\u001b", remove it']),
    (
        "about: a\ncases: [{prompt: a, regex: b}\n",
        [
            '2: a list that is never closed, or a comma that is missing, got "cases: [{prompt: a,'
            ' regex: b}", write [a, b]'
        ],
    ),
    (
        "about: &x a\ncases: [{prompt: *x, regex: b}]\n",
        ['1: an anchor (&), got "about: &x a", write plain `key: value`'],
    ),
    (
        "about: !!python/object:os.system a\n",
        ['1: a tag (!), got "about: !!python/object:os.system a", put the value in quotes'],
    ),
    ("#" * 2**20 + "#", ["1: larger than 1 MiB, write a configuration, or several files of cases"]),
]


@pytest.mark.parametrize(("text", "expected"), WRONG_FILES, ids=range(len(WRONG_FILES)))
def test_a_wrong_file(write, text: str | bytes, expected: list[str]) -> None:
    assert complaints(write(text)) == [f"x.yaml:{line}" for line in expected]


def test_an_expression_that_takes_years_is_refused_while_it_is_read(
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All expressions of a file share one time, and only the slow ones are refused."""
    monkeypatch.setattr("lm.ranking.cases.REGEX_SECONDS", 0.1)
    slow, quick = r"(?:|){40}\b", "quick"
    path = write(HEAD + "".join(f"  - {{prompt: a, regex: '{x}'}}\n" for x in (slow, quick)))
    assert complaints(path) == [
        "x.yaml:3: cases[0].regex: takes too long to search even an empty text, got"
        ' "(?:|){40}\\\\b", write it without repeats inside of repeats'
    ]


def test_no_file(write, tmp_path: Path) -> None:
    assert complaints("missing.yaml") == [
        "missing.yaml: no such file, write the path of a YAML file"
    ]
    Path("folder.yaml").mkdir()
    assert complaints("folder.yaml") == ["folder.yaml: a folder, write the path of a YAML file"]


def test_every_problem_is_said_at_once_in_the_order_of_the_file(write) -> None:
    text = """\
abuot: a test
cases:
  - prompt: "The capital of France is "
    target: Paris
    choices: [" Paris", " Rome", " Rome"]
    contain: Paris
  - prompt: 3
    weight: 0
    regex: "("
  - {}
  - {prompt: a, regex: b}
  - target: b
    max_tokens: 3
  - {prompt: a, regex: b}
max_new_tokens: 0
"""
    assert [
        re.sub(", (which|got|write|remove|did) .*", "", line) for line in complaints(write(text))
    ] == [
        "x.yaml:1: about: missing",
        "x.yaml:1: abuot: unknown key",
        "x.yaml:3: cases[0].prompt: ends in white space",
        'x.yaml:5: cases[0].choices[2]: " Rome" stands there twice',
        "x.yaml:5: cases[0].choices: the target is not among them",
        "x.yaml:6: cases[0].contain: unknown key",
        "x.yaml:7: cases[1].prompt: not text",
        "x.yaml:8: cases[1].weight: too small",
        (
            "x.yaml:9: cases[1].regex: not a regular expression: missing ), unterminated subpattern"
            " at position 0"
        ),
        "x.yaml:10: cases[2]: nothing says what is right",
        "x.yaml:13: cases[4].max_tokens: unknown key",
        "x.yaml:14: cases[5]: asks the same as cases[3] on line 11",
        "x.yaml:15: max_new_tokens: too small",
    ]


def test_messages_hold_nothing_that_commands_a_terminal(write) -> None:
    case = '  - {prompt: "\u200b\u202e ", target: "\u202e", regex: "[\u2028", "k\u202e": 1}\n'
    for line in complaints(write(HEAD + case)):
        assert line.isprintable(), line


# ---------------------------------------------------------------- the shipped files


@pytest.mark.usefixtures("takes_seconds")
def test_the_shipped_files_are_read_and_have_their_sizes() -> None:
    assert {path.stem for path in (ROOT / "cases").glob("*")} == set(SIZES)
    assert {name: len(shipped(name).cases) for name in SIZES} == SIZES


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_file_says_what_it_measures_and_how_to_run_it(name: str) -> None:
    text = (ROOT / "cases" / f"{name}.yaml").read_text(encoding="utf-8")
    head = text.partition("\nabout:")[0]
    assert (
        "#   python evaluate_checkpoints.py --checkpoints 'checkpoints/*.ckpt' --cases"
        f" cases/{name}.yaml\n" in head
    )
    assert re.search(r"\d+ %", head), "the chance level"
    assert all(case.tags for case in shipped(name).cases)


def right_choice(case: Case) -> str | None:
    """Return the accepted target that is among the choices; None if there are no choices."""
    return next((choice for choice in case.choices if choice in case.targets), None)


def seats(cases: list[Case]) -> dict[int, Counter[int]]:
    """Count how often the right choice stands at each place, for each number of choices."""
    places: dict[int, Counter[int]] = {}
    for case in cases:
        if right_choice(case) is not None:
            places.setdefault(len(case.choices), Counter(range(len(case.choices))))[
                case.choices.index(right_choice(case))
            ] += 1
    return places


@pytest.mark.parametrize("name", SIZES)
def test_the_right_choice_stands_everywhere_alike(name: str) -> None:
    places = seats(list(shipped(name).cases))
    assert places
    for counts in places.values():
        assert max(counts.values()) - min(counts.values()) <= 1


def chosen(cases: list[Case], key) -> tuple[float, float]:
    """Return the accuracy of a strategy that takes the choice with the least `key` (the average if
    there are several), and that of guessing.
    """
    hits = chance = 0.0
    for case in cases:
        best = min(map(key, case.choices))
        taken = [choice for choice in case.choices if key(choice) == best]
        hits += (right_choice(case) in taken) / len(taken)
        chance += 1 / len(case.choices)
    return hits / len(cases), chance / len(cases)


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("sign", [1, -1])
def test_length_tells_nothing(name: str, sign: int) -> None:
    share, chance = chosen(
        [case for case in shipped(name).cases if case.choices], lambda choice: sign * len(choice)
    )
    assert share < chance + 0.08


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def lopsided(cases: list[Case]) -> Counter[str]:
    """Count for each word how much more often it is in a right choice than in a wrong one. Omit
    words with equal counts.
    """
    difference: Counter[str] = Counter()
    for case in cases:
        for choice in case.choices:
            share = len(case.choices) - 1 if choice == right_choice(case) else -1
            for word, count in words(choice).items():
                difference[word] += share * count
    return Counter({word: count for word, count in difference.items() if count})


def test_in_grammar_each_word_is_right_as_often_as_wrong() -> None:
    """The word alone must not give the answer away."""
    cases = list(shipped("grammar").cases)
    for tag in {tag for case in cases for tag in case.tags}:
        assert not lopsided([case for case in cases if tag in case.tags]), tag
    for case in cases:
        one, other = map(words, case.choices)
        if case.tags != ["word_order"] and case.tags != ["argument_structure"]:
            assert (one - other).total() == (other - one).total() == 1, (
                f"differ in more than a word: {case.choices}"
            )


@pytest.mark.parametrize(
    ("name", "tags"),
    [
        ("wiki_basics", None),
        ("smoke", {"phrases", "agreement"}),
        ("instructions", None),
        ("copying", {"names", "facts", "places"}),
    ],
)
def test_where_choices_are_shared_each_is_right_equally_often(
    name: str, tags: set[str] | None
) -> None:
    """A strategy that only knows how common a choice is has exactly the accuracy of guessing."""
    groups: dict[frozenset[str], Counter[str]] = {}
    for case in shipped(name).cases:
        if case.choices and (tags is None or tags & set(case.tags)):
            groups.setdefault(frozenset(case.choices), Counter())[str(right_choice(case))] += 1
    for choices, right in groups.items():
        assert set(right) == choices or (len(choices) == 2 and name == "smoke"), sorted(choices)
        assert len(set(right.values())) == 1, right


def test_what_is_to_be_copied_stands_in_the_prompt_no_more_often_than_the_rest() -> None:
    for case in shipped("copying").cases:
        if case.tags != ["counting"]:
            counts = {
                choice: words(case.prompt)[choice.split()[-1].lower()] for choice in case.choices
            }
            assert 1 <= counts[str(right_choice(case))] <= min(counts.values()), case.prompt


def repeated(prompt: str) -> str:
    """Return what followed the longest end of a prompt that occurred in it before, as an induction
    head would answer.
    """
    read = re.findall(r"\w+", prompt.lower())
    for length in range(len(read) - 1, 0, -1):
        for start in range(len(read) - length):
            if read[start : start + length] == read[len(read) - length :]:
                return read[start + length]
    return ""


def test_who_copies_is_right() -> None:
    asked = [
        case for case in shipped("copying").cases if not {"counting", "places"} & set(case.tags)
    ]
    wrong = [
        case.prompt
        for case in asked
        if repeated(case.prompt) != str(right_choice(case)).strip().lower()
    ]
    # which repeats the beginning of a code, without a word before it
    assert [prompt for prompt in wrong if not prompt.endswith(":")] == []
    assert len(asked) - len(wrong) >= 45


def test_smoke_is_about_the_bundled_corpus() -> None:
    corpus = words((ROOT / "data/tiny_corpus.txt").read_text(encoding="utf-8"))
    for case in shipped("smoke").cases:
        known = {choice: min(corpus[word] for word in words(choice)) for choice in case.choices}
        assert known[str(right_choice(case))] > 0, case
        if {"spelling", "vocabulary"} & set(case.tags):
            assert sorted(known.values())[-2] == 0, case
        if "spelling" in case.tags:
            assert len({"".join(sorted(choice)) for choice in case.choices}) == 1, case


def test_instructions_know_their_own_targets_and_no_question_answers_itself() -> None:
    """A target must match the case's own pattern. A repetition of the prompt, or a wrong choice,
    must not match it.
    """
    for case in shipped("instructions").cases:

        def hits(text: str, case: Case = case) -> bool:
            contained = case.contains is None or any(wanted in text for wanted in case.contains)
            return contained and (case.regex is None or re.search(case.regex, text) is not None)

        assert case.contains or case.regex
        assert all(map(hits, case.targets)), case
        assert not hits(case.prompt), case
        assert not any(hits(choice) for choice in case.choices if choice != right_choice(case)), (
            case
        )
