"""What GitHub, GitLab and Argo CD send about deployments: the public form of their webhooks, small, with other details."""

from __future__ import annotations

from typing import Any

HEAD = "0f3a9c1d2b4e5f60718293a4b5c6d7e8f9012345"
BEFORE = "aa3a9c1d2b4e5f60718293a4b5c6d7e8f9012345"

GITHUB_REPOSITORY = {
    "id": 7001,
    "name": "web",
    "full_name": "shop/web",
    "html_url": "https://github.com/shop/web",
    "clone_url": "https://github.com/shop/web.git",
    "ssh_url": "git@github.com:shop/web.git",
    "default_branch": "main",
    "pushed_at": 1772359200,
}


def github_deployment_status(state: str = "success", **more: Any) -> dict[str, Any]:
    return {
        "action": "created",
        "deployment_status": {
            "id": 12,
            "state": state,
            "creator": {"login": "ann"},
            "description": "Rolled out",
            "environment": "production",
            "target_url": "https://ci.shop.example/runs/12",
            "log_url": "https://ci.shop.example/runs/12/log",
            "created_at": "2026-03-01T10:00:00Z",
            **more,
        },
        "deployment": {
            "id": 11,
            "sha": HEAD,
            "ref": "v1.8.0",
            "task": "deploy",
            "environment": "production",
            "description": None,
            "creator": {"login": "ann"},
            "created_at": "2026-03-01T09:58:00Z",
        },
        "repository": GITHUB_REPOSITORY,
        "sender": {"login": "ann"},
    }


def github_push(ref: str = "refs/heads/main", **more: Any) -> dict[str, Any]:
    commit = {
        "id": HEAD,
        "message": "Size the pool by the load\n\nMore of it.",
        "timestamp": "2026-02-20T10:00:00+01:00",
        "author": {"name": "Ann", "email": "ann@shop.example"},
        "added": [],
        "removed": [],
        "modified": ["pool.ini"],
    }
    return {
        "ref": ref,
        "before": BEFORE,
        "after": HEAD,
        "compare": "https://github.com/shop/web/compare/aa3a9c1d2b4e...0f3a9c1d2b4e",
        "pusher": {"name": "ann"},
        "head_commit": commit,
        "commits": [commit],
        "repository": GITHUB_REPOSITORY,
        "sender": {"login": "ann"},
        **more,
    }


def github_release() -> dict[str, Any]:
    return {
        "action": "published",
        "release": {
            "id": 5,
            "tag_name": "v1.8.0",
            "name": "The pool",
            "html_url": "https://github.com/shop/web/releases/tag/v1.8.0",
            "published_at": "2026-03-01T09:00:00Z",
            "author": {"login": "bo"},
        },
        "repository": GITHUB_REPOSITORY,
        "sender": {"login": "bo"},
    }


def github_workflow_run() -> dict[str, Any]:
    return {
        "action": "completed",
        "workflow_run": {
            "id": 99,
            "name": "Deploy",
            "head_branch": "main",
            "head_sha": HEAD,
            "conclusion": "success",
            "html_url": "https://github.com/shop/web/actions/runs/99",
            "updated_at": "2026-03-01T10:01:00Z",
            "actor": {"login": "ann"},
        },
        "repository": GITHUB_REPOSITORY,
        "sender": {"login": "ann"},
    }


GITLAB_PROJECT = {
    "id": 15,
    "name": "web",
    "web_url": "https://gitlab.shop.example/shop/web",
    "git_ssh_url": "git@gitlab.shop.example:shop/web.git",
    "git_http_url": "https://gitlab.shop.example/shop/web.git",
    "path_with_namespace": "shop/web",
    "default_branch": "main",
}


def gitlab_deployment(status: str = "success") -> dict[str, Any]:
    return {
        "object_kind": "deployment",
        "status": status,
        "status_changed_at": "2026-03-01 11:00:00 +0100",
        "deployment_id": 31,
        "deployable_id": 796,
        "deployable_url": "https://gitlab.shop.example/shop/web/-/jobs/796",
        "environment": "production",
        "project": GITLAB_PROJECT,
        "short_sha": "0f3a9c1d",
        "user": {"name": "Ann", "username": "ann"},
        "commit_url": f"https://gitlab.shop.example/shop/web/-/commit/{HEAD}",
        "commit_title": "Size the pool by the load",
        "ref": "main",
    }


def gitlab_push() -> dict[str, Any]:
    return {
        "object_kind": "push",
        "event_name": "push",
        "before": BEFORE,
        "after": HEAD,
        "ref": "refs/heads/main",
        "checkout_sha": HEAD,
        "user_name": "Ann",
        "user_username": "ann",
        "project": GITLAB_PROJECT,
        "commits": [
            {
                "id": HEAD,
                "message": "Size the pool by the load\n",
                "timestamp": "2026-02-20T10:00:00+01:00",
                "url": f"https://gitlab.shop.example/shop/web/-/commit/{HEAD}",
                "author": {"name": "Ann"},
                "added": ["pool.ini"],
                "modified": [],
                "removed": [],
            }
        ],
        "total_commits_count": 1,
    }


def gitlab_tag_push() -> dict[str, Any]:
    return {
        "object_kind": "tag_push",
        "event_name": "tag_push",
        "before": "0" * 40,
        "after": HEAD,
        "ref": "refs/tags/v1.8.0",
        "checkout_sha": HEAD,
        "message": "The pool",
        "user_name": "Ann",
        "project": GITLAB_PROJECT,
        "commits": [],
        "total_commits_count": 0,
    }


def gitlab_pipeline() -> dict[str, Any]:
    return {
        "object_kind": "pipeline",
        "object_attributes": {
            "id": 31,
            "name": "Deploy",
            "ref": "main",
            "tag": False,
            "sha": HEAD,
            "status": "success",
            "created_at": "2026-03-01 09:50:00 UTC",
            "finished_at": "2026-03-01 10:00:00 UTC",
            "url": "https://gitlab.shop.example/shop/web/-/pipelines/31",
        },
        "user": {"name": "Ann", "username": "ann"},
        "project": GITLAB_PROJECT,
    }


def argocd(phase: str = "Succeeded") -> dict[str, Any]:
    return {
        "app": "shop-web",
        "project": "shop",
        "namespace": "shop-production",
        "repository": "https://github.com/shop/web",
        "revision": HEAD,
        "phase": phase,
        "message": "successfully synced (all tasks run)",
        "started_at": "2026-03-01T09:59:30Z",
        "finished_at": "2026-03-01T10:00:00Z",
        "url": "https://argocd.shop.example/applications/shop-web",
    }


def argocd_applications() -> list[tuple[dict[str, Any], str]]:
    """Applications as Argo CD has them, each with the revision that counts: synced, begun without a result, of two sources."""
    source = {"repoURL": "https://github.com/shop/web", "path": "deploy"}
    state = {
        "phase": "Succeeded",
        "message": 'successfully synced "all" (all tasks run)',
        "startedAt": "2026-03-01T09:59:30Z",
        "finishedAt": "2026-03-01T10:00:00Z",
        "operation": {"sync": {"revision": HEAD}, "initiatedBy": {"automated": True}},
        "syncResult": {"revision": HEAD, "source": source},
    }
    begun = {"phase": "Running", "startedAt": "2026-03-01T09:59:30Z"}
    several = {"revisions": [BEFORE, HEAD], "sources": [source, source]}

    def app(name: str, state: dict[str, Any], **spec: Any) -> dict[str, Any]:
        destination = {"server": "https://kubernetes.default.svc", "namespace": "shop"}
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name, "namespace": "argocd"},
            "spec": {"project": "shop", "destination": destination, **spec},
            "status": {"operationState": state, "sync": {"status": "Synced"}},
        }

    return [
        (app("synced", state, source=source), HEAD),
        (app("begun", begun, source=source), ""),
        (
            app("several", {**state, "syncResult": several}, sources=[source, source]),
            BEFORE,
        ),
    ]
