"""Settings: documented groups of values, which `midwatch.config` reads once, at the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from midwatch.change_settings import ChangeSettings
from midwatch.notification_settings import NotificationSettings
from midwatch.provider import Provider
from midwatch.pull_request_settings import ForgeSettings, PullRequestSettings
from midwatch.runbook_settings import RunbookSettings
from midwatch.schedule_settings import (
    ScheduleSettings,
    SubjectRepositorySettings,
    one_of_each_name,
)
from midwatch.server_settings import ServerSettings
from midwatch.setting_group import Bytes
from midwatch.setting_group import Group as Group
from midwatch.setting_group import Name as Name
from midwatch.setting_group import PortChecked, Ratio, Sandbox, Seconds, Url
from midwatch.settings_file import DEFAULT_DATABASE
from midwatch.telemetry_settings import TelemetrySettings
from midwatch.units import parse_duration

DEFAULT_MODEL = "claude-sonnet-5-5"


class AnthropicSettings(Group):
    """The Messages API."""

    provider: Provider = Field(
        "anthropic",
        description="Whose API diagnoses and sessions use: anthropic (or a gateway), bedrock or vertex.",
    )
    model: str = Field(DEFAULT_MODEL, description="The model that writes diagnoses.")
    api_key_file: Path | None = Field(
        None, description="A file with the key; ANTHROPIC_API_KEY takes precedence."
    )
    timeout: Seconds = Field(
        300.0,
        gt=0,
        description="Timeout of a whole call. The SDK's own timeout counts per read.",
    )
    max_tokens: int = Field(
        8000, gt=0, le=128000, description="Longest answer, in tokens."
    )


class AgentSettings(Group):
    """The daemon that diagnoses tickets."""

    poll_interval: Seconds = Field(
        10.0, gt=0, description="Wait between two polls of an empty queue."
    )
    concurrency: int = Field(1, ge=1, le=64, description="Calls in flight per daemon.")
    max_attempts: int = Field(
        5,
        ge=1,
        le=100,
        description="Attempts without an answer before a ticket is given up.",
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
        description="A claim that is not renewed within this time expires.",
    )
    grace: Seconds = Field(
        3.0, ge=0, le=4, description="Time that a call in flight gets after a stop."
    )
    rate_limit_pause: Seconds = Field(
        60.0, gt=0, description="Pause after a 429 without a retry-after."
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
        60.0, gt=0, description="Pause during an outage, repeated until it ends."
    )
    context_tokens: int = Field(
        24000, ge=1000, description="Budget for evidence, in tokens."
    )


class InvestigationSettings(Group):
    """What Claude may ask of the systems, by read-only tools, to make one diagnosis."""

    rounds: int = Field(
        4,
        ge=0,
        le=20,
        description="Messages in which Claude may ask, before it has to answer; 0 for none.",
    )
    calls: int = Field(
        12,
        ge=0,
        le=200,
        description="Calls of tools; those of one message run at once.",
    )
    tokens: int = Field(
        100_000,
        ge=1000,
        description="Tokens of all requests and answers; after them nothing more is asked.",
    )
    call_tokens: int = Field(
        2000, ge=100, description="Longest evidence of one call, in tokens."
    )
    time: Seconds = Field(
        180.0, gt=0, description="Time after which nothing more is asked."
    )
    usd: float = Field(
        2.0,
        ge=0,
        description="Dollars at worst, with the last answer. The budget of the day holds as well.",
    )


class MonitorSettings(Group):
    """The daemon that checks subjects and opens tickets."""

    interval: Seconds = Field(30.0, gt=0, description="Wait between two cycles.")
    lease: Seconds = Field(
        90.0,
        ge=1,
        description="How long a monitor that does not answer keeps its subjects before other monitors take them over.",
    )
    group_wait: Seconds = Field(
        10.0,
        ge=0,
        description="Violations within this time of each other are one incident.",
    )
    unobservable_after: int = Field(
        3,
        ge=1,
        description="Failed observations in a row before a ticket opens for it.",
    )
    flapping_openings: int = Field(
        3,
        ge=2,
        description="Openings within flapping_window that mark a ticket as flapping.",
    )
    flapping_window: Seconds = Field(
        3600.0, gt=0, description="The period that flapping_openings are counted in."
    )
    first_aid_timeout: Seconds = Field(
        0.8, gt=0, description="Longest wait for evidence before first aid is written."
    )


class InvariantSettings(Group):
    """Changes to one invariant in a subject's settings."""

    enabled: bool = Field(True, description="Whether it is checked.")
    limit: str | float | None = Field(
        None, description="In the invariant's unit: 10s, 90%, 2GB, 5."
    )
    hold_for: Seconds | None = Field(
        None,
        alias="for",
        description="How long it must be broken before a ticket opens.",
    )
    severity: Literal["critical", "warning", "info"] | None = Field(
        None, description="Replaces the invariant's own."
    )
    ignore: list[dict[str, str]] | None = Field(
        None,
        description="What it leaves out, instead of its own defaults. Each entry maps attributes to shell "
        "patterns, which must all match: `{application: pg_dump, role: 'backup_*'}`.",
    )


class SubjectSettings(Group):
    """Settings of every subject; each kind adds its own."""

    name: Name = Field(description="Its name in tickets; unique.")
    kind: Name = Field(description="One of the kinds below.")
    timeout: Seconds = Field(10.0, gt=0, description="Timeout of one observation.")
    interval: Seconds | None = Field(
        None,
        ge=1,
        le=86400,
        description="Wait between two observations; null for monitor.interval.",
    )
    depends_on: list[Name] = Field(
        default=[],
        description="Names of the subjects that it needs. What opens on both within group_wait is one incident, and "
        "their state is evidence. Links that show themselves (one address, one machine) need no entry.",
    )
    invariants: dict[str, InvariantSettings] = Field(
        default={},
        description="Changes to the defaults, by invariant.",
    )
    repositories: list[SubjectRepositorySettings] = Field(
        default=[],
        description="The repositories in which `midwatch session fix` works, the main one first. Their commits and tags are changes.",
    )


class GitCredentialSettings(Group):
    """A token for a Git host. The value itself is never in the file."""

    host: PortChecked = Field(
        description="Scheme and host, such as https://github.com, and a path if the token is for one: "
        "https://github.com/my-org.",
        min_length=1,
    )
    username: str = Field(
        "x-access-token",
        description="The user name with the token; GitLab needs its own.",
    )
    token_variable: Name | None = Field(
        None, description="The environment variable that holds the token."
    )
    token_file: Path | None = Field(
        None, description="A file that contains only the token."
    )


class SubagentSettings(Group):
    """A subagent that Claude may delegate work to."""

    description: str = Field(description="When Claude should use it.")
    prompt: str = Field(description="Its instructions.")
    tools: list[str] | None = Field(None, description="Its tools; null for all.")
    model: str | None = Field(None, description="Its model; null for the session's.")


class SessionSettings(Group):
    """Sessions of Claude Code: permissions, limits and storage."""

    model: str = Field(DEFAULT_MODEL, description="The model of a session.")
    fallback_model: str | None = Field(
        None, description="The model to use when `model` is overloaded."
    )
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="The model's reasoning effort; null for its default."
    )
    permission_mode: Literal[
        "default", "acceptEdits", "plan", "dontAsk", "bypassPermissions", "auto"
    ] = Field(
        "acceptEdits",
        description="Which tools need no permission. A request for permission waits for permission_wait.",
    )
    allowed_tools: list[str] = Field(
        default=[],
        description="Tools that need no permission, such as Bash or Bash(git log:*).",
    )
    denied_tools: list[str] = Field(
        default=[], description="Tools that Claude may not use."
    )
    mcp_servers: dict[str, dict[str, Any]] = Field(
        default={},
        description="MCP servers by name, in the format of Claude Code.",
    )
    subagents: dict[str, SubagentSettings] = Field(
        default={}, description="Subagents by name."
    )
    variables: dict[str, str] = Field(
        default={},
        description="Environment variables added to the session's own; Bash sees them.",
    )
    trust_repository: bool = Field(
        False,
        description="Load the repositories' own .claude settings, hooks and .mcp.json. They can run any program.",
    )
    sandbox: Sandbox = Field(
        "auto",
        description="Run Bash in a sandbox: auto where one works, on (the session fails without one) or off.",
    )
    max_turns: int | None = Field(
        None, ge=1, description="API calls in one turn; null for no limit."
    )
    max_usd: float | None = Field(
        None, gt=0, description="Dollars of a whole session; null for no limit."
    )
    wall: Seconds | None = Field(
        3600.0, gt=0, description="Longest run time; null for no limit."
    )
    idle: Seconds | None = Field(
        900.0,
        gt=0,
        description="Longest time without an event in a turn; null for no limit.",
    )
    retries: int = Field(6, ge=0, le=100, description="Retries of a failed API call.")
    permission_wait: Seconds = Field(
        300.0,
        gt=0,
        description="A request for permission without an answer in this time is denied.",
    )
    folder: Path | None = Field(
        None,
        description="Folder of sessions and their workspaces; null for $XDG_STATE_HOME/midwatch, else ~/.local/state/midwatch.",
    )
    cache_folder: Path | None = Field(
        None,
        description="Folder of repository mirrors; null for $XDG_CACHE_HOME/midwatch, else ~/.cache/midwatch.",
    )
    cache_size: Bytes = Field(
        20_000_000_000,
        ge=0,
        description="Size of all mirrors; above it the least recently used are removed.",
    )
    keep_for: Seconds | None = Field(
        30 * 86400.0,
        ge=0,
        description="`midwatch session prune` removes sessions that ended longer ago; null keeps all.",
    )
    keep_bytes: Bytes | None = Field(
        50_000_000_000,
        ge=0,
        description="`midwatch session prune` removes the oldest sessions above this size; null for no limit.",
    )
    git: list[GitCredentialSettings] = Field(
        default=[],
        description="Tokens by host; without one, SSH or no login is used.",
    )


class KeyReference(Group):
    """A key of a Kubernetes secret. The value itself is never in the file."""

    name: str = Field(min_length=1, max_length=253, description="The secret.")
    key: str = Field(
        "ANTHROPIC_API_KEY",
        min_length=1,
        max_length=253,
        description="The key in the secret that contains the value.",
    )


class OperatorSettings(Group):
    """The operator, which runs `AgenticSession` resources as Jobs in Kubernetes."""

    kubeconfig: Path | None = Field(
        None, description="The kubeconfig file; null for the pod's service account."
    )
    context: str | None = Field(
        None, description="The context in the kubeconfig; null for the current one."
    )
    namespaces: list[str] = Field(
        default=[],
        description="Namespaces in which sessions run; empty for all.",
    )
    image: str | None = Field(
        None, description="The image that runs a session; without it no session runs."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        None,
        description="When the image is pulled; null for the default of Kubernetes.",
    )
    image_pull_secrets: list[str] = Field(
        default=[], description="Secrets for the registry, by name."
    )
    api_key_secret: KeyReference | None = Field(
        None,
        description="The secret with the API key, in the session's namespace, for resources that name none.",
    )
    base_url: Url | None = Field(
        None, description="The URL of the Messages API; null for Anthropic's."
    )
    model: str | None = Field(
        None,
        description="The model for resources that name none; null for sessions.model.",
    )
    variables: dict[str, str] = Field(
        default={},
        description="Environment variables of every session; those of the resource take precedence.",
    )
    storage: Literal["ephemeral", "claim"] = Field(
        "ephemeral",
        description="Where the workspace is: on the pod's own disk, or on a volume claim per session.",
    )
    claim_size: str = Field(
        "20Gi", description="Size of a volume claim, as a Kubernetes quantity."
    )
    storage_class: str | None = Field(
        None,
        description="Storage class of a volume claim; null for the cluster's default.",
    )
    workspace_size: str | None = Field(
        "20Gi",
        description="Size limit of the pod's own disk; above it the pod is evicted. null for no limit.",
    )
    content_url: Url | None = Field(
        None, description="The URL of the content proxy; null for none."
    )
    content_key_file: Path | None = Field(
        None,
        description="A file with the key that signs tokens, shared with the content proxy.",
    )
    resources: dict[str, Any] = Field(
        default_factory=lambda: {
            "requests": {"cpu": "500m", "memory": "1Gi"},
            "limits": {"memory": "4Gi"},
        },
        description="Resource requests and limits of a session; each that the resource names replaces the one here.",
    )
    node_selector: dict[str, str] = Field(
        default={}, description="Labels of the nodes that sessions run on."
    )
    tolerations: list[dict[str, Any]] = Field(
        default=[], description="Tolerations of a session's pod."
    )
    service_account_annotations: dict[str, str] = Field(
        default={},
        description="Annotations of each session's service account.",
    )
    pod_labels: dict[str, str] = Field(
        default={}, description="Labels added to each session's pod."
    )
    pod_annotations: dict[str, str] = Field(
        default={},
        description="Annotations of each session's pod; those of the resource take precedence.",
    )
    runtime_class: str | None = Field(
        None,
        description="Runtime class of sessions that name none, such as gvisor; null for the cluster's default.",
    )
    priority_class: str | None = Field(
        None,
        description="Priority class of sessions that name none; null for the cluster's default.",
    )
    image_pull_grace: Seconds = Field(
        120.0,
        ge=0,
        description="How long pulling the image may fail before the session fails.",
    )
    unschedulable_grace: Seconds = Field(
        600.0,
        ge=0,
        description="How long a pod may be unschedulable before the session fails.",
    )
    termination_grace: Seconds = Field(
        60.0,
        ge=1,
        description="Time that a pod gets to save its work when it is stopped.",
    )
    deadline_margin: Seconds = Field(
        180.0,
        ge=0,
        description="Time between the session's timeout and the Job's deadline, for the pod to push, save and report.",
    )
    idle_margin: Seconds = Field(
        60.0,
        ge=0,
        description="How long after its idle limit the operator stops a session that did not stop itself.",
    )
    job_ttl: Seconds = Field(
        3600.0, ge=0, description="How long a finished Job and its log are kept."
    )
    sync_interval: Seconds = Field(
        5.0, gt=0, description="Time between two syncs of a pod's workspace."
    )
    status_interval: Seconds = Field(
        5.0,
        gt=0,
        description="Shortest time between two status writes of a pod while its phase is unchanged.",
    )
    request_timeout: Seconds = Field(
        30.0, gt=0, description="Timeout of one request to the API server."
    )
    watch_timeout: Seconds = Field(
        300.0, gt=0, description="A watch is opened again after this time."
    )
    watch_silence: Seconds = Field(
        70.0,
        gt=0,
        description="A watch without an event for this time is opened again; the API server sends one each minute.",
    )
    backoff: Seconds = Field(
        2.0, gt=0, description="First wait after a failed request; doubles each time."
    )
    backoff_max: Seconds = Field(
        60.0, gt=0, description="Longest wait after a failed request."
    )
    concurrency: int = Field(
        16, ge=1, le=256, description="Sessions that are reconciled at the same time."
    )
    host: str = Field(
        "0.0.0.0", description="Address that probes and Prometheus connect to."
    )
    port: int | None = Field(
        8080,
        ge=0,
        le=65535,
        description="Its port: /healthz, /readyz and /metrics; 0 for any, null for none.",
    )


class ContentSettings(Group):
    """The content proxy: a volume behind HTTP, where the workspaces of sessions outlive their pods."""

    root: Path = Field(
        Path("content"), description="The folder on the volume for all its data."
    )
    url: str | None = Field(
        None,
        description="An object store instead of `root`, so that several proxies can share it: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX. Credentials come from the environment.",
    )
    host: str = Field(
        "127.0.0.1", description="The address it listens on; 0.0.0.0 in a pod."
    )
    port: int = Field(
        8080, ge=0, le=65535, description="Its port; 0 for any, which is logged."
    )
    key_file: Path | None = Field(
        None,
        description="A file with signing keys of tokens, one a line: the first signs, all verify. Read again when it changes.",
    )
    max_entries: int = Field(
        500_000,
        ge=1,
        description="Most files, folders and symlinks of one session; each takes some 400 bytes of memory while in use.",
    )
    max_size: Bytes = Field(
        20_000_000_000,
        ge=1,
        description="Most bytes of all files of one session; with replaced files it may take twice that on the volume.",
    )
    max_body: Bytes = Field(
        134_217_728,
        ge=1024,
        description="Most bytes of a JSON request; a commit of 500,000 files has some 80 MB.",
    )
    max_streams: int = Field(
        16,
        ge=1,
        description="Concurrent uploads, downloads and commits; each takes some 10 MB of memory. Others wait.",
    )
    max_waiting: int = Field(
        4000, ge=1, description="Most requests that wait for a change at the same time."
    )
    cache_size: Bytes = Field(
        67_108_864, ge=0, description="Memory for the cache of manifests."
    )
    request_time: Seconds = Field(
        60.0,
        gt=0,
        description="Timeout of a request's head, its JSON, a chunk of its body, and of an answer that is not read.",
    )
    wait: Seconds = Field(
        60.0,
        gt=0,
        description="Longest wait for a change, also if a request asks for more.",
    )
    grace: Seconds = Field(
        20.0, ge=0, description="Time that requests in flight get after a stop."
    )
    collect_interval: Seconds = Field(
        900.0, gt=0, description="Time between two removals of unreferenced chunks."
    )
    collect_grace: Seconds = Field(
        3600.0,
        ge=0,
        description="How long an unreferenced chunk is kept: an upload may still need it.",
    )
    keep_for: Seconds | None = Field(
        None,
        ge=3600,
        description="Remove the folder of a session for good when it was not read or written for this time, such as 90d; null keeps all.",
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
    """The logs that daemons write to standard output."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The lowest level that is written."
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: JSON unless the log goes to a terminal."
    )


class Settings(Group):
    """All settings. `subjects` stay unparsed until their kinds are loaded."""

    database: str = Field(
        DEFAULT_DATABASE,
        description="sqlite:///FILE, sqlite:// (memory) or postgresql://USER@HOST/DB.",
    )
    anthropic: AnthropicSettings = AnthropicSettings()
    agent: AgentSettings = AgentSettings()
    investigation: InvestigationSettings = InvestigationSettings()
    monitor: MonitorSettings = MonitorSettings()
    sessions: SessionSettings = SessionSettings()
    forges: list[ForgeSettings] = Field(
        default=[],
        description="Forges beside github.com and gitlab.com, and their tokens.",
    )
    pull_requests: PullRequestSettings = PullRequestSettings()
    operator: OperatorSettings = OperatorSettings()
    content: ContentSettings = ContentSettings()
    metrics: MetricsSettings = MetricsSettings()
    changes: ChangeSettings = ChangeSettings()
    server: ServerSettings = ServerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    notifications: NotificationSettings = NotificationSettings()
    runbooks: RunbookSettings = RunbookSettings()
    log: LogSettings = LogSettings()
    schedules: Annotated[list[ScheduleSettings], AfterValidator(one_of_each_name)] = (
        Field(
            default=[],
            description="Sessions that start at times, by cron expressions.",
        )
    )
    subjects: list[dict[str, Any]] = Field(
        default=[], description="The systems to watch, see below."
    )

    def interval_of(self, subject: str) -> float:
        """Return the seconds between two observations of a subject."""
        for one in self.subjects:
            if one.get("name") == subject and one.get("interval") is not None:
                return parse_duration(one["interval"])
        return self.monitor.interval
