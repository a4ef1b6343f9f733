"""What the cards of the shipped policies say beside the figures."""

from tools.shipped_texts import RUN_TIME, Texts

PUSHT = (
    "186 of the 206 human demonstrations of Diffusion Policy's pusht_cchi_v7_replay (Chi et al. 2023), "
    "11 of them for validation only"
)
PUSHT_LICENCE = "MIT, as the repository that holds them"
PUSHT_LIMITS = (
    "For Push-T as gym-pusht has it: keypoints of the block and the disc's position, seen without error at "
    "10 Hz; no camera, no robot. The score is an episode's largest reward, min(coverage/0.95, 1), in at most "
    "300 steps; success is a coverage beyond 95 %."
)
STEPS = {"umaze": 300, "medium": 600}


def _maze_data(size: str, episodes: int) -> str:
    return (
        f"{episodes} episodes of the project's own way-point controller in PointMaze {size}, with noise of "
        "standard deviation 2 on its actions and 30 % random ones"
    )


def _maze_limits(size: str) -> str:
    return (
        "For this maze of gymnasium-robotics alone: its walls are not observed. Success is to reach the goal "
        f"in at most {STEPS[size]} steps."
    )


def _ofql(size: str, episodes: int) -> Texts:
    env = f"pointmaze-{size}"
    return Texts(
        f"OFQL for PointMaze {size}: one network call for four actions, learned offline from rewards. The "
        "actor is the average velocity of a flow; a critic improves on what the episodes show.",
        _maze_data(size, episodes),
        _maze_limits(size),
        f"fewstep policy train --method ofql --data {env.replace('-', '_')}_mixed.npz --env {env} "
        f"-o runs/{env}-ofql{RUN_TIME}",
        "CC0 1.0",
    )


def _rl100(size: str, episodes: int) -> Texts:
    env = f"pointmaze-{size}"
    return Texts(
        f"A policy for PointMaze {size} by RL-100, one network call for four actions: imitation of episodes "
        "by a chain of five steps, reinforcement learning in the simulator, and a student of the chain. Its "
        "offline stage was refused by its gate.",
        f"{_maze_data(size, episodes)}; then the policy's own episodes in the simulator",
        f"{_maze_limits(size)} The first 69 of its 212 online iterations had γ = 0.985 and 32 episodes, the "
        "rest what recipe.json says.",
        f"fewstep policy finetune --method rl100 --data {env.replace('-', '_')}_mixed.npz --env {env} "
        f"--config recipe.json -o runs/{env}-rl100 --online-minutes 47",
        "CC0 1.0",
    )


TEXTS = {
    "pusht-onestep": Texts(
        "Push-T with one network call per chunk of actions: a student of pusht-meanflow that learned pairs "
        "of noise and the chunk that the teacher makes of it in ten calls.",
        f"What pusht-meanflow does in ten calls, at the observations of {PUSHT}",
        f"{PUSHT_LIMITS} What limits the teacher limits the student.",
        "fewstep policy distill --teacher pusht-meanflow --data pusht_human.npz --config recipe.json "
        f"-o runs/pusht-onestep{RUN_TIME}",
        PUSHT_LICENCE,
    ),
    "pusht-meanflow": Texts(
        "MeanFlow for Push-T: the average velocity of a flow from noise to chunks of actions, in one to ten "
        "network calls.",
        PUSHT,
        PUSHT_LIMITS,
        "fewstep policy train --data pusht_human.npz --env pusht --config recipe.json "
        f"-o runs/pusht-meanflow{RUN_TIME}",
        PUSHT_LICENCE,
    ),
    "pointmaze-umaze-ofql": _ofql("umaze", 200),
    "pointmaze-medium-rl100": _rl100("medium", 250),
}
