from __future__ import annotations

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkit.nn.embedding import TTShape


def quiet(*args: object, **kwargs: object) -> TTShape:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return TTShape.auto(*args, **kwargs)  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.integers(1, 400), st.integers(1, 10**9)),
    st.integers(1, 300),
    st.integers(2, 6),
    st.integers(1, 64),
)
def test_any_table_gets_a_shape_with_little_padding(rows: int, width: int, d: int, rank: int) -> None:
    shape = quiet(rows, width, num_cores=d, rank=rank)
    assert rows <= shape.capacity <= 1.05 * rows + 1e-6
    assert math.prod(shape.column_factors) == width
    assert list(shape.row_factors) == sorted(shape.row_factors)
    assert list(shape.column_factors) == sorted(shape.column_factors, reverse=True)
    modes = [p * q for p, q in zip(shape.row_factors, shape.column_factors, strict=True)]
    for k in range(d + 1):
        assert 1 <= shape.ranks[k] <= min(math.prod(modes[:k]), math.prod(modes[k:]))
        assert shape.ranks[k] <= rank


@given(st.integers(2_000, 10**8), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_large_tables_have_nearly_equal_row_factors(rows: int, d: int) -> None:
    p = quiet(rows, 16, num_cores=d, rank=1).row_factors
    assert p[-1] <= 2 * rows ** (1 / d)
    assert p[0] >= rows ** (1 / d) / 2


@pytest.mark.parametrize(
    ("rows", "rank", "p", "q", "parameters", "ratio"),
    [
        (169_343, 8, (55, 55, 56), (8, 4, 4), 19_392, 1118),
        (169_343, 16, (55, 55, 56), (8, 4, 4), 66_944, 324),
        (169_343, 32, (55, 55, 56), (8, 4, 4), 246_528, 88),
        (169_343, 64, (55, 55, 56), (8, 4, 4), 943_616, 23),
        (2_449_029, 8, (125, 140, 140), (4, 5, 5), 54_400, 4502),
        (2_449_029, 16, (125, 140, 140), (4, 5, 5), 198_400, 1234),
        (2_449_029, 32, (125, 140, 140), (4, 5, 5), 755_200, 324),
        (111_059_956, 8, (480, 500, 500), (8, 4, 4), 174_720, 81_363),
        (111_059_956, 16, (480, 500, 500), (8, 4, 4), 605_440, 23_480),
        (111_059_956, 64, (480, 500, 500), (8, 4, 4), 8_565_760, 1660),
    ],
)
def test_parameters_of_published_configurations(
    rows: int, rank: int, p: tuple[int, ...], q: tuple[int, ...], parameters: int, ratio: int
) -> None:
    width = math.prod(q)
    shape = TTShape.auto(rows, width, rank=rank, row_factors=p, column_factors=q)
    assert shape.num_parameters == parameters
    assert round(rows * width / shape.num_parameters) == ratio


def test_arxiv_gets_its_published_factors() -> None:
    shape = TTShape.auto(169_343, 128, rank=8)
    assert shape.row_factors == (55, 55, 56)
    assert shape.column_factors == (8, 4, 4)
    assert shape.ranks == (1, 8, 8, 1)


def test_the_last_row_factor_leaves_room_for_orthogonality() -> None:
    assert TTShape.auto(169_343, 128, rank=16).row_factors[-1] == 16 * 4
    assert TTShape.auto(2_708, 64, rank=8).column_factors == (8, 4, 2)  # 17 >= 8 * 2; 14 < 8 * 4
    # Four times an equal share would be too much.
    assert TTShape.auto(169_343, 128, rank=64).row_factors == (55, 55, 56)


def test_ranks_that_cannot_matter_are_cut_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"ranks \[50, 50\] are cut to \[6, 8\]"):
        shape = TTShape.auto(24, 12, rank=50, row_factors=[2, 3, 4], column_factors=[3, 2, 2])
    assert shape.ranks == (1, 6, 8, 1)


def test_given_factors_set_the_number_of_cores() -> None:
    assert TTShape.auto(100, 16, rank=2, row_factors=[10, 10]).num_cores == 2
    assert TTShape.auto(100, 16, rank=2, column_factors=[2, 2, 2, 2]).num_cores == 4
    shape = TTShape.auto(100, 16, rank=[2, 3], row_factors=[4, 5, 6], column_factors=[4, 2, 2])
    assert shape.core_shapes == [(4, 1, 4, 2), (5, 2, 2, 3), (6, 3, 2, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_embeddings": 0}, "num_embeddings is 0"),
        ({"embedding_dim": 0}, "embedding_dim is 0"),
        ({"num_cores": 1}, "num_cores is 1"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": [2, 2, 2]}, "rank is"),
        ({"row_factors": [4, 4, 4]}, "row_factors are"),
        ({"row_factors": [10, 10, 0]}, "row_factors are"),
        ({"row_factors": [10, 10], "column_factors": [2, 2, 4]}, "column_factors are"),
        ({"column_factors": [3, 2, 2]}, "column_factors are"),
        ({"max_padding": -0.1}, "max_padding is"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TTShape.auto(**({"num_embeddings": 100, "embedding_dim": 16, "rank": 2} | arguments))  # type: ignore[arg-type]
