"""The models: `/v1/models`."""

from typing import Any

from fastapi import APIRouter, Request

from whisper_npu.server.authentication import KEY
from whisper_npu.server.documentation import errors
from whisper_npu.server.models import FIRST_MODEL, ServedModel
from whisper_npu.server.schemas import ModelInfo, ModelList
from whisper_npu.server.service import service_of

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=list(KEY))


@router.get("", summary="List the models", responses=errors(401))
async def list_models(request: Request) -> ModelList:
    """Every name that a request may use, aliases included."""
    registry = service_of(request).models
    return ModelList(data=[_info(name, registry.get(name)) for name in registry.names])


@router.get("/{model}", summary="Describe a model", responses=errors(401, 404))
async def retrieve_model(request: Request, model: str) -> ModelInfo:
    """One model, or what an alias means."""
    return _info(model, service_of(request).models.get(model))


def _info(name: str, served: ServedModel) -> ModelInfo:
    details: dict[str, Any] = {"state": served.state}
    if name == FIRST_MODEL and served.name != name:
        details["alias_of"] = served.name
    model = served.loaded
    if model is not None:
        details |= {
            "device": model.backend.device,
            "precision": model.backend.precision,
            "is_multilingual": model.is_multilingual,
            "has_word_times": model.can_align,
        }
    return ModelInfo(id=name, created=served.created, whisper_npu=details)
