import sys
import types

import pytest

from peas.utils.lazy import lazily


def test_a_renamed_name_works_and_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("toy_package")
    package.__getattr__ = lazily(  # type: ignore[method-assign]
        "toy_package", {"Path": "pathlib"}, {"OldPath": "Path"}
    )
    monkeypatch.setitem(sys.modules, "toy_package", package)
    with pytest.warns(DeprecationWarning, match="toy_package.Path") as caught:
        old = package.OldPath
    assert old is package.Path
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="Other"):
        _ = package.Other
