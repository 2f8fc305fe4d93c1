"""The Hugging Face hub: download files of a repository, upload files to one, and errors as users see them.

Only this module uses huggingface_hub, whose settings hold: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError, FastDPSError, WeightsMismatchError
from fastdps.metric.weight_sources import UnavailableError

#: The start of an address, where a path or a name may be given too.
PREFIX = "hub:"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(rf"{PREFIX}({_REPOSITORY.pattern})(?:@([\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class HubAddress:
    """A repository, and a revision of it.

    Attributes:
        repository: The owner and the name, "user/name".
        revision: A branch, a tag or a commit; None for the newest commit of the main branch.
    """

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Return the address that a text states.

        Args:
            text: "hub:user/name" or "hub:user/name@revision".

        Raises:
            ConfigError: The text has another form.

        Example:
            >>> HubAddress.parse("hub:anna/food@v1")
            HubAddress(repository='anna/food', revision='v1')
        """
        if found := _ADDRESS.fullmatch(text):
            return cls(found[1], found[2])
        raise ConfigError(f"{text} is not an address on the hub: give hub:user/name or hub:user/name@revision.")

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Score:
    """A score in the metadata of a model card.

    Attributes:
        data: What was scored.
        name: The name of the score.
        value: Its value.
    """

    data: str
    name: str
    value: float


def check_repository(name: str) -> None:
    """Raise `ConfigError` unless a name has the form "user/name"."""
    if not _REPOSITORY.fullmatch(name):
        raise ConfigError(f"{name!r} is not the name of a repository on the hub: give user/name.")


def download(address: HubAddress, file: str) -> tuple[Path, HubAddress]:
    """Return a file of a repository, from the cache if that has it or if the hub cannot be reached.

    Args:
        address: The repository and its revision.
        file: The path in the repository.

    Returns:
        The path in the cache, and the address with the commit that it is of.

    Raises:
        ConfigError: huggingface_hub is not installed, or the repository or the revision does not exist.
        FastDPSError: The file does not exist, or the hub cannot be reached and the cache does not have it.
    """
    hub = _library()
    with _errors(str(address), file):
        path = Path(hub.hf_hub_download(address.repository, file, revision=address.revision, library_name="fastdps"))
    depth = file.count("/")  # CACHE/models--user--name/snapshots/COMMIT/FILE
    return path, replace(address, revision=path.parents[depth].name)


def pretrained_file(repository: str, file: str, *, from_cache: bool) -> Path:
    """Return a file of pretrained weights, whose hash is checked.

    Args:
        repository: "user/name".
        file: The path in the repository.
        from_cache: Look in the cache only; otherwise download the file if the cache does not have it.

    Returns:
        The path in the cache.

    Raises:
        UnavailableError: The cache does not have it, or the hub cannot be reached or has no such file.
        WeightsMismatchError: The file in the cache is damaged.
    """
    try:
        path = Path(_library().hf_hub_download(repository, file, local_files_only=from_cache))
    except (OSError, ValueError) as error:
        reason = f"{repository} is not in it" if from_cache else str(error).splitlines()[0]
        raise UnavailableError(reason) from error
    expected = path.resolve().name  # the cache names what it downloads after its sha256
    if _SHA256.fullmatch(expected):
        with path.open("rb") as content:
            actual = hashlib.file_digest(content, "sha256").hexdigest()
        if actual != expected:
            raise WeightsMismatchError(
                f"{path} is damaged: its sha256 is {actual}, not {expected}. Remove it; it is then downloaded again."
            )
    return path


def upload(
    repository: str,
    files: Mapping[str, Path],
    message: str,
    *,
    private: bool | None = None,
    tag: str | None = None,
    token: str | None = None,
) -> tuple[str, str]:
    """Create a repository if it does not exist, and upload files in one commit.

    Args:
        repository: "user/name".
        files: The files by their paths in the repository.
        message: The title of the commit.
        private: Only its owner sees a new repository; None for the default of the owner.
        tag: A tag to give to the commit.
        token: A token that may write; None for $HF_TOKEN or the one of `hf auth login`.

    Returns:
        The commit and its URL.

    Raises:
        ConfigError: huggingface_hub is not installed, or there is no token.
        FastDPSError: The hub cannot be reached, or does not accept the files.
    """
    hub = _library()
    if not (token or hub.get_token()):
        raise ConfigError(
            f"Pushing to {repository} needs a token that may write. Log in with `hf auth login`, or set HF_TOKEN; "
            "tokens are made at https://huggingface.co/settings/tokens."
        )
    api = hub.HfApi(token=token, library_name="fastdps")
    with _errors(f"{PREFIX}{repository}"):
        api.create_repo(repository, private=private, exist_ok=True)
        added = [hub.CommitOperationAdd(name, path) for name, path in files.items()]
        commit = api.create_commit(repository, added, commit_message=message)
        if tag is not None:
            api.create_tag(repository, tag=tag, revision=commit.oid)
    return commit.oid, commit.commit_url


def front_matter(name: str, licence: str, tags: Sequence[str], scores: Sequence[Score]) -> str:
    """Return the metadata of a model card, in YAML between lines of dashes.

    Args:
        name: The name of the model.
        licence: The identifier of a licence on the hub, such as "apache-2.0"; "other" refers to the card.
        tags: Words that the hub finds it by.
        scores: Its scores.
    """
    hub = _library()
    results = [
        hub.EvalResult(
            task_type="image-similarity",
            dataset_type=score.data.lower().replace(" ", "-"),  # the library merges scores of the same type
            dataset_name=score.data,
            metric_type="accuracy",
            metric_name=score.name,
            metric_value=round(score.value, 6),
        )
        for score in scores
    ]
    other = {"license_name": "see-model-card", "license_link": "README.md"} if licence == "other" else {}
    options: dict[str, Any] = {"model_name": name, "eval_results": results} if results else {}
    data = hub.ModelCardData(license=licence, **other, library_name="fastdps", tags=list(tags), **options)
    return f"---\n{data.to_yaml()}\n---\n"


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(f"The hub needs huggingface_hub ({error}): pip install 'fastdps[hub]'.") from error
    return huggingface_hub


@contextmanager
def _errors(address: str, file: str | None = None) -> Iterator[None]:
    """Turn errors of huggingface_hub into those of fastdps, which say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigError(f"{address} is only for people whom its owner admits: ask for access on its page.") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{address} does not exist, or is private. Check the name; for a private one log in with `hf auth login`, "
            "or set HF_TOKEN to a token that may read it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{address} does not exist: the repository has no such branch, tag or commit.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        offline = isinstance(error, errors.OfflineModeIsEnabled) or _is_offline()
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        what = "nothing can be pushed" if file is None else f"{file} of it is not in the cache of this machine"
        raise FastDPSError(
            f"{address}: {why}, and {what}. "
            + ("Unset HF_HUB_OFFLINE, or load it once where it is not set." if offline else "Check the network.")
        ) from error
    except errors.EntryNotFoundError as error:
        raise FastDPSError(
            f"{address} has no file {file}: it is not a metric of fastdps. Metrics are pushed with `fastdps export RUN "
            "--push user/name`."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = " The token may not write there: check its permissions." if status in (401, 403) else ""
        raise FastDPSError(f"{address}: the hub refuses with status {status}: {_line(error)}.{hint}") from error
    except FastDPSError:
        raise
    except Exception as error:  # versions of huggingface_hub have HTTP libraries with types of their own
        cause = f" ({_line(error.__cause__)})" if error.__cause__ else ""
        raise FastDPSError(
            f"{address}: the request to the hub failed: {_line(error)}{cause}. Check the network."
        ) from error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _line(error: BaseException) -> str:
    """Return the message of an error on one line, without the dot at its end."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
