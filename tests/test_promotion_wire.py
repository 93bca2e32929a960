"""openpi's frames as untrusted bytes, and what is read out of them."""

from __future__ import annotations

import tracemalloc

import msgpack
import numpy as np
import pytest

from rl_finetune.promotion.serving.reading import Body, Reader, RequestError, bodies
from rl_finetune.promotion.serving.wire import DTYPES, IGNORED, MAX_CONTAINERS, WireError, decode, encode

PICTURE = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
READER = Reader({"widowx": Body("widowx", ("ego",), 10)})


def array(data: bytes, dtype: object, shape: object, **more: object) -> bytes:
    """A frame with one array in it, spelt out."""
    said = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"x": said | {name.encode(): value for name, value in more.items()}})


def scalar(data: object, dtype: str) -> bytes:
    """A frame with one numpy scalar in it."""
    return msgpack.packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype})


def nested(depth: int) -> bytes:
    """Lists within lists."""
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize("name", DTYPES)
def test_every_plain_dtype_comes_back_to_the_bit(name):
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(name)
    back = decode(encode({"x": values, "one": values[0, 1]}))
    assert back["x"].dtype == np.dtype(name) and np.array_equal(back["x"], values)
    plain = name == "<f8"  # numpy's float64 is a float, and travels as one
    assert type(back["one"]) is (float if plain else np.dtype(name).type) and back["one"] == values[0, 1]


def test_frames_are_spelt_as_openpi_spells_them():
    frame = encode({"actions": np.array([[1.5]], np.float32), "n": np.int64(3)})
    assert msgpack.unpackb(frame) == {
        "actions": {b"__ndarray__": True, b"data": b"\x00\x00\xc0\x3f", b"dtype": "<f4", b"shape": [1, 1]},
        "n": {b"__npgeneric__": True, b"data": 3, b"dtype": "<i8"},
    }


def test_arrays_that_are_not_contiguous_or_big_endian_here_travel_by_value():
    values = np.arange(6, dtype=">f4").reshape(2, 3).T
    back = decode(encode({"x": values}))["x"]
    assert back.dtype.str == "<f4" and np.array_equal(back, values)


@pytest.mark.parametrize("value", [np.array([object()]), np.array(["text"]), np.array([1j]), {1, 2}])
def test_what_is_no_plain_number_is_not_sent(value):
    with pytest.raises(TypeError, match="does not travel"):
        encode({"x": value})


def test_an_array_is_a_view_of_the_frame_and_cannot_be_written():
    assert not decode(encode({"x": PICTURE}))["x"].flags.writeable


REFUSED = {
    "nothing": b"",
    "no msgpack": b"\xc1",
    "cut off": encode({"x": PICTURE})[:-1],
    "something after it": encode({"x": 1}) + b"\x00",
    "bytes that are too few": array(b"123", "|u1", [4]),
    "bytes that are too many": array(b"12345", "|u1", [4]),
    "a shape whose product runs over 64 bits": array(b"", "|u1", [2**32, 2**32, 4]),
    "a shape of zero elements that numpy cannot hold": array(b"", "|u1", [0, 2**63, 2**63]),
    "a negative axis": array(b"1", "|u1", [-1]),
    "an axis of no whole number": array(b"1", "|u1", [1.0]),
    "a true axis": array(b"1", "|u1", [True]),
    "too many axes": array(b"1", "|u1", [1] * 9),
    "a shape that is a text": array(b"1", "|u1", "1"),
    "objects": array(b"12345678", "|O", [1]),
    "complex numbers": array(b"12345678", "<c8", [1]),
    "void": array(b"1234", "|V4", [1]),
    "texts that are none": array(b"\xff\xff\xff\x7f", "<U1", [1]),
    "texts without end": array(bytes(4 * 5000), "<U5000", []),
    "a dtype of texts without a length": array(b"", "<U0", []),
    "times": array(b"12345678", "<M8[s]", [1]),
    "structured numbers": array(b"12345678", "f4,f4", [1]),
    "a list of fields": array(b"1234", [["a", "<f4"]], [1]),
    "big-endian numbers": array(b"1234", ">f4", [1]),
    "data that is a text": msgpack.packb({b"__ndarray__": True, b"data": "1", b"dtype": "|u1", b"shape": [1]}),
    "an array with something else in it": array(b"1", "|u1", [1], evil=1),
    "an array that is not quite one": msgpack.packb({b"__ndarray__": 1, b"data": b"1", b"dtype": "|u1", b"shape": [1]}),
    "a number beyond its dtype": scalar(256, "|u1"),
    "a fraction in a whole dtype": scalar(1.5, "<i4"),
    "a truth in a whole dtype": scalar(True, "<i4"),
    "a scalar of objects": scalar(1, "|O"),
    "an extension": msgpack.packb({"x": msgpack.ExtType(5, b"abc")}),
    "an empty extension": msgpack.packb({"x": msgpack.ExtType(5, b"")}),
    "a timestamp": msgpack.packb({"x": msgpack.Timestamp(1)}),
    "a text that is no UTF-8": b"\x81\xa1x\xa2\xff\xfe",
    "a text that is long": msgpack.packb({"x": "a" * 16_385}),
    "a key that is a number": msgpack.packb({1: 2}),
    "a key that is a list": b"\x81\x91\x01\x01",
    "five containers within each other": nested(5),
    "a thousand containers within each other": nested(1000),
    "a hundred thousand containers within each other": nested(100_000),
    "a list that says it has four billion entries": b"\xdd\xff\xff\xff\xff",
    "a map that says it has four billion entries": b"\xdf\xff\xff\xff\xff",
    "bytes that say they are four billion": b"\xc6\xff\xff\xff\xff",
    "an extension that says it has four billion bytes": b"\xc9\xff\xff\xff\xff\x01",
    "many small containers": msgpack.packb([[[] for _ in range(200)] for _ in range(200)]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    with pytest.raises(WireError, match=r"got .+; expected .+") as caught:
        decode(REFUSED[what])
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


REACH = ("reach", b"reach", np.str_("reach"), np.array("reach"), np.array(["reach"]), np.array(b"reach"), ["reach"])


@pytest.mark.parametrize("prompt", REACH, ids=repr)
def test_a_prompt_is_read_in_whatever_way_a_client_packs_a_text(prompt):
    frame = msgpack.packb({"observation/image": packed(PICTURE), "prompt": packed(prompt)})
    assert READER.read(decode(frame, READER.keys)).prompt == "reach"


def packed(value: object) -> object:
    """As openpi's client packs it, which lets texts in arrays through."""
    if not isinstance(value, np.ndarray):
        return value
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)}


NOT_READ = {
    "texts": packed(np.array(["put the cube away", "open the door"])),
    "a long list": list(range(1000)),
    "a picture as lists": np.zeros((40, 40, 3), int).tolist(),
    "a long text": "a" * 100_000,
    "a picture in bytes": bytes(100_000),
    "dates": packed(np.array(["2026-01-01"], "M8[D]")),
    "complex numbers": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<c8", b"shape": [1]},
    "an extension": msgpack.Timestamp(1),
    "a map with numbers for keys": {1: 2, 3: {4: 5}},
    "a map of everything": {"camera": {"intrinsics": [[1.0] * 300], "names": packed(np.array(["a", "b"]))}},
    "lists in lists": [[[[[[[[1]]]]]]]],
}


@pytest.mark.parametrize("what", NOT_READ)
@pytest.mark.parametrize("place", ["beside", "among the pictures"])
def test_what_nobody_reads_may_be_anything(what, place):
    """A robot's client also sends what this policy does not look at."""
    extra, good = {"other": NOT_READ[what]}, packed(PICTURE)
    beside = {"prompt": "reach", "observation/image": good} | extra
    among = {"prompt": "reach", "images": {"ego": good} | extra}
    frame = msgpack.packb(beside if place == "beside" else among, strict_types=False)
    reading = READER.read(decode(frame, READER.keys))
    assert np.array_equal(reading.images["ego"][1:9], PICTURE) and reading.prompt == "reach"
    assert decode(frame, {"prompt": None})["other" if place == "beside" else "images"] is IGNORED


@pytest.mark.parametrize("what", ["no msgpack", "cut off", "something after it"])
def test_a_frame_that_is_none_is_refused_though_nobody_reads_it(what):
    with pytest.raises(WireError, match=r"frame: got .+; expected"):
        decode(REFUSED[what], {"prompt": None})


def test_numbers_may_be_arrays_of_one():
    said = message(time=np.array([2.5]), reset=np.array(True), episode=np.array([[3]]), seed=np.array(9))
    reading = READER.read(said | {"embodiment": np.array("widowx")})
    assert (reading.time, reading.reset, reading.episode, reading.seed) == (2.5, True, 3, 9)


def test_a_frame_is_refused_before_it_costs_much_memory():
    """Four million containers, of which each costs 56 bytes once it is made, in a frame of four megabytes."""
    bomb = b"\xdc\x00\xc8" + (b"\xdc\x00\xc8" + (b"\xdc\x00\xc8" + b"\x90" * 200) * 200) * 100
    tracemalloc.start()
    with pytest.raises(WireError, match=f"more than {MAX_CONTAINERS} maps and lists"):
        decode(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(bomb) + 2_000_000  # a copy of the frame, and no more


def test_random_bytes_and_single_flips_never_do_anything_but_be_refused_or_decoded():
    rng = np.random.default_rng(0)
    good = encode({"observation/image": PICTURE, "prompt": "reach", "seed": np.int64(4)})
    for _ in range(3000):
        frame = bytearray(good)
        for place in rng.integers(len(good), size=rng.integers(1, 4)):
            frame[place] = rng.integers(256)
        for candidate in (bytes(frame), rng.bytes(rng.integers(1, 60))):
            try:
                READER.read(decode(candidate))
            except (WireError, RequestError) as error:
                assert "expected" in str(error)


def message(**changes: object) -> dict[str, object]:
    """A good message with changes; None takes a key away."""
    said = {"observation/image": PICTURE, "prompt": "reach"} | {k.replace("__", "/"): v for k, v in changes.items()}
    return {key: value for key, value in said.items() if value is not None}


def test_a_reading_is_typed_and_its_picture_has_the_policys_size():
    reading = READER.read(message(time=np.float64(2.5), reset=np.True_, episode=3, seed=np.uint8(9)))
    assert (reading.prompt, reading.embodiment, reading.time) == ("reach", "widowx", 2.5)
    assert (reading.reset, reading.episode, reading.seed) == (True, 3, 9)
    seen = reading.observation()
    assert seen.images["ego"].shape == (1, 10, 10, 3) and len(seen) == 1
    # 8 rows of 10: nothing is scaled, and one row of black stands above and below
    assert np.array_equal(seen.images["ego"][0, 1:9], PICTURE)
    assert not seen.images["ego"][0, [0, 9]].any()


@pytest.mark.parametrize(
    "shown",
    [{"ego": PICTURE}, {"observation/ego": PICTURE}, {"observation/image": PICTURE}, {"images": {"ego": PICTURE}}],
)
def test_a_view_is_found_under_each_of_its_names(shown):
    said = {"prompt": "reach", "observation/state": np.zeros(7), "unknown": [1, {"a": 2}]} | shown
    assert np.array_equal(READER.read(said).images["ego"][1:9], PICTURE)


def test_channels_first_floats_and_wide_numbers_are_the_same_picture():
    want = READER.read(message()).images["ego"]
    for other in (PICTURE.transpose(2, 0, 1), PICTURE / 255, (PICTURE / 255).astype(np.float32), PICTURE.astype("<i4")):
        assert np.array_equal(READER.read(message(observation__image=other)).images["ego"], want)


BAD = {
    "no dict": ([1], "'?message"),
    "no picture": (message(observation__image=None), "picture of view 'ego'"),
    "two pictures": (message(ego=PICTURE), "two"),
    "a text for a picture": (message(observation__image="x"), "an array"),
    "two axes": (message(observation__image=PICTURE[0]), "shape"),
    "four channels": (message(observation__image=np.zeros((8, 8, 4), np.uint8)), "shape"),
    "no pixels": (message(observation__image=np.zeros((0, 8, 3), np.uint8)), "0 x 8"),
    "a strip": (message(observation__image=np.zeros((8, 3000, 3), np.uint8)), "8 x 3000"),
    "a depth": (message(observation__image=PICTURE.astype(np.int32) * 9), "int32 within 0..2.15e+03"),
    "truth values": (message(observation__image=PICTURE > 5), "truth values"),
    "grey": (message(observation__image=np.zeros((8, 8), np.uint8)), "shape (8, 8)"),
    "NaN": (message(observation__image=np.where(PICTURE == 5, np.nan, 0.5)), "NaN or infinity"),
    "infinity": (message(observation__image=np.where(PICTURE == 5, np.inf, 0.5)), "NaN or infinity"),
    "floats to 255": (message(observation__image=PICTURE.astype(np.float32)), "239"),
    "no prompt": (message(prompt=None), "'prompt': got nothing"),
    "an empty prompt": (message(prompt=""), "'prompt': got ''"),
    "two prompts": (message(prompt=np.array(["reach", "lift"])), "array"),
    "a prompt of bytes that are no text": (message(prompt=b"\xff\xfe"), "'prompt'"),
    "a long prompt": (message(prompt="a" * 501), "501 characters"),
    "a prompt with a special token": (message(prompt="<|image_pad|>"), "without"),
    "a prompt of two lines": (message(prompt="reach\nstop"), "printable line"),
    "another robot": (message(embodiment="franka"), "one of widowx"),
    "a robot that is a list": (message(embodiment=["widowx"]), "one of widowx"),
    "a time that is none": (message(time=float("nan")), "finite"),
    "a time that is true": (message(time=True), "'time'"),
    "a reset that is a number": (message(reset=1), "'reset'"),
    "a negative seed": (message(seed=-1), "'seed'"),
    "a seed beyond 63 bits": (message(seed=2**63), "'seed'"),
    "a seed that is true": (message(seed=True), "'seed'"),
    "an episode that is a fraction": (message(episode=1.0), "'episode'"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_names_key_got_and_expected(what):
    said, names = BAD[what]
    with pytest.raises(RequestError, match=r"got .+; expected .+") as caught:
        READER.read(said)
    assert names.strip("'?") in str(caught.value)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_the_embodiment_must_be_named_where_there_are_several():
    two = Reader(bodies({"embodiments": {n: {"views": ["ego"], "image_size": 10} for n in ("a", "b")}}))
    with pytest.raises(RequestError, match="got nothing; expected one of a, b"):
        two.read(message())
    assert two.read(message(embodiment="b")).embodiment == "b"
