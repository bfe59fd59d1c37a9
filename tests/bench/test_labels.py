import itertools

from hybridiff_compile.bench.labels import place

BOUNDS = (0.0, 0.0, 200.0, 100.0)


def boxes(corners, sizes):
    pairs = zip(corners, sizes, strict=True)
    return [(c[0], c[1], c[0] + w, c[1] + h) for c, (w, h) in pairs if c is not None]


def apart(a, b):
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_a_label_stands_to_the_right_of_its_point_on_its_line():
    assert place([(50.0, 50.0)], [(40.0, 10.0)], BOUNDS) == [(56.0, 45.0)]


def test_at_the_right_edge_it_stands_to_the_left():
    assert place([(190.0, 50.0)], [(40.0, 10.0)], BOUNDS) == [(144.0, 45.0)]


def test_labels_of_close_points_cover_neither_each_other_nor_a_point():
    anchors, sizes = [(100.0, 50.0), (104.0, 53.0), (150.0, 52.0)], [(45.0, 11.0)] * 3
    corners = place(anchors, sizes, BOUNDS)
    assert None not in corners
    placed = boxes(corners, sizes)
    assert all(apart(a, b) for a, b in itertools.combinations(placed, 2))
    for x, y in anchors:
        assert all(apart(box, (x - 3, y - 3, x + 3, y + 3)) for box in placed)
    for left, bottom, right, top in placed:
        assert 0 <= left < right <= 200
        assert 0 <= bottom < top <= 100


def test_a_label_does_not_lie_on_the_line():
    line = [(50.0, 50.0), (180.0, 48.0)]
    ((x, y),) = (c for c in place(line[:1], [(40.0, 10.0)], BOUNDS, line) if c is not None)
    assert y > 50 or y + 10 < 48 or x + 40 < 50


def test_a_label_without_room_is_left_out():
    corners = place([(100.0, 50.0)] * 30, [(90.0, 20.0)] * 30, BOUNDS)
    assert corners[0] is not None
    assert None in corners
    placed = boxes(corners, [(90.0, 20.0)] * 30)
    assert all(apart(a, b) for a, b in itertools.combinations(placed, 2))
