"""URLs that people paste: what clone buttons show is accepted, secrets are refused and never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.workspace.errors import WorkspaceRefused
from midwatch.workspace.plan import RepoSpec, plan_workspace
from midwatch.workspace.urls import parse_remote, redact_url

TOKEN = "hunter2"

CLONE_BUTTONS = [
    # Azure DevOps, Services and Server
    (
        "https://org@dev.azure.com/org/My%20Project/_git/My%20Repo",
        "https://dev.azure.com/org/My%20Project/_git/My%20Repo",
        "My-Repo",
    ),
    ("https://dev.azure.com/org/p/_git/r", None, "r"),
    ("https://org.visualstudio.com/DefaultCollection/p/_git/r", None, "r"),
    ("https://tfs.example/tfs/DefaultCollection/p/_git/r", None, "r"),
    ("git@ssh.dev.azure.com:v3/org/My%20Project/r", None, "r"),
    ("org@vs-ssh.visualstudio.com:v3/org/p/r", None, "r"),
    ("ssh://tfs.example:22/tfs/DefaultCollection/p/_git/r", None, "r"),
    # Bitbucket, Cloud and Data Center
    (
        "git clone https://emma@bitbucket.org/team/r.git",
        "https://bitbucket.org/team/r.git",
        "r",
    ),
    ("git clone git@bitbucket.org:team/r.git", "git@bitbucket.org:team/r.git", "r"),
    (
        "https://emma%40example.org@bitbucket.example/scm/~emma/r.git",
        "https://bitbucket.example/scm/~emma/r.git",
        "r",
    ),
    ("https://bitbucket.example/context/scm/prj/r.git", None, "r"),
    ("ssh://git@bitbucket.example:7999/prj/r.git", None, "r"),
    ("ssh://git@bitbucket.example:7999/~emma/r.git", None, "r"),
    # GitHub, Enterprise and gists
    ("https://github.com/o/r.git", None, "r"),
    ("https://github.com/o/r", None, "r"),
    ("https://github.com/o/r/", "https://github.com/o/r", "r"),
    ("https://www.github.com/o/r", None, "r"),
    ("https://github.com:443/o/r.git", "https://github.com/o/r.git", "r"),
    ("git@github.com:o/r.git", None, "r"),
    ("org-4711@github.com:o/r.git", None, "r"),
    ("ssh://git@ssh.github.com:443/o/r.git", None, "r"),
    ("https://github.example/o/r.git", None, "r"),
    ("git@acme.ghe.com:o/r.git", None, "r"),
    ("https://github.com/o/r.wiki.git", None, "r.wiki"),
    ("https://gist.github.com/0a1b2c.git", None, "0a1b2c"),
    ("https://gist.github.com/emma/0a1b2c", None, "0a1b2c"),
    ("git@gist.github.com:0a1b2c.git", None, "0a1b2c"),
    # GitLab
    ("https://gitlab.com/g/s/t/r.git", None, "r"),
    ("git@gitlab.com:g/s/t/r.git", None, "r"),
    ("ssh://git@altssh.gitlab.com:443/g/r.git", None, "r"),
    ("ssh://git@gitlab.example:2222/g/s/r.git", None, "r"),
    ("https://gitlab.example/gitlab/g/tree.git", None, "tree"),
    # Gitea, Forgejo, SourceHut, Launchpad, Gerrit
    ("https://codeberg.org/o/r.git", None, "r"),
    ("gitea@gitea.example:o/r.git", None, "r"),
    ("ssh://git@gitea.example:222/o/r.git", None, "r"),
    ("https://git.sr.ht/~emma/r", None, "r"),
    ("git@git.sr.ht:~emma/r", None, "r"),
    (
        "git+ssh://emma@git.launchpad.net/~emma/r",
        "ssh://emma@git.launchpad.net/~emma/r",
        "r",
    ),
    (
        'git clone "ssh://emma@review.example:29418/a/r"',
        "ssh://emma@review.example:29418/a/r",
        "r",
    ),
    ("https://emma@review.example/a/x/r", "https://review.example/a/x/r", "r"),
    # AWS CodeCommit, Google
    ("https://git-codecommit.us-east-2.amazonaws.com/v1/repos/r", None, "r"),
    (
        "ssh://APKAEIBAERJR2EXAMPLE@git-codecommit.us-east-1.amazonaws.com/v1/repos/r",
        None,
        "r",
    ),
    ("https://source.developers.google.com/p/p/r/r", None, "r"),
    (
        "ssh://emma@example.org@source.developers.google.com:2022/p/p/r/r",
        "ssh://emma%40example.org@source.developers.google.com:2022/p/p/r/r",
        "r",
    ),
    ("https://chromium.googlesource.com/chromium/src.git", None, "src"),
    # package managers
    ("git+https://github.com/o/r.git", "https://github.com/o/r.git", "r"),
]


@pytest.mark.parametrize(("text", "url", "folder"), CLONE_BUTTONS)
def test_what_clone_buttons_show(text: str, url: str | None, folder: str) -> None:
    [repo] = plan_workspace([text], Path("/ws")).repos
    assert (repo.url, repo.name, repo.branch) == (url or text, folder, None)
    [repo] = plan_workspace([RepoSpec(text)], Path("/ws")).repos
    assert (repo.url, repo.name) == (url or text, folder)


@pytest.mark.parametrize("text", [text for text, _, _ in CLONE_BUTTONS])
@pytest.mark.parametrize("branch", ["main", "fix/x", "dependabot/npm/@types/node-20"])
def test_a_branch_after_what_clone_buttons_show(text: str, branch: str) -> None:
    quoted = text.endswith('"')
    spec = RepoSpec.parse(f'{text[:-1]}@{branch}"' if quoted else f"{text}@{branch}")
    if text.endswith("/"):  # an @ after a slash begins a name
        assert spec.branch is None
    else:
        assert (spec.remote, spec.branch) == (parse_remote(text), branch)


def test_a_user_name_makes_no_other_repository() -> None:
    urls = [f"https://{user}dev.azure.com/o/p/_git/r" for user in ("", "o@", "me@")]
    assert len({parse_remote(url) for url in urls}) == 1
    with pytest.raises(WorkspaceRefused, match="twice"):
        plan_workspace(urls[:2], Path("/ws"))


SECRETS = [
    f"https://me:{TOKEN}@h/x",
    f"https://:{TOKEN}@h/x",
    f"https://oauth2:{TOKEN}@gitlab.com/g/r.git",
    f"https://x-token-auth:{TOKEN}@bitbucket.org/o/r.git@main",
    f"https://me@example.org:{TOKEN}@h/x",
    f"https://me%3A{TOKEN}@h/x",
    f"https://me:pass/{TOKEN}@h/x",
    f"https://me:p@ss/{TOKEN}@h/x@main",
    f"https://me:12{TOKEN}/34@h/x",
    f"https://me:pass?{TOKEN}@h/x",
    f"https://me:pass#{TOKEN}@h/x",
    f"https://ghp_abcdefghij0123456789{TOKEN}@github.com/o/r",
    f"https://glpat-abcdefghij0123456789{TOKEN}@gitlab.com/o/r.git@main",
    f"https://{TOKEN}abcdefghij0123456789abcdef@dev.azure.com/o/p/_git/r",
    f"https://h/x?private_token={TOKEN}",
    f"https://h/x#{TOKEN}",
    f"https://github.com/o/r/tree/main?token={TOKEN}",
    f"ssh://me:{TOKEN}@h/x",
    f"ssh://me@example.org:{TOKEN}@h/x",
    f"me:{TOKEN}@h:x",
    f"me:pass/{TOKEN}@h:x",
    f"me:pass/{TOKEN}@h:x@main",
    f"git clone https://me:{TOKEN}@h/x",
    f"git clone https://me:{TOKEN}@h/x folder",
    f"git clone --depth=1 https://me:{TOKEN}@h/x",
    f"gh repo clone https://me:{TOKEN}@h/x",
    f"git+https://me:{TOKEN}@h/x",
    f"ext::https://me:{TOKEN}@h/%0a",
    f"ftp://me:{TOKEN}@h/x",
    # Cut off, or one slash too few or too many.
    f"me:{TOKEN}@git.example.org/o/r",
    f"me:{TOKEN}@git.example.org/o/r.git@main",
    f"ghp_abcdefghij0123456789{TOKEN}@github.com/o/r",
    f"https:me:{TOKEN}@h.org/o/r",
    f"https:/me:{TOKEN}@h/x",
    f"https:/me:{TOKEN}@h/x@main",
    f"HTTPS:///me:{TOKEN}@h/x",
    f"ssh:/me:{TOKEN}@h/x",
    f"git clone -c http.extraHeader='Authorization: Bearer abcdefgh{TOKEN}' https://h/x",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_refused_and_never_repeated(text: str) -> None:
    for repo in (text, RepoSpec(text), RepoSpec("https://h/y", push_url=text)):
        with pytest.raises(WorkspaceRefused) as caught:
            plan_workspace([repo], Path("/ws"))
        assert TOKEN not in caught.value.one_line()
        assert TOKEN not in str(caught.value.__context__ or "")


@pytest.mark.parametrize("text", SECRETS[:13])
def test_a_refused_secret_is_named_as_such(text: str) -> None:
    with pytest.raises(WorkspaceRefused, match="a password or a token") as caught:
        plan_workspace([text], Path("/ws"))
    assert "as a token for the host" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["https:/h/o/r", "https:h/o/r", "ssh:/git@h/o/r", "https:///h/o/r"]
)
def test_a_wrong_number_of_slashes_is_named(text: str) -> None:
    with pytest.raises(WorkspaceRefused, match="slashes") as caught:
        plan_workspace([text], Path("/ws"))
    assert caught.value.hint == f"write {text.partition(':')[0]}://HOST/PATH"


@pytest.mark.parametrize(
    "text",
    ["https://stra\u00dfe.example/o/r", "https://o\ufb03ce.example/o/r"]
    + ["ssh://git@\u03c3\u03c2.example/o/r", "https://github.com\\@evil.example/o/r"],
)
def test_a_host_that_another_program_reads_otherwise_is_refused(text: str) -> None:
    with pytest.raises(WorkspaceRefused, match="ambiguous|user name"):
        parse_remote(text)


def test_an_empty_port_is_none_and_a_path_is_no_port() -> None:
    assert parse_remote("ssh://git@h:/o/r").url == "ssh://git@h/o/r"
    assert parse_remote("https://H:/o/r").url == "https://h/o/r"
    assert (
        parse_remote("https://Mu\u0308nchen.example/o").host == "xn--mnchen-3ya.example"
    )
    sharp = "https://xn--strae-oqa.example/o/r"
    assert parse_remote(sharp).url == sharp
    with pytest.raises(WorkspaceRefused) as caught:
        parse_remote("ssh://git@github.com:o/r.git")
    assert "ssh://HOST/PATH" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["host:app@v1.2/x", "host:app.git@release.io/x", "git@h.org:o/r@a.dev/x"]
)
def test_a_branch_with_a_dot_is_no_host(text: str) -> None:
    url, _, branch = text.rpartition("@")
    [repo] = plan_workspace([text], Path("/ws")).repos
    assert (repo.url, repo.branch) == (url, branch)


def test_what_only_a_user_name_can_be_is_dropped() -> None:
    # A token of an unknown shape does no harm either: it reaches neither git nor the disk.
    [repo] = plan_workspace([f"https://{TOKEN}@h/x"], Path("/ws")).repos
    assert repo.url == "https://h/x" and TOKEN not in repr(repo)


NAMES = st.text(st.sampled_from("abz09-_.~"), min_size=1, max_size=8)
PASSWORDS = st.text(st.sampled_from("ab1:/?#@%&=+!$*"), max_size=8)


@given(NAMES, PASSWORDS, PASSWORDS, st.sampled_from(["", "@main", "@fix/x"]))
def test_no_password_is_ever_shown(user: str, a: str, b: str, branch: str) -> None:
    # 12345 before a slash is a port, and no rule could tell.
    text = f"https://{user}:x{a}{TOKEN}{b}@host.example/o/r{branch}"
    assert TOKEN not in redact_url(text)
    assert TOKEN not in redact_url(f"fatal: unable to access '{text}': gone")
    with pytest.raises(WorkspaceRefused) as caught:
        plan_workspace([text], Path("/ws"))
    assert TOKEN not in caught.value.one_line()


PAGES = [
    ("https://github.com/o/r/tree/main", "https://github.com/o/r.git", "'main'"),
    ("https://github.com/o/r/tree/fix/x", "https://github.com/o/r.git", "'fix/x'"),
    (
        "https://github.com/o/r/blob/main/a.py#L3",
        "https://github.com/o/r.git",
        "'main/a.py'",
    ),
    ("https://github.com/o/r/pull/12/files", "https://github.com/o/r.git", ""),
    ("https://github.com/o/r/issues", "https://github.com/o/r.git", ""),
    ("https://github.com/o/r/releases/tag/v1", "https://github.com/o/r.git", ""),
    ("https://github.example/o/r/tree/main", "https://github.example/o/r.git", "main"),
    ("https://github.example/o/r/pull/7", "https://github.example/o/r.git", ""),
    ("https://raw.githubusercontent.com/o/r/main/a", "https://github.com/o/r.git", ""),
    ("https://api.github.com/repos/o/r", "https://github.com/o/r.git", ""),
    ("https://gist.github.com/me/0a/revisions", "https://gist.github.com/0a.git", ""),
    (
        "https://gitlab.com/g/s/r/-/tree/main?ref_type=heads",
        "https://gitlab.com/g/s/r.git",
        "'main'",
    ),
    (
        "https://gitlab.example/x/g/r/-/merge_requests/3",
        "https://gitlab.example/x/g/r.git",
        "",
    ),
    ("https://bitbucket.org/w/r/src/main/", "https://bitbucket.org/w/r.git", "'main'"),
    ("https://bitbucket.org/w/r/pull-requests/3", "https://bitbucket.org/w/r.git", ""),
    (
        "https://bitbucket.example/projects/P/repos/r/browse?at=refs%2Fheads%2Fdev",
        "https://bitbucket.example/scm/P/r.git",
        "'dev'",
    ),
    (
        "https://bitbucket.example/users/me/repos/r",
        "https://bitbucket.example/scm/~me/r.git",
        "",
    ),
    (
        "https://dev.azure.com/o/My%20P/_git/r?path=/a&version=GBdev",
        "https://dev.azure.com/o/My%20P/_git/r",
        "'dev'",
    ),
    (
        "https://dev.azure.com/o/p/_git/r/pullrequest/3",
        "https://dev.azure.com/o/p/_git/r",
        "",
    ),
    ("https://codeberg.org/o/r/src/branch/dev", "https://codeberg.org/o/r.git", "dev"),
    ("https://gitea.example/o/r/src/tag/v1", "https://gitea.example/o/r.git", ""),
    (
        "https://chromium.googlesource.com/a/b/+/refs/heads/dev/x",
        "https://chromium.googlesource.com/a/b",
        "'dev/x'",
    ),
    (
        "https://source.cloud.google.com/p/r/+/dev:a/b",
        "https://source.developers.google.com/p/p/r/r",
        "'dev'",
    ),
    (
        "https://eu-west-1.console.aws.amazon.com/codesuite/codecommit/repositories/r/browse",
        "https://git-codecommit.eu-west-1.amazonaws.com/v1/repos/r",
        "",
    ),
]


@pytest.mark.parametrize(("text", "url", "branch"), PAGES)
def test_a_web_page_is_refused_with_the_url_to_clone(
    text: str, url: str, branch: str
) -> None:
    with pytest.raises(WorkspaceRefused, match="web page") as caught:
        plan_workspace([text], Path("/ws"))
    words = caught.value.hint.split()
    assert url in words and branch in caught.value.hint
    assert ("@BRANCH" in caught.value.hint) == bool("branch" in caught.value.hint)
    assert parse_remote(url).url == url  # the hint can be followed


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("github.com/o/r", "https://github.com/o/r"),
        ("github.com/o/r@main", "https://github.com/o/r"),
        ("git@github.com/o/r.git", "git@github.com:o/r.git"),
        ("git@github.com/o/r@main", "git@github.com:o/r"),
        ("https:/github.com/o/r", "https://"),
        ("https://github.com/o/r?tab=readme", "URL@BRANCH"),
        ("https://github.com/o/r#main", "URL@BRANCH"),
        ("https://github.com/o/r@", "URL@BRANCH"),
        ("git clone -b main https://github.com/o/r", "the URL alone"),
        ("git clone https://github.com/o/r folder", "the URL alone"),
        ("git clone 'https://github.com/o/r", "the URL alone"),
        ("gh repo clone o/r", "the URL alone"),
        ("gcloud source repos clone r --project=p", "the URL alone"),
        (
            "git clone codecommit::eu-west-1://profile@r",
            "https://git-codecommit.eu-west-1.amazonaws.com/v1/repos/r",
        ),
    ],
)
def test_a_common_mistake_is_refused_with_what_to_write(text: str, hint: str) -> None:
    with pytest.raises(WorkspaceRefused) as caught:
        plan_workspace([text], Path("/ws"))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "url", "branch"),
    [
        ("https://h/a/b.git@v1.git", "https://h/a/b.git", "v1.git"),
        ("https://h/u/me@corp/r.git", "https://h/u/me@corp/r.git", None),
        ("https://h/u/me@corp/r.git@dev", "https://h/u/me@corp/r.git", "dev"),
        ("https://h/@scope/r", "https://h/@scope/r", None),
        ("https://h/@scope/r@dev", "https://h/@scope/r", "dev"),
        ("https://[fe80::1]:8443/a/b@dev", "https://[fe80::1]:8443/a/b", "dev"),
        ("http://h:8080/r@dev", "http://h:8080/r", "dev"),
        ("https://me@h:8443/r@dev", "https://h:8443/r", "dev"),
        ("git@h:r@dev", "git@h:r", "dev"),
        ("me@example.org@h:r@dev", "me@example.org@h:r", "dev"),
        ("h:r@dev", "h:r", "dev"),
        ("/srv/@scope/r", "/srv/@scope/r", None),
        ("/srv/@scope/r@fix/@x", "/srv/@scope/r", "fix/@x"),
        ("file:///srv/r@dev", "file:///srv/r", "dev"),
    ],
)
def test_where_the_branch_begins(text: str, url: str, branch: str | None) -> None:
    spec = RepoSpec.parse(text)
    assert (spec.remote.url, spec.branch) == (url, branch)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_path_that_exists_is_not_cut(tmp_path: Path, form: str) -> None:
    (tmp_path / "a@b.git@c").mkdir()
    text = form.format(tmp_path / "a@b.git@c")
    for pasted, branch in (
        (text, None),
        (f"{text}@dev", "dev"),
        (f"{text}@x@y", "x@y"),
    ):
        spec = RepoSpec.parse(pasted)
        assert (spec.url, spec.branch) == (text, branch)
    # A Path object is never cut: it can say what it means.
    [repo] = plan_workspace([tmp_path / "r@dev"], tmp_path / "ws").repos
    assert repo.branch is None and repo.url == str(tmp_path / "r@dev")


def test_a_relative_path_that_looks_like_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.org/o/r").mkdir(parents=True)
    spec = RepoSpec.parse("example.org/o/r@dev")
    assert (spec.remote.url, spec.branch) == (f"{tmp_path}/example.org/o/r", "dev")
    assert RepoSpec.parse("./other.org/o/r").remote.url == f"{tmp_path}/other.org/o/r"
