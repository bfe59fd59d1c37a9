from hybridiff_compile.share import share


def test_owners_balance_by_size():
    assert share([5, 4, 3, 3], ranks=2) == [0, 1, 1, 0]
    assert share([1, 10, 1], ranks=2) == [1, 0, 1]
    assert share([7], ranks=2) == [0]
    assert share([], ranks=2) == []
    assert share([1, 2, 3], ranks=1) == [0, 0, 0]
