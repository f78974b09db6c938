"""The ASGI application: handlers, problems, OpenAPI."""

from __future__ import annotations

from litestar import Litestar
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig

from banger.daemon.handlers import audit, disks, logs, streams
from banger.daemon.handlers.events import events
from banger.daemon.handlers.forwards import ForwardController
from banger.daemon.handlers.images import ImageController
from banger.daemon.handlers.info import info, metrics
from banger.daemon.handlers.operations import OperationController
from banger.daemon.handlers.plans import PlanController
from banger.daemon.handlers.vms import VmController
from banger.daemon.openapi import ExactJson, state_methods
from banger.daemon.problems import HANDLERS
from banger.daemon.service import Service
from banger.daemon.strict import StrictRequest
from banger.daemon.told import telling

MAX_JSON_BYTES = 1 << 20


def make_app(service: Service | None) -> Litestar:
    """The application over ``service``; None for one that only describes itself."""

    def provide() -> Service | None:
        return service

    return Litestar(
        route_handlers=[
            VmController,
            ForwardController,
            ImageController,
            OperationController,
            PlanController,
            info,
            metrics,
            events,
            *streams.HANDLERS,
            *logs.HANDLERS,
            *disks.HANDLERS,
            *audit.HANDLERS,
        ],
        dependencies={"service": Provide(provide, sync_to_thread=False)},
        exception_handlers=HANDLERS,
        before_send=[state_methods, *([telling(service)] if service else [])],
        request_class=StrictRequest,
        request_max_body_size=MAX_JSON_BYTES,
        signature_namespace={"Service": Service},
        openapi_config=OpenAPIConfig(
            title="banger",
            version="1",
            description="Disposable development machines on one Linux host.",
            path="/",
            render_plugins=[ExactJson(path="/openapi.json")],
            use_handler_docstrings=True,
        ),
        logging_config=None,
    )
