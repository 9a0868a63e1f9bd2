"""Settings: documented groups; `midwatch.config` reads them, once, at the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from midwatch.units import Bytes, Ratio, Seconds

DEFAULT_FILE = "midwatch.yaml"
DEFAULT_MODEL = "claude-sonnet-5-5"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Group(BaseModel):
    """A group of settings: frozen, and an unknown name in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class AnthropicSettings(Group):
    """How Claude is reached."""

    model: str = Field(DEFAULT_MODEL, description="The model that diagnoses.")
    api_key_file: Path | None = Field(
        None, description="A file with the key; ANTHROPIC_API_KEY comes first."
    )
    timeout: Seconds = Field(
        300.0,
        gt=0,
        description="Wall clock of one call. The SDK's own limit counts per read.",
    )
    max_tokens: int = Field(
        8000, gt=0, le=128000, description="Longest answer, in tokens."
    )


class AgentSettings(Group):
    """The daemon that diagnoses."""

    poll_interval: Seconds = Field(
        10.0, gt=0, description="Wait between two polls of an empty queue."
    )
    concurrency: int = Field(1, ge=1, le=64, description="Calls in flight per daemon.")
    max_attempts: int = Field(
        5, ge=1, le=100, description="Tries before the error is stored as diagnosis."
    )
    daily_budget_usd: float | None = Field(
        20.0, ge=0, description="Dollars per UTC day; null for no limit."
    )
    critical_reserve: Ratio = Field(
        0.25, ge=0, le=1, description="Share of the budget kept for critical tickets."
    )
    lease: Seconds = Field(
        30.0,
        ge=1,
        description="A claim that is not renewed for this time is free again.",
    )
    grace: Seconds = Field(
        3.0, ge=0, le=4, description="What a call in flight gets at a stop."
    )
    rate_limit_pause: Seconds = Field(
        60.0, gt=0, description="Pause after a 429 that names no time."
    )
    auth_probe_interval: Seconds = Field(
        60.0, gt=0, description="Wait between probes while the key is refused."
    )
    backoff: Seconds = Field(
        15.0, gt=0, description="First wait after a failed call; doubles each time."
    )
    backoff_max: Seconds = Field(
        900.0, gt=0, description="Longest wait after a failed call."
    )
    outage_after: int = Field(
        3, ge=1, description="Failed calls in a row before the daemon pauses."
    )
    outage_pause: Seconds = Field(
        60.0, gt=0, description="The pause of an outage, as long as it lasts."
    )
    context_tokens: int = Field(
        24000, ge=1000, description="Budget for evidence, in tokens."
    )


class MonitorSettings(Group):
    """The daemon that watches."""

    interval: Seconds = Field(30.0, gt=0, description="Wait between two cycles.")
    group_wait: Seconds = Field(
        10.0,
        ge=0,
        description="Violations within this time of each other are one incident.",
    )
    unobservable_after: int = Field(
        3, ge=1, description="Failed checks in a row before that is a ticket itself."
    )
    flapping_openings: int = Field(
        3, ge=2, description="Openings within flapping_window that mark a ticket."
    )
    flapping_window: Seconds = Field(
        3600.0, gt=0, description="The period that flapping_openings are counted in."
    )
    first_aid_timeout: Seconds = Field(
        0.8, gt=0, description="Longest wait for evidence before first aid is written."
    )


class InvariantSettings(Group):
    """What a subject's settings may change of one invariant."""

    enabled: bool = Field(True, description="Whether it is watched.")
    limit: str | float | None = Field(
        None, description="In the invariant's unit: 10s, 90%, 2GB, 5."
    )
    hold_for: Seconds | None = Field(
        None,
        alias="for",
        description="How long it must be broken before a ticket opens.",
    )
    severity: Literal["critical", "warning", "info"] | None = Field(
        None, description="Instead of the invariant's own."
    )


class RepositorySettings(Group):
    """A repository that sessions work in."""

    url: str = Field(min_length=1, description="Where it is cloned from.")
    branch: str | None = Field(
        None, description="Where a session starts; null for the repository's default."
    )


class SubjectSettings(Group):
    """What every subject has; each kind adds its own."""

    name: Name = Field(description="What tickets call it; no two have the same.")
    kind: Name = Field(description="Which of the kinds below it is.")
    timeout: Seconds = Field(10.0, gt=0, description="Wall clock of one observation.")
    invariants: dict[str, InvariantSettings] = Field(
        default_factory=dict,
        description="What is other than the default, by invariant.",
    )
    repositories: list[RepositorySettings] = Field(
        default_factory=list,
        description="Where `midwatch session fix` works on its tickets, the main one first.",
    )


class GitCredentialSettings(Group):
    """A token for a Git host. The value itself never stands in the file."""

    host: str = Field(
        description="Scheme and host, such as https://github.com.", min_length=1
    )
    username: str = Field(
        "x-access-token", description="The user beside the token; GitLab wants its own."
    )
    token_variable: Name | None = Field(
        None, description="The environment variable that holds the token."
    )
    token_file: Path | None = Field(
        None, description="A file that holds the token and nothing else."
    )


class SubagentSettings(Group):
    """A subagent that Claude may give work to."""

    description: str = Field(description="When Claude should use it.")
    prompt: str = Field(description="Its instructions.")
    tools: list[str] | None = Field(None, description="Its tools; null for all.")
    model: str | None = Field(None, description="Its model; null for the session's.")


class SessionSettings(Group):
    """Sessions of Claude Code: what each may do, for how long, and where it is kept."""

    model: str = Field(DEFAULT_MODEL, description="The model that works.")
    fallback_model: str | None = Field(
        None, description="The model when that one is overloaded."
    )
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much the model thinks; null for its own default."
    )
    permission_mode: Literal[
        "default", "acceptEdits", "plan", "dontAsk", "bypassPermissions", "auto"
    ] = Field(
        "acceptEdits",
        description="What is done without asking. What asks waits for permission_wait.",
    )
    allowed_tools: list[str] = Field(
        default_factory=list,
        description="Tools that need no permission, such as Bash or Bash(git log:*).",
    )
    denied_tools: list[str] = Field(
        default_factory=list, description="Tools that Claude does not get."
    )
    mcp_servers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="MCP servers by name, as Claude Code has them.",
    )
    subagents: dict[str, SubagentSettings] = Field(
        default_factory=dict, description="Subagents by name."
    )
    variables: dict[str, str] = Field(
        default_factory=dict,
        description="Added to the environment that is built for the session; Bash sees them.",
    )
    trust_repository: bool = Field(
        False,
        description="Load the repositories' own .claude settings, hooks and .mcp.json, which run what they say.",
    )
    sandbox: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Bash in a sandbox: where there can be one, or always, or never.",
    )
    max_turns: int | None = Field(
        None, ge=1, description="Calls of the API in one turn; null for no limit."
    )
    max_usd: float | None = Field(
        None, gt=0, description="Dollars of a whole session; null for no limit."
    )
    wall: Seconds | None = Field(
        3600.0, gt=0, description="Longest run; null for no limit."
    )
    idle: Seconds | None = Field(
        900.0,
        gt=0,
        description="Longest time in which nothing happens in a turn; null for no limit.",
    )
    retries: int = Field(
        6, ge=0, le=100, description="Retries of a failed call of the API."
    )
    permission_wait: Seconds = Field(
        300.0, gt=0, description="A request without an answer for this time is denied."
    )
    folder: Path | None = Field(
        None,
        description="Where sessions and their workspaces are; null for ~/.local/state/midwatch.",
    )
    cache_folder: Path | None = Field(
        None,
        description="Where mirrors of repositories are; null for ~/.cache/midwatch.",
    )
    cache_size: Bytes = Field(
        20_000_000_000, ge=0, description="Mirrors above this go, the oldest use first."
    )
    keep_for: Seconds | None = Field(
        30 * 86400.0,
        ge=0,
        description="`midwatch session prune` removes what ended longer ago; null for nothing.",
    )
    keep_bytes: Bytes | None = Field(
        50_000_000_000,
        ge=0,
        description="It removes the oldest until this is left; null for no limit.",
    )
    git: list[GitCredentialSettings] = Field(
        default_factory=list, description="Tokens by host; without one, SSH or public."
    )


class KeyReference(Group):
    """A key of a Kubernetes secret. The value itself never stands in the file."""

    name: str = Field(min_length=1, max_length=253, description="The secret.")
    key: str = Field(
        "ANTHROPIC_API_KEY",
        min_length=1,
        max_length=253,
        description="The key in it that holds the value.",
    )


class OperatorSettings(Group):
    """The operator, which runs `AgenticSession` resources as Jobs in Kubernetes."""

    kubeconfig: Path | None = Field(
        None, description="How the cluster is reached; null for the pod's own account."
    )
    context: str | None = Field(
        None, description="The context in it; null for the current one."
    )
    namespaces: list[str] = Field(
        default_factory=list, description="Where sessions are run; empty for all."
    )
    image: str | None = Field(
        None, description="The image that runs a session; without one, none is run."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None, description="When the image is pulled; null for Kubernetes' own rule."
    )
    image_pull_secrets: list[str] = Field(
        default_factory=list, description="Secrets for the registry, by name."
    )
    api_key_secret: KeyReference | None = Field(
        None,
        description="The Claude key, where a resource names none; in the session's namespace.",
    )
    base_url: str | None = Field(
        None, description="Where the Claude API is; null for Anthropic's own."
    )
    model: str | None = Field(
        None,
        description="The model of a resource that names none; null for sessions.model.",
    )
    variables: dict[str, str] = Field(
        default_factory=dict,
        description="Environment variables of every session; a resource's own win.",
    )
    storage: Literal["ephemeral", "claim"] = Field(
        "ephemeral",
        description="The workspace: the pod's own disk, or a volume claim per session.",
    )
    claim_size: str = Field(
        "20Gi", description="Size of a claim, as Kubernetes writes it."
    )
    storage_class: str | None = Field(
        None, description="Class of a claim; null for the cluster's default."
    )
    workspace_size: str | None = Field(
        "20Gi",
        description="Most that a pod's own disk may hold; above it the pod is evicted. null for no limit.",
    )
    content_url: str | None = Field(
        None, description="Where the content proxy is; null for none."
    )
    content_key_file: Path | None = Field(
        None,
        description="A file with the key that signs tokens, shared with the proxy.",
    )
    resources: dict[str, Any] = Field(
        default_factory=lambda: {
            "requests": {"cpu": "500m", "memory": "1Gi"},
            "limits": {"memory": "4Gi"},
        },
        description="Requests and limits of a session that names none.",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels of the nodes that sessions run on."
    )
    tolerations: list[dict[str, Any]] = Field(
        default_factory=list, description="Tolerations of a session's pod."
    )
    service_account_annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of each session's account."
    )
    pod_labels: dict[str, str] = Field(
        default_factory=dict, description="Labels added to each session's pod."
    )
    image_pull_grace: Seconds = Field(
        120.0, ge=0, description="How long an image may fail to be pulled."
    )
    unschedulable_grace: Seconds = Field(
        600.0, ge=0, description="How long a pod may wait for a node."
    )
    termination_grace: Seconds = Field(
        60.0, ge=1, description="What a pod gets to save itself when it is stopped."
    )
    deadline_margin: Seconds = Field(
        180.0,
        ge=0,
        description="What a pod gets after the session's timeout to push, save and report, before the Job's deadline.",
    )
    idle_margin: Seconds = Field(
        60.0,
        ge=0,
        description="How long after the idle limit the operator stops a session that did not stop itself.",
    )
    job_ttl: Seconds = Field(
        3600.0, ge=0, description="How long a finished Job and its log are kept."
    )
    sync_interval: Seconds = Field(
        5.0, gt=0, description="A pod's wait between two pushes of its workspace."
    )
    status_interval: Seconds = Field(
        5.0, gt=0, description="A pod's wait between two writes of an unchanged phase."
    )
    request_timeout: Seconds = Field(
        30.0, gt=0, description="Wall clock of one request to the API server."
    )
    watch_timeout: Seconds = Field(
        300.0, gt=0, description="A watch is opened again after this time."
    )
    watch_silence: Seconds = Field(
        70.0,
        gt=0,
        description="A watch that is silent for this time counts as broken; the server sends a bookmark each minute.",
    )
    backoff: Seconds = Field(
        2.0, gt=0, description="First wait after a failed request; doubles each time."
    )
    backoff_max: Seconds = Field(
        60.0, gt=0, description="Longest wait after a failed request."
    )
    concurrency: int = Field(
        16, ge=1, le=256, description="Sessions that are worked on at the same time."
    )
    host: str = Field("0.0.0.0", description="Address for probes and Prometheus.")
    port: int | None = Field(
        8080,
        ge=0,
        le=65535,
        description="Its port: /healthz, /readyz and /metrics; 0 for any, null for none.",
    )


class ContentSettings(Group):
    """The content proxy: a volume behind HTTP, where the workspaces of sessions outlive their pods."""

    root: Path = Field(
        Path("content"), description="The folder on the volume that it keeps all in."
    )
    host: str = Field(
        "127.0.0.1", description="The address it listens on; 0.0.0.0 in a pod."
    )
    port: int = Field(
        8080, ge=0, le=65535, description="Its port; 0 for any, which the log shows."
    )
    key_file: Path | None = Field(
        None,
        description="Keys that tokens are signed with, one a line: the first signs, all verify. Read again when it changes.",
    )
    max_entries: int = Field(
        500_000,
        ge=1,
        description="Files, folders and symlinks of one session; some 400 bytes of memory each while in use.",
    )
    max_size: Bytes = Field(
        20_000_000_000,
        ge=1,
        description="Bytes of all files of one session; on the volume it may take twice that, with what was replaced.",
    )
    max_body: Bytes = Field(
        134_217_728,
        ge=1024,
        description="Bytes of a JSON request; a commit of 500,000 files has some 80 MB.",
    )
    max_streams: int = Field(
        16,
        ge=1,
        description="Uploads, downloads and commits at a time; each takes some 10 MB. Others wait.",
    )
    max_waiting: int = Field(
        4000, ge=1, description="Requests that wait for a change at a time."
    )
    cache_size: Bytes = Field(
        67_108_864, ge=0, description="Memory for manifests that were used last."
    )
    request_time: Seconds = Field(
        60.0,
        gt=0,
        description="Longest time for a request's head, its JSON, a chunk of it, or for an answer that is not read.",
    )
    wait: Seconds = Field(
        60.0,
        gt=0,
        description="Longest wait for a change, whatever a request asks for.",
    )
    grace: Seconds = Field(
        20.0, ge=0, description="What requests in flight get at a stop."
    )
    collect_interval: Seconds = Field(
        900.0,
        gt=0,
        description="Wait between two searches for chunks that nothing needs.",
    )
    collect_grace: Seconds = Field(
        3600.0,
        ge=0,
        description="How long a chunk is kept that no manifest names: uploads need it.",
    )
    keep_for: Seconds | None = Field(
        None,
        ge=3600,
        description="Remove the folder of a session that was neither read nor written for this time, such as 90d; null keeps all.",
    )


class MetricsSettings(Group):
    """A port of monitor and agent for Prometheus and for probes: `/metrics` and `/healthz`, without a token."""

    host: str = Field(
        "127.0.0.1", description="The address it listens on; 0.0.0.0 in a pod."
    )
    port: int | None = Field(
        None, ge=0, le=65535, description="Its port; 0 for any, null for none."
    )


class LogSettings(Group):
    """What the daemons write to standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least that is written."
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: JSON unless the log goes to a terminal."
    )


class Settings(Group):
    """All settings. `subjects` stay as written until their kinds are built."""

    database: str = Field(
        "sqlite:///midwatch.db",
        description="sqlite:///FILE, sqlite:// (memory) or postgresql://USER@HOST/DB.",
    )
    anthropic: AnthropicSettings = AnthropicSettings()
    agent: AgentSettings = AgentSettings()
    monitor: MonitorSettings = MonitorSettings()
    sessions: SessionSettings = SessionSettings()
    operator: OperatorSettings = OperatorSettings()
    content: ContentSettings = ContentSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    subjects: list[dict[str, Any]] = Field(
        default_factory=list, description="The systems that are watched, see below."
    )
