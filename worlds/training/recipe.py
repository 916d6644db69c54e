"""Say how the embedded models are trained, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rcblib.records import ParameterError
from worlds.scenes.generator import WORLDS, SceneConfig
from worlds.training.dropping import Dropping
from worlds.training.loop import LoopConfig
from worlds.training.sequences import FRAME_COUNTS


@dataclass(frozen=True)
class Stage:
    """Describe one stage.

    Attributes
    ----------
    name : str
        Names its files.
    kind : str
        ``"vision"`` (CLIP pair with patch labels), ``"symbols"`` (LLM alone) or ``"pixels"`` (whole LLaVA).
    starts_from : tuple of str
        Stages whose weights it loads, of this recipe or another; one of its own kind alone continues, several supply
        parts, the later ones in place of the earlier ones'.
    loop : LoopConfig
        Length and pace.
    scenes : SceneConfig
        What the scenes are like.
    n_tokens : int or None
        Patches shown to the vision encoder; `None` shows all.
    n_side : int
        Symbols a side of the grid in a symbolic stage.
    forms : tuple of str
        Forms of the steps in turn (`image`, `images`, `video`) where a model reads more than single images.
    n_choices : int
        Questions of the benchmarks' form about a group or video, at most.
    n_drills : int
        Plain questions about what each picture of a group or video shows, see `SequenceBatches`.
    frame_counts : tuple of int
        Frames of a video, one number a step.
    n_layers : int
        Layers of the LLM in this stage; 0 for all of the recipe's. Those that the stage before lacks begin as the
        identity.
    word_layer : int
        The layer behind which the right option's words are asked for, see `answer_loss`; 0 for none.
    scales : tuple of (str, float)
        For a pixel stage, the parts that learn (`vision`, `connector`, `newline`, `llm`) and their rates relative to
        the loop's.
    dropping : Dropping or None
        For a pixel stage, how visual tokens are dropped from its sequences; `None` shows all, always.
    """

    name: str
    kind: str
    starts_from: tuple[str, ...]
    loop: LoopConfig
    scenes: SceneConfig = field(default_factory=SceneConfig)
    n_tokens: int | None = None
    n_side: int = 12
    forms: tuple[str, ...] = ()
    n_choices: int = 3
    n_drills: int = 0
    frame_counts: tuple[int, ...] = FRAME_COUNTS
    n_layers: int = 0
    word_layer: int = 0
    scales: tuple[tuple[str, float], ...] = ()
    dropping: Dropping | None = None


@dataclass(frozen=True)
class Recipe:
    """Hold the architecture of an embedded model and the stages that train it.

    Attributes
    ----------
    name : str
        Names the model.
    family : str
        ``model_type`` of its config.
    world : str
        Name of the images that it is trained and asked on, see `worlds.scenes.generator.WORLDS`.
    vision, caption, text : dict
        Settings of the vision encoder, of the caption encoder beside it, and of the decoder.
    stages : tuple of Stage
        In the order of training; the last one's weights are the model.
    pinpoints : tuple of (int, int)
        Heights and widths in pixels that images are tiled to.
    arm_of : str
        Name of the recipe whose model this one's goes on from, where only the LLM differs; empty for none.
    """

    name: str
    family: str
    world: str
    vision: dict[str, Any]
    caption: dict[str, Any]
    text: dict[str, Any]
    stages: tuple[Stage, ...]
    pinpoints: tuple[tuple[int, int], ...] = ()
    arm_of: str = ""

    def stage(self, name: str) -> Stage:
        """Return the stage of that name; a `ParameterError` lists them otherwise."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ParameterError("stage", name, ", ".join(s.name for s in self.stages))


_DENSE = SceneConfig(n_objects=(0.1, 0.25, 0.35, 0.3))

_MOSTLY_SEVERAL = ("images", "video", "images", "video", "image")

LLAVA_SCENES = Recipe(
    name="llava-scenes",
    family="llava",
    world="scenes",
    vision={
        "image_size": 96,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
    },
    caption={
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    text={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    stages=(
        Stage("vision_masked", "vision", (), LoopConfig(2400, 64, 3e-3, seed=0), _DENSE, n_tokens=64),
        Stage("vision_full", "vision", ("vision_masked",), LoopConfig(400, 64, 1e-3, seed=2), _DENSE),
        Stage("symbols_coarse", "symbols", (), LoopConfig(1150, 32, 3e-3, seed=1), n_side=6),
        Stage("symbols_fine", "symbols", ("symbols_coarse",), LoopConfig(350, 32, 1.5e-3, seed=3)),
        Stage(
            "connector",
            "pixels",
            ("vision_full", "symbols_fine"),
            LoopConfig(320, 32, 2e-3, seed=4),
            scales=(("connector", 1.0), ("llm", 0.25)),
        ),
        Stage(
            "all",
            "pixels",
            ("connector",),
            LoopConfig(300, 32, 7e-4, seed=5),
            scales=(("vision", 0.5), ("connector", 1.0), ("llm", 1.0)),
        ),
    ),
)

LLAVA_NEXT_SCENES = Recipe(
    name="llava-next-scenes",
    family="llava_next",
    world="large-scenes",
    vision=LLAVA_SCENES.vision,
    caption=LLAVA_SCENES.caption,
    text=LLAVA_SCENES.text | {"num_key_value_heads": 2, "head_dim": 32},
    pinpoints=((96, 192), (192, 96), (192, 192), (288, 96), (96, 288)),
    stages=(
        Stage(
            "next_tiles",
            "pixels",
            ("all",),
            LoopConfig(400, 16, 2e-3, seed=6, log_every=20),
            WORLDS["large-scenes"],
            scales=(("connector", 0.5), ("newline", 1.0), ("llm", 0.5)),
        ),
        Stage(
            "next_all",
            "pixels",
            ("next_tiles",),
            LoopConfig(200, 16, 7e-4, seed=7, log_every=20),
            WORLDS["large-scenes"],
            scales=(("vision", 0.5), ("connector", 1.0), ("newline", 1.0), ("llm", 1.0)),
        ),
    ),
)

LLAVA_ONEVISION_SCENES = Recipe(
    name="llava-onevision-scenes",
    family="llava_onevision",
    world="scenes",
    # The last layer is read, so one less than CLIP's, of which the last but one is.
    vision=LLAVA_SCENES.vision | {"num_hidden_layers": 5, "hidden_act": "gelu_pytorch_tanh"},
    caption=LLAVA_SCENES.caption,
    # Two layers more than the LLM it starts from to tell pictures apart, and two to find an answer's letter.
    text=LLAVA_SCENES.text | {"num_hidden_layers": 8},
    pinpoints=((96, 96), (96, 192), (192, 96), (192, 192)),
    stages=(
        Stage(
            "siglip_masked",
            "vision",
            ("vision_full",),
            LoopConfig(450, 64, 2e-3, seed=8),
            _DENSE,
            n_tokens=64,
        ),
        Stage("siglip_full", "vision", ("siglip_masked",), LoopConfig(150, 64, 1e-3, seed=9), _DENSE),
        Stage(
            "sequence_symbols",
            "symbols",
            ("symbols_fine",),
            LoopConfig(1500, 32, 2e-3, seed=10),
            n_side=6,
            n_layers=6,
            forms=("images", "video", "image"),
        ),
        Stage(
            "sequence_drills",
            "symbols",
            ("sequence_symbols",),
            LoopConfig(1500, 16, 2e-3, seed=13),
            n_side=6,
            n_layers=6,
            forms=_MOSTLY_SEVERAL,
            n_drills=8,
        ),
        Stage(
            "sequence_letters",
            "symbols",
            ("sequence_drills",),
            LoopConfig(1000, 16, 2e-3, seed=14),
            n_side=6,
            n_layers=6,
            forms=_MOSTLY_SEVERAL,
            n_choices=9,
            n_drills=3,
        ),
        Stage(
            "sequence_words",
            "symbols",
            ("sequence_letters",),
            LoopConfig(500, 16, 2e-3, seed=15),
            n_side=6,
            forms=_MOSTLY_SEVERAL,
            n_choices=9,
            n_drills=3,
            word_layer=6,
        ),
        # Needs no letters yet, so it can be trained beside `sequence_words`.
        Stage(
            "onevision_align",
            "pixels",
            ("siglip_full", "sequence_letters"),
            LoopConfig(150, 16, 3e-3, seed=16, log_every=10),
            forms=("image", "video", "image", "images"),
            n_choices=0,
            n_drills=4,
            n_layers=6,
            scales=(("connector", 1.0), ("newline", 0.1)),
        ),
        Stage(
            "onevision_all",
            "pixels",
            ("onevision_align", "sequence_words"),
            LoopConfig(240, 16, 1.2e-3, seed=12, log_every=10),
            forms=("images", "video", "image"),
            n_choices=6,
            n_drills=4,
            word_layer=6,
            scales=(("vision", 0.5), ("connector", 1.0), ("newline", 1.0), ("llm", 0.7)),
        ),
        # Clips as long as those that are asked about later; the second and third of these stages go on like the first.
        *(
            Stage(
                name,
                "pixels",
                (start,),
                LoopConfig(n_steps, 16, 1e-3, seed=seed, log_every=10),
                forms=_MOSTLY_SEVERAL,
                n_choices=9,
                n_drills=2,
                frame_counts=(8, 12, 16),
                word_layer=6,
                scales=(("connector", 0.5), ("newline", 1.0), ("llm", 1.0)),
            )
            for name, start, n_steps, seed in (
                ("onevision_long", "onevision_all", 180, 17),
                ("onevision_long_2", "onevision_long", 110, 18),
                ("onevision_long_3", "onevision_long_2", 340, 19),
            )
        ),
    ),
)


_COMMON_DROPPED = Dropping({"scattered": 0.2, "window": 0.1, "rare": 0.45})
"""What the second stage of an arm sees: mostly images without what fills them, as a codebook leaves them."""


def _dropped(recipe: Recipe, *stages: Stage) -> Recipe:
    """Return a recipe's second arm: its LLM goes on from its last stage, asked the same, with visual tokens dropped."""
    last = recipe.stages[-1]
    every = []
    for stage in stages:
        before = every[-1] if every else last
        same = {
            name: getattr(last, name)
            for name in ("scenes", "n_choices", "n_drills", "frame_counts", "word_layer")
        }
        forms = stage.forms or last.forms
        scales = (("llm", 1.0),)
        every.append(replace(stage, starts_from=(before.name,), forms=forms, scales=scales, **same))
    return replace(recipe, name=f"{recipe.name}-dropped", stages=tuple(every), arm_of=recipe.name)


def _dropping(name: str, loop: LoopConfig, dropping: Dropping, **settings: Any) -> Stage:
    return Stage(name, "pixels", (), replace(loop, log_every=10), dropping=dropping, **settings)


_SHIPPED = (
    LLAVA_SCENES,
    LLAVA_NEXT_SCENES,
    LLAVA_ONEVISION_SCENES,
    _dropped(
        LLAVA_SCENES,
        _dropping("dropped", LoopConfig(320, 32, 7e-4, seed=20), Dropping()),
        _dropping("dropped_2", LoopConfig(200, 32, 7e-4, seed=23), _COMMON_DROPPED),
    ),
    _dropped(
        LLAVA_NEXT_SCENES,
        _dropping("next_dropped", LoopConfig(150, 16, 7e-4, seed=21), Dropping()),
        _dropping("next_dropped_2", LoopConfig(100, 16, 7e-4, seed=24), _COMMON_DROPPED),
    ),
    _dropped(
        LLAVA_ONEVISION_SCENES,
        _dropping(
            "onevision_dropped",
            LoopConfig(80, 16, 7e-4, seed=22),
            Dropping(),
            forms=("images", "image", "video", "image"),
        ),
    ),
)

RECIPES = {recipe.name: recipe for recipe in _SHIPPED}

RecipeName = Literal[tuple(RECIPES)]
TrainingDevice = Literal["auto", "cpu", "cuda"]


def find_stage(name: str) -> tuple[Recipe, Stage]:
    """Return a stage of any recipe, and its recipe; a `ParameterError` lists them otherwise."""
    found = {stage.name: (recipe, stage) for recipe in RECIPES.values() for stage in recipe.stages}
    if name not in found:
        raise ParameterError("stage", name, ", ".join(found))
    return found[name]
