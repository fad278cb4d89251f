"""The rendered clips of ``hgpose eval track``: people who cross, hide each other, leave, return, move fast.

Developer tool: rendering needs ``pip install hgpose[demo]``.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hgpose.atomic import output_errors
from hgpose.demo.make_clip import MAN, WOMAN, Action, Actor, Scene, jump, punch, render, stand, walk
from hgpose.demo.render import Camera
from hgpose.errors import InputError

# Small and without oversampling, so that all of it takes minutes. At y = 0 the picture is 5.9 m wide.
_FRONT = Camera(position=(0.0, -6.5, 1.5), focal_px=560.0, size_wh=(512, 288))
_NEAR = replace(_FRONT, focal_px=800.0)
_LEFT = replace(_FRONT, position=(-4.6, -4.6, 1.5))
_RIGHT = replace(_NEAR, position=(3.2, -5.6, 1.9))

_BOY = replace(
    MAN,
    colours=MAN.colours
    | {"shirt": (0.08, 0.25, 0.08), "trousers": (0.25, 0.2, 0.12), "skin": (0.6, 0.4, 0.3)},
)
_GIRL = replace(
    WOMAN,
    colours=WOMAN.colours
    | {"shirt": (0.08, 0.12, 0.4), "trousers": (0.2, 0.2, 0.2), "hair": (0.4, 0.25, 0.08)},
)


def _scene(
    seconds: float, *actors: Actor, shots: tuple[tuple[float, Camera], ...] = ((0.0, _FRONT),)
) -> Scene:
    return Scene(actors, seconds, shots, oversampling=1)


_WALK: tuple[tuple[float, Action], ...] = ((0.0, walk),)

#: Everything looks along +x with heading 90 and along -x with -90.
SCENES: dict[str, Scene] = {
    "crossing": _scene(
        4.8,
        Actor(WOMAN, ((0, -3.2, 0.2, 90), (4.8, 3.2, 0.2, 90)), _WALK),
        Actor(MAN, ((0, 3.2, -0.5, -90), (4.8, -3.2, -0.5, -90)), _WALK),
    ),
    "overtaking": _scene(
        4.8,
        Actor(_BOY, ((0, -1.6, -0.4, 90), (4.8, 2.0, -0.4, 90)), _WALK),
        Actor(_GIRL, ((0, -3.2, 0.4, 90), (4.8, 4.2, 0.4, 90)), _WALK),
    ),
    "passing": _scene(
        4.8,
        Actor(MAN, ((0, -0.8, 0.2, 10),)),
        Actor(_GIRL, ((0, 0.9, 0.3, -20),)),
        Actor(WOMAN, ((0, -3.2, -0.7, 90), (4.8, 3.2, -0.7, 90)), _WALK),
    ),
    "hidden": _scene(
        4.8,
        Actor(_BOY, ((0, 0.1, -0.7, 0),)),
        Actor(
            WOMAN,
            ((0, -2.4, 0.6, 90), (2.0, 0.05, 0.6, 90), (2.6, 0.05, 0.6, 90), (4.8, 2.6, 0.6, 90)),
            ((0.0, walk), (2.0, stand), (2.6, walk)),
        ),
    ),
    "four": _scene(
        5.6,
        Actor(WOMAN, ((0, -2.9, 0.9, 90), (5.6, 3.4, 0.9, 90)), _WALK),
        Actor(MAN, ((0, 3.0, 0.2, -90), (5.6, -3.9, 0.2, -90)), _WALK),
        Actor(_GIRL, ((0, -1.2, -0.5, 90), (5.6, 4.2, -0.5, 90)), _WALK),
        Actor(_BOY, ((0, 1.8, -1.1, -90), (5.6, -4.0, -1.1, -90)), _WALK),
    ),
    "returning": _scene(
        6.4,
        # Out of the picture at the left for about 0.6 s, and at the right for about 2 s.
        Actor(
            WOMAN,
            ((0, -1.4, 0.0, -90), (1.5, -3.4, 0.0, -90), (1.9, -3.4, 0.0, 90), (6.0, 1.4, 0.0, 90)),
            _WALK,
        ),
        Actor(
            MAN,
            ((0, 0.9, 0.6, 90), (2.2, 3.9, 0.6, 90), (3.6, 3.9, 0.6, -90), (6.4, 0.6, 0.6, -90)),
            _WALK,
        ),
    ),
    "cuts": _scene(
        5.2,
        Actor(WOMAN, ((0, -1.2, 0.2, 40), (5.2, 1.0, -0.3, 40)), _WALK),
        Actor(_BOY, ((0, 0.9, 0.3, -20),)),
        shots=((0.0, _FRONT), (1.7, _LEFT), (3.5, _RIGHT)),
    ),
    "punch": _scene(3.6, Actor(MAN, ((0, 0, 0, 35),), ((0.0, punch),)), shots=((0.0, _NEAR),)),
    "jump": _scene(4.2, Actor(WOMAN, ((0, 0, 0, -15),), ((0.0, jump),)), shots=((0.0, _NEAR),)),
    "standing": _scene(2.4, Actor(_GIRL, ((0, 0, 0, 20),)), shots=((0.0, _NEAR),)),
}


def rendered(folder: Path, report: Callable[[str], None] = lambda name: None) -> dict[str, tuple[Path, Path]]:
    """The clips, each a video and its truth; those that are missing are rendered, which takes minutes.

    Args:
        folder: that keeps them; another version of the renderer makes its clips anew.
        report: called with the name of a clip that is about to be rendered.

    Raises:
        InputError: the body model is not installed.
        OutputError: the folder cannot be written to.
    """
    code = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))))
    place = folder / f"clips-{code.hexdigest()[:8]}"
    found = {}
    for name, scene in SCENES.items():
        video, truth = place / f"{name}.mp4", place / f"{name}.json"
        if not truth.exists():
            report(name)
            with output_errors(place):
                place.mkdir(parents=True, exist_ok=True)
                work = tempfile.TemporaryDirectory(dir=place)
            with work:
                parts = Path(work.name, "video.mp4"), Path(work.name, "truth.json")
                try:
                    render(scene, *parts)
                except ModuleNotFoundError as error:
                    raise InputError(f"rendering needs {error.name}: pip install 'hgpose[demo]'") from error
                # Where there is a truth there is a whole video.
                parts[0].replace(video)
                parts[1].replace(truth)
        found[name] = (video, truth)
    return found
