"""The OpenAPI 3.1 document of a server, built from its route table and the marks of its handlers.

Addresses for servers alone (`InternalHandler`) are left out: they are no API, and change without notice.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any

import msgspec
import tornado.routing
import tornado.web
from msgspec import Meta

from runtime.openapi import Endpoint, Kind, Parameter, Raw, endpoint, kinds_of
from runtime.web import BaseHandler, InternalHandler
from wire.api import REQUEST_ID_HEADER
from wire.errors import (
    BadRequest,
    BodyTooLarge,
    DeviceRevoked,
    ErrorBody,
    IdentityNotLinked,
    ShardboxError,
    Unauthenticated,
    UnsupportedEncoding,
    UpstreamUnavailable,
)

Json = dict[str, Any]

_METHODS = ("get", "put", "post", "patch", "delete")
_GROUP = re.compile(r"\([^()]*\)")
_SECTIONS = re.compile(r"\n(?:Raises|Args|Tx|Source|Invariant):\n")
_SCHEMAS = "#/components/schemas/"
REQUEST_ID = Parameter(
    REQUEST_ID_HEADER,
    "header",
    Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,64}$")],
    "Names the request in the servers' logs.",
)
OWN_REQUEST_ID = Parameter(
    REQUEST_ID_HEADER, "header", str, "An id for this request; one of another form than ours is replaced."
)
RETRY_AFTER = Parameter(
    "Retry-After", "header", Annotated[int, Meta(ge=0)], "Seconds to wait before the next try."
)
RETRY_STATUSES = (429, 503, 507)
"""Their answers always say when to come again."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address."""

    path: str
    method: str
    handler: type[BaseHandler]
    mark: Endpoint
    summary: str
    description: str

    @property
    def operation_id(self) -> str:
        """Unique: the words of the path, after the method if it is not POST, and after a missing version."""
        words = re.findall(r"[a-z]+", self.path.removeprefix("/v1"))
        before = [] if self.method == "post" else [self.method]
        if not self.path.startswith("/v1/") and self.tag != "server":
            before.append("unversioned")
        return "_".join(before + words)

    @property
    def tag(self) -> str:
        """The first word of a path of several; the rest is about the process."""
        found = re.match(r"/([a-z]+)/", self.path.removeprefix("/v1"))
        return found[1] if found else "server"

    @property
    def kinds(self) -> list[Kind]:
        """What its handler has in common with others."""
        return kinds_of(self.handler)

    @property
    def needs_token(self) -> bool:
        """Whether it is for the holders of access tokens alone."""
        return bool(getattr(self.handler, "needs_token", False))

    @property
    def parameters(self) -> list[Parameter]:
        """All of them, the one of every address first."""
        return [OWN_REQUEST_ID, *(p for kind in self.kinds for p in kind.parameters), *self.mark.parameters]

    @property
    def errors(self) -> list[type[ShardboxError]]:
        """What it can be refused with, by status and code."""
        # A body is refused before anybody looks whether the method takes one.
        found: set[type[ShardboxError]] = {BodyTooLarge, UnsupportedEncoding, *self.mark.errors}
        found |= {error for kind in self.kinds for error in kind.errors}
        if self.needs_token:
            found |= {Unauthenticated, DeviceRevoked, IdentityNotLinked, UpstreamUnavailable}
        if self.mark.takes is not None or len(self.parameters) > 1:
            found.add(BadRequest)
        return sorted(found, key=lambda error: (error.status, error.code))


class Unmarked(Exception):
    """A method of an address does not say what it takes and answers."""


def iter_operations(app: tornado.web.Application) -> Iterator[Operation]:
    """Every method of every address in the order of the route table, without those for servers alone.

    Raises:
        Unmarked: one has no mark, or a route's groups are not its path parameters.
    """
    for rule in app.wildcard_router.rules:
        handler = rule.target
        if issubclass(handler, InternalHandler):
            continue
        assert isinstance(rule.matcher, tornado.routing.PathMatches)
        for method in _METHODS:
            function = getattr(handler, method)
            if function is tornado.web.RequestHandler._unimplemented_method:
                continue
            mark = getattr(function, "endpoint", None)
            if not isinstance(mark, Endpoint):
                raise Unmarked(f"{handler.__module__}:{handler.__name__}.{method}")
            path = _format_path(rule.matcher.regex.pattern, mark)
            summary, description = _split_docstring(function)
            yield Operation(path, method, handler, mark, summary, description)


def build_document(title: str, operations: Iterable[Operation]) -> Json:
    """The document as JSON."""
    described = list(operations)
    types = {_Type(item): None for operation in described for item in _json_types(operation)}
    refs, components = msgspec.json.schema_components(
        [known.type for known in types] + [ErrorBody], ref_template=_SCHEMAS + "{name}"
    )
    schemas = _Schemas(dict(zip(types, refs, strict=False)), components)
    paths: Json = {}
    for operation in described:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version("shardbox"), "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in described)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


@dataclass(frozen=True)
class _Type:
    """A type as a key: unions and annotated types are told apart by what they say."""

    type: Any

    def __hash__(self) -> int:
        return hash(repr(self.type))


class _Schemas:
    """The schemas of all bodies of a document."""

    def __init__(self, refs: dict[_Type, Json], components: dict[str, Json]):
        self._refs = refs
        self._components = components
        for schema in components.values():
            if "description" in schema:
                schema["description"] = inspect.cleandoc(schema["description"])

    def of(self, kind: Any) -> Json:
        """The schema of an answer's type."""
        return self._refs[_Type(kind)]

    def of_request(self, kind: Any) -> Json:
        """The schema of a body. Its tag is needed only where there are several to tell apart."""
        tag = getattr(getattr(kind, "__struct_config__", None), "tag_field", None)
        if tag is None:
            return self.of(kind)
        whole = self._components[self.of(kind)["$ref"].removeprefix(_SCHEMAS)]
        return whole | {"required": [name for name in whole["required"] if name != tag]}


def _format_path(pattern: str, mark: Endpoint) -> str:
    names = [parameter.name for parameter in mark.parameters if parameter.where == "path"]
    path = pattern.removesuffix("$").replace("\\", "")
    if len(_GROUP.findall(path)) != len(names):
        raise Unmarked(f"{pattern} has other path parameters than {names}")
    for name in names:
        path = _GROUP.sub("{" + name + "}", path, count=1)
    return path


def _split_docstring(function: Any) -> tuple[str, str]:
    text = _SECTIONS.split(inspect.getdoc(function) or "")[0]
    summary, _, rest = text.partition("\n")
    return summary.removesuffix("."), rest.strip()


def _json_types(operation: Operation) -> Iterator[Any]:
    bodies = (operation.mark.takes, operation.mark.answers, *operation.mark.also.values())
    yield from (body for body in bodies if body is not None and not isinstance(body, Raw))


def _describe(operation: Operation, schemas: _Schemas) -> Json:
    described: Json = {
        "operationId": operation.operation_id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [_describe_parameter(parameter) for parameter in operation.parameters],
        "security": [{"bearer": []}] if operation.needs_token else [],
        "responses": _describe_answers(operation, schemas) | _describe_errors(operation.errors),
    }
    if operation.description:
        described["description"] = operation.description
    takes = operation.mark.takes
    if takes is not None:
        content = _raw_content(takes) if isinstance(takes, Raw) else _json_content(schemas.of_request(takes))
        described["requestBody"] = {"required": not _is_optional(takes), "content": content}
    return described


def _describe_parameter(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.is_required,
        "description": parameter.description,
        "schema": msgspec.json.schema(parameter.type),
    }


def _describe_answers(operation: Operation, schemas: _Schemas) -> Json:
    answers: Json = {}
    for status, body in {200: operation.mark.answers, **operation.mark.also}.items():
        if isinstance(body, Raw):
            answers[str(status)] = _answer(body.description, _raw_content(body), *body.headers)
        elif body is None:
            answers[str(status)] = _answer("Done.", None)
        else:
            text = (inspect.getdoc(body) or "").partition("\n")[0]
            answers[str(status)] = _answer(text or "Done.", _json_content(schemas.of(body)))
    return answers


def _describe_errors(errors: Iterable[type[ShardboxError]]) -> Json:
    by_status: dict[int, list[type[ShardboxError]]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error)
    answers: Json = {}
    for status, found in by_status.items():
        codes = {"type": "object", "properties": {"code": {"enum": [error.code for error in found]}}}
        narrowed = {"type": "object", "properties": {"error": codes}}
        text = "\n".join(f"* `{error.code}`: {inspect.getdoc(error)}" for error in found)
        headers = [RETRY_AFTER] if status in RETRY_STATUSES else []
        schema = {"allOf": [{"$ref": _SCHEMAS + ErrorBody.__name__}, narrowed]}
        answers[str(status)] = _answer(text, _json_content(schema), *headers)
    return answers


def _answer(description: str, content: Json | None, *headers: Parameter) -> Json:
    described: Json = {
        "description": description,
        "headers": {
            header.name: {
                "description": header.description,
                "required": True,
                "schema": msgspec.json.schema(header.type),
            }
            for header in (REQUEST_ID, *headers)
        },
    }
    if content is not None:
        described["content"] = content
    return described


def _json_content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _raw_content(raw: Raw) -> Json:
    schema: Json = {"type": "string", "description": raw.description}
    if not raw.content_type.startswith("text/"):
        schema["format"] = "binary"
    if raw.max_bytes is not None:
        schema["maxLength"] = raw.max_bytes
    return {raw.content_type: {"schema": schema}}


def _is_optional(takes: Any) -> bool:
    """Whether no body means what `{}` does, and that is enough."""
    if isinstance(takes, Raw):
        return False
    try:
        msgspec.json.decode(b"{}", type=takes)
    except msgspec.ValidationError:
        return False
    return True


class OpenApi(msgspec.Struct, frozen=True):
    """An OpenAPI document."""

    openapi: str
    info: dict  # type: ignore[type-arg]
    paths: dict  # type: ignore[type-arg]


class DocumentHandler(BaseHandler):
    """GET /openapi.json"""

    route = "openapi.json"

    def initialize(self, *, title: str, **rest: Any) -> None:  # type: ignore[override]
        """Wired by the route table."""
        super().initialize(**rest)
        self._title = title

    @endpoint(None, OpenApi)
    def get(self) -> None:
        """What this server's addresses take and answer, as OpenAPI 3.1."""
        known = self.application.settings.get("openapi_document")
        if known is None:
            known = msgspec.json.encode(build_document(self._title, iter_operations(self.application)))
            self.application.settings["openapi_document"] = known
        self.finish(known)
