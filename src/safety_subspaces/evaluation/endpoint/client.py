"""An OpenAI-compatible endpoint (OpenAI, vLLM, SGLang, llama.cpp, ``transformers serve``), asked many things at once.

The ``openai`` package sends, waits and tries again; this module stores each reply as it comes, sends nothing that was
answered before, and says what the rest may cost before anything is sent. A request ends with a text or with the reason
why there is none.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from safety_subspaces.artefacts.errors import InputError
from safety_subspaces.artefacts.extras import check_extra
from safety_subspaces.artefacts.secrets import MASK, mask_of
from safety_subspaces.artefacts.text import encodable
from safety_subspaces.evaluation.endpoint.request_cache import RequestCache, default_cache, key_of
from safety_subspaces.evaluation.settings import EndpointSettings
from safety_subspaces.language.thoughts import MARKS

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

OPENAI_URL = "https://api.openai.com/v1"
CHAT_ROUTE, TEXT_ROUTE = "/chat/completions", "/completions"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
NO_KEY = "none"  # sent to servers that ask for no key
# Bytes of UTF-8 to a token at least, but for emoji: English has about four, and longer letters have more.
BYTES_A_TOKEN = 2
# Tokens that a server's chat template may add to a conversation.
TEMPLATE_TOKENS = 32
# Fields of a request that can be left out, where a server does not know them.
LEFT_OUT = ("response_format", "temperature")
# Status codes that every further request would get as well, and those for a field that the server does not know.
FATAL, UNKNOWN_FIELD = (401, 403, 404), (400, 422)
# Refusals in a row after which every further request is taken to be refused as well.
MOST_REFUSED = 12
# How a server says that a filter of its own stopped a request, or its answer.
FILTERED = re.compile(r"content[_ -]?(?:filter|policy|management)|responsible[_ ]?ai", re.IGNORECASE)
# Characters of a server's own words in a message.
QUOTED = 200
# A key as servers show it, its first and last letters around stars.
STARRED = re.compile(r"[\w.-]*\*{3,}[\w.*-]*")

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One thing to ask.

    Args:
        content: Messages of a chat, or a text to go on with.
        max_tokens: Longest reply.
        schema: JSON schema of the reply, for servers that can hold to one.
    """

    content: str | tuple[Mapping[str, str], ...]
    max_tokens: int
    schema: Mapping[str, Any] | None = None

    @property
    def route(self) -> str:
        """Where it goes."""
        return TEXT_ROUTE if isinstance(self.content, str) else CHAT_ROUTE

    def body(self, model: str) -> dict[str, Any]:
        """Return what is sent: greedy decoding."""
        body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": self.max_tokens}
        body["prompt" if isinstance(self.content, str) else "messages"] = self.content
        if self.schema is not None:
            described = {"name": "reply", "schema": self.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": described}
        return body

    @property
    def tokens_at_most(self) -> int:
        """Tokens of what is sent, counted from above."""
        texts = [self.content] if isinstance(self.content, str) else [m["content"] for m in self.content]
        return TEMPLATE_TOKENS + sum(len(text.encode(errors="replace")) // BYTES_A_TOKEN + 1 for text in texts)


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Args:
        text: The reply; ``None`` where none came.
        reason: Why none came, or that it was cut short; else empty.
    """

    text: str | None
    reason: str = ""


class Endpoint:
    """One model behind an endpoint.

    Args:
        settings: Where it is, and how it may be asked.

    Raises:
        InputError: A setting that cannot be used, a key that is missing, or no client is installed. Nothing is sent.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        check_extra("openai", "an endpoint")
        self.settings = settings
        self.url = (settings.base_url or OPENAI_URL).rstrip("/")
        _check(settings, self.url)
        self._key = _key_for(self.url, settings.api_key_env)
        self._without_key: Callable[[Any], Any] = _same if self._key == NO_KEY else mask_of(self._key)
        self._cache = RequestCache(Path(settings.cache) if settings.cache else default_cache())
        self._spent = 0.0
        self._lost = 0  # connections in a row
        self._in_a_row = 0  # requests that were refused
        self._changed: set[str] = set()  # fields that this server does not know

    def check(self, route: str = CHAT_ROUTE) -> None:
        """See that the endpoint can be reached, takes the key and knows the model.

        Raises:
            InputError: It does not; the message says what to do.
        """
        self._run(lambda client: self._check_model(client, route))

    def most_it_costs(self, requests: Sequence[Request]) -> float | None:
        """Return what requests may cost in US dollars, counted from above; ``None`` without prices.

        What was answered before costs nothing; else a token for every two bytes of text, and the longest reply.
        """
        prices = self.settings.input_price, self.settings.output_price
        if prices[0] is None or prices[1] is None:
            return None
        new = {self._key_of(request): request for request in requests}
        for key in self._cache.find(new):
            del new[key]
        tokens = [(request.tokens_at_most, request.max_tokens) for request in new.values()]
        return sum(prices[0] * sent + prices[1] * returned for sent, returned in tokens) / 1e6

    def check_budget(self, requests: Sequence[Request], times: int = 1) -> None:
        """Refuse requests that may cost more than is left.

        Args:
            requests: The requests.
            times: How often as many as these are to come.

        Raises:
            InputError: They may; nothing was sent.
        """
        most, allowed = self.most_it_costs(requests), self.settings.max_cost
        if most is not None and allowed is not None and self._spent + times * most > allowed:
            raise InputError(
                f"{times * len(requests)} requests to {self.settings.model} may cost up to ${times * most:.4g} beside "
                f"${self._spent:.4g} so far, and max_cost is ${allowed:.4g}: nothing was sent of them. Raise max_cost, "
                "or ask less by limit"
            )

    def ask(self, requests: Sequence[Request], label: str | None = None) -> list[Reply]:
        """Ask everything that was not answered before, and return the replies in order.

        Equal requests are sent once. A reply is kept at once; a request that failed is not, and is sent again the next
        time.

        Args:
            requests: The requests.
            label: What the progress bar calls them; ``None`` for no bar.

        Raises:
            InputError: They may cost more than ``max_cost`` (nothing was sent); or the endpoint refuses every request,
                or is gone: what had come is kept.
        """
        keys = [self._key_of(request) for request in requests]
        replies = {key: _reply_of(self._without_key(entry)) for key, entry in self._cache.find(keys).items()}
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in replies}
        if new:
            unanswered = list(new.values())
            self.check_budget(unanswered)
            cost = self.most_it_costs(unanswered)
            if cost is not None:
                logger.info("%d requests to %s may cost up to $%.4g", len(unanswered), self.settings.model, cost)
            self._spent += cost or 0.0
            replies |= self._run(lambda client: self._ask_new(client, new, label))
        return [replies[key] for key in keys]

    def _key_of(self, request: Request) -> str:
        return key_of({"url": self.url, "route": request.route, "body": request.body(self.settings.model)})

    def _run(self, work: "Callable[[AsyncOpenAI], Awaitable[Result]]") -> Result:
        async def within() -> Result:
            from openai import AsyncOpenAI  # two seconds of import that other analyses need not pay

            settings = self.settings
            client = AsyncOpenAI(
                base_url=self.url, api_key=self._key, timeout=settings.timeout_seconds, max_retries=settings.retries
            )
            async with client:
                return await work(client)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(within())
        with ThreadPoolExecutor(1) as thread:  # a notebook's loop is busy in this one
            return thread.submit(asyncio.run, within()).result()

    async def _ask_new(self, client: "AsyncOpenAI", new: Mapping[str, Request], label: str | None) -> dict[str, Reply]:
        turn = asyncio.Semaphore(self.settings.concurrency)
        replies: dict[str, Reply] = {}
        with tqdm(total=len(new), desc=label, unit="request", disable=label is None, leave=False) as bar:

            async def answer(key: str, request: Request) -> None:
                async with turn:
                    replies[key] = await self._send(client, request, key)
                bar.update()

            try:
                async with asyncio.TaskGroup() as group:  # the first error ends the others
                    for key, request in new.items():
                        group.create_task(answer(key, request))
            except* InputError as errors:
                raise errors.exceptions[0] from None
        return replies

    async def _send(self, client: "AsyncOpenAI", request: Request, key: str | None = None) -> Reply:
        """Send one request until it has an answer, or a reason why there is none."""
        import openai

        body = request.body(self.settings.model)
        while True:
            sent = _changed_body(body, self._changed)
            try:
                answer: Any = await client.post(request.route, cast_to=object, body=sent)
            except openai.APIStatusError as error:
                refused = _unknown_field(error, sent)
                if refused is None:
                    return self._refused(error)
                self._changed.add(refused)
                continue
            except openai.APITimeoutError:
                return Reply(None, f"no reply within {self.settings.timeout_seconds:g} s")
            except openai.APIConnectionError as error:
                return self._lost_connection(error)
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                return Reply(None, f"a reply that could not be read: {self._quoted(error)}")
            self._lost = self._in_a_row = 0
            entry = self._without_key(_cache_entry(answer))  # some servers send back what they were sent
            if entry is None:
                return Reply(None, f"a reply without a text: {self._quoted(answer)}")
            if key is not None and entry["text"].strip():  # what was blank may be asked again
                self._cache.keep(key, entry)
            return _reply_of(entry)

    async def _check_model(self, client: "AsyncOpenAI", route: str) -> None:
        import openai

        names: list[str] = []
        try:
            listed: Any = await client.with_options(max_retries=1).get("/models", cast_to=object)
            names = [str(entry["id"]) for entry in listed["data"]]
        except openai.APIStatusError as error:
            if error.status_code in FATAL[:2]:
                self._refused(error)
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from error
        except (openai.OpenAIError, ValueError, TypeError, KeyError, RecursionError):
            pass  # no list of models: some servers have none
        if self.settings.model in names:
            return
        try:
            content = "Hi" if route == TEXT_ROUTE else ({"role": "user", "content": "Hi"},)
            reply = await self._send(client, Request(content, 1))
        except InputError as error:
            listing = self._quoted(", ".join(names[:5])) or "no models"
            raise InputError(f"{error}. It lists {listing}") from error
        if reply.text is None:
            raise InputError(f"{self.url} did not answer as model {self.settings.model!r}: {reply.reason}")

    def _refused(self, error: "APIStatusError") -> Reply:
        """Give the reason of one refused request; end where every one would be refused."""
        code = error.status_code
        if code in FATAL[:2]:  # what the server says may hold a part of the key
            raise InputError(
                f"{self.url} does not take the key (status {code}); set a valid one in the environment variable "
                f"{self.settings.api_key_env}"
            )
        reason = f"status {code}: {self._quoted(error.body or error)}"
        if code in FATAL:
            raise InputError(f"{self.url} has no model {self.settings.model!r} for such requests ({reason})")
        if error.code == "insufficient_quota":
            raise InputError(f"the account at {self.url} has no credit left ({reason}); what had come is kept")
        if FILTERED.search(reason):
            return Reply(None, f"stopped by the server's content filter ({reason})")
        self._in_a_row += code in UNKNOWN_FIELD
        if self._in_a_row >= MOST_REFUSED:
            raise InputError(
                f"{self.url} refused {self._in_a_row} requests in a row ({reason}); mend what it names. What had come "
                "is kept"
            )
        return Reply(None, reason)

    def _lost_connection(self, error: Exception) -> Reply:
        self._lost += 1
        if self._lost > self.settings.concurrency:
            raise self._unreachable(error) from error
        return Reply(None, "the connection was lost")

    def _unreachable(self, error: Exception) -> InputError:
        cause = self._quoted(error.__cause__ or error)
        return InputError(
            f"{self.url} cannot be reached ({cause}); see that a server runs there, and that base_url ends as it asks, "
            "often in /v1. What had come is kept"
        )

    def _quoted(self, message: object) -> str:
        """Return what a server said, short and without the key or a part of it."""
        text: str = self._without_key(" ".join(_said(message).split()))
        return STARRED.sub(MASK, text)[:QUOTED]


def _same(value: Any) -> Any:
    return value


def _changed_body(body: Mapping[str, Any], changed: set[str]) -> dict[str, Any]:
    """Put a request into the words that a server knows."""
    renamed = {name: value for name, value in body.items() if name not in changed or name not in LEFT_OUT}
    if "max_tokens" in changed:
        renamed["max_completion_tokens"] = renamed.pop("max_tokens")
    return renamed


def _unknown_field(error: "APIStatusError", sent: Mapping[str, Any]) -> str | None:
    """Return the field of a request that a server does not know and that can be left out or renamed."""
    if error.status_code not in UNKNOWN_FIELD:
        return None
    message = _said(error.body).lower()
    if "response_format" in sent and any(word in message for word in ("response_format", "json_schema", "schema")):
        return "response_format"
    if "temperature" in sent and "temperature" in message:
        logger.warning("the server takes no temperature: its answers are samples, and another run has others")
        return "temperature"
    return "max_tokens" if "max_tokens" in sent and "max_completion_tokens" in message else None


def _said(message: object) -> str:
    try:
        return str(message)
    except RecursionError:
        return "something nested too deeply"


def _cache_entry(answer: Any) -> dict[str, Any] | None:
    """Return what the cache stores of a server's answer; ``None`` where it is not of the form that was asked for."""
    try:
        choice = answer["choices"][0]
        text = _text_of(choice["message"]) if "message" in choice else choice["text"]
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    if text is not None and not isinstance(text, str):
        return None
    usage = answer.get("usage")
    counts = {name: count for name, count in usage.items() if isinstance(count, int)} if isinstance(usage, dict) else {}
    return {"text": encodable(text or ""), "finish": str(choice.get("finish_reason")), "usage": counts}


def _text_of(message: Mapping[str, Any]) -> Any:
    """Return what a message says, its thought before it; a refusal that stands in a field of its own is the answer."""
    content = message["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") in ("text", "output_text"))
    if not content and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(thought, str):
        return content
    begin, end = MARKS[0]
    return f"{begin}{thought}{end}\n\n{content}" if content else f"{begin}{thought}"


def _reply_of(entry: Mapping[str, Any]) -> Reply:
    if entry.get("finish") == "content_filter":
        return Reply(None, "stopped by the server's content filter")
    return Reply(entry["text"], "cut short at the longest reply" if entry.get("finish") == "length" else "")


def _check(settings: EndpointSettings, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"base_url {settings.base_url!r}: expected an address such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise InputError("base_url holds credentials or a query; keys come from the environment alone (api_key_env)")
    if not settings.model:
        raise InputError(f"no model named for {url}; say which one it serves by model")
    if settings.concurrency < 1 or settings.retries < 0 or not settings.timeout_seconds > 0:
        raise InputError(
            f"concurrency {settings.concurrency}, retries {settings.retries}, timeout_seconds "
            f"{settings.timeout_seconds}: expected at least 1, at least 0, and above 0"
        )
    prices = (settings.input_price, settings.output_price)
    if settings.max_cost is not None and None in prices:
        raise InputError(
            "max_cost needs input_price and output_price, in US dollars for a million tokens; a server of your own "
            "costs 0"
        )
    if any(value is not None and not value >= 0 for value in (*prices, settings.max_cost)):
        raise InputError(f"prices {prices} and max_cost {settings.max_cost}: expected 0 or more")


def _key_for(url: str, variable: str) -> str:
    key = os.environ.get(variable)
    if key:
        return key
    if urlsplit(url).hostname in LOCAL_HOSTS:
        return NO_KEY
    raise InputError(f"{url} needs a key: set the environment variable {variable}, or name another by api_key_env")
