"""What happens to pods instead of a plain run, as tests wish."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from midwatch.model import Json


@dataclass(frozen=True, slots=True)
class Unschedulable:
    """No node takes the pod."""

    message: str = (
        "0/1 nodes are available: 1 Insufficient memory."
        " preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    )


@dataclass(frozen=True, slots=True)
class ImagePull:
    """The image cannot be pulled: `ErrImagePull` at first, `ImagePullBackOff` from then on."""

    message: str = "failed to pull and unpack image: not found"


@dataclass(frozen=True, slots=True)
class InvalidImageName:
    """The image's name cannot be read."""


@dataclass(frozen=True, slots=True)
class Ends:
    """No process: the container runs and has ended at once with this exit code."""

    code: int = 0


@dataclass(frozen=True, slots=True)
class Stays:
    """No process: the container runs until its pod is deleted or lost."""


Fate = Unschedulable | ImagePull | InvalidImageName | Ends | Stays


@dataclass(eq=False, slots=True)
class Wish:
    """A fate for pods that a predicate takes; `left` of them (None: all)."""

    fate: Fate
    when: Callable[[Json], bool]
    left: int | None
    lifted: bool = False

    def lift(self) -> None:
        """What it keeps waiting goes on."""
        self.lifted = True


class Fates:
    """In the order in which they were wished; each pod gets the first that fits, once."""

    def __init__(self) -> None:
        self._wishes: list[Wish] = []
        self._lock = threading.Lock()

    def wish(
        self,
        fate: Fate,
        when: Callable[[Json], bool] = lambda pod: True,
        *,
        times: int | None = None,
    ) -> Wish:
        """For pods made from now on that `when` takes."""
        made = Wish(fate, when, times)
        with self._lock:
            self._wishes.append(made)
        return made

    def of(self, pod: Json) -> Wish | None:
        with self._lock:
            for wish in self._wishes:
                if not wish.lifted and wish.left != 0 and wish.when(pod):
                    wish.left = None if wish.left is None else wish.left - 1
                    return wish
        return None
