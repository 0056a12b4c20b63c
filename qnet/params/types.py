"""Types that define the allowed values in params.yaml.

The `description` of a type says what is allowed; `qnet.params.errors` uses it in messages. Limits
such as 1e9 are far beyond any sensible value: they turn a typing error into a clear message.
"""

from __future__ import annotations

import os.path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from qnet.errors import UserError
from qnet.levels import weight_levels


def _increasing(epochs: tuple[int, ...]) -> tuple[int, ...]:
    if list(epochs) != sorted(set(epochs)):
        raise ValueError("not increasing")
    return epochs


def _known_levels(spec: int | str | tuple[int, ...]) -> int | str | tuple[int, ...]:
    try:
        weight_levels(spec)
    except UserError as error:  # pydantic collects ValueErrors only
        raise ValueError(str(error)) from error
    return spec


def _null_is_none(value: object) -> object:
    return "none" if value in (None, "", "~", "null", "Null", "NULL") else value


def _as_number(value: object) -> object:
    return int(str(value)) if value in ("1", "3") else value


Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]
Count = Annotated[int, Field(ge=1, le=10**9, description="a whole number from 1 to 1000000000")]
CountOrZero = Annotated[
    int, Field(ge=0, le=10**9, description="a whole number from 0 to 1000000000")
]

Positive = Annotated[float, Field(ge=1e-9, le=1e9, description="a number from 1e-9 to 1e9")]
PositiveOrZero = Annotated[float, Field(ge=0, le=1e9, description="a number from 0 to 1e9")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")]
ShareAboveZero = Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]
InnerShare = Annotated[float, Field(gt=0, lt=1, description="a number above 0 and below 1")]
Tail = Annotated[float, Field(ge=0, lt=0.5, description="a number from 0 to below 0.5")]
BackwardTemperature = Annotated[
    Positive | Literal["exact", "straight_through"],
    Field(description="a number from 1e-9 to 1e9, exact or straight_through"),
]
PositiveOrNone = Annotated[
    Positive | Literal["none"],
    BeforeValidator(_null_is_none),
    Field(description="a number from 1e-9 to 1e9, or none"),
]

Switch = Annotated[bool, Field(description="true or false")]
SwitchOrAuto = Annotated[bool | Literal["auto"], Field(description="true, false or auto")]

Size = Annotated[
    Annotated[int, Field(ge=4, le=4096)] | Literal["auto"],
    Field(description="a whole number from 4 to 4096, or auto"),
]
Channels = Annotated[Literal[1, 3, "auto"], BeforeValidator(_as_number)]
Padding = Annotated[
    Annotated[int, Field(ge=0, le=1024)] | Literal["auto"],
    Field(description="a whole number from 0 to 1024, or auto"),
]
Workers = Annotated[
    Annotated[int, Field(ge=0, le=1024)] | Literal["auto"],
    Field(description="a whole number from 0 to 1024, or auto"),
]
Threads = Annotated[
    Annotated[int, Field(ge=1, le=1024)] | Literal["auto"],
    Field(description="a whole number from 1 to 1024, or auto"),
]
Processes = Threads
Compile = Annotated[
    Literal["none", "quantizers", "network"],
    BeforeValidator(_null_is_none),
    Field(description="none, quantizers or network"),
]

Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", description="text on one line")]
Folder = Annotated[Text, AfterValidator(os.path.expanduser)]
Device = Annotated[
    str,
    Field(
        pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$",
        description="auto, cpu, mps, cuda, or cuda: and a number, such as cuda:1",
    ),
]
Pretrained = Annotated[
    str,
    Field(
        pattern=r"^(none|torchvision(/\w+)?|[^\x00-\x1f\x7f]+\.(safetensors|pth|pt|th))$",
        description="none, torchvision, torchvision/ and a name of weights, such as "
        "torchvision/IMAGENET1K_V1, or a file (.safetensors, .pth, .pt or .th)",
    ),
    BeforeValidator(_null_is_none),
    AfterValidator(os.path.expanduser),
]
Patterns = Annotated[
    tuple[Text, ...], Field(description="a list of layer names, such as [first, last]")
]
Epochs = Annotated[
    tuple[Count, ...],
    AfterValidator(_increasing),
    Field(description="a list of increasing epochs, such as [100, 150], or []"),
]

Levels = Annotated[
    Annotated[int | tuple[int, ...] | str, Field(union_mode="left_to_right")],  # "2" becomes 2
    AfterValidator(_known_levels),
    Field(
        description="1, 2 ... 8 (bits), 3pm2, 3pm4, full (32 bits), or a list of increasing whole "
        "numbers, symmetric about zero, such as [-4, -1, 0, 1, 4]"
    ),
]
Bits = Annotated[
    Annotated[int, Field(ge=1, le=8)] | Literal["full"],
    Field(description="a whole number from 1 to 8, or full (32 bits)"),
]
