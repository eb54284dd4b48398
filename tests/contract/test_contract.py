"""Every operation of every server, asked in many ways, answers as its document says.

Each operation is answered at least CONTRACT_EXAMPLES times: 20 in `make test`, 500 in `make test-contract`.

Of Schemathesis's checks that look at one answer, two are left out: `positive_data_acceptance`, as a schema
tells types and bounds, and the rules for paths, ids, hashes and content are beyond it, so what is drawn from
it may well be refused; and `negative_data_rejection`, as what was drawn is changed here before it is sent:
`assert_fits` holds what is really sent against the schema.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from ops.api_page import empty_apps
from runtime.document import Json, build_document, iter_operations
from tests.contract.world import TIMEOUT_S, World, hash_of, weave, weave_bytes
from tests.support.dev import DevCluster
from tests.support.waiting import wait_for
from wire.blocks import PACK_CONTENT_TYPE

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("own_passfile")]

EXAMPLES = int(os.environ.get("CONTRACT_EXAMPLES", "20"))
REPORT = Path("build/test/contract.json")
CHECK_NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
SPARE = {"/v1/files/delete": "", "/v1/files/restore": "/back"}
"""What is deleted is a spare folder, and what is restored comes back in one: the rest stays to be found."""
WITHOUT_SUCCESS = {
    "/v1/devices/link_identity",  # takes a token of an outside issuer: tests/integration has one
}
TOO_MANY = 429
"""Strangers may ask less often than a fast machine does; whoever comes again after Retry-After is served.
A 503 is a failure: one request is under way at a time, and no server has too much to do."""
LOSES_DEVICES = {"/v1/devices/revoke", "/v1/devices/refresh"}
"""Asked with the token and the ids of an account that has nothing else to lose."""


def load_documents() -> dict[str, Json]:
    """What the servers' code says; a test holds the running servers to it."""
    apps = empty_apps()
    titles = {
        name: next(r.target_kwargs["title"] for r in app.wildcard_router.rules if "title" in r.target_kwargs)
        for name, app in apps.items()
    }
    return {name: build_document(titles[name], iter_operations(app)) for name, app in apps.items()}


DOCUMENTS = load_documents()
SCHEMAS = {name: schemathesis.openapi.from_dict(document) for name, document in DOCUMENTS.items()}
OPERATIONS = [
    pytest.param(name, path, method, id=f"{name} {method} {path}")
    for name, document in DOCUMENTS.items()
    for path, methods in document["paths"].items()
    for method in methods
]


schemathesis.serializer.alias(PACK_CONTENT_TYPE, "application/octet-stream")


@pytest.fixture(scope="module")
def world(shared_cluster: DevCluster, own_passfile: None) -> World:
    return World.make(shared_cluster)


@pytest.fixture(scope="module")
def tally() -> Iterator[dict[str, Counter[str]]]:
    """Answers by operation and status, written down at the end."""
    counts: dict[str, Counter[str]] = {}
    yield counts
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n")


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_a_server_serves_its_document(name: str, world: World):
    answer = world.session.get(f"{world.urls[name]}/openapi.json", timeout=TIMEOUT_S)
    assert answer.json() == DOCUMENTS[name]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "path", "method"), OPERATIONS)
def test_an_operation_keeps_its_contract(name: str, path: str, method: str, world: World, tally):
    load_all_checks()
    checks = [CHECKS.get_one(check) for check in CHECK_NAMES]
    operation = SCHEMAS[name][path][method.upper()]
    described = DOCUMENTS[name]["paths"][path][method]
    fits_body = make_validator(DOCUMENTS[name], described)
    needs_token = bool(described["security"])
    statuses: Counter[str] = tally.setdefault(f"{name} {method.upper()} {path}", Counter())

    def answer_of(case: Case, headers: dict[str, str]) -> schemathesis.Response | None:
        answer = case.call(world.urls[name], session=world.session, headers=headers, timeout=TIMEOUT_S)
        statuses[str(answer.status_code)] += 1
        if answer.status_code != TOO_MANY:
            return answer
        case.validate_response(answer, checks=checks)
        assert answer.headers["retry-after"]
        return None

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a failure is shown as it was met: shrinking asks thousands of times more
        suppress_health_check=list(HealthCheck),
    )
    @given(case=draw_cases(operation), rng=st.randoms(use_true_random=False))
    def ask(case: Case, rng: Random) -> None:
        prepare(case, world, rng)
        if path in SPARE and isinstance(case.body, dict) and isinstance(case.body.get("path"), str):
            case.body = case.body | {"path": rng.choice(world.values["spare"]) + SPARE[path]}
        token = choose_token(path, world, rng)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = wait_for(lambda: answer_of(case, headers), "an answer of a server that is not busy")
        case.validate_response(answer, checks=checks)
        if answer.status_code < 400:
            assert_fits(described, case, fits_body)
        if needs_token and token in (None, BROKEN_TOKEN):
            assert answer.status_code == 401
        if path in LOSES_DEVICES and answer.status_code in (200, 401):
            world.replace_lost()

    world.restock()
    # max_examples is an upper bound: an operation of few distinct inputs is asked the same again.
    while statuses.total() - statuses[str(TOO_MANY)] < EXAMPLES:
        ask()
    if path not in WITHOUT_SUCCESS and EXAMPLES >= 100:
        assert any(status < "300" for status in statuses), f"never past {statuses}"


def make_validator(document: Json, described: Json) -> jsonschema.Draft202012Validator | None:
    """Tells whether a body fits its schema; None: it is not JSON."""
    media = described.get("requestBody", {}).get("content", {}).get("application/json")
    if media is None:
        return None
    return jsonschema.Draft202012Validator(media["schema"] | {"components": document["components"]})


def assert_fits(described: Json, case: Case, body: jsonschema.Draft202012Validator | None) -> None:
    """What was accepted is what the schemas allow."""
    for parameter in described["parameters"]:
        places = {"path": case.path_parameters, "query": case.query, "header": case.headers}
        given_there = places[parameter["in"]] or {}
        if parameter["name"] in given_there:
            jsonschema.validate(given_there[parameter["name"]], parameter["schema"])
        else:
            assert not parameter["required"], parameter["name"]
    if body is not None and isinstance(case.body, dict | list):
        body.validate(case.body)


BROKEN_TOKEN = ".".join(["unsigned"] * 3)


def draw_cases(operation: schemathesis.APIOperation) -> st.SearchStrategy[Case]:
    """Requests that fit the schemas, and some that do not where that is possible."""
    if any(media.media_type != "application/json" for media in operation.body):
        return operation.as_strategy(body=b"", media_type=next(iter(operation.body)).media_type)
    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if any(media.media_type == "application/json" for media in operation.body):
        return fitting | fitting | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    return fitting


def choose_token(path: str, world: World, rng: Random) -> str | None:
    """Mostly a valid one; of a device that may be lost where the address loses devices."""
    drawn = rng.random()
    if drawn > 0.9:
        return None
    if drawn > 0.85:
        return BROKEN_TOKEN
    linked = world.victim if path in LOSES_DEVICES else world.owner
    return linked.device.access_token


def prepare(case: Case, world: World, rng: Random) -> None:
    """Put what is really there into the request."""
    for part in (case.path_parameters, case.query):
        for key in list(part or ()):
            part[key] = weave(part[key], world, rng, key)
    if isinstance(case.body, bytes):
        case.body = weave_bytes(world, rng)
        if "grant" in (case.path_parameters or {}) and rng.random() < 0.7:
            case.body = world.granted
        if "hash" in (case.path_parameters or {}) and rng.random() < 0.6:
            case.path_parameters["hash"] = hash_of(case.body)
    elif isinstance(case.body, dict | list):
        case.body = weave(case.body, world, rng)
