"""Requests made from the OpenAPI document, right ones and wrong ones: no error of the server."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.slow
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_as_documented(server, talk, subtests, mode):
    # Not by schemathesis' own parametrize: it reads an attribute that pytest 9 does not have.
    document = schemathesis.openapi.from_url(f"{server.server.address}/openapi.json")
    operations = [each.ok() for each in document.get_all_operations()]
    if mode is GenerationMode.NEGATIVE:  # the others have nothing that could be wrong
        operations = [each for each in operations if each.method == "post"]
    labels = {each.label for each in operations}
    assert labels >= {"POST /v1/audio/transcriptions", "POST /v1/audio/translations"}
    statuses = set()
    for operation in operations:

        @settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answer(case):
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
                case.body.update(file=talk.read_bytes(), model="whisper-1")
            response = case.call(timeout=60)
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        with subtests.test(operation.label):
            answer()
    assert statuses & ({200} if mode is GenerationMode.POSITIVE else {400, 415}), statuses
