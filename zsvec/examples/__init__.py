"""Photographs for examples, all without copyright: CC0 or in the public domain.

| name | shows | from |
|---|---|---|
| brick | a wall of bricks | ambientCG (Bricks25) |
| cat | a cat, Chelsea | Stefan van der Walt |
| coffee | a cup of coffee | Rachel Michetti |
| coins | Greek coins from Pompeii | Brooklyn Museum |
| grass | a lawn | linolafett |
| gravel | gravel | ambientCG (Gravel04) |
| retina | the retina of an eye | Mikael Häggström |
| rocket | a rocket on its launch pad | SpaceX |
| stars | galaxies, the Hubble extreme deep field | NASA |

All are taken from scikit-image, which has more, and saved as JPEG.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsvec.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray


def photo(name: str) -> NDArray[Any]:
    """Returns a photograph as uint8 pixels, (height, width, 3), or (height, width) if it is grey.

    Raises:
        InvalidInputError: There is no photograph of this name.
    """
    import numpy as np
    from PIL import Image

    files = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.jpg"))}
    if name not in files:
        raise InvalidInputError(f"name must be one of {', '.join(files)}. Got {shown(name)} instead")
    with Image.open(files[name]) as image:
        return np.asarray(image)
