"""What ``analyze.py evaluate`` makes of the names of models: folders, and models behind an endpoint."""

from collections.abc import Mapping

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.endpoint.served import ServedModel, is_served
from safety_subspaces.evaluation.settings import EndpointSettings, EvaluationSettings
from safety_subspaces.language.model_paths import check_model_path


def endpoints_of(
    models: Mapping[str, str], served: EndpointSettings | None, settings: EvaluationSettings
) -> dict[str, ServedModel]:
    """Check every model's name, and return those behind an endpoint."""
    if not models:
        raise InputError("no model given; say --models.<label>=<path>, once or more")
    endpoints = {}
    for label, path in models.items():
        if is_served(path):
            access = served or EndpointSettings()
            endpoints[label] = ServedModel(path, access, settings.template, settings.max_new_tokens)
        else:
            check_model_path(path)
    return endpoints
