"""JSON by the interpreter's own C helpers: the ``json`` package imports ``re``, which is too slow to start in a guest."""

from _json import encode_basestring_ascii, make_scanner


class _Context:
    """What the scanner asks about how to make values."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name):
        raise ValueError(name)


_scan = make_scanner(_Context)  # type: ignore[arg-type]
_SPACE = " \t\n\r"


def decode(data):
    """The value of the JSON text in the bytes ``data``; ValueError (or RecursionError, if it is nested too deeply)."""
    text = data.decode("utf-8").strip(_SPACE)
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):
        # Where ``json`` is not imported the scanner cannot make its own error.
        raise ValueError("malformed") from None
    if end != len(text):
        raise ValueError("more than one value")
    return value


def encode(value):
    """``value`` (dict with str keys, list, tuple, str, int, float, bool, None) as JSON text in ASCII bytes."""
    return _text(value).encode("ascii")


def _text(value):
    if isinstance(value, str):
        return encode_basestring_ascii(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{%s}" % ",".join(
            "%s:%s" % (encode_basestring_ascii(k), _text(v)) for k, v in value.items()
        )
    return "[%s]" % ",".join(map(_text, value))
