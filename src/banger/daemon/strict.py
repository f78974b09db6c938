"""JSON bodies are read as the document says: Litestar would take ``"2"`` for a number and 0 for false."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import ValidationException

from banger.api.malformed import NOT_JSON
from banger.model.compat import override


def _number(text: str) -> int | float:
    """To JSON Schema 2.0 is an integer (draft 2020-12, 6.1.1)."""
    number = float(text)
    return int(number) if number.is_integer() else number


_DECODER = msgspec.json.Decoder(float_hook=_number)


class StrictRequest(Request[Any, Any, Any]):
    """A request whose body is of the handler's type before Litestar converts it."""

    @override
    async def json(self) -> Any:
        """The body; ValidationException (400) says what is wrong with it and where."""
        try:
            value = _DECODER.decode(await self.body() or b"null")
            field = self.route_handler.parsed_fn_signature.parameters.get("data")
            if field is not None:
                msgspec.convert(value, field.annotation)
        except NOT_JSON as error:
            raise ValidationException(str(error)) from error
        return value
