"""Saving, finding and loading checkpoints."""

import json
import sys
from dataclasses import dataclass, field

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn

from fewstep.core.cards import CardFacts, make_card
from fewstep.core.checkpoints import Checkpoint, resolve, shipped
from fewstep.core.configs import config_from_dict, config_to_dict
from fewstep.core.weights import CheckpointError, load_into


@dataclass(frozen=True)
class Inner:
    rates: tuple[float, ...] = (1.0, 2.0)
    name: str | None = None


@dataclass(frozen=True)
class NetConfig:
    width: int = 4
    inner: Inner = field(default_factory=Inner)
    sizes: tuple[tuple[int, int], ...] = ((1, 2),)
    options: dict[str, float] = field(default_factory=dict)


class Net(nn.Module, Checkpoint):
    config_class = NetConfig

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(3, config.width)
        self.norm = nn.BatchNorm1d(config.width)
        self.tail = nn.Linear(config.width, 3, bias=False)
        self.register_buffer("table", torch.linspace(0, 1, 5, dtype=torch.float64) / 3)

    def forward(self, x):
        return self.tail(self.norm(self.head(x)))


CONFIG = NetConfig(width=5, inner=Inner((0.5,), "n"), sizes=((3, 4), (5, 6)), options={"a": 1.5})


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net(CONFIG)
    made(torch.randn(7, 3))
    return made.eval()


@pytest.fixture
def package(tmp_path, monkeypatch, net):
    """An installed package that brings a checkpoint along."""
    root = tmp_path / "site"
    folder = root / "shipped_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    net.save_pretrained(folder / "checkpoints" / "small-x4")
    (folder / "checkpoints" / "notes").mkdir()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(Net, "package", "shipped_package")
    monkeypatch.delitem(sys.modules, "shipped_package", raising=False)
    yield folder
    sys.modules.pop("shipped_package", None)


def test_round_trip_is_exact(tmp_path, net):
    net.save_pretrained(tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    loaded = Net.from_pretrained(tmp_path / "made")
    assert loaded.config == CONFIG
    assert not loaded.training
    assert loaded.state_dict().keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        assert loaded.state_dict()[name].dtype == value.dtype


def test_half_precision_storage_is_float32_again_when_loaded(tmp_path, net):
    net.save_pretrained(tmp_path / "full")
    net.save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["head.weight"].dtype == torch.float16
    assert stored["table"].dtype == torch.float64, "only float32 is stored shorter"
    assert stored["norm.num_batches_tracked"].dtype == torch.int64
    loaded = Net.from_pretrained(tmp_path / "half")
    assert loaded.head.weight.dtype == torch.float32
    # float16 has 11 significant bits: a relative error of at most 2^-11.
    torch.testing.assert_close(loaded.head.weight, net.head.weight, rtol=2**-11, atol=1e-7)
    assert not torch.equal(loaded.head.weight, net.head.weight)
    assert net._stored_dtype is None, "the next save is a full one"


def test_weights_too_large_for_half_are_refused(tmp_path, net):
    with torch.no_grad():
        net.tail.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"float16 cannot hold tail\.weight: its largest value is 1e\+06"):
        net.save_pretrained(tmp_path, dtype=torch.float16)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tied_weights_and_views_survive(tmp_path, memory_format):
    class Tied(nn.Module, Checkpoint):
        config_class = NetConfig

        def __init__(self, config: NetConfig) -> None:
            super().__init__()
            self.config = config
            self.first = nn.Conv2d(2, 2, 3)
            self.second = nn.Conv2d(2, 2, 3)
            self.second.weight = self.first.weight
            self.register_buffer("part", self.first.weight.detach()[:1])

    model = Tied(NetConfig())
    if memory_format is torch.channels_last:
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
    model.save_pretrained(tmp_path)
    loaded = Tied.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.second.weight is loaded.first.weight


def test_card_states_the_facts(tmp_path, net):
    facts = CardFacts(
        title="small-x4",
        summary="Enlarges photographs four times.",
        data="1,800 photographs",
        data_licence="cc0-1.0",
        command="fewstep restore train --minutes 60",
        steps=12345,
        minutes=61.0,
        metrics={"Set5": {"PSNR-Y": (30.31, 28.43)}},
        baseline="bicubic",
        limits="No faces.",
    )
    net.save_pretrained(tmp_path, model_card_kwargs={"facts": facts})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict()["license"] == "apache-2.0"
    for part in (
        "# small-x4",
        "1,800 photographs",
        "cc0-1.0",
        "12,345",
        "61 minutes",
        "fewstep restore train",
    ):
        assert part in card.text
    assert "| Set5 | PSNR-Y | 30.31 | 28.43 |" in card.text
    assert "| Test set | Metric | This model | bicubic |" in card.text
    assert "No faces." in card.text


def test_card_shows_intervals_and_what_was_not_measured():
    rows = {"pusht": {"score": ("0.81 (0.77 to 0.85)", None), "steps": (210.25, 300)}}
    beside = make_card(CardFacts("p", "Pushes.", metrics=rows), parameters=1).text
    assert "| pusht | score | 0.81 (0.77 to 0.85) | – |\n| pusht | steps | 210.2 | 300 |" in beside
    alone = make_card(CardFacts("p", "Pushes.", metrics=rows, baseline=""), parameters=1).text
    assert "| Test set | Metric | This model |\n| --- | --- | --- |\n" in alone
    assert "| pusht | steps | 210.2 |\n" in alone


def test_saving_again_keeps_the_card(tmp_path, net):
    net.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    net.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert Net.from_pretrained(tmp_path).config == CONFIG


def test_names_resolve_shipped_first_then_folder(package, tmp_path, net, monkeypatch):
    assert shipped("shipped_package") == ["small-x4"]
    monkeypatch.chdir(tmp_path)
    net.save_pretrained("small-x4")
    assert resolve("small-x4", "shipped_package") == package / "checkpoints" / "small-x4"
    assert resolve("./small-x4", "shipped_package").resolve() == (tmp_path / "small-x4").resolve()
    assert resolve("small-x4").resolve() == (tmp_path / "small-x4").resolve()
    assert torch.equal(Net.from_pretrained("small-x4").head.weight, net.head.weight)


@pytest.mark.parametrize(
    "name", ["../small-x4", "notes/../small-x4", "checkpoints/small-x4", "..", "", "a/../b", "/x/y"]
)
def test_names_do_not_leave_the_shipped_folder(package, tmp_path, monkeypatch, name):
    empty = tmp_path / "empty" / "deep"
    empty.mkdir(parents=True)
    monkeypatch.chdir(empty)
    with pytest.raises(CheckpointError):
        resolve(name, "shipped_package", local_files_only=True)


def test_unknown_name_says_where_it_was_looked_for(package):
    with pytest.raises(
        CheckpointError, match=r"no checkpoint 'big'.*shipped_package brings small-x4.*not a folder"
    ):
        Net.from_pretrained("big")


def test_folder_without_weights_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint: it has no model\.safetensors"):
        resolve(tmp_path)


@pytest.mark.parametrize("offline", ["argument", "environment"])
def test_hub_without_a_connection_is_one_sentence(tmp_path, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if offline == "environment":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"'owner/name' is no folder here .* without a connection"
    ) as caught:
        resolve("owner/name", local_files_only=offline == "argument")
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_class_is_refused(tmp_path, net):
    net.save_pretrained(tmp_path)

    class Other(Net):
        pass

    with pytest.raises(CheckpointError, match="of a Net, not of a Other"):
        Other.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be used"),
        ("[]", "not a JSON object"),
        ('{"wdith": 3}', "wdith, which NetConfig does not know"),
        ('{"inner": {"speed": 3}}', "speed, which Inner does not know"),
    ],
)
def test_bad_config_is_named(tmp_path, net, content, message):
    net.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Net.from_pretrained(tmp_path)


def test_keys_that_do_not_fit_are_named_and_nothing_is_loaded(net):
    state = dict(net.state_dict())
    before = {name: value.clone() for name, value in state.items()}
    state["head.weight"] = torch.zeros(4, 3)
    del state["tail.weight"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_into(net, state, "weights.pt")
    message = str(caught.value)
    assert "weights.pt does not fit Net" in message
    assert "1 missing: tail.weight" in message
    assert "1 unexpected: extra" in message
    assert "head.weight ((4, 3) in the file, (5, 3) in the network)" in message
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_many_wrong_keys_are_shortened_and_a_prefix_is_recognised(net):
    state = {f"module.{name}": value for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"9 missing: .*… \(5 more\).*without the prefix 'module\.'"):
        load_into(net, state, "w")


def test_config_survives_json():
    values = json.loads(json.dumps(config_to_dict(CONFIG)))
    assert config_from_dict(NetConfig, values) == CONFIG
    assert config_from_dict(NetConfig, {}) == NetConfig()
    with pytest.raises(TypeError, match="instance of a dataclass"):
        config_to_dict(NetConfig)


def test_a_checkpoint_may_be_read_by_those_whom_the_umask_lets(tmp_path):
    (tmp_path / "plain").touch()
    Net(NetConfig()).save_pretrained(tmp_path / "model")
    usual = (tmp_path / "plain").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "model").iterdir()} == {usual}
