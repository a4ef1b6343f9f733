"""What the cards of the shipped restoration models say beside the figures."""

from dataclasses import dataclass

BSDS = "340 photographs of the train and test parts of BSDS500 (Arbelaez et al. 2011)"
RESEARCH = "research and education, as the Berkeley Segmentation Data Set says"
NETWORK = "A U-Net of three levels (48, 96 and 128 channels) on folded pixels"
TRAIN = "fewstep restore train --task {task} --data photos/train --validation photos/val{more} -o runs/{name}"
RUN_TIME = " --max-minutes {minutes:.0f}"
INVENTS = "The detailed mode draws texture and is not evidence of what was there."
FAITHFUL = '"faithful" is one call, which estimates the mean; "detailed" makes five, each seeing the last.'


@dataclass(frozen=True)
class Texts:
    """The words of a card.

    Args:
        summary: what the model does.
        data: what it was trained on.
        limits: what it does not do.
        command: that trains it; {minutes} is put in.
        data_licence: of the photographs.
    """

    summary: str
    data: str
    limits: str
    command: str
    data_licence: str = RESEARCH


def _command(name: str, task: str, more: str = "") -> str:
    return TRAIN.format(name=name, task=task, more=more) + RUN_TIME


def _measured(percent: int, output: str) -> str:
    ratio = f" --ratio {percent / 100:g}"
    return TRAIN.format(name="", task="compressed-sensing", more=ratio).removesuffix("runs/") + output


def _idm(percent: int, command: str) -> Texts:
    return Texts(
        f"IDM for compressed sensing at {percent} % of the pixels' number: few steps trained end to end, "
        "every one held to the measurements.",
        f"Luma of {BSDS}, measured in permuted blocks by a random orthonormal matrix",
        f"For measurements of one kind only: this matrix and a ratio of {percent} %. Of colour "
        "photographs each plane is measured and rebuilt alone.",
        command,
    )


TEXTS = {
    "resshift-x4": Texts(
        "ResShift in pixel space for ×4 super-resolution of photographs: an EDSR-like network of 3×3 "
        "convolutions, four noise levels, κ = 0.5. One call estimates the mean of what the photograph may "
        'have been ("faithful"); four calls draw one sample ("detailed").',
        f"{BSDS}, reduced four times with antialiased bicubic interpolation and rounded to 8 bit",
        "Trained on clean reductions only: noise and compression of the input are enlarged with the rest. "
        + INVENTS,
        "fewstep restore train --data photos/train --validation photos/val -o runs/resshift-x4" + RUN_TIME,
    ),
    "tadsr-x4": Texts(
        "A student of resshift-x4 that draws a sample in one network call, distilled by TAD-SR's time-aware "
        "score and judge.",
        f"{BSDS}, reduced four times with antialiased bicubic interpolation and rounded to 8 bit",
        "What limits the teacher limits the student: noise and compression of the input are enlarged with "
        "the rest. Its texture is drawn and is not evidence of what was there.",
        'python -c "from fewstep.restoration.distill_sr import distill_one_call as distill; '
        "from fewstep.restoration.methods.resshift import ResShift; "
        "distill(ResShift.from_pretrained('resshift-x4'), 'photos/train', 'photos/val', 'runs/tadsr-x4', "
        'max_minutes={minutes:.0f})"',
    ),
    "oftsr-x4": Texts(
        "A student of resshift-x4 that needs one network call in both modes, told how far to go along the "
        "teacher's way, in the manner of OFTSR: faithful is the teacher's mean, detailed the end of its "
        "four calls.",
        f"{BSDS}, reduced four times with antialiased bicubic interpolation and rounded to 8 bit",
        "What limits the teacher limits the student: noise and compression of the input are enlarged with "
        "the rest. " + INVENTS,
        'python -c "from fewstep.restoration.distill_oftsr import distill_tunable as distill; '
        "from fewstep.restoration.methods.resshift import ResShift; "
        "distill(ResShift.from_pretrained('resshift-x4'), 'photos/train', 'photos/val', 'runs/oftsr-x4', "
        'max_minutes={minutes:.0f})"',
    ),
    "rddm-denoise": Texts(
        f"RDDM for noise of cameras and Gaussian noise up to σ = 50, told the level or not. {NETWORK}. "
        + FAITHFUL,
        f"{BSDS} with Gaussian noise of σ = 0 to 50, rounded to 8 bit; in the last 42 minutes 60 %, "
        "before a quarter of the crops are of the 63 pairs of PolyU's training part (Xu et al. 2018), real "
        "photographs of ISO 800 to 12,800",
        "Noise that is spread over many pixels, as of strongly compressed video, was not in the training. "
        "Noise beyond σ = 50 is removed in part. " + INVENTS,
        _command("rddm-denoise", "denoise", " --pairs polyu/train/noisy polyu/train/clean --start FIRST")
        + ", where FIRST is the same recipe's model with pair_share 0.25, 102 minutes",
        f"{RESEARCH}; non-commercial, as PolyU's says",
    ),
    "rddm-jpeg": Texts(
        f"RDDM that removes the artefacts of strong JPEG compression. {NETWORK}. " + FAITHFUL,
        f"{BSDS}, compressed as JPEG of quality 10 to 60",
        "JPEG artefacts that were enlarged or shifted after the compression are removed in part. " + INVENTS,
        _command("rddm-jpeg", "jpeg", " --start FIRST")
        + ", where FIRST is an RDDM for rain and JPEG, trained for 35 minutes from an RDDM for noise",
    ),
    "rddm-low-light": Texts(
        f"RDDM that brightens photographs taken in the dark and removes their noise. {NETWORK}. Inputs are "
        "first brought to one mean brightness. " + FAITHFUL,
        f"{BSDS}, darkened by gain · x^power (gain 0.4 to 0.7, power 2 to 3) with the noise of few photons",
        "Trained on a synthetic curve, darker everywhere: light sources in the picture, colour casts and the "
        "banding of real sensors were not in the training. " + INVENTS,
        _command("rddm-low-light", "low-light", " --start rddm-denoise"),
    ),
    "rddm-inpaint": Texts(
        f"RDDM that fills what a mask marks: lines, text, spots and rectangles. {NETWORK}. Known pixels are "
        "returned as they were. " + FAITHFUL,
        f"{BSDS} under random masks",
        "Made for scratches, text and small holes; holes wider than what the network sees around them are "
        "filled with smooth colour. What is filled is not evidence of what was there.",
        _command("rddm-inpaint", "inpaint", " --start FIRST")
        + ", with error squared, learning_rate 5e-4, start_share 4; FIRST is the recipe's model, begun "
        "with rddm-denoise and trained for 45 minutes",
    ),
    "irsde-derain": Texts(
        "IR-SDE that removes streaks of rain; MR-sampler's steps make ten calls do. A U-Net of three levels "
        "on folded pixels.",
        f"{BSDS} with synthetic streaks of rain",
        "Trained on synthetic rain: drops on a lens, mist and splashes are left. " + INVENTS,
        _command("irsde-derain", "derain", " --method irsde --start FIRST")
        + ", where FIRST is an RDDM for rain and JPEG, trained for 35 minutes from an RDDM for noise",
    ),
    "idm-10": _idm(
        10,
        "printf '{\"steps\": 8}' > eight.json\n"
        + _measured(10, "runs/idm-10-three --max-minutes 62\n")
        + _measured(10, "runs/idm-10-eight --config eight.json --start runs/idm-10-three/model")
        + " --max-minutes 70\n"
        'printf \'{"steps": 8, "learning_rate": 6e-4, "seed": 1}\' > again.json\n'
        + _measured(10, "runs/idm-10 --config again.json --start runs/idm-10-eight/model")
        + RUN_TIME,
    ),
    "idm-25": _idm(25, _measured(25, "runs/idm-25") + RUN_TIME),
    "codec": Texts(
        "A codec for photographs that decodes in one network call, in the manner of OSCAR: the rate says at "
        "which time of a diffusion path the denoiser begins.",
        BSDS,
        "For photographs of 8 bit without an alpha channel; colours are kept to what a small network "
        "can say of them. Trained for least error: low rates are soft.",
        'python -c "from fewstep.restoration.train_codec import CodecRecipe, train_codec; '
        "train_codec(CodecRecipe(), 'photos/train', 'photos/val', 'runs/codec', max_minutes={minutes:.0f})\"",
    ),
}
