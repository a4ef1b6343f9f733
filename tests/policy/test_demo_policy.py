"""The demo's section of robot policies: films, pictures and numbers, or a sentence where nothing can run."""

import re
from pathlib import Path

import av
import pytest
from tests.policy.tiny_policy import saved_policy
from tools.demo import policy

EPISODES = 2


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(policy, "EPISODES", EPISODES)
    monkeypatch.setattr(policy, "shipped", lambda package: [])
    return str(saved_policy(tmp_path / "tiny"))


def test_a_film_pictures_and_a_table(model: str, tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="pip install 'fewstep-policy[envs]'")
    told: list[str] = []
    page = policy.section(tmp_path, told.append, model)
    (source,) = re.findall(r'<video src="([^"]+)" controls loop muted autoplay', page)
    with av.open(str(tmp_path / source)) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert 1 < frames <= 301
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert len(pictures) == policy.SHOWN
    assert all((tmp_path / picture).stat().st_size for picture in pictures)
    assert f"{EPISODES} episodes" in page
    assert re.search(r"<td[^>]*>0 <small>0 to 66</small></td>", page)
    assert "No policy for the point maze ships with this version." in page
    assert len(told) == 2


def test_what_is_not_installed_is_said(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise ImportError("gym_pusht is not installed: pip install 'fewstep-policy[envs]'")

    monkeypatch.setattr(policy, "evaluate", absent)
    page = policy.section(tmp_path, print, model)
    assert "pusht cannot be run here: gym_pusht is not installed: pip install" in page
    assert "<video" not in page
