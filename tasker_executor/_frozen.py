"""`frozen`: classes of named values that never change, which cost nothing to import.

`dataclasses.dataclass` compiles up to six methods for each class. That takes 0.5 to 1.4 ms, as long as to
import three modules. The classes that only this library uses need a constructor, and no other method. They share
this one. What users get is made by `dataclass`: they may ask for its fields, and compare it.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from typing_extensions import dataclass_transform

__all__ = ["frozen"]

C = TypeVar("C", bound=type[Any])


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def frozen(cls: C) -> C:
    """Give a class a constructor that takes its annotated names as keywords; no value can be changed afterwards.

    A value in the class is a default. Base classes have no names of their own.
    """
    names = dict.fromkeys(cls.__annotations__)
    required = [name for name in names if not hasattr(cls, name)]

    def __init__(self: Any, **values: Any) -> None:
        if not all(map(values.__contains__, required)) or not all(map(names.__contains__, values)):
            raise TypeError(f"{cls.__name__} has {', '.join(names)}, and not {', '.join(values)}")
        vars(self).update(values)

    def __setattr__(self: Any, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"a {cls.__name__} is frozen: {name} cannot be changed")

    cls.__init__ = __init__  # pyright: ignore[reportAttributeAccessIssue]  # it takes this for the constructor of `type`
    cls.__setattr__ = __setattr__  # type: ignore[assignment]  # mypy takes it for a method that is bound
    return cls
