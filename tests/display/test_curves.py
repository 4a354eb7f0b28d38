"""Curves show the run's numbers: python -m pytest tests/display/test_curves.py."""

from __future__ import annotations

import errno
import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.figure
import pytest

from lm.display import curves
from lm.runs.metrics import MetricsLog
from lm.system.errors import CheckpointError

ROOT = Path(__file__).parents[2]
TRAIN = [5.0, 3.0, 2.0, 1.5]
VAL = [5.5, 1.75, 1.875]


def run_folder(
    folder: Path,
    train: list[float] = TRAIN,
    val: list[float] = VAL,
    rate: float = 1e-3,
    per_token: bool = True,
) -> Path:
    folder.mkdir(parents=True)
    log = MetricsLog(folder / "metrics.csv", resume_step=None)
    for i, loss in enumerate(train, start=1):
        log.append(i * 10, "train", loss=loss, tokens=i * 1000, lr=rate / i)
    for i, loss in enumerate(val):
        perplexity = math.exp(min(loss, 700)) if per_token else None
        log.append(i * 20, "val", loss=loss, tokens=i * 2000, perplexity=perplexity)
    return folder


def data(axes: object) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]  # type: ignore[attr-defined]


def plot_curves(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "PATH": ""}
    command = [sys.executable, "-m", "tools.plot_curves", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def test_every_panel_shows_the_rows_of_the_log(tmp_path: Path) -> None:
    loss, perplexity, rate = curves.figure([run_folder(tmp_path / "a")]).axes
    tokens, val_tokens = [1000, 2000, 3000, 4000], [2000, 4000]
    assert data(loss) == [
        (tokens, curves.smooth(TRAIN)),
        (tokens, TRAIN),
        (val_tokens, VAL[1:]),
        ([2000], [1.75]),
    ]
    assert [text.get_text() for text in loss.texts] == ["\N{UPWARDS ARROW} 5.500 before training"]
    assert data(perplexity)[0] == (tokens, [math.exp(value) for value in curves.smooth(TRAIN)])
    assert data(perplexity)[1] == (val_tokens, [math.exp(value) for value in VAL[1:]])
    assert data(rate) == [(tokens, [0.001, 0.0005, 0.00033333333, 0.00025])]
    assert loss.get_xlabel() == rate.get_xlabel() == "tokens trained on"
    assert [axes.get_title(loc="left") for axes in (loss, perplexity)] == [
        "Loss (nats per token)",
        "Perplexity",
    ]
    assert all(axes.xaxis.get_gridlines()[0].get_visible() for axes in (loss, perplexity, rate))
    assert loss.lines[2].get_marker() == "o"


def test_train_is_smoothed_in_loss_perplexity_and_summary(tmp_path: Path) -> None:
    noisy = [2.0 + (i % 2) for i in range(300)]
    run = run_folder(tmp_path / "a", train=noisy, val=[])
    loss, perplexity, _ = curves.figure([run]).axes
    assert data(loss)[0][1] == curves.smooth(noisy) != noisy
    assert data(loss)[1][1] == noisy
    assert data(perplexity)[0][1] == [math.exp(value) for value in curves.smooth(noisy)]
    assert "2.000 -> 2.545 (" in curves.summary(run)  # the last 11 values hold six 3s


def test_what_is_not_finite_is_left_out_and_does_not_spread(tmp_path: Path) -> None:
    loss = curves.figure(
        [run_folder(tmp_path / "a", train=[3.0, math.nan, math.inf, 2.0], val=[])]
    ).axes[0]
    assert data(loss)[:2] == [([1000, 4000], [3.0, 2.0])] * 2


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(("first", "scale"), [(3.0, "linear"), (6.0, "log"), (12.0, "log")])
def test_a_wide_range_of_perplexities_has_a_logarithmic_scale(
    tmp_path: Path, first: float, scale: str
) -> None:
    picture = curves.figure([run_folder(tmp_path / "a", train=[first, 1.0], val=[])])
    picture.draw_without_rendering()
    axes = picture.axes[1]
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    labels = [
        label.get_text()
        for label in axes.get_yticklabels()
        if low <= label.get_position()[1] <= high
    ]
    assert 3 <= len(labels) <= 8 and all(labels)
    assert all("$" not in label for label in labels) or scale == "linear"


def test_learning_rate_ticks_times_the_title_are_the_rate(tmp_path: Path) -> None:
    rate = curves.figure([run_folder(tmp_path / "a", rate=3e-4)]).axes[2]
    assert rate.get_title(loc="left") == r"Learning rate ($\times\,10^{-4}$)"
    assert rate.yaxis.get_major_formatter()(0.00025, 0) == "2.5"
    assert rate.get_ylim()[0] == 0


def test_a_hopeless_loss_has_a_perplexity_that_can_be_drawn(tmp_path: Path) -> None:
    picture = curves.figure([run_folder(tmp_path / "a", train=[5000.0, 2.0], val=[])])
    assert max(data(picture.axes[1])[0][1]) == math.exp(20)


def test_runs_keep_their_colour_in_every_panel_and_their_name_in_the_legend(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / "_small$1$"), run_folder(tmp_path / "large", val=[])]
    loss, perplexity, rate = curves.figure(runs).axes
    colours = [line.get_color() for line in rate.lines]
    assert len(set(colours)) == 2
    assert [line.get_color() for line in perplexity.lines] == [colours[0]] * 2 + [colours[1]] * 2
    assert [line.get_color() for line in loss.lines] == [colours[0]] * 4 + [colours[1]] * 3
    legend = loss.get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:2] == ["_small$1$: lowest validation loss 1.750", "large"]
    assert names[2:] == ["train, smoothed", "train, each row", "validation (filled: the lowest)"]
    assert [handle.get_color() for handle in legend.legend_handles[:2]] == colours
    assert not legend.get_texts()[0].get_parse_math()


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    one, two = (
        run_folder(tmp_path / "x" / "checkpoints", val=[]),
        run_folder(tmp_path / "y" / "checkpoints", val=[]),
    )
    names = [
        text.get_text()
        for text in curves.figure([one, two / "metrics.csv"]).axes[0].get_legend().get_texts()
    ]
    assert names[:2] == [str(one), str(two / "metrics.csv")]


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize(
    ("train", "val"), [([], VAL), (TRAIN, []), ([2.0], []), ([2.0, math.nan, math.inf], [2.0])]
)
@pytest.mark.filterwarnings("error")
def test_part_of_a_run_can_be_drawn(tmp_path: Path, train: list[float], val: list[float]) -> None:
    out = tmp_path / "curves.png"
    curves.draw([run_folder(tmp_path / "a", train, val)], out)
    assert out.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.usefixtures("takes_seconds")
def test_the_picture_is_replaced_whole(tmp_path: Path) -> None:
    run, out = run_folder(tmp_path / "a"), tmp_path / "curves.png"
    out.write_text("old")
    before = dict(matplotlib.rcParams)
    curves.draw([run], out)
    data = out.read_bytes()
    assert data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert (width, height) == (1650, 870)  # 11 x 5.8 inches at 150 dots per inch
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "curves.png"]
    assert dict(matplotlib.rcParams) == before


def test_a_run_without_a_loss_has_nothing_to_draw(tmp_path: Path) -> None:
    empty = run_folder(tmp_path / "empty", train=[], val=[])
    for act in (
        lambda: curves.draw([empty], tmp_path / "curves.png"),
        lambda: curves.summary(empty),
    ):
        with pytest.raises(CheckpointError, match=r"metrics\.csv holds no loss yet"):
            act()
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.usefixtures("takes_seconds")
def test_a_folder_that_refuses_the_picture_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written: No such file or directory"):
        curves.draw([run_folder(tmp_path / "a")], tmp_path / "absent" / "curves.png")


def test_a_read_only_disk_names_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message does not name the temporary file, which cannot even be deleted."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    run = run_folder(tmp_path / "a")
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(
        CheckpointError, match=r"/curves\.png could not be written: Read-only file system; mount it"
    ):
        curves.draw([run], tmp_path / "curves.png")


def test_smoothing_is_a_centred_mean_that_spares_the_start() -> None:
    values = [float(i * i % 37) for i in range(90)]  # the window is 3 to each side
    smoothed = curves.smooth(values)
    assert smoothed[0] == values[0]
    assert smoothed[2] == pytest.approx(sum(values[0:5]) / 5)
    for i in range(3, 87):
        assert smoothed[i] == pytest.approx(sum(values[i - 3 : i + 4]) / 7)
    assert smoothed[89] == pytest.approx(sum(values[86:90]) / 4)
    assert curves.smooth([]) == [] and curves.smooth([2.0, 1.0]) == [2.0, 1.0]
    line = [float(i) for i in range(100)]
    assert curves.smooth(line)[50] == 50  # no lag


def test_sparkline() -> None:
    assert curves.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert curves.sparkline([3.5, 1.0]) == "█▁"
    assert curves.sparkline([0.0, 0.9, 7.0]) == "▁▂█"
    assert curves.sparkline([2, 2, 2]) == "▁▁▁"
    assert curves.sparkline([math.nan, 1.0, math.inf, 2.0]) == "▁█"
    assert curves.sparkline([]) == curves.sparkline([math.nan]) == ""
    assert curves.sparkline([0, 0, 7, 7, 0, 0], width=3) == "▁█▁"
    long = curves.sparkline([float(i) for i in range(1000)])
    assert len(long) == 32 and list(long) == sorted(long) and long[0] == "▁" and long[-1] == "█"


def test_summary_says_where_the_curves_ended(tmp_path: Path) -> None:
    train, val = curves.summary(run_folder(tmp_path / "a")).splitlines()
    assert (
        " ".join(train.split()) == "train █▄▂▁ 5.000 -> 1.500 (perplexity 4.482) after 4,000 tokens"
    )
    assert (
        " ".join(val.split())
        == "validation █▁▁ 5.500 -> 1.875 (perplexity 6.521) after 4,000 tokens, lowest 1.750"
    )
    assert train.index("5.000") == val.index("5.500")


def test_the_loss_of_a_preference_has_no_perplexity(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "a", per_token=False)
    assert "perplexity" not in curves.summary(run)
    loss, perplexity, _ = curves.figure([run]).axes
    assert data(loss)
    assert not data(perplexity)


def test_the_summary_does_not_clip_a_perplexity(tmp_path: Path) -> None:
    train = curves.summary(run_folder(tmp_path / "a", train=[2000.0, 30.0])).splitlines()[0]
    assert f"perplexity {math.exp(30):.4g}" in train
    train = curves.summary(run_folder(tmp_path / "b", train=[5.0, 2000.0])).splitlines()[0]
    assert "perplexity inf" in train


@pytest.mark.usefixtures("starts_processes")
def test_command(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "one"), run_folder(tmp_path / "two", val=[])
    done = plot_curves(one, two / "metrics.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.startswith(f"{one}\ntrain") and done.stdout.endswith("drawn: curves.png\n")
    assert done.stdout.count("train ") == 2 and done.stdout.count("validation ") == 1


@pytest.mark.usefixtures("starts_processes")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent"], 5, "absent cannot be read: No such file or directory"),
        (["."], 5, "metrics.csv cannot be read: No such file or directory"),
        (["one", "--out", "a.pdf"], 2, "--out: the picture is a PNG, got a.pdf; write a.png"),
        (
            ["one", "--out", "absent/a.png"],
            5,
            "absent/a.png could not be written: No such file or directory; what was saved before is"
            " untouched",
        ),
    ],
)
def test_command_answers_a_mistake_with_one_line(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    run_folder(tmp_path / "one")
    done = plot_curves(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (code, f"{message}\n", "")


@pytest.mark.usefixtures("starts_processes")
def test_command_without_a_run_is_a_usage_error() -> None:
    assert plot_curves().returncode == 2


@pytest.mark.usefixtures("starts_processes")
def test_help_and_mistakes_do_not_load_matplotlib() -> None:
    code = (
        "import sys, lm.display.curves, tools.plot_curves; print(*{name.split('.')[0] for name in"
        " sys.modules} & {'matplotlib', 'numpy', 'torch'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
