import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from fastdhm.reid import pictures
from fastdhm.reid.pictures import Seen, cmc_plot, ranking_picture


def seen(identity):
    return Seen(Image.new("RGB", (30, 60), "grey"), identity, 1)


def test_ranking_picture_frames_right_and_wrong(tmp_path):
    index_QK = torch.tensor([[0, 1, -1], [1, 0, 2]])
    path = tmp_path / "ranking.png"
    ranking_picture(path, index_QK, lambda q: seen(5), lambda g: seen((5, 6, 0)[g]), [0, 1], torch.tensor([1.0, 0.5]))
    picture = np.asarray(Image.open(path))
    step_x = pictures.CELL_HW[1] + 2 * pictures.FRAME + pictures.GAP
    step_y = pictures.CELL_HW[0] + 2 * pictures.FRAME + pictures.LABEL + pictures.GAP
    wanted = pictures.HEADER + pictures.MARGIN + 2 * step_y, 2 * pictures.MARGIN + 4 * step_x + pictures.GAP, 3
    assert picture.shape == wanted
    right, wrong, none = (ImageColor.getrgb(colour) for colour in (pictures.RIGHT, pictures.WRONG, "white"))
    for row, frames in enumerate([(right, wrong, none), (wrong, right, wrong)]):
        for k, frame in enumerate(frames):
            x = pictures.MARGIN + 2 * pictures.GAP + (k + 1) * step_x
            assert tuple(picture[pictures.HEADER + row * step_y + 40, x + 2]) == frame


@pytest.mark.parametrize("queries", [[], [2], [-1]], ids=["none", "beyond", "negative"])
def test_query_that_is_not_there_is_refused(tmp_path, queries):
    with pytest.raises(ValueError, match="queries to show"):
        ranking_picture(tmp_path / "x.png", torch.tensor([[0], [0]]), seen, seen, queries)


def test_cmc_plot_is_written(tmp_path):
    cmc_plot(tmp_path / "cmc.png", {"B0": torch.linspace(0.5, 1, 50)}, "title", {"B0": 0.4})
    assert Image.open(tmp_path / "cmc.png").size == (768, 528)
