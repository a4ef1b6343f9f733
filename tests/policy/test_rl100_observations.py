"""RL-100 on pictures and point clouds: encoded once, the chain and its decisions know no difference."""

import numpy as np
import pytest
import torch

from fewstep.policy.episodes import Episodes
from fewstep.policy.model import PolicyModel
from fewstep.policy.normalizer import Normalizer
from fewstep.policy.recipe import PolicyRecipe
from fewstep.policy.rl100.features import decisions_of
from fewstep.policy.rl100.policy_chain import ChainPolicy, chain_of


@pytest.mark.parametrize(("name", "shape"), [("image", (3, 96, 96)), ("points", (64, 3)), ("state", (4,))])
def test_decisions_and_chain(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    seen = rng.random((20, *shape), np.float32)
    if name == "image":
        seen = (255 * seen).astype(np.uint8).transpose(0, 2, 3, 1)
    arrays = {name: seen, "action": rng.uniform(-1, 1, (20, 2)).astype(np.float32)}
    arrays |= {"reward": np.ones(20, np.float32), "terminated": np.arange(20) == 19}
    episodes = Episodes(arrays, np.array([20]))
    small = {"width": 16, "depth": 1}
    recipe = PolicyRecipe(
        method="ddim", environment="", network="chunk-mlp", network_options=small, horizon=8, n_action_steps=4
    )
    model = PolicyModel(recipe.config({name: shape}, 2)).eval()
    fitted = Normalizer.fit(episodes, model.config.modes)  # type: ignore[arg-type]
    model.normalizer.load_state_dict(fitted.state_dict())
    found = decisions_of(model, episodes, "none", 0.9)
    assert len(found) > 10
    told = found.all.state
    assert told.shape[1] == found.all.next_state.shape[1]
    assert float(told.std(0).max()) > 0
    policy = ChainPolicy(model, chain_of(model, 2, 0.1, 0.8)).eval()
    walked = policy.explore(told[:5], (), torch.randn_like)
    density = policy.density(told[:5], 0, walked.states[0], walked.states[1])
    torch.testing.assert_close(density, walked.log_probs[0], atol=1e-4, rtol=1e-4)
    density.sum().backward()
    assert any(float(p.grad.abs().sum()) > 0 for p in model.net.parameters() if p.grad is not None)
