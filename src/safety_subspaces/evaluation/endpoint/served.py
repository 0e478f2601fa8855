"""Answers of a model behind an OpenAI-compatible endpoint: ``<base_url>#<model>`` names it where a path could stand."""

from collections.abc import Sequence
from dataclasses import replace

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.evaluation.endpoint.client import CHAT_ROUTE, TEXT_ROUTE, Endpoint, Reply, Request
from safety_subspaces.evaluation.settings import EndpointSettings
from safety_subspaces.language.examples import CHAT
from safety_subspaces.language.prompting import named_template

SCHEMES = ("http://", "https://")
MARK = "#"


def is_served(path: str) -> bool:
    """Tell whether a model is named by an address, and not by a folder or Hub id."""
    return path.startswith(SCHEMES)


class ServedModel:
    """A model behind an endpoint, as one that answers prompts.

    Args:
        name: ``<base_url>#<model>``.
        settings: How it may be asked; its own ``base_url`` and ``model`` do not count.
        template: ``chat``: the server's own chat template; or a named prompt template, filled here and sent as text.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        InputError: A name without a model, an unknown template, or as
            :class:`~safety_subspaces.evaluation.endpoint.client.Endpoint`. Nothing is sent.
    """

    def __init__(self, name: str, settings: EndpointSettings, template: str, max_new_tokens: int) -> None:
        url, _, model = name.partition(MARK)
        if not model:
            raise InputError(
                f"{name}: expected <base_url>{MARK}<model>, such as http://localhost:8000/v1{MARK}my-model"
            )
        if template != CHAT:
            named_template(template)
        self._template, self._max_new_tokens = template, max_new_tokens
        self.endpoint = Endpoint(replace(settings, base_url=url, model=model))

    def prepare(self, prompts: Sequence[str]) -> None:
        """See that the model answers, and that it may be asked all prompts.

        Raises:
            InputError: It cannot be reached, does not know the model, or might cost more than is allowed.
        """
        self.endpoint.check_budget([self._request(prompt) for prompt in prompts])
        self.endpoint.check(CHAT_ROUTE if self._template == CHAT else TEXT_ROUTE)

    def answer(self, prompts: Sequence[str], label: str | None = None) -> list[Reply]:
        """Answer each prompt greedily, as far as the server decodes so at temperature 0.

        Raises:
            InputError: As :meth:`~safety_subspaces.evaluation.endpoint.client.Endpoint.ask`.
        """
        return self.endpoint.ask([self._request(prompt) for prompt in prompts], label)

    def _request(self, prompt: str) -> Request:
        if self._template == CHAT:
            return Request(({"role": "user", "content": prompt},), self._max_new_tokens)
        return Request(named_template(self._template).format(prompt=prompt), self._max_new_tokens)
