"""Print the API's OpenAPI document; ``make reference`` puts it into docs/reference/openapi.json."""

import json
import sys

from banger.daemon.app import make_app
from banger.daemon.openapi import exact

json.dump(exact(make_app(None).openapi_schema.to_schema()), sys.stdout, indent=1, sort_keys=True)
sys.stdout.write("\n")
